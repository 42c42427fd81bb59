"""Every public function called with one argument replaced: refused in words, or it can be meant."""

import inspect
import sys
from collections import Counter
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))

from fuzz_calls import PACKAGES, module_of, public, valid_arguments
from fuzz_run import cases, judge

import fedjax_lite as fl
from fedjax_lite.checked import UNCHECKED, checked

SHARE = 0.03
"""Of the cases, so that CI takes seconds; all of them: CONTRIBUTING.md."""


def test_the_tables_know_every_public_callable():
    """A new factory needs a valid call, or a reason why it has none."""
    lacking = []
    for full, function in public().items():
        try:
            valid_arguments(full, function)
        except KeyError as missing:
            lacking.append(f"{full}: {missing}")
    assert not lacking
    assert len(public()) > 250


def test_every_exported_function_is_checked():
    unchecked = [
        f"{package}.{name}"
        for package in PACKAGES
        if package != "distributed"
        for name in getattr(module_of(package), "__all__", [])
        if inspect.isfunction(getattr(module_of(package), name))
        and not hasattr(getattr(module_of(package), name), UNCHECKED)
    ]
    assert not unchecked


def test_the_whole_is_large_enough():
    assert sum(1 for _ in cases()) >= 20_000


@pytest.mark.parametrize("argument", ["output_dir", "checkpoint_dir", "profile_dir"])
def test_words_taken_for_paths_leave_the_working_directory_alone(tmp_path, monkeypatch, argument):
    monkeypatch.chdir(tmp_path)
    assert judge("run", argument, "string").kind != "hang"
    assert not list(tmp_path.iterdir())
    assert Path.cwd() == tmp_path


def test_a_part_of_the_calls():
    verdicts = [judge(*case) for case in cases(seed=1, share=SHARE)]
    bad = [v for v in verdicts if v.kind in ("hang", "crash")]
    assert not bad
    counts = Counter(v.kind for v in verdicts)
    refused = counts["good"] + counts["mute"] + counts["deep"]
    assert refused > 500
    assert counts["good"] / refused >= LEAST, [v for v in verdicts if v.kind in ("mute", "deep")]


LEAST = 0.92
"""The least share of refusals that name argument, value and remedy."""


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: fl.qsgd(15, per_leaf="no"), TypeError, "per_leaf must be True or False, got 'no'"),
        (lambda: fl.qsgd("15"), TypeError, "levels must be an int, got '15'"),
        (lambda: fl.data.iid(2**40), ValueError, r"num_clients must be at most 2\*\*32, got 1099"),
        (lambda: fl.models.linear(3, "4"), TypeError, "input_shape must be a sequence of integers"),
        (lambda: fl.attacks.ipm(np.nan), ValueError, "scale .*nan"),
        (lambda: fl.worker_momentum(1j), TypeError, "decay must be a number"),
    ],
)
def test_kinds_that_were_accepted(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_traced_numbers_pass_and_numbers_may_be_numpy():
    def scale(x: float, times: int = 1) -> float:
        return x * times

    call = checked(scale)
    assert call(np.float32(2.0), np.int64(3)) == 6
    np.testing.assert_allclose(jax.vmap(call)(jnp.arange(3.0)), [0, 1, 2])
    with pytest.raises(TypeError, match=r"times must be an int, got a traced value.*cannot be tra"):
        jax.jit(lambda t: call(1.0, t))(2)
    with pytest.raises(TypeError, match=r"x must be a number, got an array.*vmap"):
        call(jnp.ones(2))


def test_what_a_function_says_itself_is_heard_first():
    def pick(rate: float) -> float:
        if not rate < 1:
            raise ValueError(f"rate must be a share, got {rate}")
        return rate

    with pytest.raises(ValueError, match="rate must be a share, got nan"):
        checked(pick)(float("nan"))
    with pytest.raises(ValueError, match="rate must be finite, got -inf"):
        checked(pick)(-float("inf"))
