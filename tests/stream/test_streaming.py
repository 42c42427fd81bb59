"""Streamed runs: equal to runs in memory, whoever holds the rows, resumed byte for byte."""

import functools
import gc

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from streamed_pairs import (
    ALGORITHMS,
    PLAN,
    SAMPLERS,
    bare,
    begin,
    examples,
    go,
    loss,
    make,
    pair,
    params,
    raw,
    whole,
)

import fedjax_lite as fl
from fedjax_lite.engine import client_mesh, replicate, sharded
from fedjax_lite.stream import HostTable
from fedjax_lite.stream.prefetch import StreamedRounds

KEY = jax.random.key(0)


def assert_close(streamed, in_memory, tolerance=2e-6):
    chex.assert_trees_all_close(
        *(whole(streamed), whole(in_memory)), rtol=tolerance, atol=tolerance
    )


FAST = [("fedavg", "uniform"), ("scaffold", "dropout")]
SLOW = (
    [(name, "uniform") for name in ALGORITHMS if name != "fedavg"]
    + [("fedavg", sampler) for sampler in SAMPLERS if sampler != "uniform"]
    + [("scaffold", "poisson")]
)


@pytest.mark.sample(2)
@pytest.mark.parametrize(
    ("name", "sampler"),
    FAST + [pytest.param(*pair, marks=pytest.mark.slow) for pair in SLOW],
)
def test_equals_the_run_in_memory(name, sampler):
    memory, streamed = pair()
    algo = make(name, sampler)
    there, rows_there = go(algo, begin(algo, memory), memory)
    here, rows_here = go(algo, begin(algo, streamed), streamed)
    assert jax.tree.structure(here) == jax.tree.structure(there)
    for a, b in zip(rows_here, rows_there, strict=True):
        assert a.keys() == b.keys()
        assert (a["num_clients"], a["num_steps"]) == (b["num_clients"], b["num_steps"])
    assert_close(here, there)
    assert raw(here._replace(server=()))[-1:] == raw(there._replace(server=()))[-1:]  # sampler


def test_cohorts_are_those_of_the_round():
    memory, streamed = pair()
    algo = make("fedavg", "dropout")
    state, seen = begin(algo, memory), []
    cohort = streamed.cohort

    class Spy:
        timings = streamed.timings
        sizes = streamed.sizes

        def cohort(self, ids, mask, **options):
            seen.append((ids, mask))
            return cohort(ids, mask, **options)

    rounds = StreamedRounds(algo, KEY, Spy(), capacity=4)
    rounds.advance(rounds.start(state), 4)
    for number, (ids, mask) in enumerate(seen[:4]):
        _, expected = algo.sample(KEY, np.int32(number), (), jnp.asarray(streamed.sizes))
        np.testing.assert_array_equal(mask, expected.mask)
        np.testing.assert_array_equal(ids[mask], np.asarray(expected.ids)[mask])


@pytest.mark.sample(1)
@pytest.mark.parametrize("place", ["host", "disk"])
@pytest.mark.parametrize(
    "sampler",
    ["dropout", *(pytest.param(s, marks=pytest.mark.slow) for s in ("uniform", "everyone"))],
)
def test_rows_outside_of_the_device_change_nothing(place, sampler, tmp_path):
    """Cohorts of 9 to 40 of 40 clients: most follow themselves within two rounds."""
    options = {"state_dir": tmp_path} if place == "disk" else {}
    _, on_device = pair()
    _, elsewhere = pair(state=place, **options)
    algo = make("scaffold", sampler)
    there, rows_there = go(algo, begin(algo, on_device), on_device, num_rounds=11)
    here, rows_here = go(algo, begin(algo, elsewhere), elsewhere, num_rounds=11)
    assert isinstance(here.clients, HostTable)
    assert_close(here, there, 1e-6)
    touched = np.unique(np.nonzero(np.asarray(there.clients["w"]).any(1))[0])
    assert here.clients.num_touched >= len(touched) > 5
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b[touched], rtol=1e-6, atol=1e-7),
        here.clients.rows(touched),
        there.clients,
    )
    assert [r["num_steps"] for r in rows_here] == [r["num_steps"] for r in rows_there]


@pytest.mark.sample(1)
@pytest.mark.parametrize("place", ["device", "host", "disk"])
def test_runs_in_parts_give_the_same_bytes(place, tmp_path):
    """By state, by checkpoint, and whatever the grouping of rounds into calls."""
    algo = make("scaffold", "dropout")

    def data(name):
        return pair(state=place, **({"state_dir": tmp_path / name} if place == "disk" else {}))[1]

    straight, rows = go(algo, begin(algo, data("a")), data("a"), num_rounds=9, every=9)
    parts, first = data("b"), begin(algo, data("b"))
    half, _ = go(algo, first, parts, num_rounds=4, every=2)
    remembered = raw(half)
    rest, _ = go(algo, half, parts, num_rounds=9, every=2)
    assert raw(rest) == raw(straight)
    assert raw(half) == remembered  # the caller's state is not destroyed
    again, _ = go(algo, half, parts, num_rounds=9, every=5)
    assert raw(again) == raw(straight)
    assert raw(rest) == raw(straight)
    assert raw(first) == raw(begin(algo, data("b")))
    saved = data("c")
    go(algo, begin(algo, saved), saved, num_rounds=4, every=2, output_dir=tmp_path / "out")
    gc.collect()
    resumed, found = go(
        algo, begin(algo, saved), saved, num_rounds=9, every=2, output_dir=tmp_path / "out",
        resume=True,
    )  # fmt: skip
    assert raw(resumed) == raw(straight)
    assert bare(found) == bare(rows)


def test_auto_chooses_as_in_memory():
    memory, streamed = pair()
    from fedjax_lite.engine.choose import choose

    one = streamed.cohort(np.arange(9), np.ones(9, bool))
    for platform in ("cpu", "gpu"):
        assert choose(params(), one, 9, platform=platform) == choose(
            params(), memory, 9, platform=platform
        )


def test_a_cohort_with_empty_slots():
    arrays, sizes = examples()
    _, data = pair()
    ids, mask = np.array([5, 3, 99, 0, -1]), np.array([True, True, True, False, True])
    cohort = data.cohort(ids, mask)
    np.testing.assert_array_equal(np.diff(cohort.offsets), [sizes[5], 0, 0, 0, 0])
    low = sizes[:5].sum()
    np.testing.assert_array_equal(
        cohort.examples["y"][: sizes[5]], arrays["y"][low : low + sizes[5]]
    )
    assert not np.asarray(cohort.examples["y"][sizes[5] :]).any()


@functools.cache
def on_two_devices():
    mesh = client_mesh(jax.devices()[:2])
    return make("scaffold", strategy=sharded(mesh)), mesh


@pytest.mark.slow
@pytest.mark.sample(2)
@pytest.mark.skipif(jax.device_count() < 2, reason="test_sharded.py's last test runs it")
@pytest.mark.parametrize("rows", ["on one device", "replicated", "on the host"])
def test_several_devices(rows):
    memory, streamed = pair(**({"state": "host"} if rows == "on the host" else {}))
    one, several, mesh = make("scaffold"), *on_two_devices()
    state = begin(several, streamed)
    state = replicate(state, mesh=mesh) if rows == "replicated" else state
    expected, _ = go(one, begin(one, memory), memory)
    got, _ = go(several, state, streamed)
    assert_close(got, expected, 1e-5)


def test_a_round_sees_the_cohort_as_it_was_drawn():
    """Ids of clients that dropped out, and of slots that are none, reach the aggregator."""
    memory, streamed = pair()
    ids = jnp.array([5, 39, 17, 99, -1], jnp.int32)
    mask = jnp.array([True, False, True, True, True])
    seen = []

    def watched():
        inner = fl.mean()

        def finish(key, state, acc, cohort):
            note = lambda *c: seen.append([np.asarray(x).tolist() for x in c])  # noqa: E731
            jax.debug.callback(note, *cohort[:2])
            return inner.finish(key, state, acc, cohort)

        return inner._replace(finish=finish)

    sampler = fl.Sampler(lambda n: (), lambda key, state, sizes: (state, fl.Cohort(ids, mask)))
    for name, data in (("memory", memory), ("stream", streamed)):
        algo = fl.scaffold(loss, 0.05, plan=PLAN, sampler=sampler, aggregator=watched())
        state, _ = go(algo, begin(algo, data), data, num_rounds=1)
        jax.effects_barrier()
        seen.append((name, raw(state._replace(server=()))))
    expected = [ids.tolist(), [True, False, True, False, False]]
    assert seen[0] == seen[2] == expected
    assert seen[1][1] == seen[3][1]
