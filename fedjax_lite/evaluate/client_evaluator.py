"""client_evaluator(): every client's own held-out data, in the history of a run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from fedjax_lite.checks.arguments import check_bool, shown
from fedjax_lite.data.population.dataset import FederatedDataset
from fedjax_lite.data.population.sharded import ShardedDataset
from fedjax_lite.evaluate.blocks import Streamed
from fedjax_lite.evaluate.clients import check_population_of, evaluate_clients
from fedjax_lite.evaluate.columns import columns_of, group_columns
from fedjax_lite.evaluate.fairness import OF_CLIENTS, summarize_clients
from fedjax_lite.evaluate.fine_tuned import FineTuned
from fedjax_lite.evaluate.known import Scored, note
from fedjax_lite.metrics.metric import HostMetric, Metric, named
from fedjax_lite.models.model import Model
from fedjax_lite.round.own_models import Kept, kept, one_model
from fedjax_lite.types import Params, RoundState


def client_evaluator(
    model: Model,
    data: FederatedDataset | ShardedDataset | Streamed,
    *,
    name: str = "test",
    metrics: Mapping[str, Metric | HostMetric] | None = None,
    groups: Any = None,
    worst: float = 0.1,
    fairness: bool = False,
    batch_size: int = 1000,
    adapt: Callable[[RoundState | Params], FineTuned] | None = None,
) -> Callable[[RoundState | Params], dict[str, float]]:
    """Makes a function that scores every client on its own held-out data, for `run`.

    Each client is scored with the model that it uses: the server's, or its own where it has one
    (`local_only`, `ditto`, `fedrep`, `fedbn` ...). The results are numbers for a history; all of a
    client's figures gives `evaluate_clients`.

    Args:
      model: as in `evaluator`.
      data: the clients' held-out data, in the order of the training population: the test part of
        `fedjax_lite.data.split_clients`, or test data that come with owners.
      name: prefix of the results: the split that is scored.
      metrics: what else to measure, ``{"f1": fl.metrics.f1(10)}``; see `fedjax_lite.metrics`.
      groups: as in `evaluate_clients`.
      worst: share of the clients that count as the worst, in (0, 1].
      fairness: whether to report how evenly figures are spread over clients, too.
      batch_size: examples at a time.
      adapt: score models that clients adapt first, see `fine_tuned`; the server's model is scored
        beside them, as it is. Give `name` another word, such as "tuned", beside a second evaluator.

    Returns:
      ``(state or params) -> {...}``, with the figures ``loss``, ``accuracy`` (where labels are
      classes) and the metrics:

      * ``test_accuracy``: of all clients' examples together;
      * ``test_accuracy_mean``: the mean over clients, each counting once;
      * ``test_accuracy_worst``: the mean of the worst tenth of the clients (of a loss or an error
        of the largest values);
      * ``test_server_accuracy``: of the server's model, where clients use others and there is one;
      * ``test_accuracy_group_0`` ...: of the groups; ``test_accuracy_gap``: see `group_gaps`;
      * with `fairness` ``test_accuracy_variance``, ``_best`` (the best tenth), ``_gini``,
        ``_jain``, ``_angle`` to the uniform vector in degrees, ``_entropy`` and ``_kl_uniform``, as
        `summarize_clients` defines them.

      A metric of `K` numbers has ``test_f1_0`` ... and no mean and worst.

    Raises:
      TypeError, ValueError: as `evaluator`; or if `worst` lies outside (0, 1].

    Example:
      >>> import jax.numpy as jnp
      >>> from fedjax_lite.data.population.dataset import from_arrays
      >>> model = Model(init=lambda key: None, loss=lambda w, b, key: (w - b["x"]) ** 2,
      ...               predict=lambda w, b: jnp.stack([w - b["x"], b["x"] - w], axis=-1))
      >>> test = from_arrays({"x": np.array([0.0, 0.5, 3.0]), "y": np.array([0, 0, 0])}, [0, 0, 1])
      >>> found = client_evaluator(model, test, worst=0.5)(jnp.float32(1.0))
      >>> found["test_accuracy_mean"], found["test_accuracy_worst"], found["test_loss_worst"]
      (0.5, 0.0, 4.0)
    """
    if not isinstance(name, str):
        raise TypeError(f"name must be a string, the prefix of the results, got {name!r}")
    if not 0 < worst <= 1:
        raise ValueError(f"worst must lie in (0, 1], got {shown(worst)}; give 0.1")
    if adapt is not None and not callable(adapt):
        raise TypeError(
            f"adapt must be a function (state) -> models, got {shown(adapt)}; "
            "fine_tuned(model.loss, optax.sgd(0.1), train, plan=plan)"
        )
    check_bool(fairness, "fairness")
    classes = check_population_of(model, data, groups, batch_size)
    rising = {key: metric.higher_is_better for key, metric in named(metrics)}
    rising |= {"accuracy": True, "loss": False}
    more: dict[str, Any] = {"metrics": metrics, "batch_size": batch_size}

    def evaluate(state: RoundState | Params) -> dict[str, float]:
        models = state if adapt is None else adapt(state)
        scores = evaluate_clients(model, models, data, groups=groups, **more)
        columns = columns_of(name, scores["all"])
        for figure, values in scores.items():
            if figure in rising and values.ndim == 1:
                sign = 1 if rising[figure] else -1
                summary = summarize_clients(sign * values, scores["size"], fraction=worst)
                for which in ("mean", "worst"):
                    columns[f"{name}_{figure}_{which}"] = sign * summary[which]
                if fairness:
                    spread = summarize_clients(values, scores["size"], fraction=worst)
                    spread["best"] = sign * summary["best"]
                    columns |= {f"{name}_{figure}_{which}": spread[which] for which in OF_CLIENTS}
        whole = kept(state) if isinstance(state, RoundState) else Kept(False, True)
        if (whole.personal or adapt is not None) and whole.shared:
            common = evaluate_clients(model, one_model(state), data, **more)["all"]
            columns |= columns_of(f"{name}_server", common)
        if groups is not None:
            columns |= group_columns(name, scores["groups"])
        return columns

    figures = ["loss", *["accuracy"] * classes]
    results = [f"{name}_{one}{end}" for one in figures for end in ("", "_mean", "_worst")]
    note(evaluate, Scored(name, None, data, tuple(results)))
    return evaluate


def is_same_split(test: Any, train: Any) -> bool:
    """Whether clients are scored on the very examples that they train on.

    Of populations in memory that share their examples; of any others nobody knows.

    Example:
      >>> from fedjax_lite.data.population.dataset import from_arrays
      >>> data = from_arrays({"y": np.arange(3)}, [0, 0, 1])
      >>> is_same_split(data, data), is_same_split(data, None)
      (True, False)
    """
    if test is train:
        return True
    if not isinstance(test, FederatedDataset) or not isinstance(train, FederatedDataset):
        return False
    mine, theirs = ({**data.examples}.get("y") for data in (test, train))
    if mine is None or mine is not theirs or test.num_examples != train.num_examples:
        return False
    first, second = (
        np.arange(data.num_examples) if data.order is None else np.asarray(data.order)
        for data in (test, train)
    )
    return bool(np.array_equal(first, second))
