"""Regressions over columns are those of the pooled table: by numpy, in both precisions."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_lite as fl

KEY = jax.random.key(0)
WHOLE = fl.Plan(batch_size=None)
RNG = np.random.default_rng(1)
N, ROUNDS = 24, 30
X = {"a": RNG.normal(size=(N, 2)), "b": RNG.normal(size=(N, 3)), "c": RNG.normal(size=(N, 1))}
TIME = np.repeat(np.arange(8.0), 3)[RNG.permutation(N)]  # every time thrice: ties
Y = {
    "linear": RNG.normal(size=N),
    "logistic": (RNG.random(N) < 0.4).astype(float),
    "poisson": RNG.poisson(1.3, N).astype(float),
    "cox": {"time": TIME, "event": (RNG.random(N) < 0.7).astype(float)},
}


def residuals(kind, z, y):
    """Derivatives of the summed loss; of Cox by its definition, a sum over events and at risk."""
    if kind == "linear":
        return z - y
    if kind == "logistic":
        return 1 / (1 + np.exp(-z)) - y
    if kind == "poisson":
        return np.exp(z) - y
    found = np.zeros_like(z)
    for i in range(len(z)):
        if y["event"][i]:
            at_risk = y["time"] >= y["time"][i]
            found[at_risk] += np.exp(z[at_risk]) / np.exp(z[at_risk]).sum()
            found[i] -= 1
    return found


def losses(kind, z, y):
    if kind == "linear":
        return 0.5 * (z - y) ** 2
    if kind == "logistic":
        return np.log1p(np.exp(z)) - y * z
    if kind == "poisson":
        return np.exp(z) - y * z
    at_risk = y["time"][None] >= y["time"][:, None]
    return y["event"] * (np.log((at_risk * np.exp(z)).sum(1)) - z)


def pooled(kind, rate, rounds=ROUNDS, *, intercept=True):
    """Gradient descent on the table in one place; weights, intercept, loss before the last step."""
    x, y = np.concatenate([X[party] for party in sorted(X)], axis=1), Y[kind]
    w, b, loss = np.zeros(x.shape[1]), 0.0, np.inf
    for _ in range(rounds):
        z = x @ w + b
        loss = losses(kind, z, y).mean()
        r = residuals(kind, z, y) / N
        w, b = w - rate * x.T @ r, b - rate * r.sum() * (intercept and kind != "cox")
    return w, b, loss


def columns(kind, dtype):
    labels = {"b": jax.tree.map(lambda y: y.astype(dtype), Y[kind])}
    return fl.parties.from_columns({p: x.astype(dtype) for p, x in X.items()}, labels)


def with_label(value):
    """Zeros for labels, but in row 3."""
    labels = jax.tree.map(lambda one: np.where(np.arange(N) == 3, one, 0.0), value)
    return fl.parties.from_columns(X, {"b": labels})


def trained(data, kind: Any, rate, rounds=ROUNDS):
    algo = fl.parties.vertical_sgd(fl.parties.regression(kind, data), optax.sgd(rate), plan=WHOLE)
    state = algo.init(KEY, None, data)
    return fl.run(algo, KEY, state, data, num_rounds=rounds, every=rounds, progress=False)


@pytest.mark.parametrize("kind", sorted(Y))
def test_equals_pooled(kind):
    """To 1e-9 in double precision and to 1e-6 in single; so does the loss; and what is billed."""
    weights, intercept, loss = pooled(kind, 0.3)
    assert np.abs(weights).max() > 0.05  # it moved
    for dtype, tolerance in ((np.float64, 1e-9), (np.float32, 1e-6)):
        with jax.enable_x64(dtype == np.float64):
            state, rows = trained(columns(kind, dtype), kind, 0.3)
            params = state.server.params
            found = np.concatenate([params.bottoms[party] for party in sorted(X)])
            assert found.dtype == dtype
            np.testing.assert_allclose(found, weights, rtol=0, atol=tolerance)
            if kind != "cox":
                np.testing.assert_allclose(
                    params.heads["b"]["intercept"], intercept, rtol=0, atol=tolerance
                )
            np.testing.assert_allclose(rows[-1]["train_loss"], loss, rtol=1e-6)
            # Two parties send a number an entity and get one; the holder's own stays at home.
            bits = 8 * np.dtype(dtype).itemsize * N * 2
            assert rows[-1]["uplink_bits"] == rows[-1]["downlink_bits"] == bits
            assert rows[-1]["uplink_bits_total"] == bits * ROUNDS
    assert rows[-1]["num_parties"] == 3
    assert rows[-1]["num_steps"] == rows[-1]["num_exchanges"] == 1


def test_known_answer():
    """Two parties, six patients in other orders and with strangers among them, ten steps."""
    x_a = np.cos(np.outer(np.arange(6), np.arange(2)) + 1)
    x_b = np.sin(np.arange(6)[:, None] + 2 * np.arange(2)[None] + 0.5)
    y = np.array([0, 1, 0, 1, 1, 0.0])
    rng = np.random.default_rng(0)
    ids = {"a": np.array([f"p{i}" for i in [*range(6), 7, 8]]),
           "b": np.array([f"p{i}" for i in [*range(6), 9]])}  # fmt: skip
    x = {"a": np.r_[x_a, rng.normal(size=(2, 2))], "b": np.r_[x_b, rng.normal(size=(1, 2))]}
    order = {party: rng.permutation(len(v)) for party, v in ids.items()}
    with jax.enable_x64(True):
        data = fl.parties.from_columns(
            {party: x[party][order[party]] for party in x},
            {"a": np.r_[y, 0, 1][order["a"]]},
            alignment=fl.parties.align({party: ids[party][order[party]] for party in ids}),
        )
        model = fl.parties.regression("logistic", data, intercept=False)
        algo = fl.parties.vertical_sgd(model, optax.sgd(0.5), plan=WHOLE)
        state = algo.init(KEY, None, data)
        for _ in range(10):
            state, _ = algo.round(KEY, state, data)
        params = state.server.params
        found = np.r_[params.bottoms["a"], params.bottoms["b"]]
        loss = fl.parties.joint(model).loss(params, data.examples_of(), None).mean()
    table, w = np.c_[x_a, x_b], np.zeros(4)
    for _ in range(10):
        w -= 0.5 * table.T @ (1 / (1 + np.exp(-table @ w)) - y) / 6
    np.testing.assert_allclose(found, w, rtol=0, atol=1e-12)
    published = (-0.0103170706, -0.3516276171, -0.3125278737, -0.3895262389)
    np.testing.assert_allclose(found, published, rtol=0, atol=1e-9)
    np.testing.assert_allclose(loss, losses("logistic", table @ w, y).mean(), rtol=1e-12)
    np.testing.assert_allclose(loss, 0.6170130977, rtol=0, atol=1e-9)


def test_predictions():
    data = columns("poisson", np.float32)
    kinds: Any = (("linear", lambda z: z), ("poisson", np.exp))
    for kind, expected in kinds:
        model = fl.parties.regression(kind, data)
        params = jax.tree.map(lambda leaf: leaf + 0.25, model.init(KEY))
        z = 0.25 + sum(0.25 * x.sum(1) for x in X.values())
        found = fl.parties.joint(model).predict(params, data.examples_of())
        np.testing.assert_allclose(found, expected(z), rtol=1e-5)


@pytest.mark.parametrize(
    ("kind", "data", "message"),
    [
        ("probit", columns("linear", np.float32), "kind must be one of .*got 'probit'"),
        ("cox", columns("linear", np.float32), r'\{"time".*got an array'),
        ("linear", columns("cox", np.float32), r"\[n\], got \['event', 'time'\]"),
        ("poisson", columns("linear", np.float32), "must be counts for kind='poisson', got -"),
        ("logistic", columns("linear", np.float32), r"must lie in \[0, 1\] for kind='logistic'"),
        ("linear", with_label(np.nan), r"labels must be finite, got nan in row 3"),
        ("cox", with_label({"time": np.inf, "event": 1.0}), r"\['time'\] must be finite, got inf"),
        ("linear", fl.parties.from_columns({"a": np.eye(2, dtype=int)}, {"a": np.ones(2)}),
         r"features\['a'\] must be floats \[n, d\], got int"),
    ],
)  # fmt: skip
def test_refusals(kind, data, message):
    with pytest.raises(ValueError, match=message):
        fl.parties.regression(kind, data)


def test_unsigned_times_are_in_order():
    """The minus of an unsigned 0 is 0, of a 1 the largest number."""
    y = {"time": TIME.astype(np.uint8), "event": Y["cox"]["event"]}
    assert 0 in y["time"]
    model = fl.parties.regression("cox", fl.parties.from_columns(X, {"b": y}))
    z = RNG.normal(size=N)
    found = model.heads["b"].loss(
        {}, {"x": jnp.asarray(z), "y": jax.tree.map(jnp.asarray, y)}, None
    )
    np.testing.assert_allclose(found, losses("cox", z, y), rtol=1e-4, atol=1e-5)


def test_cox_in_batches_is_refused():
    data = columns("cox", np.float32)
    model = fl.parties.regression("cox", data)
    with pytest.raises(ValueError, match=r"plan must have batch_size=None .* got batch_size=4"):
        fl.parties.vertical_sgd(model, optax.sgd(0.1), plan=fl.Plan(batch_size=4))
    assert jnp.isfinite(model.heads["b"].loss({}, {"x": jnp.zeros(N), "y": Y["cox"]}, None)).all()
