"""Traces of devices: files that are read without trust, and parts that work inside of a program."""

import json
import os
import zipfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fedjax_lite as fl
from fedjax_lite.arrivals import Hours, Speeds, Trace
from fedjax_lite.arrivals.trace import device_of
from fedjax_lite.data.formats.errors import DatasetFormatError

KEY = jax.random.key(0)
arrivals = fl.arrivals


@pytest.fixture(scope="module")
def sample():
    return arrivals.sample_trace()


def same(one, other):
    for ours, theirs in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_the_shipped_file_is_what_the_generator_makes(sample):
    same(arrivals.synthetic_trace(200, num_days=2, seed=0), sample)
    other = arrivals.synthetic_trace(200, seed=1)
    assert (other.speeds.computation != sample.speeds.computation).any()
    path = Path(fl.__file__).parent / "arrivals" / "sample_trace.json"
    assert os.path.getsize(path) < 30_000
    spread = np.quantile(sample.speeds.computation, [0.05, 0.95])
    assert spread[1] > 10 * spread[0]


def at_hand(hours, device, time):
    """Whether a time is in one of a device's intervals, one after the other."""
    time = time % hours.finish_time[device]
    mine = range(hours.offsets[device], hours.offsets[device + 1])
    return any(hours.active[k] <= time < hours.inactive[k] for k in mine)


def test_hours_by_hand(sample):
    """All devices, at the ends of intervals, between them, and days later."""
    ids, hours = np.arange(400), sample.hours
    there = jax.jit(arrivals.trace_availability(sample, seed=3).awake)
    devices = [int(d) for d in jax.vmap(lambda i: device_of(i, 200, 3))(ids)]
    assert len(set(devices)) > 150
    times = [0.0, hours.active[3], hours.inactive[3], hours.inactive[3] - 1, 172799.0]
    times += [172800.0 + hours.active[9], 3 * 172800.0 + 40000.0]
    shares = []
    for time in times:
        found = np.asarray(there(ids, time))
        expected = [at_hand(hours, d, time) for d in devices]
        np.testing.assert_array_equal(found, expected)
        shares.append(found.mean())
    assert min(shares) < 0.3 < max(shares)


def test_devices_without_hours_and_with_one():
    """Offsets 0, 0, 1, 4: nobody, one interval, three that touch."""
    hours = Hours(
        np.array([0, 0, 1, 4], np.int32), np.array([5.0, 0, 10, 20]), np.array([6.0, 10, 20, 30]),
        np.array([10.0, 10.0, 40.0]),
    )  # fmt: skip
    there = jax.jit(arrivals.trace_availability(Trace(hours=hours)).awake)
    devices = [int(device_of(jnp.int32(i), 3, 0)) for i in range(12)]
    assert set(devices) == {0, 1, 2}
    for time in (0.0, 5.5, 6.0, 10.0, 29.0, 30.0, 45.5):
        expected = [at_hand(hours, d, time) for d in devices]
        assert there(jnp.arange(12), time).tolist() == expected
    nobody = Hours(np.zeros(3, np.int32), np.zeros(0), np.zeros(0), np.ones(2))
    assert not arrivals.trace_availability(Trace(hours=nobody)).awake(jnp.arange(4), 1.0).any()


def test_seconds_by_hand(sample):
    """3 * steps * batch * ms / 1000 + bits / kbit/s / 1000; the same device in every round."""
    away = arrivals.trace_latency(sample, batch_size=20, seed=3)
    ids = jnp.arange(50, dtype=jnp.int32)
    infos = fl.ClientInfo(ids, ids + 9, ids % 7, ids * 0)
    traffic = arrivals.Traffic(jnp.float32(4e6), jnp.float32(1e6))
    draw = jax.jit(jax.vmap(away, (0, 0, None)))
    found = draw(jax.random.split(KEY, 50), infos, traffic)
    device = np.asarray(jax.vmap(lambda i: device_of(i, 200, 3))(ids))
    ms, kbit = (part[device] for part in sample.speeds)
    expected = 3 * np.asarray(ids % 7) * 20 * ms / 1000 + 5e6 / (1000 * kbit)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    later = draw(jax.random.split(jax.random.key(9), 50), infos, traffic)
    np.testing.assert_array_equal(found, later)


def test_samplers_ask_the_trace(sample):
    """The clock by its seconds, `available` by its rounds: nobody is asked who is not there."""
    seconds, hours = 3600.0, sample.hours
    schedule = arrivals.trace_schedule(sample, seconds_per_round=seconds, seed=3)
    by_round = fl.selection.available(20, schedule)
    away = arrivals.trace_latency(sample, batch_size=20, seed=3)
    there = arrivals.trace_availability(sample, seed=3)
    by_time = arrivals.clocked(fl.uniform(20), away, available=there, idle=seconds)
    sizes = jnp.full(300, 10)
    for sampler in (by_round, by_time):
        sample_one = jax.jit(sampler.sample)
        state, now, met = sampler.init(300), 0.0, 0
        for r in range(4):
            state, cohort = sample_one(jax.random.key(r), state, sizes)
            for client in cohort.ids[cohort.mask].tolist():
                device = int(device_of(jnp.int32(client), 200, 3))
                assert at_hand(hours, device, now)
                met += 1
            clocked = "simulated_seconds" in state.metrics
            now = float(state.metrics["simulated_seconds"]) if clocked else (r + 1) * seconds
        assert met > 10


# -- files ----------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", [".json", ".npz"])
def test_what_is_written_is_read(tmp_path, sample, ending):
    path = tmp_path / f"trace{ending}"
    arrivals.write_trace(sample, path)
    same(arrivals.read_trace(path), sample)
    hours = Trace(hours=sample.hours)
    arrivals.write_trace(hours, path)
    same(arrivals.read_trace(path), hours)


def test_two_files_of_different_devices(tmp_path):
    """Speeds as a table, hours as FedScale has them, by a client's number."""
    speeds, hours = tmp_path / "speeds.csv", tmp_path / "hours.json"
    speeds.write_text("client, computation, communication\n1,20,500\n2,30.5,700\n")
    record = {"active": [0, 70], "inactive": [50, 90], "finish_time": 100, "model": "phone"}
    hours.write_text(json.dumps({"7": record}))
    expected = Trace(
        Speeds(np.array([20, 30.5]), np.array([500.0, 700])),
        Hours(np.array([0, 2]), np.array([0.0, 70]), np.array([50.0, 90]), np.array([100.0])),
    )
    same(arrivals.read_trace(speeds, hours), expected)
    same(arrivals.read_trace(hours, speeds), expected)
    with pytest.raises(ValueError, match="as many speeds as hours"):
        arrivals.write_trace(expected, tmp_path / "both.json")
    with pytest.raises(ValueError, match="trace must have hours"):
        arrivals.trace_availability(arrivals.read_trace(speeds))
    with pytest.raises(ValueError, match="trace must have speeds"):
        arrivals.trace_latency(arrivals.read_trace(hours), batch_size=1)


GOOD = {"computation": 1.0, "communication": 2.0}
HOURS = {"active": [0], "inactive": [5]}


@pytest.mark.parametrize(
    ("name", "text", "found"),
    [
        ("a.json", "", "Expecting value"),
        ("a.json", '{"a":' * 100_000, "recursion"),
        ("a.json", "[" * 100_000, "recursion"),
        ("a.json", "[]", "no client"),
        ("a.json", "[1, 2]", "no records"),
        ("a.json", '[{"model": "phone"}]', "neither computation"),
        ("a.json", json.dumps([GOOD, {"computation": 1.0}]), "missing, 'communication'"),
        ("a.json", json.dumps([HOURS, {**HOURS, **GOOD}]), "'computation', in record 0"),
        ("a.json", json.dumps([{**HOURS, **GOOD}, GOOD]), "'active', in record 1"),
        ("a.json", json.dumps([{**GOOD, "computation": -1.0}]), "not above 0"),
        ("a.json", '[{"computation": NaN, "communication": 1}]', "not finite"),
        ("a.json", '[{"computation": 1e999, "communication": 1}]', "not finite"),
        ("a.json", json.dumps([{**GOOD, "computation": 10**400}]), "no list of numbers"),
        ("a.json", json.dumps([{**GOOD, "computation": "fast"}]), "fast"),
        ("a.json", json.dumps([{**GOOD, "computation": True}]), "true or false"),
        ("a.json", json.dumps([{**GOOD, "computation": [1, 2]}]), "no list of numbers"),
        ("a.json", json.dumps([{**HOURS, "inactive": []}]), "beginnings than of ends"),
        ("a.json", json.dumps([{"active": [5], "inactive": [5]}]), "does not end after"),
        ("a.json", json.dumps([{"active": [0, 3], "inactive": [5, 9]}]), "overlap"),
        ("a.json", json.dumps([{**HOURS, "finish_time": 4}]), "before the end"),
        ("a.json", json.dumps([{"active": 3, "inactive": 4}]), "no len"),
        ("a.csv", "", "the columns|no line"),
        ("a.csv", "computation,communication\n", "no line"),
        ("a.csv", "computation,communication\n1\n", "more or fewer fields"),
        ("a.csv", "computation,communication\n1,2,3\n", "more or fewer fields"),
        ("a.csv", "computation,communication\n1,fast\n", "fast"),
        ("a.csv", "active,inactive\n1,2\n", "the columns"),
        ("a.csv", "computation,communication,active,inactive\n1,2,3,4\n", "two files"),
        ("a.csv", 'computation,communication\n"1,2\n', "end of data"),
        ("a.npz", "not a zip archive", "zip"),
        ("a.pkl", "cos\nsystem\n", r"ending '\.pkl'.*json\.dump"),
    ],
)
def test_damaged_files_are_refused(tmp_path, name, text, found):
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(DatasetFormatError, match=found) as error:
        arrivals.read_trace(path)
    assert str(path) in str(error.value)
    assert "; " in str(error.value)  # the remedy


def test_archives_that_are_not_what_they_say(tmp_path, monkeypatch):
    path = tmp_path / "a.npz"
    for arrays, found in (
        ({"computation": np.array([object()])}, "Object arrays|allow_pickle"),
        ({"computation": np.ones((2, 2)), "communication": np.ones(2)}, "no list of numbers"),
        ({"computation": np.ones(3), "communication": np.ones(2)}, "3 computation and 2"),
        ({"computation": np.ones(3)}, "communication"),
        ({"active": np.zeros(1), "inactive": np.ones(1)}, "offsets"),
        (
            {"active": np.zeros(1), "inactive": np.ones(1), "offsets": np.array([0, 3, 1])},
            "do not ascend",
        ),
        ({"active": np.zeros(2), "inactive": np.ones(2), "offsets": np.array([0, 1])}, "2 begin"),
    ):
        np.savez(path, **arrays)
        with pytest.raises(DatasetFormatError, match=found):
            arrivals.read_trace(path)
    monkeypatch.setattr("fedjax_lite.arrivals.trace_files.MOST_BYTES", 4000)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("computation.npy", bytes(10**6))
    assert path.stat().st_size < 4000
    with pytest.raises(DatasetFormatError, match="when unpacked"):
        arrivals.read_trace(path)
    path.write_bytes(bytes(5000))
    with pytest.raises(DatasetFormatError, match="more than any trace"):
        arrivals.read_trace(path)
    with pytest.raises(FileNotFoundError):
        arrivals.read_trace(tmp_path / "nowhere.json")
