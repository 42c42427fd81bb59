"""Per-FedAvg, FOMAML and Reptile: closed forms on quadratics, reductions, independent batches."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_lite as fl
from fedjax_lite.algorithms.personal.batch_parts import batch_parts
from fedjax_lite.algorithms.personal.per_fedavg import meta_client

A, B, N, ETA, ALPHA = np.array([1.0, 4.0]), np.array([-1.0, 2.0]), np.array([30, 10]), 0.05, 0.1
P = N / N.sum()
ONE = fl.Plan(batch_size=None, steps=1)


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def quadratic(w, e, key):
    return 0.5 * e["a"] * (w - e["b"]) ** 2


def q2():
    owners = np.repeat([0, 1], N)
    return fl.data.from_arrays({"a": A[owners], "b": B[owners]}, owners)


def after(algo, num_rounds, start=0.0):
    data = q2()
    state = algo.init(jax.random.key(0), jnp.array(start), data)
    for _ in range(num_rounds):
        state, metrics = algo.round(jax.random.key(0), state, data)
    return float(state.server.params), metrics


def per_fedavg(plan=ONE, rate=ETA, alpha=ALPHA, **options):
    return fl.per_fedavg(
        quadratic, optax.sgd(rate), alpha=alpha, plan=plan, sampler=fl.everyone(), **options
    )


@pytest.mark.sample(1)
@pytest.mark.parametrize(
    ("first_order", "gradient", "optimum"),
    [(False, -0.1125, 0.1162790698), (True, -0.525, 0.4117647059)],
)
def test_gradient_at_zero_and_optimum(first_order, gradient, optimum):
    """(1 - alpha a)^2 a, or without the Hessian's factor (1 - alpha a) a, weigh the optima."""
    once, metrics = after(per_fedavg(first_order=first_order, rate=1.0), 1)
    assert once == pytest.approx(-gradient, abs=1e-12)
    factor = A * (1 - ALPHA * A) ** (1 if first_order else 2)
    assert optimum == pytest.approx((P * factor * B).sum() / (P * factor).sum(), abs=1e-10)
    limit, _ = after(per_fedavg(first_order=first_order, rate=0.5), 100)
    assert limit == pytest.approx((P * factor * B).sum() / (P * factor).sum(), abs=1e-12)
    # Losses at 0 and at alpha a b, a client's mean as its examples in D and D' count.
    before, adapted = 0.5 * A * B**2, 0.5 * A * (ALPHA * A * B - B) ** 2
    number = 2 if first_order else 3
    counts = [[sum(1 for j in range(n) if j % number == p) for n in N] for p in (0, number - 1)]
    for name, values, n in (
        ("train_loss", before, counts[0]),
        ("adapted_train_loss", adapted, counts[1]),
    ):
        expected = np.average(values, weights=n)
        assert float(metrics[name]) == pytest.approx(expected, rel=1e-6), name


def test_several_local_steps_by_numpy():
    plan = fl.Plan(batch_size=6, steps=3)
    x, expected = 0.3, []
    for a, b in zip(A, B, strict=True):
        y = x
        for _ in range(3):
            adapted = y - ALPHA * a * (y - b)
            y -= ETA * (1 - ALPHA * a) * a * (adapted - b)
        expected.append(y)
    assert after(per_fedavg(plan), 1, start=x)[0] == pytest.approx(P @ expected, abs=1e-13)


@pytest.mark.sample(5, of="reductions to another method")
def test_without_adaptation_it_is_fedavg():
    plan = fl.Plan(batch_size=6, epochs=1)
    fedavg = fl.fedavg(quadratic, optax.sgd(ETA), plan=plan, sampler=fl.everyone())
    expected, _ = after(fedavg, 3)
    for first_order in (False, True):
        found, _ = after(per_fedavg(plan, alpha=0.0, first_order=first_order), 3)
        assert found == pytest.approx(expected, abs=1e-13)


def test_fomaml_with_several_inner_steps():
    options = {"plan": ONE, "sampler": fl.everyone()}
    three = fl.fomaml(quadratic, optax.sgd(1.0), alpha=ALPHA, inner_steps=3, **options)
    expected = P @ (A * (1 - ALPHA * A) ** 3 * B)  # minus the gradient at z_3, from 0
    assert after(three, 1)[0] == pytest.approx(expected, abs=1e-12)
    one = fl.fomaml(quadratic, optax.sgd(ETA), alpha=ALPHA, **options)
    assert after(one, 3)[0] == after(per_fedavg(first_order=True), 3)[0]


def test_reptile_goes_part_of_the_way():
    plan = fl.Plan(batch_size=None, steps=5)
    options = {"plan": plan, "sampler": fl.everyone()}
    found, _ = after(fl.reptile(quadratic, optax.sgd(ETA), epsilon=0.5, **options), 1)
    assert found == pytest.approx(0.5 * np.mean((1 - (1 - ETA * A) ** 5) * B), abs=1e-13)
    assert found == pytest.approx(0.2796052344, abs=1e-10)
    fedavg = fl.fedavg(quadratic, optax.sgd(ETA), weighting="uniform", **options)
    whole = fl.reptile(quadratic, optax.sgd(ETA), epsilon=1.0, **options)
    assert after(whole, 3)[0] == after(fedavg, 3)[0]


def test_the_hessian_is_that_of_a_third_batch():
    """f(w; a) = a w^2 / 2 with other a in D, D', D'': each has its place in the product."""

    def of_batch(w, e, key):
        return 0.5 * e * w**2

    client = meta_client(of_batch, optax.sgd(1.0), alpha=ALPHA)
    info = fl.ClientInfo(*map(jnp.int32, (0, 6, 1, 0)))
    curvature = jnp.array([2.0, 3.0, 5.0, 2.0, 3.0, 5.0])  # dealt in turns: two of each
    batch = fl.Batch(curvature, jnp.ones(6, bool), jax.random.key(0))
    step = jax.jit(lambda x: client.step(x, client.start(None, (), x, info), batch))
    carry = step(jnp.array(1.0))
    # D comes first, D'' in the middle, D' last.
    expected = (1 - ALPHA * 3.0) * 5.0 * (1 - ALPHA * 2.0)
    value = client.finish(jnp.array(1.0), carry)[1].value
    assert float(value) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("count", [0, 1, 2, 5, 7])
@pytest.mark.parametrize("in_front", [True, False])
def test_parts_hold_every_example_that_counts_once(count, in_front):
    where = np.arange(7) < count if in_front else np.isin(np.arange(7), [6, 2, 4, 0, 5][:count])
    batch = fl.Batch(jnp.arange(7.0), jnp.asarray(where), jax.random.key(0))
    parts = batch_parts(batch, 3, in_front=in_front)
    mask, examples = np.asarray(parts.mask), np.asarray(parts.examples)
    real = set(np.arange(7.0)[where])
    assert set(examples[mask]) == real
    assert mask.any(axis=1).all() == bool(real)  # no part is empty
    if len(real) >= 3:
        assert mask.sum() == len(real)  # and none has what another has
        sizes = mask.sum(axis=1)
        assert sizes.max() - sizes.min() <= 1
    keys = jax.random.key_data(parts.key)
    assert len(np.unique(np.asarray(keys), axis=0)) == 3


def test_wrong_input():
    with pytest.raises(ValueError, match="plan must have batches of 3 examples at least"):
        per_fedavg(fl.Plan(batch_size=2))
    per_fedavg(fl.Plan(batch_size=2), first_order=True)
    with pytest.raises(ValueError, match="alpha must"):
        per_fedavg(alpha=-0.1)
    with pytest.raises(ValueError, match="inner_steps must be 1 with the Hessian, got 2"):
        meta_client(quadratic, optax.sgd(1.0), alpha=0.1, inner_steps=2)
    with pytest.raises(ValueError, match="epsilon must"):
        fl.reptile(quadratic, optax.sgd(1.0), epsilon=-1.0, plan=ONE, sampler=fl.everyone())
