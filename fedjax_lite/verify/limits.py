"""Where the models of an algorithm of one's own go on Q2, and whether padding moves them."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_lite.engine.batches import Plan
from fedjax_lite.engine.lanes import sequential
from fedjax_lite.verify.records import FAIL, NOTE, PASS, Record, shown
from fedjax_lite.verify.testbeds import (
    OPTIMUM,
    UNIFORM,
    UNIFORM_OPTIMUM,
    A,
    B,
    P,
    fixed,
    q2,
    shrink,
)
from fedjax_lite.verify.watched import START, Factory, Path, watch

CLOSE = 1e-6
EPOCHS = Plan(batch_size=7, epochs=np.array([4, 1]))
"""Of 30 and 10 examples: 20 and 2 steps, the last of each epoch on 2 and on 3 examples."""
EPOCHS_ROUNDS = 20
PADDING = (3.0, 0.5)
"""What examples behind the mask are overwritten with, ``a = b =`` one of these."""


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


def limits(name: str, label: str, path: Path, steps: tuple[int, int]) -> list[Record]:
    """Where each model went, beside the points that are known.

    Args:
      name: of the algorithm.
      label: of the local work.
      path: of rounds on Q2.
      steps: of the two clients.

    Returns:
      Records: FAIL where no model moved, a client's own never did, or rows became infinite while
      models did not; all others are notes.

    Example:
      >>> path = Path(np.full(20, OPTIMUM), np.full((20, 2), OPTIMUM), np.full(20, True))
      >>> limits("mine", "K=5", path, (5, 5))[1].got
      'optimum'
    """
    points = known_points(steps)
    if path.shared:
        records = _limit(name, f"{label}: ", path.server, OPTIMUM, points)
        if records[0].verdict == NOTE and len(records) > 1:
            records += [
                Record(name, f"{label}: distance to {point}", shown(x), shown(path.server[-1]),
                       abs(x - float(path.server[-1])), NOTE)
                for point, x in points.items()
            ]  # fmt: skip
    else:
        text = "trains none; its clients' models follow"
        records = [Record(name, f"{label}: the server's model", "", text, 0.0, NOTE)]
    if path.personal:
        for i in range(2):
            near = {"its own optimum": float(B[i]), **points}
            if path.shared:
                near["the server's model"] = float(path.server[-1])
            records += _limit(
                name, f"{label}: client {i + 1}'s model: ", path.models[:, i], float(B[i]), near
            )
        if path.shared:
            records.append(_pull(name, label, path))
    if np.isfinite(path.models).all() and not path.rows_finite.all():
        text = f"not finite from round {int(np.argmin(path.rows_finite)) + 1} on"
        records.append(Record(name, f"{label}: client rows", "finite", text, math.inf, FAIL))
    return records


def _limit(
    name: str, label: str, models: np.ndarray, optimum: float, points: dict[str, float]
) -> list[Record]:
    """The limit of one model and the known point next to it."""
    if (models == START).all():
        text = (
            f"never left {START:.10g}, where it began: what is trained is not kept; rows with "
            "own_model tell a client's own model, trained = False a server that trains none"
        )
        return [Record(name, f"{label}limit", "a limit", text, math.inf, FAIL)]
    last, spread = float(models[-1]), float(np.ptp(models[-10:]))
    if not math.isfinite(last) or spread > CLOSE * max(1.0, abs(last)):
        text = f"{last:.10g}, still moving by {spread:.2g} in ten rounds"
        return [Record(name, f"{label}limit", "a limit", text, spread, NOTE)]
    nearest = min(points, key=lambda point: abs(points[point] - last))
    distance = abs(points[nearest] - last)
    found = nearest if distance < CLOSE else f"none (closest: {nearest})"
    return [
        Record(name, f"{label}limit", f"optimum {optimum:.10g}", shown(last),
               abs(last - optimum), NOTE),
        Record(name, f"{label}nearest known point", "", found, distance, NOTE),
    ]  # fmt: skip


def _pull(name: str, label: str, path: Path) -> Record:
    """Of models that minimise ``f_i(v) + lam / 2 (v - x)^2``, as Ditto's do: `lam` of each.

    There ``a (v - b) + lam (v - x) = 0``; one method has one `lam`.
    """
    server, own = path.server[-1], path.models[-1]
    with np.errstate(all="ignore"):
        lam = A * (B - own) / (own - server)
    return Record(
        name, f"{label}: pull to the server, lam of each", "one lam", shown(lam),
        float(abs(lam[0] - lam[1])), NOTE,
    )  # fmt: skip


def by_epochs(
    name: str, factory: Factory, by_steps: Path | None, leaf: str | None = None
) -> list[Record]:
    """The same local work in epochs whose last batches are short, their padding overwritten.

    Args:
      name: of the algorithm.
      factory: see `check`.
      by_steps: the path with as many steps on whole data sets, where there is one. Clients hold
        copies of one example, so all batches have the same gradient.
      leaf: of the model, see `watched.leaves`.

    Returns:
      PASS or FAIL: models are the same whatever stands in the padding; and a note whether they
      are those of `by_steps`.
    """
    what, label = "padding has no effect", "K=(20,2) by epochs"
    try:
        paths = _with_padding(factory, leaf)
    except Exception as error:  # whatever a defective algorithm raises
        text = f"{type(error).__name__}: {error}"
        return [Record(name, f"{label}: {what}", "holds", text, math.inf, FAIL)]
    one, other = (jax.tree.map(lambda leaf: leaf[i], paths) for i in range(2))  # noqa: B023
    error, place = _difference(one, other)
    text, verdict = "holds", PASS
    if error >= CLOSE:
        text = (
            f"{place} depends on what fills up a short batch, by {error:.3g}: batch.mask is "
            "ignored; take means over the examples where it holds"
        )
        verdict = FAIL
    records = [Record(name, f"{label}: {what}", "holds", text, error, verdict)]
    if by_steps is not None:
        error, _ = _difference(one, Path(*(leaf[:EPOCHS_ROUNDS] for leaf in by_steps)))
        text = "holds" if error < CLOSE else "does not hold"
        records.append(Record(name, f"{label}: = by steps", "holds?", text, error, NOTE))
    return records


def _with_padding(factory: Factory, leaf: str | None) -> Path:
    """Paths `[2, R, ...]` for two values of the padding, in one program."""
    from fedjax_lite.testing.padding import overwritten  # its package makes arrays: not at import

    @jax.jit
    def run(values: Any, data: Any) -> Path:
        def one(value: Any) -> Path:
            strategy = overwritten(sequential(), value)
            return watch(factory, EPOCHS_ROUNDS, data, leaf, plan=EPOCHS, strategy=strategy)

        return jax.lax.map(one, values)

    return jax.tree.map(np.asarray, run(jnp.array(PADDING), q2()))


def _difference(one: Path, other: Path) -> tuple[float, str]:
    """The largest difference between models of two paths, and whose model it is."""
    worst, place = 0.0, ""
    pairs = [("the server's model", one.server, other.server)]
    pairs += [
        (f"client {i + 1}'s model", one.models[:, i], other.models[:, i])
        for i in range(one.models.shape[1])
    ]
    for whose, a, b in pairs:
        with np.errstate(invalid="ignore"):
            errors = np.where((a == b) | (np.isnan(a) & np.isnan(b)), 0.0, np.abs(a - b))
        error = float(np.where(np.isnan(errors), np.inf, errors).max())
        if error > worst:
            worst, place = error, whose
    return worst, place
