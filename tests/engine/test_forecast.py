"""Memory is predicted before a run, and a forecast that cannot fit is an error with a remedy."""

import functools
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_lite as fl
from fedjax_lite.engine import peak_memory as module
from fedjax_lite.engine.peak_memory import forecast, lanes_that_fit, largest_right_side
from fedjax_lite.run import rounds as rounds_module
from fedjax_lite.run.rounds import many_rounds, rounds_of

MEASURED = """
import jax, numpy as np, optax, fedjax_lite as fl
from fedjax_lite.engine.peak_memory import forecast
from fedjax_lite.run.rounds import many_rounds, own

def status(name):
    line = next(l for l in open("/proc/self/status") if l.startswith(name))
    return int(line.split()[1]) * 1024

rng = np.random.default_rng(0)
x = rng.integers(0, 255, (3200, 32, 32, 3)).astype(np.uint8)
y = rng.integers(0, 10, 3200)
data = fl.data.partition({"x": x, "y": y}, fl.data.iid(num_clients=32, seed=0))
model = fl.models.lenet(num_classes=10, input_shape=(32, 32, 3))
algo = fl.fedavg(model.loss, optax.sgd(0.1), plan=fl.Plan(batch_size=50), sampler=fl.uniform(32),
                 strategy=fl.vmapped())
key = jax.random.key(0)
state = jax.block_until_ready(own(algo.init(key, model.init(key), data)))
compiled = many_rounds.lower(key, state, data, np.int32(1), algo.round, 1).compile()
predicted = forecast(compiled)
before = status("VmRSS")
open("/proc/self/clear_refs", "w").write("5")
jax.block_until_ready(many_rounds(key, state, data, np.int32(1), algo.round, 1))
print(predicted.peak_bytes, predicted.argument_bytes + status("VmHWM") - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_the_forecast_is_within_20_percent_of_the_measured_peak():
    environment = {**os.environ, "MALLOC_ARENA_MAX": "1"}
    output = subprocess.run(
        [sys.executable, "-c", MEASURED],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert output.returncode == 0, output.stderr
    predicted, measured = map(int, output.stdout.split())
    assert measured > 300 * 2**20  # far above the noise of an allocator
    assert 0.8 * measured <= predicted <= 1.2 * measured


@functools.cache
def small(num_lanes=8):
    data = fl.data.from_arrays({"x": np.ones((40, 64), np.float32)}, np.repeat(np.arange(20), 2))
    algo = fl.fedavg(
        lambda w, e, key: jnp.tanh(e["x"] @ w["a"]).sum(-1) ** 2,
        optax.sgd(0.1),
        plan=fl.Plan(batch_size=2),
        sampler=fl.uniform(16),
        strategy=fl.chunked(num_lanes),
    )
    key = jax.random.key(0)
    return algo, key, algo.init(key, {"a": jnp.ones((64, 512))}, data), data


@functools.cache
def extra(num_lanes):
    algo, key, state, data = small(num_lanes)
    compiled = many_rounds.lower(key, state, data, np.int32(1), algo.round, 4).compile()
    predicted = forecast(compiled)
    assert predicted is not None
    return predicted.extra_bytes


def test_a_run_that_cannot_fit_is_refused_with_the_lanes_that_do(monkeypatch):
    room = (extra(4) + extra(5)) // 2
    assert extra(4) < extra(5) < extra(8)  # so that the room parts 4 lanes from 5
    monkeypatch.setattr(module, "available_bytes", lambda device: room)
    algo, key, state, data = small()
    with pytest.raises(ValueError, match=r"run out of memory.*chunked\(4\) would fit"):
        fl.run(algo, key, state, data, num_rounds=1, progress=False)
    state, _ = fl.run(small(4)[0], key, state, data, num_rounds=1, progress=False)
    assert int(state.round) == 1


def test_where_not_one_lane_fits_the_error_says_so(monkeypatch):
    monkeypatch.setattr(module, "available_bytes", lambda device: 1000)
    algo, key, state, data = small()
    with pytest.raises(ValueError, match="not even one lane would fit"):
        fl.run(algo, key, state, data, num_rounds=1, progress=False)


def test_unknown_memory_is_not_an_error(monkeypatch):
    monkeypatch.setattr(module, "available_bytes", lambda device: None)
    algo, key, state, data = small()
    assert int(fl.run(algo, key, state, data, num_rounds=1, progress=False)[0].round) == 1


def test_the_check_compiles_nothing_twice():
    algo, key, state, data = small.__wrapped__()
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda name, *_, **__: compiled.append(name)
    )
    rounds = rounds_of(algo, key, data, capacity=3)
    state = rounds.start(state)
    compiled.clear()
    rounds.advance(state, 2)
    assert compiled.count("/jax/core/compile/backend_compile_duration") == 1


def test_a_second_run_of_a_program_does_not_ask_again(monkeypatch):
    asked = []
    check = rounds_module.check_memory
    monkeypatch.setattr(
        rounds_module, "check_memory", lambda *args, **kw: (asked.append(1), check(*args, **kw))
    )
    algo, key, state, data = small.__wrapped__()  # a program that nobody asked for before
    for _ in range(3):
        fl.run(algo, key, state, data, num_rounds=2, every=2, progress=False)
    assert len(asked) == 1
    fl.run(algo, key, state, data, num_rounds=2, every=1, progress=False)  # another program
    assert len(asked) == 2


class _Program:
    """A compiler's account of `per_lane * lanes + fixed` bytes."""

    def __init__(self, lanes, fixed=100, per_lane=50):
        self.total = fixed + per_lane * lanes

    def memory_analysis(self):
        names = ("temp", "output", "alias", "argument")
        sizes = {f"{name}_size_in_bytes": 0 for name in names}
        return type("Stats", (), sizes | {"temp_size_in_bytes": self.total})

    def as_text(self):
        return ""


@pytest.mark.parametrize(("room", "expected"), [(149, 0), (150, 1), (199, 1), (200, 2), (430, 6)])
def test_lanes_that_fit_is_the_largest_number_that_does(monkeypatch, room, expected):
    monkeypatch.setattr(module, "RUNTIME_BYTES", 0)
    monkeypatch.setattr(module, "available_bytes", lambda device: room)
    assert lanes_that_fit(_Program, 64) == expected


def test_lanes_that_fit_stays_within_the_cohort(monkeypatch):
    monkeypatch.setattr(module, "available_bytes", lambda device: 10**9)
    assert lanes_that_fit(_Program, 5) == 5
    assert lanes_that_fit(_Program, 1) == 1


@pytest.mark.parametrize("batch", [(), (3,)])
def test_the_right_side_of_the_largest_product_is_found(batch):
    x, w = jnp.ones((*batch, 10, 30)), jnp.ones((*batch, 30, 7))

    def program(x, w):
        def body(_, x):
            return jnp.tanh(x @ w) @ jnp.swapaxes(w, -1, -2)

        return jax.lax.fori_loop(0, 3, body, x)

    text = jax.jit(program).lower(x, w).compile().as_text()
    assert largest_right_side(text) == w.nbytes


@pytest.mark.parametrize(
    ("shape", "num_bytes"), [("f8e4m3[10]", 10), ("bf16[3,2]", 12), ("pred[5]", 5), ("f32[]", 4)]
)
def test_bytes_of_a_shape(shape, num_bytes):
    assert module._num_bytes(shape) == num_bytes


def test_a_program_on_one_device_has_the_memory_of_the_host(monkeypatch):
    monkeypatch.setattr(module, "available_bytes", lambda device: 1000)
    compiled = jax.jit(jnp.sin).lower(jnp.ones(3)).compile()
    assert forecast(compiled).available_bytes == 1000  # however many devices are forced


def test_a_program_without_products_has_none():
    text = jax.jit(jnp.sin).lower(jnp.ones(3)).compile().as_text()
    assert largest_right_side(text) == 0
