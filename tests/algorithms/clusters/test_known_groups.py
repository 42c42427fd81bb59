"""Purity in the history, its figure, newcomers, and HypCluster's round by a plain loop."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_lite as fl
from fedjax_lite.verify.techniques.clusters import OPTIMA, SIZES, groups
from fedjax_lite.verify.testbeds import quadratic, whole

KEY = jax.random.key(0)
TRUE = [3, 3, 8, 8]
START = jnp.array([-5.0, 5.0])
MODEL: Any = fl.models.Model(
    lambda key: jnp.zeros(()),
    lambda w, e, key: jnp.where(e["b"] == 99, jnp.nan, quadratic(w, e, key)),
    lambda w, e: e["b"],
)


def method(**options):
    options = {"groups": TRUE, **options}
    return fl.ifca(
        quadratic, optax.sgd(0.05), num_clusters=2, plan=whole(1), sampler=fl.uniform(2), **options
    )


@pytest.fixture(scope="module")
def course():
    """Pairs of clients, one after the other; models are put where they send whom they shall."""
    algo, data = method(), groups()
    state = algo.init(KEY, START, data)
    rows, states = [], []
    for ids, centres in (
        ([0, 3], (-5.0, 5.0)),  # both right
        ([1, 2], (-90.0, 5.0)),  # both in cluster 1: client 1 is the wrong one there
        ([1, 0], (-5.0, 5.0)),  # client 1 moves to cluster 0, client 0 stays
        ([2, 3], (5.0, 90.0)),  # both to cluster 0
    ):
        server = state.server
        inner = server.inner._replace(params=jnp.array(centres))
        state = state._replace(server=server._replace(inner=inner))
        cohort = fl.Cohort(jnp.array(ids, jnp.int32), jnp.ones(2, bool))
        state, metrics = algo.round(KEY, state, data, cohort)
        rows.append({**{k: float(v) for k, v in metrics.items()}, "round": len(rows) + 1})
        states.append(state)
    return rows, states


def test_purity_of_all_who_ever_chose(course):
    """By counting on fingers, and as `cluster_purity` says of the state."""
    rows, states = course
    assert [round(row["cluster_purity"], 6) for row in rows] == [1.0, 0.75, 1.0, 0.5]
    for row, state in zip(rows, states, strict=True):
        found = fl.cluster_assignments(state)
        np.testing.assert_allclose(row["cluster_purity"], fl.cluster_purity(found, TRUE))
        np.testing.assert_array_equal(found, state.server.clusters)
    assert [row["cluster_changes"] for row in rows] == [0, 0, 0.5, 1]


def test_models_are_as_without_it(course):
    plain: Any = method(groups=None)
    data = groups()
    state = plain.init(KEY, START, data)
    watched = method().init(KEY, START, data)
    for _ in range(2):
        state, _ = plain.round(KEY, state, data)
        watched, _ = method().round(KEY, watched, data)
    np.testing.assert_array_equal(state.server.params, watched.server.params)
    np.testing.assert_array_equal(plain.models(state), plain.models(watched))


def test_figure(course, tmp_path):
    rows, _ = course
    figure = fl.report.plot_clusters(rows, dataset="quadratics", path=tmp_path / "clusters.png")
    upper, lower = figure.axes
    assert upper.get_legend_handles_labels()[1] == ["cluster 0", "cluster 1"]
    drawn = {line.get_label(): list(line.get_ydata()) for line in lower.lines}
    assert drawn["purity, of all who ever chose"] == [row["cluster_purity"] for row in rows]
    assert (tmp_path / "clusters.png").stat().st_size > 1000
    with pytest.raises(ValueError, match=r"cluster_0.*fl\.ifca"):
        fl.report.plot_clusters([{"round": 1}], dataset="quadratics")


def test_newcomers(course):
    """Clients that the run never saw get the model of the least loss; an empty or NaN one none."""
    state = course[1][2]
    assert np.asarray(state.server.params).tolist() == pytest.approx([-5, 5], abs=0.1)
    b = np.array([7.0, -0.5, -0.5, 0.4, 99.0])
    data = fl.data.from_arrays({"a": np.ones(5), "b": b, "y": b}, [0, 1, 1, 2, 4], num_clients=5)
    found = fl.cluster_assignments(state, model=MODEL, data=data)
    assert found.dtype == np.int32
    assert found.tolist() == [1, 0, 1, -1, -1]  # client 3 has no data
    with pytest.raises(TypeError, match="model must be given to assign newcomers"):
        fl.cluster_assignments(state, data=data)
    with pytest.raises(ValueError, match="ids must be None with data"):
        fl.cluster_assignments(state, [0], model=MODEL, data=data)


def test_a_round_of_hypcluster():
    """Every client to its least loss, then a weighted mean of local models in each cluster."""
    rng, rate, data = np.random.default_rng(0), 0.05, groups()
    algo = method(groups=None)
    state = algo.init(KEY, START, data)
    centres = rng.normal(scale=4, size=2)
    state = state._replace(server=state.server._replace(params=jnp.array(centres, jnp.float32)))
    hypotheses = centres.copy()
    for ids in ([0, 2], [1, 3], [1, 2]):
        cohort = fl.Cohort(jnp.array(ids, jnp.int32), jnp.ones(2, bool))
        state, _ = algo.round(KEY, state, data, cohort)
        chosen = np.array([((hypotheses - OPTIMA[i]) ** 2).argmin() for i in ids])
        trained = [h + rate * (OPTIMA[i] - h) for i, h in zip(ids, hypotheses[chosen], strict=True)]
        for q in set(chosen.tolist()):
            weights = SIZES[ids] * (chosen == q)
            hypotheses[q] = weights @ trained / weights.sum()
    np.testing.assert_allclose(state.server.params, hypotheses, rtol=1e-5)


def test_refusals():
    with pytest.raises(ValueError, match=r"groups must be integers \[N\]"):
        method(groups=[0.5] * 4)
    with pytest.raises(ValueError, match="one integer a client, 4 of them, got 3"):
        method(groups=[0, 1, 1]).init(KEY, START, groups())
