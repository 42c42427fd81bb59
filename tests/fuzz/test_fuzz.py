"""Every public function called with one argument replaced: refused in words, or it can be meant."""

import inspect
import sys
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))

from fuzz_calls import PACKAGES, called, module_of, public, valid_arguments
from fuzz_flags import SCRIPTS, flag_cases, judge_flag
from fuzz_run import cases, judge, use, verdict_of
from fuzz_verdict import AMISS, LEAST, share_of_good
from fuzz_world import DATA, EXAMPLES, LABELS, MODEL, PARAMS, PLAN

import fedjax_lite as fl
from fedjax_lite.checks.calls import UNCHECKED, checked

MATRIX_SUM = {"clip": 1.0, "noise_multiplier": 1.0, "denominator": 1.0, "num_rounds": 4}
SHARE = 0.015
"""Of the calls, so that CI takes seconds; all of them: CONTRIBUTING.md."""
FLAG_SHARE = 0.02
"""Of the command lines."""


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


def test_every_valid_call_is_valid(tmp_path, monkeypatch):
    """Else every replaced argument is refused, for a reason that has nothing to do with it."""
    monkeypatch.chdir(tmp_path)
    refused = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for full, function in public().items():
            try:
                use(called(function, valid_arguments(full, function)), 0, full)
            except Exception as error:
                refused.append(f"{full}: {error!r:.200}")
    assert not refused


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
    assert not [v for v in verdicts if v.kind in AMISS]
    assert sum(v.kind == "good" for v in verdicts) > 300
    assert share_of_good(verdicts) >= LEAST, [v for v in verdicts if v.kind == "mute"]


def test_flags_of_scripts_are_many_and_a_part_of_them_refuses():
    whole = list(flag_cases())
    assert len({path for path, _, _ in whole}) >= 20
    assert len(whole) > 1000
    verdicts = [judge_flag(*case) for case in flag_cases(seed=1, share=FLAG_SHARE)]
    assert not [v for v in verdicts if v.kind in AMISS]
    assert share_of_good(verdicts) >= LEAST, [v for v in verdicts if v.kind == "mute"]


@pytest.mark.parametrize(
    ("script", "name", "kind", "verdict"),
    [
        ("fedavg_cifar", "num_clients", "negative", "good"),
        ("fedavg_cifar", "alpha", "nan", "good"),
        ("fedavg_cifar", "output_dir", "empty", "good"),
        ("secure_aggregation", "drop_fraction", "nan", "good"),
        ("fedavg_cifar", "seed", "huge", "allowed"),
    ],
)
def test_flags_refuse_by_name(script, name, kind, verdict):
    path = next(path for path in SCRIPTS if path.stem == script)
    found = judge_flag(path, name, kind)
    assert found.kind == verdict, found


def test_the_judge_is_strict():
    """A verdict is only good where name, value and what to give instead are there."""
    assert judge("qsgd", "levels", "string").kind == "good"
    for message, kind in [
        ("levels must be an int, got 'no'; give 15", "good"),
        ("must be an int, got 'no'; give 15", "mute"),
        ("levels must be an int; give 15", "mute"),
        ("levels must be an int, got 'no'", "mute"),
    ]:
        error = ValueError(message)
        assert verdict_of(error, "levels", "no", ours=True)[0] == kind, message
    assert verdict_of(ValueError("levels"), "levels", "no", ours=False)[0] == "deep"


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: fl.qsgd(15, per_leaf="no"), TypeError, "per_leaf must be True or False, got 'no'"),
        (lambda: fl.qsgd("15"), TypeError, "levels must be an int, got '15'"),
        (
            lambda: fl.data.iid(num_clients=2**40),
            ValueError,
            r"num_clients must be at most 2\*\*32, got 1099",
        ),
        (lambda: fl.models.linear(3, "4"), TypeError, "input_shape must be a sequence of integers"),
        (lambda: fl.attacks.ipm(np.nan), ValueError, "scale .*nan"),
        (lambda: fl.worker_momentum(1j), TypeError, "decay must be a number"),
        (lambda: fl.gaussian_noise(np.inf), ValueError, "stddev must be finite, got inf"),
        (lambda: fl.proximal(np.inf), ValueError, "mu must be finite, got inf"),
        (lambda: fl.sign_flip(np.zeros((0, 3))), TypeError, "scale must be .*one number"),
        (
            lambda: fl.data.iid(num_clients=3, seed=-1),
            ValueError,
            "seed must not be negative, got -1",
        ),
        (lambda: fl.mean_grad(int), TypeError, "loss must be .*the class int"),
        (lambda: fl.client_mesh([]), TypeError, r"devices must be a list .*got \[\]; give jax"),
        (lambda: fl.data.chunks("no"), TypeError, "store must hold .*'no'; make it with"),
        (lambda: fl.models.statistics_mask("no"), TypeError, "params must be a tree .*'no'"),
        (
            lambda: fl.byzantine(fl.attacks.sign_flip(), clients=[1], num_clients=-1),
            ValueError,
            "num_clients must be at least 1, got -1",
        ),
        (
            lambda: fl.aggregation.aggregate_stack(fl.mean(), np.ones((2, 3)), mask=np.nan),
            ValueError,
            r"mask must be bools \[2\], got nan",
        ),
        (
            lambda: fl.privacy.noise_multiplier(
                epsilon=1e300, delta=1e-5, sampling_rate=0.5, num_rounds=2
            ),
            ValueError,
            "epsilon must be at most 10000, got 1e",
        ),
        (
            lambda: fl.crypto.random_elements(2**40, modulus=97),
            ValueError,
            "shape must have at most .*1099511627776; give fewer",
        ),
        (
            lambda: fl.models.conv(jnp.ones((1, 4, 4, 3)), jnp.ones((3, 3, 3, 2)), padding=-1),
            ValueError,
            r"padding must not be negative, got \(-1, -1\)",
        ),
        (
            lambda: fl.data.load("digits", data_dir=""),
            ValueError,
            "data_dir must name a place, got ''",
        ),
        (
            lambda: fl.data.source_of("digits", data_dir=""),
            ValueError,
            "data_dir must name a place, got ''",
        ),
        (
            lambda: fl.explain(PARAMS, DATA, plan=PLAN, cohort_size=2, platform=""),
            ValueError,
            "platform must be the name of one, got ''",
        ),
        (
            lambda: fl.models.adversarial(MODEL, MODEL, MODEL, group=""),
            ValueError,
            "group must name a key of the examples, got ''",
        ),
        (lambda: fl.models.dense_kernels(""), TypeError, "names must be strings, .* got ''"),
        (
            lambda: fl.report.plot_side_by_side({"a": {}, "b": {}}, dataset="digits", worst=-1),
            ValueError,
            r"worst must lie in \(0, 1\], got -1",
        ),
        (
            lambda: fl.report.plot_sweep(np.ones((2, 3)), x="mu", metric="m", dataset="digits"),
            TypeError,
            "table must be rows of a sweep, .* got a ndarray",
        ),
        (
            lambda: fl.privacy.matrix_sum(**MATRIX_SUM, coefficients=np.ones((2, 5))),
            ValueError,
            r"coefficients must be numbers \[bands\].* of shape \[2, 5\]",
        ),
        (
            lambda: fl.privacy.matrix_sum(**MATRIX_SUM, coefficients=[]),
            ValueError,
            r"coefficients must be numbers \[bands\].* got \[\]",
        ),
        (
            lambda: fl.privacy.matrix_sum(**MATRIX_SUM, coefficients=1.5),
            ValueError,
            r"coefficients must be numbers \[bands\].* got 1.5",
        ),
        (
            lambda: fl.models.max_pool(np.ones((2, 5), np.float32)),
            ValueError,
            r"x must be numbers \[B, spatial ..., channels\]",
        ),
        (
            lambda: fl.data.partition(EXAMPLES, fl.data.iid(num_clients=3), "no"),
            TypeError,
            "skews, .* must be FeatureSkews .* got 'no'",
        ),
        (
            lambda: fl.deploy.decode(fl.deploy.encode("note", {}), 3),
            TypeError,
            "kinds must be strings, got 3",
        ),
        (lambda: fl.open_streamed("nowhere"), FileNotFoundError, "folder must be one .*nowhere"),
        (lambda: fl.report.compare("nowhere"), FileNotFoundError, "runs: .* 'nowhere'; give"),
        (lambda: fl.report.find_runs(["nowhere"]), FileNotFoundError, "paths: .* 'nowhere'; give"),
        (
            lambda: fl.data.split_tasks(DATA, LABELS, num_tasks=-1),
            ValueError,
            "num_tasks must be at least 1, got -1",
        ),
        (
            lambda: fl.aggregation.aggregate_stack(fl.mean(), np.zeros((0, 3))),
            ValueError,
            r"values must have a row a client, .* of shape \[0, 3\]",
        ),
        (
            lambda: fl.crypto.deal_triple((2,), num_parties=0, modulus=97),
            ValueError,
            "num_parties must be at least 2, got 0",
        ),
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
