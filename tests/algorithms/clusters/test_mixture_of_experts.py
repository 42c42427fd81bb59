"""Mixtures of experts: clients whose routers differ, what is sent, refusals, planted defects."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_lite as fl
from fedjax_lite.models import gated
from fedjax_lite.verify import records
from fedjax_lite.verify.techniques import experts

KEY = jax.random.key(0)
OPTIONS: Any = {"plan": fl.Plan(10, epochs=2), "sampler": fl.everyone()}


def flipped():
    """Four clients, of whom two see labels flipped."""
    x = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)
    owners = np.arange(40) % 4
    y = ((x[:, 0] > 0) ^ (owners >= 2)).astype(np.int32)
    return fl.data.from_arrays({"x": x, "y": y}, owners)


@pytest.mark.parametrize("routing", ["soft", "top-1"])
def test_routers_take_sides(routing):
    """No one model fits flipped labels; two experts and routers of the clients' own do."""
    expert, router = fl.models.linear(2, (3,)), fl.models.linear(2, (3,))
    model = fl.models.gated_experts(expert, router, 2, routing=routing)
    data = flipped()
    algo = fl.mixture_of_experts(
        model.loss, optax.sgd(0.5), router_optimizer=optax.sgd(2.0), **OPTIONS
    )
    tilt = jnp.linspace(-1, 1, 6).reshape(3, 2)
    params = model.init(KEY)
    params["experts"]["head"]["kernel"] = jnp.stack([tilt, -tilt])
    state = algo.init(KEY, params, data)
    state, rows = fl.run(algo, KEY, state, data, num_rounds=15, progress=False)
    assert rows[-1]["uplink_bits"] == 4 * 32 * 2 * (3 * 2 + 2)  # the experts alone
    assert state.server.params["router"]["head"]["kernel"] is None
    scores = fl.evaluate_clients(model, state, data)
    assert scores["all"]["accuracy"] > 0.9
    own = fl.personal_models(state)["router"]["head"]
    examples, owners = data.examples, np.arange(40) % 4
    gates = np.einsum("ei,eij->ej", examples["x"], own["kernel"][owners]) + own["bias"][owners]
    gates = np.exp(gates) / np.exp(gates).sum(1, keepdims=True)
    if routing == "top-1":
        gates = np.eye(2)[gates.argmax(1)]
    head = state.server.params["experts"]["head"]
    outputs = np.einsum("ei,kij->ekj", examples["x"], head["kernel"]) + head["bias"]
    right = np.einsum("ek,ekj->ej", gates, outputs).argmax(1) == examples["y"]
    np.testing.assert_allclose(scores["all"]["accuracy"], right.mean(), rtol=1e-6)


def test_refusals():
    part = fl.models.linear(2, (3,))
    with pytest.raises(ValueError, match=r"routing must be one of .* got 'top-2'"):
        fl.models.gated_experts(part, part, 2, routing="top-2")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="num_experts"):
        fl.models.gated_experts(part, part, 0)
    three = fl.models.gated_experts(part, part, 3)
    with pytest.raises(ValueError, match="num_experts=3 outputs, got 2"):
        three.loss(three.init(KEY), {"x": jnp.zeros((1, 3)), "y": jnp.zeros(1, int)}, None)
    algo = fl.mixture_of_experts(three.loss, optax.sgd(0.1), **OPTIONS)
    with pytest.raises(ValueError, match=r"\['experts', 'router'\], got \['head'\].*gated_experts"):
        algo.init(KEY, part.init(KEY), flipped())


def hard(patch):
    """The choice is not seen through: routers of the top expert learn nothing."""
    real = jax.lax.stop_gradient
    patch.setattr(gated.jax.lax, "stop_gradient", lambda leaf: real(leaf) * 0 + leaf)


def uniform(patch):
    patch.setattr(gated.jax.nn, "softmax", lambda told, axis: jnp.full_like(told, 0.5))


TOP, SOFT, LEARN = (
    "gradients of the top expert and its router",
    "gates 2/3 and 1/3",
    "routers learn, experts are averaged",
)


@pytest.mark.parametrize(
    ("defect", "caught", "right"), [(hard, (TOP,), (SOFT,)), (uniform, (SOFT, LEARN), ())]
)
def test_planted_defects(monkeypatch, defect, caught, right):
    defect(monkeypatch)
    chosen = [check for check in experts.checks() if check.name in caught + right]
    verdicts = {r.check: r.verdict for r in records.run_checks("experts", chosen)}
    assert verdicts == dict.fromkeys(caught, "FAIL") | dict.fromkeys(right, "PASS")
