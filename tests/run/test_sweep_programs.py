"""sweep(): programs that are found again, what is shown, and members that diverge."""

import gc
import importlib
import warnings
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fedjax_lite as fl
from fedjax_lite.engine import reuse


def halfway(learning_rate, *, metric="train_loss"):
    """Steps from the parameters towards the mean of the data: a program of a few lines."""

    def start(key, params, data):
        return fl.RoundState(jnp.int32(0), params, (), (), (), ())

    def one_round(key, state, data, cohort=None):
        gap = data["b"].mean() - state.server
        moved = state._replace(round=state.round + 1, server=state.server + learning_rate * gap)
        return moved, {metric: 0.5 * gap**2}

    return fl.FederatedAlgorithm(start, one_round)


SMALL = {
    "init": lambda key: jnp.float32(0),
    "data": {"b": np.array([1, 3], np.float32)},
    "num_rounds": 3,
    "progress": False,
}


# -- programs that are found again ----------------------------------------------------------

compilations = []
jax.monitoring.register_event_duration_secs_listener(
    lambda name, *_, **__: compilations.append(name) if "backend_compile" in name else None
)


def num_compiled(call, **changes):
    before = len(compilations)
    return call(**{**SMALL, **changes}), len(compilations) - before


def half(grid, make=halfway):
    return lambda **options: fl.sweep(make, {"learning_rate": grid}, **options)


def test_a_second_call_compiles_nothing():
    """Other values, seeds, rounds and data of the same shapes; also another function that says
    the same. Neither may the program of the first call be run where another is asked for."""
    first, number = num_compiled(half([0.5, 0.25]))
    assert number > 0
    again, number = num_compiled(half([0.5, 0.25]))
    assert number == 0
    assert again.rows == first.rows
    other = {"b": np.array([3, 5], np.float32)}
    result, number = num_compiled(half([0.75, 1.0]), seeds=[5], num_rounds=4, data=other)
    assert number == 0
    np.testing.assert_allclose(result.states.server, [4 * (1 - 0.25**4), 4.0])
    result, number = num_compiled(half([0.5, 0.25], lambda learning_rate: halfway(learning_rate)))
    assert number == 0
    np.testing.assert_allclose(result.states.server, [2 * (1 - 0.5**3), 2 * (1 - 0.75**3)])


def test_one_trace_for_all_chunks():
    traced = []

    def make(learning_rate):
        if isinstance(learning_rate, jax.core.Tracer):
            traced.append(learning_rate)
        return halfway(learning_rate)

    half([0.01, 0.02, 0.03, 0.04, 0.05], make)(chunk_size=2, **SMALL)
    assert len(traced) == 2  # the start, the rounds


def test_what_says_something_else_is_compiled_anew():
    """A maker that reads a variable of its surroundings, as in a loop over batch sizes, is the
    same function and another program; so is one more member, and another shape of the data."""
    scale = 1.0

    def make(learning_rate):
        return halfway(scale * learning_rate)

    for scale in (1.0, 0.5):
        result, _ = num_compiled(half([1.0, 0.5], make), num_rounds=1)
        np.testing.assert_allclose(result.states.server, [2 * scale, scale])
    assert num_compiled(half([0.1, 0.2, 0.3]))[1] > 0
    longer, number = num_compiled(
        half([1.0, 0.5]), data={"b": np.array([1, 2, 6], np.float32)}, num_rounds=1
    )
    assert number > 0
    np.testing.assert_allclose(longer.states.server, [3.0, 1.5])


def test_callbacks_are_not_shared():
    """Programs that call back into Python look alike, whatever they call."""

    def calling(factor):
        def make(learning_rate):
            double = lambda x: np.float32(factor * x)  # noqa: E731
            kind = jax.ShapeDtypeStruct((), jnp.float32)
            rate = jax.pure_callback(double, kind, learning_rate, vmap_method="sequential")
            return halfway(rate)

        return make

    for factor in (1.0, 0.5):
        result, _ = num_compiled(half([1.0], calling(factor)), num_rounds=1)
        np.testing.assert_allclose(result.states.server, [2 * factor])


def test_weak_types_and_other_meshes_are_other_programs():
    """Their text is the same."""
    double = lambda x: 2 * x  # noqa: E731
    for x in (jnp.float32(1), jnp.asarray(1.0), jnp.float32(1)):
        assert reuse.reusing(double)(x).weak_type == jax.jit(double)(x).weak_type
    for device in jax.devices()[-2:]:
        mesh, whole = fl.client_mesh([device]), jax.sharding.PartitionSpec()
        moved = jax.shard_map(double, mesh=mesh, in_specs=whole, out_specs=whole)
        assert reuse.reusing(moved)(np.float32(1)).sharding.device_set == {device}


def test_settings_that_look_into_a_function_still_do():
    with jax.disable_jit():
        assert float(reuse.reusing(lambda x: x * x.item())(jnp.float32(3))) == 9
    with jax.debug_nans(True), pytest.raises(FloatingPointError, match="nan"):
        reuse.reusing(lambda x: 0 / x)(jnp.float32(0))


def test_programs_keep_neither_makers_nor_data_alive():
    def make(learning_rate):
        return halfway(learning_rate)

    data = {"b": jnp.array([7, 9], np.float32)}
    fl.sweep(make, {"learning_rate": [0.5]}, **{**SMALL, "data": data})
    alive = weakref.ref(make), weakref.ref(data["b"])
    del make, data
    gc.collect()
    assert [one() for one in alive] == [None, None]
    for number in range(reuse.KEPT + 3):
        reuse.reusing(lambda x, number=number: x + number)(jnp.float32(0))
    assert len(reuse._kept) == reuse.KEPT


# -- what is shown, and who diverged --------------------------------------------------------


@pytest.fixture
def every_line(monkeypatch):
    """Plain lines come without a pause between them."""
    monkeypatch.setattr(importlib.import_module("fedjax_lite.run.sweep"), "PAUSE", 0.0)


def test_progress_is_shown_as_run_does(capsys, every_line):
    rates = {"learning_rate": [0.5, 0.25, 1.0]}
    fl.sweep(halfway, rates, chunk_size=2, **{**SMALL, "progress": True})
    lines = capsys.readouterr().out.splitlines()
    # The gap is 2 before a member's first round, and half or three quarters of it after that.
    assert [line.split("  ")[:2] for line in lines] == [
        [f"round (of 2 chunks) {at}/6", f"lowest train_loss {loss:.4f}"]
        for at, loss in enumerate([2, 0.5, 0.125, 2, 0, 0], 1)
    ]
    fl.sweep(halfway, rates, **SMALL)
    assert capsys.readouterr() == ("", "")


def test_long_sweeps_show_their_rounds_between_evaluations(capsys, every_line):
    options = {**SMALL, "num_rounds": 40, "every": 25, "progress": True}
    result = fl.sweep(halfway, {"learning_rate": [0.5, 0.25]}, **options)
    shown = [line.split("/")[0].split()[1] for line in capsys.readouterr().out.splitlines()]
    assert shown == ["4", "8", "12", "16", "20", "24", "25", "28", "32", "36", "40"]
    assert [row["round"] for row in result.rows] == [25, 25, 40, 40]


def test_quick_sweeps_print_their_first_and_last_line_only(capsys):
    options = {**SMALL, "num_rounds": 40, "every": 25, "progress": True}
    fl.sweep(halfway, {"learning_rate": [0.5, 0.25]}, **options)
    shown = [line.split("/")[0].split()[1] for line in capsys.readouterr().out.splitlines()]
    assert shown == ["4", "40"]


def test_members_that_diverge_are_named_and_stop_nobody():
    rates = {"learning_rate": [0.5, 1e25, 1.0]}
    message = (
        r"^2 of 6 members of the sweep diverged.*\{'learning_rate': 1e\+25, 'seed': 0\} \(by round "
        r"2\), \{'learning_rate': 1e\+25, 'seed': 1\}.*the others went on.*learning_rate is too"
    )
    with pytest.warns(RuntimeWarning, match=message):
        result = fl.sweep(halfway, rates, seeds=[0, 1], chunk_size=2, **SMALL)
    assert result.diverged == result.points[2:4]
    np.testing.assert_allclose(result.states.server[jnp.array([0, 1, 4, 5])], [1.75] * 2 + [2] * 2)
    assert not np.isfinite(result.states.server[2:4]).any()
    assert result.best("train_loss", largest=False)["learning_rate"] == 1.0


def test_a_setting_that_diverged_is_not_the_best_though_its_model_has_an_accuracy():
    rates = {"learning_rate": [0.5, 1e25]}
    flattered = {**SMALL, "evaluate": lambda state: {"test_accuracy": float(state.server > 1e3)}}
    with pytest.warns(RuntimeWarning, match="diverged"):
        result = fl.sweep(halfway, rates, seeds=[0, 1], **flattered)
    assert result.diverged == result.points[2:]
    lost = result.rows[-1]
    assert np.isfinite(lost["test_accuracy"])
    assert result.best("test_accuracy")["learning_rate"] == 0.5
    with pytest.raises(ValueError, match="no best setting"):
        result._replace(diverged=result.points).best("test_accuracy")


def test_no_more_than_five_are_spelt_out():
    rates = {"learning_rate": [1e25 * scale for scale in range(1, 8)]}
    with pytest.warns(RuntimeWarning, match=r"7 of 7 .*5e\+25.*, 2 more \(.*no others"):
        assert len(fl.sweep(halfway, rates, **SMALL).diverged) == 7
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert fl.sweep(halfway, {"learning_rate": [0.5]}, **SMALL).diverged == []


def test_a_metric_does_not_take_a_settings_place():
    make = lambda num_steps: halfway(num_steps / 100, metric="num_steps")  # noqa: E731
    with pytest.raises(ValueError, match="num_steps"):
        fl.sweep(make, {"num_steps": [1, 5]}, **SMALL)
