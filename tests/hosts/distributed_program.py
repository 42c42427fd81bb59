"""What the processes of test_distributed.py run: SCAFFOLD on ten small clients."""

import argparse
import gc
import json
import os
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import fedjax_lite as fl
from fedjax_lite.hosts import distributed

SIZES = np.array([7, 0, 3, 12, 1, 5, 9, 2, 4, 6, 3])
NUM_ROUNDS = 6


def examples() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(SIZES.sum(), 3)).astype(np.float32)
    y = x @ np.array([1.0, -2.0, 0.5], np.float32) + np.repeat(np.arange(len(SIZES)), SIZES) / 10
    return {"x": x, "y": y.astype(np.float32)}


def regression(w, e, key):
    return 0.5 * (e["x"] @ w - e["y"] + 0.01 * jax.random.normal(key, e["y"].shape)) ** 2


def algorithm(strategy):
    return fl.scaffold(
        regression,
        0.05,
        plan=fl.Plan(batch_size=2, epochs=2),
        sampler=fl.dropout(fl.uniform(7), 0.2),
        strategy=strategy,
    )


def real_rows(state):
    """The state with the rows of the clients only, as numpy arrays."""
    rows = lambda tree: jax.tree.map(lambda leaf: np.asarray(leaf)[: len(SIZES)], tree)  # noqa: E731
    state = state._replace(clients=rows(state.clients), uplink=rows(state.uplink))
    return [np.asarray(leaf) for leaf in jax.tree.leaves(state)]


def main():
    gc.disable()  # it lives for seconds, of which looking for garbage takes a sixth
    parser = argparse.ArgumentParser()
    parser.add_argument("output_dir", type=Path)
    parser.add_argument("--split", action="store_true")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--signal", type=int, default=0)
    parser.add_argument("--victim", type=int, default=1)
    parser.add_argument("--sleep", action="store_true", help="outside of any collective")
    flags = parser.parse_args()
    several = distributed.initialize()
    process, key = jax.process_index(), jax.random.key(0)
    mesh = fl.client_mesh()
    everything = examples()
    asked = []

    def load(low, high):
        asked.append((low, high))
        return {name: leaf[low:high] for name, leaf in everything.items()}

    if flags.split:
        data = fl.engine.shard_population(load, mesh=mesh, sizes=SIZES)
    else:
        owners = np.repeat(np.arange(len(SIZES)), SIZES)
        whole = fl.data.from_arrays(everything, owners, num_clients=len(SIZES))
        data = fl.replicate(whole, mesh=mesh)
    algo = algorithm(fl.sharded(mesh))
    state = fl.engine.init_state(algo, key, jnp.zeros(3), data, mesh=mesh)

    def evaluate(state):
        if flags.sleep and process != flags.victim:
            print("SLEEPING", flush=True)
            time.sleep(600)
        if flags.signal and int(state.round) == 4 and process == flags.victim:
            os.kill(os.getpid(), flags.signal)
        return {"norm": float(jnp.linalg.norm(state.server.params))}

    state, history = fl.run(
        algo,
        key,
        state,
        data,
        num_rounds=NUM_ROUNDS,
        evaluate=evaluate,
        every=2,
        output_dir=flags.output_dir,
        resume=flags.resume,
    )
    gathered = real_rows(fl.replicate(state, mesh=mesh))
    facts = {
        "several": several,
        "asked": asked,
        "rounds": [row["round"] for row in history],
        "agreed": [distributed.agree(10 + process), distributed.from_coordinator(f"{process}é")],
        "shards": [
            leaf.addressable_shards[0].data.nbytes
            for leaf in jax.tree.leaves((data, state.clients))
        ],
    }
    (flags.output_dir / f"facts{process}.json").write_text(json.dumps(facts))
    if process == 0:
        np.savez(flags.output_dir / "state.npz", *gathered)
    print(f"DONE {process}")


if __name__ == "__main__":
    main()
