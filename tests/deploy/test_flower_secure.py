"""Secure aggregation over Flower, which starts a process for every message: the sums of the
simulation, its epsilon, and machines that are killed in the middle of a session and come back."""

import json
import sys
from pathlib import Path

import jax
import numpy as np
import optax
import pytest

pytest.importorskip("flwr", reason='Flower is not installed: pip install "fedjax_lite[flower]"')
from federations import KEY, PLAN, loss, population, start
from flower_here import Grid, be_in_a_task, context_of, supernode
from problem_of_three import NUM_CLIENTS, PROBLEM, check_rounds, module_of, write_data
from secure_world import N, same_bytes
from started import HOST, PROJECT, Processes

import fedjax_lite as fl
from fedjax_lite.crypto.prg import primitives
from fedjax_lite.deploy import (
    SecureSettings,
    federate,
    flower_client,
    flower_grid,
    flower_server,
    in_process,
    node,
    secure_server,
)

ROUNDS, DELTA = 2, 1e-3
NOISE = {
    "of the server": (
        fl.privacy.secure_gaussian(
            clip=0.3, cohort_size=N, delta=DELTA, noise_multiplier=1.0, num_rounds=5
        ),
        SecureSettings(threshold=3),
    ),
    "of the clients": (
        fl.privacy.distributed_discrete_gaussian(
            clip=1.0, cohort_size=N, dimension=4, delta=DELTA, noise_multiplier=2.0, bits=16,
            num_rounds=5,
        ),
        SecureSettings(threshold=3, min_survivors=N),
    ),
}  # fmt: skip


@pytest.fixture
def hasty(monkeypatch):
    """Tasks of Flower's in this process, whose exchanges look often."""
    be_in_a_task(monkeypatch)
    monkeypatch.setattr(flower_grid.time, "sleep", lambda seconds: None)


def simulated(algo):
    _, data = population()
    state, states = algo.init(KEY, start(), data), []
    for _ in range(ROUNDS):
        state, _ = algo.round(KEY, state, data)
        states.append(state)
    return states


def part(config):
    return population()[0][config["client-id"]]


def run_here(algo, secure, place, *, keys=(KEY, KEY), identity=None, grid=Grid):
    """A run whose messages each make their node anew; states, and the server's rows."""
    app = flower_client(algo, keys[0], start(), part, secure=secure, identity=identity)
    nodes = {
        10 + i: supernode(app, {"client-id": i, "folder": str(place / f"rows-{i}")})
        for i in range(N)
    }
    seen = []
    server = flower_server(
        *(algo, keys[1], start()), num_clients=N, num_rounds=ROUNDS, folder=place / "run",
        timeout=25, evaluate=lambda state: seen.append(state) or {}, secure=secure,
    )  # fmt: skip
    server(grid(nodes), context_of({}, {}))
    rows = (place / "run" / "metrics.jsonl").read_text().splitlines()
    return seen, [json.loads(row) for row in rows]


@pytest.mark.parametrize("whose", NOISE)
def test_noise_is_accounted_at_the_server(whose, hasty, tmp_path):
    """Round by round the state, and the epsilon, of the simulation and of nodes that stay."""
    mechanism, secure = NOISE[whose]
    algo = fl.fedavg(loss, optax.sgd(0.1), plan=PLAN, privacy=mechanism)
    seen, rows = run_here(algo, secure, tmp_path)
    answers = {
        i: node(algo, KEY, start(), own, client_id=i, folder=tmp_path / "stay", secure=secure)
        for i, own in enumerate(population()[0])
    }
    hub = secure_server(algo, KEY, start(), num_clients=N, secure=secure)
    done = federate(hub, in_process(answers), num_rounds=ROUNDS)
    same_bytes(seen[-1].server, done.served.state.server)
    states = simulated(algo)
    assert algo.accountant is not None
    for r, (mine, theirs, row) in enumerate(zip(seen, states, rows, strict=True)):
        same_bytes(mine.server, theirs.server)
        assert row["epsilon"] == pytest.approx(algo.accountant.spent(theirs)["epsilon"])
        assert row["epsilon"] == pytest.approx(done.rows[r]["epsilon"])
        assert "train_loss" not in row
    if whose == "of the server":  # Gaussian DP of r rounds of noise multiplier 1
        for r, row in enumerate(rows):
            expected = fl.privacy.gdp_epsilon(DELTA, np.sqrt(r + 1))
            assert row["epsilon"] == pytest.approx(expected, rel=1e-6)
    assert not list(tmp_path.glob("rows-*/*.session"))


def test_keys_that_machines_read(hasty, tmp_path):
    """Clients of full batches have keys of their own, and the model has the noise of the key that
    the server read."""
    algo = fl.fedavg(
        loss, optax.sgd(0.1), plan=fl.Plan(batch_size=None), privacy=NOISE["of the server"][0]
    )
    read = []

    def keys(config):
        read.append(config.get("client-id", "the server"))
        return jax.random.key(100 + config["client-id"]) if "client-id" in config else KEY

    seen, _ = run_here(algo, NOISE["of the server"][1], tmp_path, keys=(keys, keys))
    for mine, theirs in zip(seen, simulated(algo), strict=True):
        same_bytes(mine.server, theirs.server)
    assert read.count("the server") == 1
    assert [read.count(i) for i in range(N)] == [1 + 4 * ROUNDS] * N


def summing():
    return fl.fedavg(
        loss, optax.sgd(0.1), plan=PLAN, sampler=fl.everyone(),
        aggregator=fl.secure_mean(max_abs=2.0, bits=12, exact_zero=True),
    )  # fmt: skip


def test_signed_by_a_key_that_each_machine_reads(hasty, tmp_path):
    key = primitives().asymmetric.ed25519.Ed25519PrivateKey.generate
    keys = {i: key() for i in range(N)}
    public = {i: own.public_key().public_bytes_raw() for i, own in keys.items()}
    for i, own in keys.items():
        (tmp_path / f"rows-{i}").mkdir()
        (tmp_path / f"rows-{i}" / "signs").write_bytes(own.private_bytes_raw())
    read = []

    def identity(config):
        read.append(config["client-id"])
        private = primitives().asymmetric.ed25519.Ed25519PrivateKey.from_private_bytes
        return private(Path(config["folder"], "signs").read_bytes())

    secure = SecureSettings(threshold=3, identities=public)
    seen, _ = run_here(summing(), secure, tmp_path, identity=identity)
    for mine, theirs in zip(seen, simulated(summing()), strict=True):
        same_bytes(mine.server, theirs.server)
    assert len(read) == N * (1 + 5 * ROUNDS)  # sizes, and five phases a round


class Restless(Grid):
    """A grid whose client 1 starts again after every message, each time as another node."""

    home, moves = 11, 0

    def pull_messages(self, message_ids):
        asked = {self.waiting[name].metadata.message_type for name in message_ids}
        replies = super().pull_messages(message_ids)
        if "train" in asked:
            self.nodes[self.home + 10] = self.nodes.pop(self.home)
            self.home, self.moves = self.home + 10, self.moves + 1
        return replies


def test_a_machine_that_starts_again_between_any_two_messages_goes_on(hasty, tmp_path):
    """It comes back as another node, by the mark in its folder, and its session is in that, too."""
    grids = []

    def grid(nodes):
        grids.append(Restless(nodes))
        return grids[0]

    seen, rows = run_here(summing(), SecureSettings(threshold=3), tmp_path, grid=grid)
    for mine, theirs in zip(seen, simulated(summing()), strict=True):
        same_bytes(mine.server, theirs.server)
    assert [row["num_clients"] for row in rows] == [N] * ROUNDS
    assert grids[0].moves == 1 + 4 * ROUNDS  # sizes, and four phases a round


KILLED = 1
APP = (
    PROBLEM
    + '''
algo = fl.fedavg(
    loss, __import__("optax").sgd(0.1), plan=fl.Plan(batch_size=2, epochs=2),
    privacy=fl.privacy.secure_gaussian(
        clip=0.5, cohort_size=3, delta=1e-3, noise_multiplier=0.5, num_rounds=9
    ),
)
secure = fl.deploy.SecureSettings(threshold=2)
client = fl.deploy.flower_client(
    algo, KEY, START, lambda config: examples(config["data"]), secure=secure
)
server = fl.deploy.flower_server(
    algo, KEY, START, num_clients=3, num_rounds=1, timeout=120, evaluate=keep, secure=secure
)

@client.lifespan()
def killed_before_its_masked_vector_leaves(context):
    """The machine dies with a vector that it has masked: the SuperNode, and what it started."""
    yield
    config = context.node_config
    notes = list(pathlib.Path(config["folder"]).glob("*.revealed"))
    asked = fl.deploy.decode(notes[0].read_bytes()).fields["asked"] if notes else ()
    if config.get("dies") and "mask" in asked:
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
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_supernodes_aggregate_securely_and_one_is_killed(processes, tmp_path):
    """Its vector is masked and has not left: it dropped out of round 1, and is back in round 2,
    whose session takes the place of the one on its disk. Noise and epsilon are the simulation's."""
    data, app = write_data(tmp_path), tmp_path / "app"
    app.mkdir()
    (app / "pyproject.toml").write_text(PROJECT)
    (app / "federation.py").write_text(APP)
    rows, own = tmp_path / "run" / "metrics.jsonl", tmp_path / f"rows-{KILLED}"

    def start(i, **more):
        name = f"node-{i}"
        config = {"client-id": i, "data": f"{tmp_path}/{i}.npz", "folder": f"{tmp_path}/rows-{i}"}
        processes.supernode(name, config | more)
        (tmp_path / f"{name}.pid").write_text(str(processes.started[name].pid))

    try:
        processes.superlink()
        dies = {"dies": 1, "pid": f"{tmp_path}/node-{KILLED}.pid"}
        for i in range(NUM_CLIENTS):
            start(i, **(dies if i == KILLED else {}))
        processes.run(app, {"num-rounds": ROUNDS, "folder": str(tmp_path / "run")})
        node = processes.started[f"node-{KILLED}"]
        processes.wait(lambda: node.poll() is not None, "it is killed")
        assert [path.stat().st_mode & 0o777 for path in own.glob("*.session")] == [0o600]
        start(KILLED)
        processes.wait(
            lambda: rows.exists() and len(rows.read_text().splitlines()) == ROUNDS, "rounds"
        )
    except BaseException:
        print(processes.logs())
        raise

    module = module_of(app / "federation.py")
    here = [[i != KILLED for i in range(NUM_CLIENTS)], [True] * NUM_CLIENTS]
    check_rounds(tmp_path / "rounds", module, data, here)
    told = [json.loads(line) for line in rows.read_text().splitlines()]
    assert [row["num_clients"] for row in told] == [2, 3]
    for r, row in enumerate(told):
        expected = fl.privacy.gdp_epsilon(DELTA, np.sqrt(r + 1) / 0.5)
        assert row["epsilon"] == pytest.approx(expected, rel=1e-6)
        assert "train_loss" not in row
    assert not list(tmp_path.glob("rows-*/*.session"))
    assert processes.pickled() == ""
