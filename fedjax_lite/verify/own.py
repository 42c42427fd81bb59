"""check(): what an algorithm of one's own obeys, reduces to and converges to."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np

from fedjax_lite.algorithms.baselines import pooled
from fedjax_lite.engine.batches import Plan
from fedjax_lite.sampling import everyone
from fedjax_lite.types import FederatedAlgorithm
from fedjax_lite.verify.records import FAIL, NOTE, PASS, Record, shown
from fedjax_lite.verify.testbeds import (
    ETA,
    OPTIMUM,
    UNIFORM,
    UNIFORM_OPTIMUM,
    B,
    P,
    averaging,
    fixed,
    q2,
    quadratic,
    shrink,
    trajectory,
    whole,
)

Factory = Callable[..., FederatedAlgorithm]
"""``(loss, learning_rate, *, plan, sampler, strategy=...) -> FederatedAlgorithm``."""

NUM_ROUNDS = 400
CLOSE = 1e-6


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
      them it is. Where nothing settles, that is said.

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
        records += _reductions(factory, name)
        for steps in ((5, 5), (20, 2)):
            records += _fixed_point(factory, name, steps)
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


def _models(factory: Factory, steps: Any, num_rounds: int, *, union: bool = False) -> np.ndarray:
    algo = factory(quadratic, ETA, plan=whole(steps), sampler=everyone())
    return trajectory(algo, num_rounds, data=pooled(q2()) if union else None)


def _reductions(factory: Factory, name: str) -> list[Record]:
    """What the algorithm equals, on Q2."""
    measured: dict[Any, Any] = {}

    def models(steps: int, union: bool = False) -> Any:
        if (steps, union) not in measured:
            try:
                measured[steps, union] = _models(factory, steps, 3, union=union)
            except Exception as error:
                measured[steps, union] = error
        return measured[steps, union]

    descent = OPTIMUM * (1 - (1 - ETA * 1.75) ** np.array([5, 10, 15]))
    plain, uniform = averaging(3), averaging(3, weights=UNIFORM)
    rows = [
        ("round 1 = FedAvg, example weights", plain[:1], 5, False),
        ("round 1 = FedAvg, uniform weights", uniform[:1], 5, False),
        ("= FedAvg, example weights", plain, 5, False),
        ("= FedAvg, uniform weights", uniform, 5, False),
        ("K=1 = FedSGD, example weights", averaging(3, steps=1), 1, False),
        ("K=1 = FedSGD, uniform weights", averaging(3, steps=1, weights=UNIFORM), 1, False),
        ("one client = gradient descent", descent, 5, True),
    ]
    records = []
    for what, expected, steps, union in rows:
        got = models(steps, union)
        if isinstance(got, Exception):
            text = f"{type(got).__name__}: {got}"
            records.append(Record(name, what, shown(expected), text, math.inf, FAIL))
            continue
        error = float(np.max(np.abs(got[: len(expected)] - np.array(expected))))
        verdict = "holds" if error < CLOSE else "does not hold"
        records.append(Record(name, what, "holds?", verdict, error, NOTE))
    return records


def known_points(steps: Any) -> dict[str, float]:
    """Named points on Q2 after local work `steps`, which methods converge to.

    Example:
      >>> {name: round(x, 4) for name, x in known_points((5, 5)).items()}["optimum"]
      0.7143
    """
    steps = np.asarray(steps)
    points = {
        "optimum": OPTIMUM,
        "optimum, uniform": UNIFORM_OPTIMUM,
        "FedAvg's fixed point": fixed(shrink(steps)),
        "FedAvg's fixed point, uniform": fixed(shrink(steps), UNIFORM),
        "FedNova's fixed point": fixed(shrink(steps) / steps),
        "FedNova's fixed point, uniform": fixed(shrink(steps) / steps, UNIFORM),
        "mean of the local optima": float(P @ B),
        "mean of the local optima, uniform": float(UNIFORM @ B),
    }
    if len(set(steps.tolist())) == 1:  # equal work: FedNova is FedAvg
        points = {name: x for name, x in points.items() if "FedNova" not in name}
    return points


def _fixed_point(factory: Factory, name: str, steps: tuple[int, int]) -> list[Record]:
    """Where the model goes, beside the points that are known."""
    label = f"K={steps[0]}" if steps[0] == steps[1] else f"K=({steps[0]},{steps[1]})"
    work = steps[0] if steps[0] == steps[1] else steps
    try:
        models = _models(factory, work, NUM_ROUNDS)
    except Exception as error:
        text = f"{type(error).__name__}: {error}"
        return [Record(name, f"{label}: limit", "a limit", text, math.inf, FAIL)]
    last, spread = float(models[-1]), float(np.ptp(models[-10:]))
    points = known_points(steps)
    if not math.isfinite(last) or spread > CLOSE * max(1.0, abs(last)):
        text = f"{last:.10g}, still moving by {spread:.2g} in ten rounds"
        return [
            Record(name, f"{label}: limit", "a limit", text, spread, NOTE),
        ]
    nearest = min(points, key=lambda point: abs(points[point] - last))
    distance = abs(points[nearest] - last)
    found = nearest if distance < CLOSE else f"none (closest: {nearest})"
    return [
        Record(name, f"{label}: limit", f"optimum {OPTIMUM:.10g}", shown(last),
               abs(last - OPTIMUM), NOTE),
        Record(name, f"{label}: nearest known point", "", found, distance, NOTE),
        *(
            Record(name, f"{label}: distance to {point}", shown(x), shown(last),
                   abs(x - last), NOTE)
            for point, x in points.items()
        ),
    ]  # fmt: skip
