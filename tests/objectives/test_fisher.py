"""Fisher information: closed forms, brute force per example, clients, padding, what counts."""

from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_lite as fl
from fedjax_lite.testing.algorithm_laws import same


def logits_of(w, e):
    return e["x"] @ w


def cross_entropy(w, e, key):
    return -jnp.take_along_axis(jax.nn.log_softmax(logits_of(w, e)), e["y"][:, None], 1)[:, 0]


P, X = np.array([1, 2, 3]) / 6, np.array([1.0, 2.0])


def test_softmax_regression_known_answers():
    """(diag P - P P^T) kron x x^T, and the empirical one at label 2."""
    with jax.enable_x64(True):
        # log P / 5 on both features: (1, 2) . (1, 2) / 5 = 1.
        w = jnp.array(np.outer(X, np.log(P)) / 5)
        data = fl.data.from_arrays({"x": X[None], "y": np.array([2])}, [0])
        exact = fl.fisher_information(fl.exact_fisher(logits_of), w, data)
        np.testing.assert_allclose(exact, np.outer(X**2, P * (1 - P)), rtol=1e-12)
        np.testing.assert_allclose(exact[:, 0], [0.1388888889, 0.5555555556], rtol=1e-9)
        empirical = fl.fisher_information(fl.empirical_fisher(cross_entropy), w, data)
        np.testing.assert_allclose(empirical, np.outer(X**2, (P - [0, 0, 1]) ** 2), rtol=1e-12)
        np.testing.assert_allclose(empirical[:, 0], [0.0277777778, 0.1111111111], rtol=1e-8)


def test_the_empirical_one_averaged_over_the_models_own_labels_is_the_exact_one():
    """Each class as often as the model says: 6 examples with labels 0, 1, 1, 2, 2, 2."""
    with jax.enable_x64(True):
        w = jnp.array(np.outer(X, np.log(P)) / 5)
        examples = {"x": np.repeat(X[None], 6, 0), "y": np.array([0, 1, 1, 2, 2, 2])}
        data = fl.data.from_arrays(examples, np.zeros(6, int))
        fishers = (fl.exact_fisher(logits_of), fl.empirical_fisher(cross_entropy))
        exact, empirical = (fl.fisher_information(f, w, data, batch_size=4) for f in fishers)
        np.testing.assert_allclose(exact, empirical, rtol=1e-12)


@pytest.fixture(scope="module")
def problem():
    """Three clients with 5, 0 and 2 examples of a small network, owned out of order."""
    rng = np.random.default_rng(1)
    model = fl.models.mlp((4,), num_classes=3, input_shape=(2,))
    examples = {"x": rng.normal(size=(7, 2)).astype(np.float32), "y": rng.integers(0, 3, 7)}
    owners = np.array([0, 2, 0, 0, 2, 0, 0])
    data = fl.data.from_arrays(examples, owners, num_clients=3)
    return model, model.init(jax.random.key(0)), data, examples, owners


def by_hand(model, params, examples, exact):
    """Squares per example `[7, ...]`, one gradient at a time."""

    @jax.jit
    def square(e):
        log_p = lambda p: jax.nn.log_softmax(model.predict(p, e)[0])  # noqa: E731
        if not exact:
            slope = jax.grad(lambda p: model.loss(p, e, None)[0])(params)
            return jax.tree.map(jnp.square, slope)
        scores, weights = jax.jacrev(log_p)(params), jnp.exp(log_p(params))
        return jax.tree.map(lambda s: jnp.tensordot(weights, s**2, 1), scores)

    found = [square({k: v[i : i + 1] for k, v in examples.items()}) for i in range(7)]
    return jax.tree.map(lambda *leaves: np.stack(leaves), *found)


@pytest.mark.parametrize("exact", [True, False])
def test_clients_and_all_by_brute_force(problem, exact):
    model, params, data, examples, owners = problem
    squares = by_hand(model, params, examples, exact)
    fisher = fl.exact_fisher(model.predict) if exact else fl.empirical_fisher(model.loss)
    for size in (3, 100):  # short last batches, and one batch a client
        found = fl.fisher_information(fisher, params, data, batch_size=size)
        same(found, jax.tree.map(lambda s: s.mean(0), squares))
    each = fl.fisher_information(fisher, params, data, per_client=True, batch_size=3)
    for client in (0, 2):
        same(
            jax.tree.map(lambda leaf, i=client: leaf[i], each),
            jax.tree.map(lambda s, i=client: s[owners == i].mean(0), squares),
        )
    assert not any(leaf[1].any() for leaf in jax.tree.leaves(each))  # a client without data


def test_examples_that_do_not_count_are_absent(problem):
    model, params, _, examples, owners = problem
    examples = {**examples, "y": np.where(np.arange(7) < 3, -1, examples["y"])}
    data = fl.data.from_arrays(examples, owners, num_clients=3)
    fisher = fl.empirical_fisher(model.loss)
    rest = {k: v[3:] for k, v in examples.items()}
    other = fl.data.from_arrays(rest, owners[3:], num_clients=3)
    same(fl.fisher_information(fisher, params, data), fl.fisher_information(fisher, params, other))


def test_one_output_is_the_log_odds():
    """p (1 - p) x^2."""
    data = fl.data.from_arrays({"x": np.array([[3.0], [1.0]], np.float32)}, [0, 0])
    for shape in ((-1, 1), (-1,)):
        fisher = fl.exact_fisher(lambda w, e, shape=shape: (e["x"] * w).reshape(shape))
        p = 1 / (1 + np.exp(-0.5 * np.array([3.0, 1.0])))
        expected = (p * (1 - p) * np.array([9.0, 1.0])).mean()
        np.testing.assert_allclose(
            fl.fisher_information(fisher, jnp.array(0.5), data), expected, rtol=1e-5
        )


def test_the_same_function_compiles_once(problem):
    model, params, data, *_ = problem
    traces = []

    def predict(params, e):
        traces.append(1)
        return model.predict(params, e)

    fisher = fl.exact_fisher(predict)
    fl.fisher_information(fisher, params, data)
    first = len(traces)
    fl.fisher_information(fisher, jax.tree.map(lambda x: 2 * x, params), data)
    assert len(traces) == first > 0


def test_bad_arguments(problem):
    model, params, data, *_ = problem
    with pytest.raises(TypeError, match="fisher must be"):
        fl.fisher_information(cast(Any, "exact"), params, data)
    with pytest.raises(TypeError, match="FederatedDataset"):
        fl.fisher_information(fl.empirical_fisher(model.loss), params, cast(Any, {"x": np.ones(3)}))
    wide = fl.exact_fisher(lambda p, e: jnp.ones((1, 4, 3)))
    with pytest.raises(ValueError, match=r"logits \[B, K\].*empirical_fisher"):
        fl.fisher_information(wide, params, data)
    alone = fl.local_only(model.loss, optax.sgd(0.1), plan=fl.Plan(2), sampler=fl.everyone())
    state = alone.init(jax.random.key(0), params, data)
    with pytest.raises(TypeError, match="one whole model"):
        fl.fisher_information(fl.empirical_fisher(model.loss), state, data)
