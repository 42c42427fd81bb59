"""What a process with one device a core is asked by test_cores.py: the same run, dealt and not."""

import dataclasses
import gc
import json
import sys

import jax
import numpy as np

import fedjax_lite as fl
from fedjax_lite.engine.mesh.cores import core_mesh, shared

SIZES = np.array([7, 0, 13, 12, 1, 5, 9, 2])
OWNERS = np.repeat(np.arange(8), SIZES)
MODEL = fl.models.linear(num_classes=3, input_shape=(4,))


def examples():
    rng = np.random.default_rng(0)
    return {
        "x": rng.normal(size=(len(OWNERS), 4)).astype(np.float32),
        "y": rng.integers(0, 3, len(OWNERS)).astype(np.int32),
    }


def make(learning_rate=0.1):
    return fl.scaffold(MODEL.loss, learning_rate, plan=fl.Plan(batch_size=3), sampler=fl.uniform(6))


def own_models(data):
    """Scores of a model for each client: sums, exact figures of all examples, groups of them."""
    two = fl.models.linear(num_classes=2, input_shape=(4,))
    rng = np.random.default_rng(1)
    models = jax.tree.map(
        lambda leaf: np.float32(rng.normal(size=(data.num_clients, *leaf.shape))),
        jax.eval_shape(two.init, jax.random.key(2)),
    )
    part = data.examples | {"y": data.examples["y"] % 2, "third": data.examples["y"]}
    asked = {"f1": fl.metrics.f1(2), "auc": fl.metrics.auc(None)}
    found = fl.evaluate_personal(
        two,
        models,
        dataclasses.replace(data, examples=part),
        batch_size=4,
        metrics=asked,
        groups="third",
    )
    return [np.asarray(leaf).tolist() for leaf in jax.tree.leaves(found)]


def everything():
    """A run with evaluations, scores of clients, a sweep: numbers alone."""
    key = jax.random.key(0)
    data = fl.data.from_arrays(examples(), OWNERS)
    algo = make()
    state = jax.jit(lambda key, data: algo.init(key, MODEL.init(key), data))(key, data)
    asked = {"f1": fl.metrics.f1(3)}  # sums, which batches that only fill devices up must not enter
    score = fl.evaluator(MODEL, examples(), name="train_set", batch_size=10, metrics=asked)
    state, history = fl.run(
        algo, key, state, data, num_rounds=2, every=2, evaluate=score, progress=False
    )
    clients = fl.evaluate_clients(MODEL, state, data, batch_size=10, metrics=asked)
    own = own_models(data)
    one, metrics = algo.round(key, state, data)
    swept = fl.sweep(
        make,
        {"learning_rate": [0.05, 0.1, 0.2]},
        seeds=[0],
        init=MODEL.init,
        data=data,
        num_rounds=2,
        progress=False,
    )
    members = [row["train_loss"] for row in swept.rows]
    rows = [{k: v for k, v in row.items() if k != "seconds"} for row in history]
    return {
        "params": jax.tree.map(lambda x: np.asarray(x).tolist(), jax.tree.leaves(one.server)),
        "rows": rows,
        "clients": {
            name: np.asarray(clients[name]).tolist() for name in ("loss", "accuracy", "f1")
        },
        "own": own,
        "members": members,
        "explained": fl.explain(one.server.params, data, plan=fl.Plan(3), cohort_size=6),
        "dealt": "shard_map" in str(jax.make_jaxpr(algo.round)(key, state, data)),
        "devices": len(jax.tree.leaves(state)[0].sharding.device_set),
        "loss": float(metrics["train_loss"]),
    }


def memory():
    """Where the examples of a shared tree lie: one address for all devices."""
    mesh = core_mesh()
    if mesh is None:
        return 0
    leaf = shared(jax.numpy.ones((1000, 64)), mesh)
    return len({part.data.unsafe_buffer_pointer() for part in leaf.addressable_shards})


if __name__ == "__main__":
    gc.disable()  # it lives for seconds, of which looking for garbage takes a sixth
    found = {"cores": fl.use_cores(int(sys.argv[1]))}
    print(json.dumps({**found, **everything(), "addresses": memory()}))
