"""Three clients as files, what runs on their machines, and the simulation of it."""

import importlib.util

import numpy as np

import fedjax_lite as fl

SIZES = (5, 3, 8)
NUM_CLIENTS = len(SIZES)
PROBLEM = """
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

def examples(file):
    with np.load(file) as arrays:
        return dict(arrays)

def keep(state):
    folder = pathlib.Path(os.environ["ROUNDS"])
    np.savez(folder / "part.npz", **state.server.params)
    os.replace(folder / "part.npz", folder / f"{int(state.round)}.npz")
    return {}
"""
"""The start of a module. SCAFFOLD with error feedback keeps two things on a client's disk."""


def write_data(folder):
    """A file a client, and all of them as one population."""
    rng = np.random.default_rng(0)
    parts = [
        {"x": rng.normal(size=(n, 3)).astype("f4"), "y": rng.normal(size=n).astype("f4")}
        for n in SIZES
    ]
    for i, part in enumerate(parts):
        np.savez(folder / f"{i}.npz", **part)
    pooled = {name: np.concatenate([part[name] for part in parts]) for name in ("x", "y")}
    return fl.data.from_arrays(pooled, np.repeat(np.arange(NUM_CLIENTS), SIZES))


def module_of(file):
    spec = importlib.util.spec_from_file_location(file.stem, file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def simulated(module, data, here):
    state = module.algo.init(module.KEY, module.START, data)
    for mask in here:
        cohort = fl.Cohort(np.arange(NUM_CLIENTS), np.array(mask))
        state, _ = module.algo.round(module.KEY, state, data, cohort)
        yield state.server.params


def check_rounds(folder, module, data, here):
    """The rounds that were reached are the simulation's, whose clients were there as said."""
    everybody = [[True] * NUM_CLIENTS] * len(here)
    expected = list(simulated(module, data, here))
    for r, params in enumerate(expected, 1):
        with np.load(folder / f"{r}.npz") as reached:
            for name, leaf in params.items():
                np.testing.assert_allclose(reached[name], leaf, rtol=1e-6, atol=1e-6)
    *_, other = simulated(module, data, everybody)
    assert abs(other["w"] - expected[-1]["w"]).max() > 1e-3  # it matters who was there
