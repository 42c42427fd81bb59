"""fastest() times real rounds, keeps the answer, and says what it left out."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_lite as fl
from fedjax_lite.run import fastest as module
from fedjax_lite.run.fastest import fastest, lane_strategies


@pytest.fixture(scope="module")
def problem():
    data = fl.data.from_arrays({"b": np.arange(8.0)}, np.arange(8))
    algo = fl.fedavg(
        lambda w, e, key: 0.5 * (w - e["b"]) ** 2,
        optax.sgd(0.1),
        plan=fl.Plan(batch_size=1),
        sampler=fl.everyone(),
    )
    key = jax.random.key(0)
    variants = {name: algo.with_strategy(s) for name, s in lane_strategies(8).items()}
    return variants, key, algo.init(key, jnp.array(0.0), data), data


class Clock:
    """Goes only where a round makes it go, so that no other process's load can be measured."""

    now = 0.0

    def perf_counter(self):
        return self.now


def slow_down(algo, seconds, clock):
    """The same round, and a wait that the device cannot skip."""

    def wait(x):
        clock.now += seconds
        return x

    def round(key, state, data, cohort=None):
        state, metrics = algo.round(key, state, data)
        number = jax.pure_callback(wait, jax.ShapeDtypeStruct((), jnp.int32), state.round)
        return state._replace(round=number), metrics

    return algo._replace(round=round)


def test_the_fastest_is_chosen_and_found_again_without_measuring(problem, tmp_path, monkeypatch):
    variants, key, state, data = problem
    fast = next(iter(variants.values()))
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    slow, slower = (slow_down(fast, seconds, clock) for seconds in (2.0, 3.0))
    variants = {"slow": slow, "fast": slow_down(fast, 1.0, clock), "slower": slower}
    found = fastest(variants, key, state, data, cache_dir=tmp_path, repeats=1)
    assert (found.name, found.cached, found.skipped) == ("fast", False, {})
    assert found.seconds == {"slow": 2.0, "fast": 1.0, "slower": 3.0}
    assert "fast (measured: slow" in str(found)

    monkeypatch.setattr(module, "_measure", None)  # calling it would raise
    again = fastest(variants, key, state, data, cache_dir=tmp_path, repeats=1)
    assert again == found._replace(cached=True)


def test_another_program_or_a_refresh_measures_anew(problem, tmp_path):
    variants, key, state, data = problem
    variants = {name: variants[name] for name in ("chunked(2)", "vmapped()")}
    assert not fastest(variants, key, state, data, cache_dir=tmp_path, repeats=1).cached
    larger = fl.data.from_arrays({"b": np.arange(9.0)}, [*range(8), 7])
    assert not fastest(variants, key, state, larger, cache_dir=tmp_path, repeats=1).cached
    assert fastest(variants, key, state, data, cache_dir=tmp_path, repeats=1).cached
    assert not fastest(variants, key, state, data, cache_dir=tmp_path, refresh=True).cached
    entries = json.loads((tmp_path / "timings.json").read_text())
    assert len(entries) == 2
    assert {entry["device"]["jax"] for entry in entries.values()} == {jax.__version__}


def test_what_does_not_fit_or_comes_too_late_is_skipped_and_said(problem, tmp_path, monkeypatch):
    variants, key, state, data = problem
    found = fastest(variants, key, state, data, cache_dir=tmp_path, max_seconds=0.0)
    assert list(found.seconds) == ["chunked(1)"]
    assert all("had passed" in reason for reason in found.skipped.values())
    whole = fastest(variants, key, state, data, cache_dir=tmp_path, repeats=1)
    assert not whole.cached  # half an answer is not kept
    assert set(whole.seconds) == set(variants)
    monkeypatch.setattr("fedjax_lite.engine.peak_memory.available_bytes", lambda device: 0)
    with pytest.raises(ValueError, match="not one of the variants fits"):
        fastest(variants, key, state, data, cache_dir=tmp_path, refresh=True)


def test_a_damaged_cache_costs_a_measurement_only(problem, tmp_path):
    variants, key, state, data = problem
    (tmp_path / "timings.json").write_text("{")
    assert not fastest(variants, key, state, data, cache_dir=tmp_path, repeats=1).cached
    assert fastest(variants, key, state, data, cache_dir=tmp_path, repeats=1).cached
    (tmp_path / "file").write_text("")
    unwritable = tmp_path / "file" / "below"
    assert fastest(variants, key, state, data, cache_dir=unwritable, repeats=1).seconds


def test_the_state_is_left_as_it_was(problem, tmp_path):
    variants, key, state, data = problem
    fastest(variants, key, state, data, cache_dir=tmp_path, repeats=1)
    assert int(state.round) == 0
    assert float(state.server.params) == 0.0


def test_bad_variants_are_refused(problem, tmp_path):
    _, key, state, data = problem
    with pytest.raises(ValueError, match="at least one algorithm"):
        fastest({}, key, state, data, cache_dir=tmp_path)
    with pytest.raises(TypeError, match=r"variants\['a'\] must be a FederatedAlgorithm"):
        fastest({"a": fl.chunked(2)}, key, state, data, cache_dir=tmp_path)


@pytest.mark.parametrize(
    ("cohort_size", "lanes"), [(1, []), (2, [1]), (6, [1, 2, 5]), (100, [1, 2, 5, 10, 20, 50])]
)
def test_the_ladder_of_lanes(cohort_size, lanes):
    expected = [*(f"chunked({n})" for n in lanes), "vmapped()"]
    assert list(lane_strategies(cohort_size)) == expected
