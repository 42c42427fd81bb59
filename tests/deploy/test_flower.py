"""The same federation over Flower: real processes, and the numbers of the simulation."""

import datetime
import importlib.util
import ipaddress
import json
import sys

import numpy as np
import pytest

pytest.importorskip("flwr", reason='Flower is not installed: pip install "fedjax_lite[flower]"')
from flower_processes import HOST, Processes

import fedjax_lite as fl

if not sys.platform.startswith("linux"):
    pytest.skip("reads /proc", allow_module_level=True)

NUM_CLIENTS, NUM_ROUNDS, KILLED, DIES_IN = 3, 3, 1, 2

APP = '''
import os, pathlib, signal
import jax, numpy as np, jax.numpy as jnp
import fedjax_lite as fl

KEY, START = jax.random.key(5), {"w": jnp.zeros(3), "b": jnp.float32(0)}

def loss(params, example, key):
    return 0.5 * (example["x"] @ params["w"] + params["b"] - example["y"]) ** 2

algo = fl.scaffold(
    loss, 0.05, plan=fl.Plan(batch_size=2, epochs=2), sampler=fl.everyone(),
    uplink=fl.error_feedback(fl.top_k(0.5)),
)

def examples(config):
    with np.load(config["data"]) as file:
        return dict(file)

def keep(state):
    folder = pathlib.Path(os.environ["ROUNDS"])
    np.savez(folder / "part.npz", **state.server.params)
    os.replace(folder / "part.npz", folder / f"{int(state.round)}.npz")
    return {}

client = fl.deploy.flower_client(algo, KEY, START, examples)
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

PROJECT = """
[project]
name = "federation"
version = "1.0.0"
description = "a test"
license = "Apache-2.0"
dependencies = []
[tool.flwr.app]
publisher = "fedjax_lite"
[tool.flwr.app.components]
serverapp = "federation:server"
clientapp = "federation:client"
[tool.flwr.app.config]
num-rounds = 1
folder = ""
"""

NO_PICKLE = """
import os, pickle, traceback

def refused(*args, **kwargs):
    with open(os.environ["PICKLED"], "a") as file:
        traceback.print_stack(file=file)
    raise RuntimeError("somebody pickles")

for name in ("dump", "dumps", "load", "loads"):
    setattr(pickle, name, refused)
"""


def write_app(folder):
    folder.mkdir()
    (folder / "pyproject.toml").write_text(PROJECT)
    (folder / "federation.py").write_text(APP)
    return folder


def of_app(folder):
    spec = importlib.util.spec_from_file_location("federation", folder / "federation.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def write_data(folder):
    """A file a client, of different sizes; all of them as one population."""
    rng = np.random.default_rng(0)
    parts = [
        {"x": rng.normal(size=(n, 3)).astype("f4"), "y": rng.normal(size=n).astype("f4")}
        for n in (5, 3, 8)
    ]
    for i, part in enumerate(parts):
        np.savez(folder / f"{i}.npz", **part)
    pooled = {name: np.concatenate([part[name] for part in parts]) for name in ("x", "y")}
    return fl.data.from_arrays(pooled, np.repeat(np.arange(NUM_CLIENTS), (5, 3, 8)))


def keys_of_tls(folder):
    """An authority and a server's certificate for 127.0.0.1, made for this test."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    now, day = datetime.datetime.now(datetime.UTC), datetime.timedelta(days=1)
    root, own = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))

    def called(name):
        return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])

    known = x509.SubjectKeyIdentifier.from_public_key(root.public_key())

    def certificate(key, authority):
        return (
            x509.CertificateBuilder()
            .subject_name(called("authority" if authority else "server"))
            .issuer_name(called("authority"))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - day)
            .not_valid_after(now + day)
            .add_extension(x509.BasicConstraints(authority, None), critical=True)
        )

    usage = x509.KeyUsage(True, False, False, False, False, True, True, False, False)
    signed = {
        "ca-certfile": certificate(root, True)
        .add_extension(known, False)
        .add_extension(usage, True),
        "certfile": certificate(own, False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(known), False)
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(HOST))]), False
        ),
    }
    files = {}
    for kind, builder in signed.items():
        files[kind] = folder / f"{kind}.pem"
        files[kind].write_bytes(
            builder.sign(root, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
        )
    files["keyfile"] = folder / "key.pem"
    files["keyfile"].write_bytes(
        own.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return files


@pytest.fixture
def processes(tmp_path, monkeypatch):
    site = tmp_path / "site"
    for folder in (site, tmp_path / "rounds"):
        folder.mkdir()
    (site / "sitecustomize.py").write_text(NO_PICKLE)
    monkeypatch.setenv("PICKLED", str(tmp_path / "pickled"))
    monkeypatch.setenv("ROUNDS", str(tmp_path / "rounds"))
    started = Processes(tmp_path, keys_of_tls(tmp_path), [site])
    yield started
    started.end()


@pytest.mark.slow
def test_supernodes_reach_the_simulation_and_one_is_killed(processes, tmp_path):
    """SCAFFOLD with error feedback: rows and what was not sent lie on the clients' disks.

    A SuperNode is killed in its second round, when its row is written and its reply has not left,
    and comes back: the simulation with a mask in which it dropped out of that round.
    """
    data, app = write_data(tmp_path), write_app(tmp_path / "app")

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
        processes.run(app, {"num-rounds": NUM_ROUNDS, "folder": str(tmp_path / "run")})
        node, rows = processes.started[f"node-{KILLED}"], tmp_path / "run" / "metrics.jsonl"
        processes.wait(lambda: node.poll() is not None, "it is killed")
        ports |= {start(KILLED)}
        processes.wait(
            lambda: rows.exists() and len(rows.read_text().splitlines()) == NUM_ROUNDS, "rounds"
        )
    except BaseException:
        print(processes.logs())
        raise

    simulation = of_app(app)
    state = simulation.algo.init(simulation.KEY, simulation.START, data)
    for r in range(1, NUM_ROUNDS + 1):
        here = np.array([not (r == DIES_IN and i == KILLED) for i in range(NUM_CLIENTS)])
        cohort = fl.Cohort(np.arange(NUM_CLIENTS), here)
        state, _ = simulation.algo.round(simulation.KEY, state, data, cohort)
        with np.load(tmp_path / "rounds" / f"{r}.npz") as reached:
            for name, leaf in state.server.params.items():
                np.testing.assert_allclose(reached[name], leaf, rtol=1e-6, atol=1e-6)
    assert processes.listening == {(HOST, port) for port in {processes.port} | ports}
    assert {host for host, _ in processes.connected} == {HOST}
    asked = [json.loads(line) for line in rows.read_text().splitlines()]
    assert [row["num_clients"] for row in asked] == [3, 2, 3]
    assert not (tmp_path / "pickled").exists(), (tmp_path / "pickled").read_text()
