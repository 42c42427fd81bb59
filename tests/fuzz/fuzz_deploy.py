"""Valid arguments of what runs a federation of machines."""

import tempfile
from types import SimpleNamespace
from typing import Any

import numpy as np
import optax
from fuzz_world import KEY, PLAN

import fedjax_lite as fl

EXAMPLES = {"b": np.ones(3, np.float32)}
START = np.float32(0)
ALGO = fl.fedavg(
    lambda w, e, key: 0.5 * (w - e["b"]) ** 2, optax.sgd(0.1), plan=PLAN, sampler=fl.everyone()
)
SUMS = fl.fedavg(
    lambda w, e, key: 0.5 * (w - e["b"]) ** 2,
    optax.sgd(0.1),
    plan=PLAN,
    sampler=fl.everyone(),
    aggregator=fl.secure_mean(max_abs=1.0),
)
HUB = fl.deploy.server(ALGO, KEY, START, num_clients=1)
ANSWER = fl.deploy.node(ALGO, KEY, START, EXAMPLES, client_id=0, folder=tempfile.mkdtemp())

DEPLOY: dict[str, dict[str, Any]] = {
    "deploy.encode": {"kind": "note", "fields": {"round": 1}, "tree": {"w": np.ones(2)}},
    "deploy.decode": {"data": fl.deploy.encode("note", {})},
    "deploy.unpack": {
        "packet": fl.deploy.decode(fl.deploy.encode("note", {}, np.ones(2))),
        "template": np.zeros(2),
    },
    "deploy.one_client": {"algo": ALGO, "params": START, "client_id": 0, "num_clients": 2},
    "deploy.node": {
        "algo": ALGO,
        "key": KEY,
        "params": START,
        "examples": EXAMPLES,
        "client_id": 0,
        "folder": tempfile.mkdtemp(),
    },
    "deploy.server": {"algo": ALGO, "key": KEY, "params": START, "num_clients": 2},
    "deploy.secure_server": {
        "algo": SUMS,
        "key": KEY,
        "params": START,
        "num_clients": 2,
        "secure": fl.deploy.SecureSettings(threshold=2),
    },
    "deploy.in_process": {"answers": {0: ANSWER}},
    "deploy.flare_exchange": {
        "controller": SimpleNamespace(send=print),
        "sites": ["site-1"],
        "abort_signal": SimpleNamespace(triggered=False),
        "fl_ctx": SimpleNamespace(get_prop=print),
        "timeout": 1.0,
    },
    "deploy.grid_exchange": {"grid": SimpleNamespace(push_messages=print), "timeout": 1.0},
    "deploy.federate": {
        "hub": HUB,
        "exchange": fl.deploy.in_process({0: ANSWER}),
        "num_rounds": 1,
    },
}
