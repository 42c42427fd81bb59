"""check(): what an algorithm of one's own obeys, reduces to and converges to."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import jax
import numpy as np

from fedjax_lite.algorithms.baselines import pooled
from fedjax_lite.engine.batches import Plan
from fedjax_lite.types import FederatedAlgorithm
from fedjax_lite.verify.limits import CLOSE, by_epochs, limits
from fedjax_lite.verify.records import FAIL, NOTE, PASS, Record, shown
from fedjax_lite.verify.testbeds import (
    ETA,
    OPTIMUM,
    UNIFORM,
    A,
    B,
    averaging,
    q2,
    whole,
)
from fedjax_lite.verify.watched import Factory, Path, leaves, watch

NUM_ROUNDS = 400
UNEQUAL = (20, 2)


def check(
    factory: Factory, *, name: str = "yours", laws: Iterable[str] | None = None
) -> list[Record]:
    r"""Puts an algorithm of one's own through laws, reductions and heterogeneous quadratics.

    * **Laws** of `fedjax_lite.testing`, PASS or FAIL.
    * **Reductions**, notes that say "holds" or not: FedAvg's first round and first three rounds
      (example or uniform weights), FedSGD with one full-batch step, gradient descent on one client.
    * **Fixed points** on Q2 (two clients with curvatures 1 and 4 and optima -1 and 2), after
      equal (5, 5) and unequal (20, 2) local work: the limit reached, beside the optimum of the
      mean, FedAvg's and FedNova's fixed points and the mean of the local optima, and which of
      them it is. Where nothing settles, that is said. A model that never leaves its start FAILs.
    * **Models of the clients' own** (``algo.models(state)``), where they are not the server's: the
      same for each client's, beside its own optimum, descent on its own data, and the `lam` of
      Ditto with which it would be pulled to the server's model. Parameters are a scalar; where
      the algorithm cannot divide that, ``{"w": .., "b": ..}`` as in the laws, with a Q2 a leaf.
    * **Epochs**: work (20, 2) as epochs with short last batches, whose padding is overwritten:
      FAIL where a model notices, which is what a client does that ignores ``batch.mask``.

    Args:
      factory: ``(loss, learning_rate, *, plan, sampler, strategy=None) -> FederatedAlgorithm``; the
        learning rate may be traced. `fedjax_lite`'s own `fednova` fits as it is; FedAvg is
        ``lambda loss, rate, **slots: fl.fedavg(loss, optax.sgd(rate), **slots)``.
      name: of the algorithm, for the table.
      laws: names out of ``testing.ALGORITHM_LAWS``; default all, ``[]`` for none.

    Returns:
      Records, for `print_records`.

    Raises:
      TypeError: if `factory` is not a function.
      ValueError: if a law is unknown.

    Example:
      >>> import optax, fedjax_lite as fl
      >>> records = check(lambda loss, rate, **slots: fl.fedavg(loss, optax.sgd(rate), **slots),
      ...                 laws=[])
      >>> [record.got for record in records if record.check == "K=5: nearest known point"]
      ["FedAvg's fixed point"]
    """
    if not callable(factory):
        raise TypeError(
            "factory must be a function (loss, learning_rate, *, plan, sampler, strategy), got "
            f"{type(factory).__name__}; pass the function that builds the algorithm"
        )
    from fedjax_lite import testing  # its registry makes arrays: not at import

    chosen = list(testing.ALGORITHM_LAWS if laws is None else laws)
    unknown = [law for law in chosen if law not in testing.ALGORITHM_LAWS]
    if unknown:
        raise ValueError(f"laws must be among {sorted(testing.ALGORITHM_LAWS)}, got {unknown}")
    records = [_law(factory, name, law) for law in chosen]
    with jax.enable_x64(True):
        for leaf in leaves(factory):
            found = _on_q2(factory, name, leaf)
            if leaf is not None:
                found = [one._replace(check=f"leaf {leaf}: {one.check}") for one in found]
            records += found
    return records


def _law(factory: Factory, name: str, law: str) -> Record:
    from fedjax_lite import testing

    def make(rate: Any, sampler: Any, strategy: Any) -> FederatedAlgorithm:
        plan = Plan(batch_size=2, epochs=2)
        return factory(testing.loss, rate, plan=plan, sampler=sampler, strategy=strategy)

    try:
        testing.check_algorithm(make, laws=[law])
    except Exception as error:  # also what a defective algorithm raises by itself
        return Record(name, f"law: {law}", "holds", str(error), math.inf, FAIL)
    return Record(name, f"law: {law}", "holds", "holds", 0.0, PASS)


def _on_q2(factory: Factory, name: str, leaf: str | None) -> list[Record]:
    measured = _Measured(factory, leaf)
    records = _reductions(measured, name)
    for steps in ((5, 5), UNEQUAL):
        records += _limits(measured, name, steps)
    by_steps = measured.path(UNEQUAL)
    return records + by_epochs(
        name, factory, by_steps if isinstance(by_steps, Path) else None, leaf
    )


class _Measured:
    """Paths on Q2, each compiled once; what raises is kept in its place."""

    def __init__(self, factory: Factory, leaf: str | None) -> None:
        self.factory, self.leaf = factory, leaf
        self.paths: dict[Any, Path | Exception] = {}

    def path(self, steps: Any, *, union: bool = False) -> Path | Exception:
        """With gradient steps on whole data sets; `union`: of one client that holds all."""
        asked = steps, union
        if asked not in self.paths:
            try:
                data = pooled(q2()) if union else q2()
                plan = whole(steps)
                run = jax.jit(
                    lambda data: watch(self.factory, NUM_ROUNDS, data, self.leaf, plan=plan)
                )
                self.paths[asked] = jax.tree.map(np.asarray, run(data))
            except Exception as error:
                self.paths[asked] = error
        return self.paths[asked]


def _reductions(measured: _Measured, name: str) -> list[Record]:
    """What the algorithm equals, on Q2: the server's model, and those of clients' own."""
    rounds = np.array([5, 10, 15])
    descent = OPTIMUM * (1 - (1 - ETA * 1.75) ** rounds)
    alone = B * (1 - (1 - ETA * A) ** rounds[:, None])
    plain, uniform = averaging(3), averaging(3, weights=UNIFORM)
    rows = [
        ("round 1 = FedAvg, example weights", plain[:1], 5, False, None),
        ("round 1 = FedAvg, uniform weights", uniform[:1], 5, False, None),
        ("= FedAvg, example weights", plain, 5, False, None),
        ("= FedAvg, uniform weights", uniform, 5, False, None),
        ("K=1 = FedSGD, example weights", averaging(3, steps=1), 1, False, None),
        ("K=1 = FedSGD, uniform weights", averaging(3, steps=1, weights=UNIFORM), 1, False, None),
        ("one client = gradient descent", descent, 5, True, None),
    ]
    first = measured.path(5)
    if isinstance(first, Path) and not first.shared:
        rows = [("one client = gradient descent", descent, 5, True, 0)]
    if isinstance(first, Path) and first.personal:
        rows += [
            (f"client {i + 1}'s model = descent on its own data", alone[:, i], 5, False, i)
            for i in range(2)
        ]
    records = []
    for what, expected, steps, union, client in rows:
        path = measured.path(steps, union=union)
        if isinstance(path, Exception):
            records.append(_raised(name, what, shown(expected), path))
            continue
        got = path.server if client is None else path.models[:, client]
        error = float(np.max(np.abs(got[: len(expected)] - np.array(expected))))
        verdict = "holds" if error < CLOSE else "does not hold"
        records.append(Record(name, what, "holds?", verdict, error, NOTE))
    return records


def _limits(measured: _Measured, name: str, steps: tuple[int, int]) -> list[Record]:
    """Where the models go, beside the points that are known."""
    equal = steps[0] == steps[1]
    label = f"K={steps[0]}" if equal else f"K=({steps[0]},{steps[1]})"
    path = measured.path(steps[0] if equal else steps)
    if isinstance(path, Exception):
        return [_raised(name, f"{label}: limit", "a limit", path)]
    return limits(name, label, path, steps)


def _raised(name: str, what: str, expected: str, error: Exception) -> Record:
    return Record(name, what, expected, f"{type(error).__name__}: {error}", math.inf, FAIL)
