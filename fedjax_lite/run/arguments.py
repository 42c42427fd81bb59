"""The arguments of `run`, checked before anything is compiled."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_lite.checks.arguments import check_key
from fedjax_lite.checks.state import check_not_donated
from fedjax_lite.data.population.dataset import check_data
from fedjax_lite.evaluate import scored_by
from fedjax_lite.evaluate.client_evaluator import is_same_split
from fedjax_lite.types import FederatedAlgorithm, RoundState


def check_arguments(
    algo: Any,
    key: Any,
    state: Any,
    data: Any,
    *,
    evaluate: Any,
    resume: bool,
    overwrite: bool,
    tensorboard: bool,
    output_dir: Any,
) -> None:
    """Checks kind and order of what `run` was given.

    Raises:
      TypeError: if an argument is of another kind, with the order `run` expects.
      ValueError: if options contradict each other, or the state was donated.
      ImportError: if an optional package is needed and missing.

    Example:
      >>> check_arguments(None, None, None, None, evaluate=None, resume=False, overwrite=False,
      ...                 tensorboard=False, output_dir=None)
      Traceback (most recent call last):
      ...
      TypeError: algo must be a FederatedAlgorithm, got NoneType; make it with a factory, \
algo = fl.fedavg(model.loss, optax.sgd(0.1), plan=..., sampler=...), and pass algo itself
    """
    if not callable(getattr(algo, "round", None)):
        raise TypeError(
            f"algo must be a FederatedAlgorithm, got {type(algo).__name__}; make it with a "
            "factory, algo = fl.fedavg(model.loss, optax.sgd(0.1), plan=..., sampler=...), and "
            "pass algo itself"
        )
    check_key(key)
    if not isinstance(state, RoundState):
        raise TypeError(
            f"state must be a RoundState, got {type(state).__name__}; make it with "
            "algo.init(key, params, data); the order is run(algo, key, state, data)"
        )
    check_not_donated(state)
    composed = isinstance(algo, FederatedAlgorithm) and algo.sample is not None
    if composed and (data is None or isinstance(data, Mapping | list | RoundState)):
        check_data(data)  # raises; wrappers of a population may be of any other type
    if evaluate is not None and not callable(evaluate):
        raise TypeError(
            f"evaluate must be callable, (state) -> dict, got {type(evaluate).__name__}; make it "
            "with fl.evaluator(model, test)"
        )
    if resume and overwrite:
        raise ValueError("resume and overwrite exclude each other; choose one")
    on_disk = ["orbax", "filelock"] * (output_dir is not None)
    for package in ["tensorboardX"] * tensorboard + on_disk:
        if importlib.util.find_spec(package) is None:
            wheel = {"orbax": "orbax-checkpoint"}.get(package, package)
            raise ImportError(f"{package} is not installed: pip install {wheel}")
    if output_dir is None and (resume or overwrite or tensorboard):
        raise ValueError("resume, overwrite and tensorboard need output_dir, got output_dir=None")


def check_split(evaluate: Any, data: Any) -> None:
    """Compares what an evaluation scores with what clients train on, once, on the host.

    Args:
      evaluate: what `run` was given; something is known of it if it is an `evaluator` or a
        `client_evaluator`.
      data: the population.

    Warns:
      UserWarning: where a test or validation split has the labels of the training data, one by
        one, or where inputs are scaled otherwise (50 times larger or smaller).

    Example:
      >>> check_split(None, None)
    """
    known = scored_by(evaluate)
    mine = getattr(data, "examples", None)
    if known is None or not isinstance(mine, Mapping):
        return
    name, theirs = known.name, known.examples
    is_test = name.startswith(("test", "val"))
    if theirs is None:
        if is_test and is_same_split(known.data, data):
            warnings.warn(
                f"evaluate scores clients under the name {name!r} on the data that they train on; "
                "hold some out: train, test = fl.data.split_clients(data, 0.2, seed=0), or give "
                "name='train_set'",
                stacklevel=3,
            )
        return
    if is_test and _are_equal(mine.get("y"), theirs["y"]):
        warnings.warn(
            f"evaluate scores {len(theirs['y'])} examples under the name {name!r} whose labels are "
            "those of the training data, one by one; give evaluator(model, test) the other split, "
            "or name='train_set'. The parts of split_clients share their examples: give "
            "client_evaluator(model, test), or evaluator(model, test.owned_examples())",
            stacklevel=3,
        )
    ours, others = _scale(mine.get("x")), _scale(theirs.get("x"))
    if ours and others and not 1 / 50 < ours / others < 50:
        warnings.warn(
            f"clients train on inputs up to {ours:.3g}, and evaluate ({name!r}) scores inputs up "
            f"to {others:.3g} (uint8 counts as divided by 255): prepare both splits alike",
            stacklevel=3,
        )


def check_total(num_rounds: int, done: int, *, restored: bool) -> None:
    """Raises ValueError where more rounds are done than `run` is to reach.

    Example:
      >>> check_total(5, 3, restored=False)
    """
    if done > num_rounds:
        raise ValueError(
            f"num_rounds is the total to reach, got {num_rounds}, but {done} rounds are already "
            f"done; ask for at least {done}" + (" or start anew" if restored else "")
        )


RESERVED = frozenset({"round", "seconds"})
"""Columns that every history has."""
SPENT = frozenset({"epsilon", "epsilon_rdp"})
USUAL = frozenset(
    {"train_loss", "num_clients", "num_steps", "uplink_bits", "uplink_entropy_bits"}
    | {"downlink_bits", "downlink_entropy_bits"}
)
"""Metrics of most rounds, where nothing is known of those that will be run."""


def check_names(
    names: Iterable[str], metrics: Iterable[str] | None, *, private: bool = False
) -> None:
    """Compares the names of an evaluation with the other columns of a history.

    Args:
      names: of the evaluation, as far as known.
      metrics: of a round; None: not known before it is run.
      private: there are figures of a privacy mechanism, too.

    Raises:
      ValueError: if a column would be there twice.

    Example:
      >>> check_names(["train_loss"], ["train_loss", "num_clients"])
      Traceback (most recent call last):
      ...
      ValueError: evaluate returns ['train_loss'], which the rows of a history have of the round \
already; rename them: evaluator(model, examples, name='train_set') gives train_set_loss
    """
    rounds = set(USUAL if metrics is None else metrics)
    totals = {f"{name}_total" for name in rounds if name.endswith("_bits")}
    clash = sorted(set(names) & (RESERVED | rounds | totals | (SPENT if private else set())))
    if clash:
        first = next((n for n in clash if n.endswith(("_loss", "_accuracy"))), "")
        stem = first.removesuffix("_loss").removesuffix("_accuracy")
        remedy = 'choose other keys of the dict, such as "test_loss"'
        if stem:
            remedy = (
                f"evaluator(model, examples, name='{stem}_set') gives {stem}_set"
                f"{first.removeprefix(stem)}"
            )
        raise ValueError(
            f"evaluate returns {clash}, which the rows of a history have of the round already; "
            f"rename them: {remedy}"
        )


def _are_equal(a: Any, b: Any) -> bool:
    if not _at_hand(a) or not _at_hand(b) or a.shape != b.shape or a.dtype != b.dtype:
        return False
    return np.array_equal(np.asarray(jax.device_get(a)), np.asarray(jax.device_get(b)))


def _scale(x: Any) -> float | None:
    """The largest magnitude in some rows, as a model sees them; None where that is unknown."""
    if not _at_hand(x) or not x.size or x.ndim < 2:
        return None
    some = np.asarray(jax.device_get(x[:256]))
    if some.dtype == np.uint8:
        return float(some.max()) / 255
    return float(np.abs(some).max()) if jnp.issubdtype(some.dtype, jnp.floating) else None


def _at_hand(x: Any) -> bool:
    return isinstance(x, jax.Array | np.ndarray) and getattr(x, "is_fully_addressable", True)
