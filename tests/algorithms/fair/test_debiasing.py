"""Debiasing: what the adversary's accuracy counts, unknown groups, sweeps, planted defects."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_lite as fl
from fedjax_lite.models import reversal
from fedjax_lite.verify import records
from fedjax_lite.verify.techniques import debiasing

KEY = jax.random.key(0)
LINEAR = fl.models.linear(2, (2,))
PARTS = fl.models.adversarial(LINEAR, LINEAR, LINEAR, group="sex")
EYE = {"head": {"kernel": jnp.eye(2), "bias": jnp.zeros(2)}}
START = {"encoder": EYE, "predictor": EYE, "adversary": EYE}
X = np.array([[2.0, 0], [0, 2], [2, 0], [0, 2], [2, 0]], np.float32)
SEX = np.array([0, 1, 1, -1, 0], np.int32)
DATA = fl.data.from_arrays({"x": X, "y": np.array([0, 1, 0, 1, 0]), "sex": SEX}, [0, 0, 0, 1, 1])
OPTIONS: Any = {"plan": fl.Plan(None, steps=1), "sampler": fl.everyone()}


def test_accuracy_counts_known_groups():
    """Of four known groups the adversary, which looks where x is, guesses three."""
    algo = fl.debiasing(PARTS, optax.sgd(0.1), strength=lambda r: 0.5 * r, **OPTIONS)
    state, metrics = algo.round(KEY, algo.init(KEY, START, DATA), DATA)
    assert (float(metrics["adversary_accuracy"]), float(metrics["adversary_strength"])) == (
        0.75,
        0.0,
    )
    state, metrics = algo.round(KEY, state, DATA)
    assert float(metrics["adversary_strength"]) == 0.5
    scores = fl.evaluate_clients(PARTS.model, state, DATA, groups=np.array([0, 1]))
    logits = X @ state.server.params["encoder"]["head"]["kernel"]
    logits = (logits + state.server.params["encoder"]["head"]["bias"]) @ state.server.params[
        "predictor"
    ]["head"]["kernel"] + state.server.params["predictor"]["head"]["bias"]
    right = logits.argmax(1) == DATA.examples["y"]
    assert scores["all"]["accuracy"] == right.mean()


def test_unknown_groups_train_the_task_alone():
    alone = DATA.examples | {"sex": np.full(5, -1, np.int32)}
    data = fl.data.from_arrays(alone, [0, 0, 0, 1, 1])
    algo = fl.debiasing(PARTS, optax.sgd(0.1), strength=1.0, **OPTIONS)
    state, metrics = algo.round(KEY, algo.init(KEY, START, data), data)
    task = fl.fedavg(PARTS.model.loss, optax.sgd(0.1), **OPTIONS)
    plain, _ = task.round(KEY, task.init(KEY, START, data), data)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6),
        state.server.params, plain.server.params,
    )  # fmt: skip
    assert np.isnan(metrics["adversary_accuracy"])


def test_the_adversarys_mean_is_over_known_groups():
    """One of ten, and one of two in a batch that is padded to ten: by numpy."""
    x, group = np.linspace(0.5, 2.0, 12), np.full(12, -1, np.int32)
    group[[3, 11]], owners = 0, np.repeat([0, 1], [10, 2])
    data = fl.data.from_arrays({"x": x.astype(np.float32), "group": group}, owners)
    algo = fl.debiasing(debiasing.THREE, optax.sgd(0.1), strength=0.5, **OPTIONS)
    start = {name: jnp.array(value) for name, value in debiasing.START.items()}
    state, _ = algo.round(KEY, algo.init(KEY, start, data), data)
    (w, h, a), ends = debiasing.START.values(), []
    for i in range(2):
        mine, known = x[owners == i], x[(owners == i) & (group == 0)]
        task, guess = h * w * mine - 3, a * w * known - 1
        of_w = (task * h * mine).mean() - 0.5 * (guess * a * known).mean()
        ends.append([of_w, (task * w * mine).mean(), (guess * w * known).mean()])
    expected = np.array([w, h, a]) - 0.1 * np.array([10, 2]) @ np.array(ends) / 12
    found = [state.server.params[part] for part in ("encoder", "predictor", "adversary")]
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_strengths_are_swept_in_one_program():
    swept = fl.sweep(
        lambda strength: fl.debiasing(PARTS, optax.sgd(0.1), strength=strength, **OPTIONS),
        {"strength": [0.0, 1.0]}, init=lambda key: START, data=DATA, num_rounds=1, progress=False,
    )  # fmt: skip
    kernels = swept.states.server.params["encoder"]["head"]["kernel"]
    one = fl.debiasing(PARTS, optax.sgd(0.1), strength=1.0, **OPTIONS)
    state, _ = one.round(KEY, one.init(KEY, START, DATA), DATA)
    np.testing.assert_allclose(
        kernels[1], state.server.params["encoder"]["head"]["kernel"], rtol=1e-5
    )
    assert np.abs(kernels[0] - kernels[1]).max() > 1e-3


def test_own_adversaries_are_not_sent():
    bits = {}
    for side in ("server", "client"):
        algo = fl.debiasing(PARTS, optax.sgd(0.1), strength=1.0, adversary=side, **OPTIONS)
        state, metrics = algo.round(KEY, algo.init(KEY, START, DATA), DATA)
        bits[side] = int(metrics["uplink_bits"])
    assert bits == {"server": 2 * 32 * 18, "client": 2 * 32 * 12}
    assert state.server.params["adversary"]["head"]["bias"] is None
    assert fl.personal_models(state)["adversary"]["head"]["bias"].shape == (2, 2)


def test_refusals():
    with pytest.raises(ValueError, match=r"strength.*-1"):
        fl.debiasing(PARTS, optax.sgd(0.1), strength=-1.0, **OPTIONS)
    with pytest.raises(ValueError, match=r"adversary must be one of .* got 'edge'"):
        fl.debiasing(PARTS, optax.sgd(0.1), strength=1.0, adversary="edge", **OPTIONS)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="parts"):
        fl.debiasing(LINEAR, optax.sgd(0.1), strength=1.0, **OPTIONS)  # type: ignore[arg-type]


def straight(patch):
    """The reversal does not turn the gradient."""
    patch.setattr(reversal, "_reversed", lambda features, strength: features)


SIGN, ROUNDS = "the encoder climbs the adversary's loss", "three rounds"


def test_planted_defect(monkeypatch):
    straight(monkeypatch)
    chosen = [check for check in debiasing.checks() if check.name in (SIGN, ROUNDS)]
    verdicts = {r.check: r.verdict for r in records.run_checks("debiasing", chosen)}
    assert verdicts == {SIGN: "FAIL", ROUNDS: "FAIL"}
