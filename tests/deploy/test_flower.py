"""The same federation over Flower: real processes, and the numbers of the simulation."""

import json
import os
import sys

import pytest

pytest.importorskip("flwr", reason='Flower is not installed: pip install "fedjax_lite[flower]"')
from problem_of_three import NUM_CLIENTS, PROBLEM, check_rounds, module_of, write_data
from started import HOST, PROJECT, Processes

import fedjax_lite as fl
from fedjax_lite.run import checkpoint

if not sys.platform.startswith("linux"):
    pytest.skip("reads /proc", allow_module_level=True)

NUM_ROUNDS, KILLED, DIES_IN = 3, 1, 2

APP = (
    PROBLEM
    + '''
client = fl.deploy.flower_client(algo, KEY, START, lambda config: examples(config["data"]))
server = fl.deploy.flower_server(
    algo, KEY, START, num_clients=3, num_rounds=1, timeout=120, evaluate=keep
)

@client.lifespan()
def killed_before_its_reply_leaves(context):
    """The machine dies when its row of a round is written: the SuperNode, and what it started."""
    yield
    config = context.node_config
    rows = list(pathlib.Path(config["folder"]).glob("*.packet"))
    if config.get("dies-in") and rows:
        rounds = fl.deploy.decode(rows[0].read_bytes()).fields["round"] + 1
        if rounds == config["dies-in"]:
            os.kill(int(pathlib.Path(config["pid"]).read_text()), signal.SIGKILL)
            os.kill(os.getpid(), signal.SIGKILL)
'''
)


@pytest.fixture
def processes(tmp_path):
    keys = fl.deploy.make_certificates(tmp_path / "tls", num_clients=1, host=HOST).server
    tls = {"ca-certfile": keys.authority, "certfile": keys.certificate, "keyfile": keys.key}
    started = Processes(tmp_path, tls)
    yield started
    started.end()


@pytest.mark.slow
def test_supernodes_reach_the_simulation_and_one_is_killed(processes, tmp_path):
    """SCAFFOLD with error feedback: rows and what was not sent lie on the clients' disks.

    A SuperNode is killed in its second round, when its row is written and its reply has not left,
    and comes back: the simulation with a mask in which it dropped out of that round. With
    FEDJAX_LITE_TESTS=all the server is killed, too, and another run goes on from its folder; that
    takes a minute more, in which the SuperLink waits for the killed one.
    """
    data, app = write_data(tmp_path), tmp_path / "app"
    app.mkdir()
    (app / "pyproject.toml").write_text(PROJECT)
    (app / "federation.py").write_text(APP)

    def start(i, **more):
        name = f"node-{i}"
        config = {"client-id": i, "data": f"{tmp_path}/{i}.npz", "folder": f"{tmp_path}/rows-{i}"}
        port = processes.supernode(name, config | more)
        (tmp_path / f"{name}.pid").write_text(str(processes.started[name].pid))
        return port

    try:
        processes.superlink()
        dies = {"dies-in": DIES_IN, "pid": f"{tmp_path}/node-{KILLED}.pid"}
        ports = {start(i, **(dies if i == KILLED else {})) for i in range(NUM_CLIENTS)}
        config = {"num-rounds": NUM_ROUNDS, "folder": str(tmp_path / "run")}
        processes.run(app, config)
        node, rows = processes.started[f"node-{KILLED}"], tmp_path / "run" / "metrics.jsonl"
        processes.wait(lambda: node.poll() is not None, "it is killed")
        ports |= {start(KILLED)}
        if os.environ.get("FEDJAX_LITE_TESTS") == "all":
            saved = tmp_path / "run" / "checkpoints"
            processes.wait(lambda: DIES_IN in checkpoint.steps(saved), "its round is over")
            assert processes.kill("flwr-serverapp")
            processes.run(app, config)
        processes.wait(
            lambda: rows.exists() and len(rows.read_text().splitlines()) == NUM_ROUNDS, "rounds"
        )
    except BaseException:
        print(processes.logs())
        raise

    here = [[True] * 3, [i != KILLED for i in range(NUM_CLIENTS)], [True] * 3]
    check_rounds(tmp_path / "rounds", module_of(app / "federation.py"), data, here)
    asked = [json.loads(line) for line in rows.read_text().splitlines()]
    assert [row["num_clients"] for row in asked] == [3, 2, 3]
    assert processes.listening == {(HOST, port) for port in {processes.port} | ports}
    assert {host for host, _ in processes.connected} == {HOST}
    assert processes.pickled() == ""
