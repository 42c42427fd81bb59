"""What Flower apps are made of is refused by name; without Flower, the remedy is named."""

import sys

import jax
import jax.numpy as jnp
import optax
import pytest

import fedjax_lite as fl

KEY, START = jax.random.key(0), jnp.float32(0)
EXAMPLES = {"b": jnp.ones(3)}


def algorithm():
    return fl.fedavg(
        lambda w, e, key: 0.5 * (w - e["b"]) ** 2,
        optax.sgd(0.5),
        plan=fl.Plan(batch_size=1),
        sampler=fl.everyone(),
    )


CLIENT = {"algo": algorithm(), "key": KEY, "params": START, "examples": EXAMPLES}
SERVER = {"algo": algorithm(), "key": KEY, "params": START, "num_clients": 2, "num_rounds": 1}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("algo", "fedavg"),
        ("key", 3),
        ("params", "zeros"),
        ("num_clients", 0),
        ("num_rounds", -1),
        ("timeout", 0.0),
        ("min_clients", 0),
        ("on_refusal", "ignore"),
    ],
)
def test_bad_arguments_are_refused_before_anything_runs(name, value):
    with pytest.raises((TypeError, ValueError), match=name):
        fl.deploy.flower_server(**SERVER | {name: value})
    if name in CLIENT:
        with pytest.raises((TypeError, ValueError), match=name):
            fl.deploy.flower_client(**CLIENT | {name: value})


def test_answers_are_a_function():
    with pytest.raises(TypeError, match="answer_of must be a function"):
        fl.deploy.flower_answers(b"hello")


@pytest.mark.parametrize("grid", [None, "127.0.0.1:8000", {0: b"a"}])
def test_a_grid_is_flowers(grid):
    with pytest.raises(TypeError, match="grid must be"):
        fl.deploy.grid_exchange(grid, timeout=1.0)


def test_without_flower_the_extra_is_named(monkeypatch):
    for name in [*sys.modules]:
        if name.split(".")[0] == "flwr":
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "flwr", None)
    for make in (
        lambda: fl.deploy.flower_client(**CLIENT),
        lambda: fl.deploy.flower_server(**SERVER),
        lambda: fl.deploy.flower_answers(lambda config: bytes.upper),
    ):
        with pytest.raises(ImportError, match=r"pip install \"fedjax_lite\[flower\]\""):
            make()
