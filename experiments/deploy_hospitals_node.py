"""One hospital's machine of deploy_hospitals.py: its own file, key and row; no flags of its own.

It is started with its folder, which holds the hospital's data, its certificate and settings.json.
"""

from __future__ import annotations

import json
import secrets
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import fedjax_lite as fl
from fedjax_lite.data.sources.heart import FEATURES, HOSPITALS, one_hospital
from fedjax_lite.run.compilation import keep_compiled_programs

CLIP, SAMPLING_RATE, BATCH_SIZE = 1.1, 0.05, 4
"""Of patients: the longest gradient, and who is drawn for a step; batches where nobody hides."""
LONGEST_UPDATE = 1.0
"""Of a hospital, where hospitals hide."""


def predict(params: Any, x: Any) -> jax.Array:
    """Logits `[B]` of logistic regression."""
    return x @ params["w"] + params["b"]


def loss(params: Any, example: dict[str, Any], key: Any) -> jax.Array:
    """Of one patient."""
    label = jnp.asarray(example["y"], jnp.float32)
    return optax.sigmoid_binary_cross_entropy(predict(params, example["x"]), label)


def start() -> dict[str, jax.Array]:
    """The model to begin with."""
    return {"w": jnp.zeros(len(FEATURES)), "b": jnp.float32(0)}


def agreed(settings: dict[str, Any]) -> fl.deploy.SecureSettings:
    """What hospitals and server agree on; where they hide from it, the noise of all is needed."""
    alone = settings["hidden"] == "hospitals" and settings["noise"] == "machines"
    least = len(HOSPITALS) if alone else 3
    return fl.deploy.SecureSettings(threshold=3, min_survivors=least)


def hidden_hospitals(noise: str, **amounts: Any) -> Any:
    """The mechanism that hides each of the hospitals: all of them add a part of the noise, which
    hides them from the server, too, or the server adds it to their sum.
    """
    amounts |= {"clip": LONGEST_UPDATE, "cohort_size": len(HOSPITALS)}
    if noise == "server":
        return fl.privacy.secure_gaussian(**amounts)
    return fl.privacy.distributed_discrete_gaussian(dimension=len(FEATURES) + 1, **amounts)


def algorithm(settings: dict[str, Any], strategy: Any = None) -> fl.FederatedAlgorithm:
    """The method, the same on all machines and in the simulation."""
    rate, steps, z = (settings[name] for name in ("learning_rate", "steps", "noise_multiplier"))
    own: dict[str, Any] = {"strategy": strategy}
    if settings["hidden"] == "hospitals":
        rounds, delta = settings["num_rounds"], settings["delta"]
        mechanism = hidden_hospitals(
            settings["noise"], delta=delta, noise_multiplier=z, num_rounds=rounds
        )
        plan = fl.Plan(batch_size=BATCH_SIZE, steps=steps)
        return fl.fedavg(loss, optax.sgd(rate), plan=plan, privacy=mechanism, **own)
    # By patients: up to 256 a hospital, of 20 bits a coordinate, fit into a sum of 32 bits.
    own["aggregator"] = fl.secure_mean(
        max_abs=4.0, bits=20, exact_zero=True, weighting="message", max_weight=256
    )
    own["sampler"] = fl.everyone()
    if settings["hidden"] == "nobody":
        plan = fl.Plan(batch_size=BATCH_SIZE, steps=steps)
        return fl.fedavg(loss, optax.sgd(rate), plan=plan, weighting="examples", **own)
    client = fl.privacy.dp_sgd(
        loss, rate, clip=CLIP, noise_multiplier=z, sampling_rate=SAMPLING_RATE
    )
    server = fl.optimizer_server(optax.sgd(1.0))
    plan = fl.Plan(batch_size=None, steps=steps)
    return fl.federated_algorithm(client, plan=plan, server=server, **own)


def key_of(settings: dict[str, Any]) -> jax.Array:
    """The simulation's key, or one that nobody else has."""
    if not settings["own_keys"]:
        return jax.random.key(settings["seed"])
    words = np.frombuffer(secrets.token_bytes(8), np.uint32)
    return jax.random.wrap_key_data(jnp.asarray(words), impl="threefry2x32")


def main(folder: Path) -> None:
    """Answers the server until it says goodbye."""
    settings = json.loads((folder / "settings.json").read_text(encoding="utf-8"))
    (path,) = folder.glob("processed.*.data")
    train, _ = one_hospital(path)
    key = key_of(settings)
    client_id = settings["client_id"]
    answer = fl.deploy.node(
        algorithm(settings),
        key,
        start(),
        {name: train[name] for name in ("x", "y")},
        client_id=client_id,
        folder=folder / "row",
        secure=agreed(settings),
    )
    fl.deploy.answer_forever(
        answer,
        settings["host"],
        settings["port"],
        client_id=client_id,
        tls=fl.deploy.TLS(folder / "own.pem", folder / "own.key", folder / "authority.pem"),
        give_up_after=settings["patience"],
    )


if __name__ == "__main__":
    keep_compiled_programs()
    main(Path(sys.argv[1]))
