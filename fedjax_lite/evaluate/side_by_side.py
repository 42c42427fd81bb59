"""side_by_side(): several models, or sets of models, on every client's own data: who gains."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from fedjax_lite.checks.about import about
from fedjax_lite.checks.arguments import shown
from fedjax_lite.data.population.dataset import FederatedDataset
from fedjax_lite.data.population.sharded import ShardedDataset
from fedjax_lite.evaluate.blocks import Streamed
from fedjax_lite.evaluate.clients import evaluate_clients
from fedjax_lite.evaluate.fairness import summarize_clients
from fedjax_lite.evaluate.fine_tuned import FineTuned
from fedjax_lite.models.model import Model
from fedjax_lite.types import Params, RoundState


def side_by_side(
    model: Model,
    models: Mapping[str, Params | RoundState | FineTuned],
    data: FederatedDataset | ShardedDataset | Streamed,
    *,
    metric: str = "accuracy",
    worst: float = 0.1,
    batch_size: int = 1000,
) -> dict[str, dict[str, Any]]:
    r"""Scores a method and its baselines on every client's held-out data, and says who gains.

    For the question that personal methods are asked: is it better than the global model, than
    training alone, than one model of all data, and for whom? The first of `models` is what the
    others are held against, client by client.

    Args:
      model: as in `evaluator`.
      models: by name, each whatever `evaluate_clients` takes: states of `fedavg`, `local_only`,
        `centralised`, `ditto` ..., parameters, models that `fine_tuned` makes.
      data: the clients' held-out data; the test part of `fedjax_lite.data.split_clients`.
      metric: "accuracy" or "loss".
      worst: share of the clients that count as the worst, in (0, 1].
      batch_size: examples at a time.

    Returns:
      By name, in the order given: ``scores`` float64 `[N]` (NaN for a client without data),
      ``mean`` and ``worst`` over clients (of a loss the worst are the largest), ``gain``, the mean
      of its differences to the first, positive where it is better, and ``better`` and
      ``worse``, the shares of the clients for whom it is.

    Raises:
      TypeError: if `models` is not a dict.
      ValueError: if it is empty, or the metric or the share is none.

    Example:
      >>> import fedjax_lite as fl
      >>> model = Model(init=lambda key: None, loss=lambda w, b, key: (w - b["y"]) ** 2,
      ...               predict=lambda w, b: b["y"])
      >>> data = fl.data.from_arrays({"y": np.array([1.0, 3.0, 5.0])}, [0, 1, 2])
      >>> models = {"global": np.float32(3.0), "other": np.float32(4.0)}
      >>> found = side_by_side(model, models, data, metric="loss", worst=0.4)["other"]
      >>> found["scores"].tolist(), found["worst"], round(found["better"], 2)
      ([9.0, 1.0, 1.0], 5.0, 0.33)
    """
    if not isinstance(models, Mapping) or not models:
        raise TypeError(
            f"models must be a dict of models by name, got {shown(models) if models else 'none'}; "
            '{"global": state, "local": local_state}'
        )
    if metric not in ("accuracy", "loss"):
        raise ValueError(
            f"metric must be 'accuracy' or 'loss', got {shown(metric)}; give metric='accuracy'"
        )
    if not 0 < worst <= 1:
        raise ValueError(f"worst must lie in (0, 1], got {shown(worst)}; give 0.1")
    sign = 1 if metric == "accuracy" else -1
    result: dict[str, dict[str, Any]] = {}
    for name, one in models.items():
        with about(f"models[{name!r}]", one, word="params"):
            found = evaluate_clients(model, one, data, batch_size=batch_size)
        if metric not in found:
            raise ValueError(
                f"metric {metric!r} is not defined for labels of a floating dtype; metric='loss'"
            )
        summary = summarize_clients(sign * found[metric], found["size"], fraction=worst)
        scores = found[metric]
        first = next(iter(result.values()))["scores"] if result else scores
        change = sign * (scores - first)
        change = change[np.isfinite(change)]
        result[name] = {
            "scores": scores,
            "mean": sign * summary["mean"],
            "worst": sign * summary["worst"],
            "gain": float(change.mean()) if len(change) else float("nan"),
            "better": float((change > 0).mean()) if len(change) else float("nan"),
            "worse": float((change < 0).mean()) if len(change) else float("nan"),
        }
    return result
