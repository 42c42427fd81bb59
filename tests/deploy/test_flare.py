"""The same federation as an NVFlare job: its simulator starts a process a site."""

import json
import sys

import pytest

pytest.importorskip(
    "nvflare", reason='NVFlare is not installed: pip install "fedjax_lite[nvflare]"'
)
from problem_of_three import NUM_CLIENTS, PROBLEM, check_rounds, module_of, write_data
from started import HOST, Processes

if not sys.platform.startswith("linux"):
    pytest.skip("reads /proc", allow_module_level=True)

NUM_ROUNDS, FAILS, FAILS_IN = 3, 1, 2

APP = (
    PROBLEM
    + '''
class Hospital(fl.deploy.flare_client(algo, KEY, START, examples)):
    """One of them fails in its second round, when its row is written."""

    asked = 0

    def execute(self, *args):
        reply = super().execute(*args)
        Hospital.asked += 1  # the first asks for sizes
        if self.client_id == 1 and Hospital.asked == 3:
            raise RuntimeError("the power is gone")
        return reply

class Server(fl.deploy.flare_server(
    algo, KEY, START, num_rounds=3, timeout=120, evaluate=keep
)):
    pass
'''
)

JOB = """
import pathlib, sys
sys.path.insert(0, "app")
from nvflare.job_config.api import FedJob
from hospitals import Hospital, Server

here = pathlib.Path.cwd()
job = FedJob("hospitals", min_clients=3)
job.set_app_packages(["fedjax_lite"])  # installed at every site; hospitals.py is the job's own
job.to(Server(sites=["site-1", "site-2", "site-3"], folder=str(here / "run")), "server")
for i in range(3):
    client = Hospital(client_id=i, folder=str(here / f"rows-{i}"), data=str(here / f"{i}.npz"))
    job.to(client, f"site-{i + 1}")
job.simulator_run(str(here / "workspace"), threads=3)
"""


@pytest.fixture
def processes(tmp_path):
    started = Processes(tmp_path)
    yield started
    started.end()


@pytest.mark.slow
def test_sites_reach_the_simulation_and_one_fails(processes, tmp_path):
    """SCAFFOLD with error feedback; who failed in a round dropped out of it."""
    data, app = write_data(tmp_path), tmp_path / "app"
    app.mkdir()
    (app / "hospitals.py").write_text(APP)
    (tmp_path / "job.py").write_text(JOB)
    job = processes.start("job", "python", "job.py")
    try:
        processes.wait(lambda: job.poll() is not None, "the job is done")
        assert job.returncode == 0
        rows = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    except BaseException:
        print(processes.logs())
        raise
    here = [[True] * 3, [i != FAILS for i in range(NUM_CLIENTS)], [True] * 3]
    check_rounds(tmp_path / "rounds", module_of(app / "hospitals.py"), data, here)
    assert [json.loads(row)["num_clients"] for row in rows] == [3, 2, 3]
    assert {host for host, _ in processes.listening | processes.connected} == {HOST}
    assert processes.pickled() == ""
