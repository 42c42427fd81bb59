"""ensemble_scores(): what an ensemble gains over its members, and how sure it is."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from fedjax_lite.evaluate.uncertainty.decomposition import decompose
from fedjax_lite.evaluate.uncertainty.member_probabilities import member_probabilities
from fedjax_lite.evaluate.uncertainty.reliability import reliability
from fedjax_lite.models.model import Model
from fedjax_lite.types import Params, PyTree


def ensemble_scores(
    model: Model, members: Params, examples: PyTree, *, bins: int = 15, batch_size: int = 1000
) -> dict[str, float]:
    r"""Scores the mean of the members' probabilities beside the members themselves.

    .. math::  p = \frac1M \sum_m p_m, \qquad \mathrm{NLL} = -\frac1n \sum_j \ln p(y_j \mid x_j)

    The logarithm is concave, so the NLL of the mean is never above the mean of the members' NLLs.

    Args:
      model: as in `member_probabilities`.
      members: leaves `[M, ...]`.
      examples: with labels ``"y"``; those below 0 do not count.
      bins: of the calibration errors.
      batch_size: examples at a time.

    Returns:
      ``accuracy``, ``nll`` (nats), ``brier``, ``calibration_error``; ``member_accuracy``,
      ``member_nll``, means over members; ``total``, ``aleatoric`` and ``epistemic``, means over
      examples in nats, and ``disagreement``, the share of pairs of members that answer
      differently.

    Raises:
      TypeError, ValueError: as `member_probabilities`; if no label counts, or one is beyond the
        classes.

    Example:
      >>> import fedjax_lite as fl
      >>> model = fl.models.linear(2, (3,))
      >>> members = fl.several_models(model.init, jax.random.key(0), 2)
      >>> scores = ensemble_scores(model, members, {"x": np.ones((5, 3)), "y": np.zeros(5, int)})
      >>> round(scores["nll"], 4), scores["epistemic"]  # zero weights: both members say 1/2
      (0.6931, 0.0)

    Reference: Lakshminarayanan, Pritzel, Blundell, 2017, arXiv:1612.01474.
    """
    found = member_probabilities(model, members, examples, batch_size=batch_size)
    return scores_of(np.asarray(found), np.asarray(examples["y"]), bins)


def scores_of(probabilities: np.ndarray, labels: np.ndarray, bins: int) -> dict[str, float]:
    """The scores of probabilities `[M, E, ..., K]`.

    Example:
      >>> scores_of(np.array([[[0.9, 0.1]], [[0.5, 0.5]]]), np.array([0]), 10)["accuracy"]
      1.0
    """
    counts = labels >= 0
    if not counts.any():
        raise ValueError("examples must have a label of 0 or more, got none; nothing is scored")
    members = probabilities[:, counts].astype(np.float64)
    labels = labels[counts].astype(int)
    if labels.max() >= members.shape[-1]:
        raise ValueError(
            f"examples must have labels of 0 to {members.shape[-1] - 1}, the model's classes, got "
            f"{labels.max()}; make the model with num_classes={labels.max() + 1}, or mark what is "
            "not to be scored by -1"
        )
    mean, rows = members.mean(0), np.arange(len(labels))
    answers = members.argmax(-1)
    parts: Any = jax.tree.map(lambda leaf: float(np.asarray(leaf).mean()), decompose(members))
    tiny = np.finfo(np.float32).tiny
    return {
        "accuracy": float((mean.argmax(-1) == labels).mean()),
        "nll": float(-np.log(np.maximum(mean[rows, labels], tiny)).mean()),
        "brier": float(((mean - np.eye(mean.shape[-1])[labels]) ** 2).sum(-1).mean()),
        "calibration_error": reliability(mean, labels, bins=bins).error,
        "member_accuracy": float((answers == labels).mean()),
        "member_nll": float(-np.log(np.maximum(members[:, rows, labels], tiny)).mean()),
        **parts._asdict(),
        "disagreement": _disagreement(answers, mean.shape[-1]),
    }


def _disagreement(answers: np.ndarray, num_classes: int) -> float:
    """Over pairs of members and examples: 1 - sum_k c_k (c_k - 1) / (M (M - 1))."""
    num = len(answers)
    if num < 2:
        return 0.0
    votes = np.stack([(answers == k).sum(0) for k in range(num_classes)], -1)
    return float(1 - (votes * (votes - 1)).sum(-1).mean() / (num * (num - 1)))
