"""sweep(): each member is its separate run; chunks, devices and order change nothing."""

import functools
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_lite as fl
from fedjax_lite import report
from fedjax_lite.run.sweep import fitting

four = pytest.mark.skipif(jax.device_count() < 4, reason="needs four devices; see the last test")
GRID = {"learning_rate": [0.02, 0.1], "mu": [0.0, 1.0]}


def population():
    rng = np.random.default_rng(0)
    owners = np.repeat(np.arange(6), [4, 9, 2, 7, 5, 3])
    x = rng.normal(size=(30, 3)).astype(np.float32)
    return fl.data.from_arrays({"x": x, "y": (x.sum(1) + owners).astype(np.float32)}, owners)


def loss(w, e, key):
    return 0.5 * (e["x"] @ w - e["y"]) ** 2


def fedprox(learning_rate, mu):
    return fl.fedprox(
        loss, optax.sgd(learning_rate), mu=mu, plan=fl.Plan(batch_size=2), sampler=fl.uniform(3)
    )


def scaffold(learning_rate):
    return fl.scaffold(loss, learning_rate, plan=fl.Plan(batch_size=2), sampler=fl.uniform(3))


def init(key):
    return jax.random.normal(key, (3,))


def norm(state):
    return {"norm": float(np.linalg.norm(state.server.params))}


@functools.cache
def member(make):
    """Init and one round of a single member, compiled once for all of its settings."""
    return (
        jax.jit(lambda setting, key, data: make(**setting).init(key, init(key), data)),
        jax.jit(lambda setting, key, *args: make(**setting).round(key, *args)),
    )


def alone(make, point, data, num_rounds):
    """A member by itself, round by round: its last state, and its row by round."""
    setting = dict(point)
    key = jax.random.key(setting.pop("seed"))
    start, one_round = member(make)
    state, history = start(setting, key, data), {}
    for number in range(1, num_rounds + 1):
        state, metrics = one_round(setting, key, state, data)
        history[number] = {**{k: v.item() for k, v in metrics.items()}, **norm(state)}
    return state, history


def by_run(algo, point, data, num_rounds):
    setting = dict(point)
    key = jax.random.key(setting.pop("seed"))
    state, rows = fl.run(
        algo, key, member(fedprox)[0](setting, key, data), data, num_rounds=num_rounds, every=2,
        evaluate=norm, progress=False,
    )  # fmt: skip
    return state, {row["round"]: row for row in rows}


@pytest.fixture(scope="module")
def swept():
    data = population()
    options = {"init": init, "data": data, "num_rounds": 5, "every": 2, "evaluate": norm}
    options["progress"] = False
    return data, options, fl.sweep(fedprox, GRID, seeds=[3, 4], **options)


def test_members_are_the_product_and_equal_their_own_runs(swept):
    data, _, result = swept
    assert [tuple(point.values()) for point in result.points] == [
        (rate, mu, seed) for rate in (0.02, 0.1) for mu in (0.0, 1.0) for seed in (3, 4)
    ]
    first = fedprox(0.02, 0.0)  # plain numbers, and `run`: compiled once for both seeds
    for index, point in enumerate(result.points):
        check(result, index, *alone(fedprox, point, data, 5))
        if index < 2:
            check(result, index, *by_run(first, point, data, 5))


def check(result, index, state, history):
    point = result.points[index]
    np.testing.assert_allclose(
        result.states.server.params[index], state.server.params, rtol=2e-5, atol=2e-6
    )
    rows = [row for row in result.rows if all(row[k] == v for k, v in point.items())]
    assert [row["round"] for row in rows] == [2, 4, 5]
    for row in rows:
        same = history[row["round"]]
        for name in ("norm", "train_loss", "num_steps", "uplink_bits"):
            assert row[name] == pytest.approx(same[name], rel=2e-5), name


def test_chunks_change_nothing(swept):
    _, options, whole = swept
    parts = fl.sweep(fedprox, GRID, seeds=[3, 4], chunk_size=3, **options)
    assert parts.points == whole.points
    chex.assert_trees_all_close(*(parts.states.server, whole.states.server), rtol=2e-5, atol=2e-6)


def test_client_tables_are_per_member(swept):
    """Also one member at a time."""
    data, options, _ = swept
    result = fl.sweep(scaffold, {"learning_rate": [0.02, 0.05]}, chunk_size=1, **options)
    for index, point in enumerate(result.points):
        state, _ = alone(scaffold, point, data, 5)
        np.testing.assert_allclose(result.states.clients[index], state.clients, atol=1e-5)


def test_table_and_best_are_over_seeds(swept):
    _, _, result = swept
    table = result.table("norm")
    assert len(table) == 4
    for row in table:
        last = [
            r["norm"]
            for r in result.rows
            if r["round"] == 5
            and (r["learning_rate"], r["mu"]) == (row["learning_rate"], row["mu"])
        ]
        assert row["mean"] == pytest.approx(np.mean(last))
        assert row["std"] == pytest.approx(abs(last[0] - last[1]) / np.sqrt(2))
        assert row["num_seeds"] == 2
    assert result.best("norm")["mean"] == max(row["mean"] for row in table)
    assert result.best("norm", largest=False)["mean"] == min(row["mean"] for row in table)
    with pytest.raises(ValueError, match="accuracy"):
        result.table("accuracy")


def test_a_diverged_setting_is_never_the_best():
    rows = [
        {"learning_rate": r, "seed": 0, "round": 1, "loss": v} for r, v in ((1, np.nan), (2, 5.0))
    ]
    points = [{"learning_rate": r, "seed": 0} for r in (1, 2)]
    assert fl.Sweep(rows, None, points).best("loss", largest=False)["learning_rate"] == 2


def test_plot(swept, tmp_path):
    _, _, result = swept
    table = result.table("norm")
    path = tmp_path / "sweep.png"
    figure = report.plot_sweep(table, x="learning_rate", metric="norm", dataset="toy", path=path)
    assert path.read_bytes()[:4] == b"\x89PNG"
    legend = figure.axes[0].get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["mu = 0", "mu = 1"]
    with pytest.raises(ValueError, match="learning_rate"):
        report.plot_sweep(table, x="rate", metric="norm", dataset="toy")


def test_members_that_fit():
    state = {"w": jax.ShapeDtypeStruct((100,), jnp.float32)}
    assert fitting(state, 2 * 6 * 400 * 7) == 7
    assert fitting(state, 10) == 1
    assert fitting(state, None) == 1


@pytest.mark.parametrize(
    ("grid", "more", "error", "match"),
    [
        ({"learning_rate": []}, {}, ValueError, "learning_rate"),
        ({"learning_rate": [0.1]}, {"seeds": []}, ValueError, "seeds"),
        ({"learning_rate": ["0.1"]}, {}, TypeError, "Python loop"),
        ({"learning_rate": 0.1}, {}, ValueError, "list of numbers"),
        ({"learning_rate": [0.1, 0.1]}, {}, ValueError, "once"),
        ({"learning_rate": [-0.1]}, {}, ValueError, "learning_rate"),
        ({"learning_rate": [0.1]}, {"seeds": [1, 1]}, ValueError, "once"),
        ({"learning_rate": [0.1]}, {"seeds": [2**31]}, ValueError, "seeds must lie"),
        ({"learning_rate": [0.1]}, {"seeds": [0.5]}, TypeError, "integers"),
        ({"seed": [1]}, {}, ValueError, "seeds"),
        ({"round": [1]}, {}, ValueError, "num_rounds"),
        ({"learning_rate": [0.1]}, {"num_rounds": 0}, ValueError, "num_rounds"),
        ({"learning_rate": [0.1]}, {"chunk_size": 0}, ValueError, "chunk_size"),
    ],
)
def test_errors(swept, grid, more, error, match):
    _, options, _ = swept
    with pytest.raises(error, match=match):
        fl.sweep(scaffold, grid, **{**options, **more})


def test_a_mesh_without_the_axis_is_named(swept):
    _, options, _ = swept
    mesh = jax.sharding.Mesh(np.asarray(jax.devices()[:1]), ("data",))
    with pytest.raises(ValueError, match="clients"):
        fl.sweep(scaffold, {"learning_rate": jnp.array([0.1])}, mesh=mesh, **options)


def test_a_maker_of_something_else_is_named(swept):
    _, options, _ = swept
    make: Any = lambda learning_rate: scaffold  # noqa: E731
    with pytest.raises(TypeError, match="FederatedAlgorithm"):
        fl.sweep(make, {"learning_rate": [0.1]}, **options)


def dealt(params, rounds):
    mesh = fl.client_mesh(jax.devices()[:3])  # eight members on three devices
    result = fl.sweep(
        fedprox, GRID, seeds=[3, 4], mesh=mesh, init=init, data=population(), num_rounds=5,
        every=2, evaluate=norm, progress=False,
    )  # fmt: skip
    np.testing.assert_allclose(result.states.server.params, params, rtol=2e-5, atol=2e-6)
    assert [row["round"] for row in result.rows] == list(rounds)
    assert {leaf.sharding.num_devices for leaf in jax.tree.leaves(result.states.server)} == {3}


@four
def test_members_are_dealt_to_devices(swept):
    whole = swept[2]
    dealt(whole.states.server.params, [row["round"] for row in whole.rows])


@pytest.mark.skipif(jax.device_count() >= 4, reason="this is that process")
def test_with_four_devices(swept, tmp_path):
    """The same in a process that has them, against what this one computed."""
    whole, known = swept[2], tmp_path / "swept.npz"
    rounds = [row["round"] for row in whole.rows]
    np.savez(known, params=whole.states.server.params, rounds=rounds)
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=4"
    code = "import sys, numpy; sys.path.append(sys.argv[1]); import test_sweep; "
    code += "test_sweep.dealt(**numpy.load(sys.argv[2])); print('dealt')"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, str(Path(__file__).parent), str(known)],
        env={**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout == "dealt\n"


def test_parameters_in_place_of_init_are_named():
    with pytest.raises(TypeError, match=r"init must be callable.*got dict.*init=model\.init"):
        fl.sweep(
            scaffold, {"learning_rate": [0.1]}, init={"w": 1.0},  # type: ignore[arg-type]
            data=population(), num_rounds=1,
        )  # fmt: skip


@pytest.mark.parametrize("convert", [float, bool, int, np.asarray])
def test_a_maker_that_converts_gets_a_note(convert):
    def make(learning_rate):
        convert(learning_rate)
        return scaffold(learning_rate)

    with pytest.raises(Exception) as caught:
        fl.sweep(make, {"learning_rate": [0.1]}, init=init, data=population(), num_rounds=1)
    assert "hand them on, do not convert them" in caught.value.__notes__[0]
