"""Evaluation: a model on a set of examples, on every client, and how fair the result is."""

from __future__ import annotations

import functools
import math
import weakref
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_lite.checks import check_count, shown
from fedjax_lite.data.dataset import ClientData, FederatedDataset, check_examples
from fedjax_lite.mistakes import check_not_donated, label_range, labels_beyond
from fedjax_lite.models.model import Model
from fedjax_lite.types import Array, Params, PyTree, RoundState


def evaluator(
    model: Model, examples: PyTree, *, name: str = "test", batch_size: int = 1000
) -> Callable[[RoundState | Params], dict[str, float]]:
    """Makes a function that scores a model on fixed examples: mean loss and accuracy.

    Loss is the mean of ``model.loss`` over examples. Accuracy is the share of labels ``y >= 0``
    that the largest logit hits; labels of -1 (padding of sequences) do not count. Labels of a
    floating dtype have no accuracy. Compiled once; the examples are an argument of the program
    and stay in their raw dtype.

    Args:
      model: its `loss` is called with key None, so without dropout.
      examples: dict with ``"y"``, leaves `[E, ...]`; labels `[E]` or `[E, T]`.
      name: prefix of the results.
      batch_size: examples at a time.

    Returns:
      ``(state or params) -> {"test_loss": ..., "test_accuracy": ...}``; of a `RoundState` it
      takes ``state.server.params``.

    Raises:
      TypeError, ValueError: if the examples are empty, ragged or without ``"y"``.

    Example:
      >>> import jax.numpy as jnp
      >>> model = Model(init=lambda key: None, loss=lambda w, b, key: (w - b["x"]) ** 2,
      ...               predict=lambda w, b: jnp.stack([w - b["x"], b["x"] - w], axis=-1))
      >>> score = evaluator(model, {"x": jnp.array([0.0, 2.0]), "y": jnp.array([0, 0])})
      >>> score(jnp.float32(1.0))
      {'test_loss': 1.0, 'test_accuracy': 0.5}
    """
    check_count(batch_size, "batch_size", minimum=1)
    _check_model(model)
    num_examples = _check_labelled(examples)
    examples = jax.tree.map(jnp.asarray, examples)
    batch_size = min(batch_size, num_examples)
    labels_fit: list[bool] = []

    def evaluate(state: RoundState | Params) -> dict[str, float]:
        params = _global_model(state)
        if not labels_fit:
            _check_labels_fit(model, params, examples)
            labels_fit.append(True)
        scores = jax.device_get(_scores(params, examples, model, batch_size))
        loss, correct, counted = (np.asarray(s, np.float64) for s in scores)
        result = {f"{name}_loss": float(loss.mean())}
        if _has_classes(examples):
            total = counted.sum()
            result[f"{name}_accuracy"] = float(correct.sum() / total) if total else math.nan
        return result

    _scored[evaluate] = name, examples
    return evaluate


_scored: weakref.WeakKeyDictionary[Any, tuple[str, PyTree]] = weakref.WeakKeyDictionary()
"""What an evaluation scores, so that `run` can tell a wrong split."""


def scored_by(evaluate: Any) -> tuple[str, PyTree] | None:
    """Name and examples of a function that `evaluator` made; None of any other.

    Example:
      >>> scored_by(None) is None
      True
    """
    try:
        return _scored.get(evaluate)
    except TypeError:  # a callable that cannot be referred to weakly is not one of ours
        return None


def evaluate_clients(
    model: Model, params: Params, data: FederatedDataset, *, batch_size: int = 1000
) -> dict[str, np.ndarray]:
    """Scores one model on every client's data, the whole population in one pass.

    The pooled examples are scored once and summed by owner, so uneven sizes cost nothing.

    Args:
      model: as in `evaluator`.
      params: the parameters, such as ``state.server.params``; a `RoundState` is accepted too.
      data: the population; its examples are a dict with ``"y"``.
      batch_size: examples at a time.

    Returns:
      ``loss`` float64 `[N]`, ``accuracy`` float64 `[N]` (where labels are classes) and ``size``
      int64 `[N]`; loss and accuracy of a client without data are NaN.

    Raises:
      TypeError, ValueError: as `evaluator`.

    Example:
      >>> import jax.numpy as jnp
      >>> from fedjax_lite.data.dataset import from_arrays
      >>> model = Model(init=lambda key: None, loss=lambda w, b, key: (w - b["x"]) ** 2,
      ...               predict=lambda w, b: jnp.stack([w - b["x"], b["x"] - w], axis=-1))
      >>> examples = {"x": np.array([0.0, 3.0]), "y": np.array([0, 0])}
      >>> data = from_arrays(examples, [0, 2], num_clients=3)
      >>> evaluate_clients(model, jnp.float32(1.0), data)["loss"].tolist()
      [1.0, nan, 4.0]
    """
    check_count(batch_size, "batch_size", minimum=1)
    _check_model(model)
    if not hasattr(data, "examples") or hasattr(params, "examples"):
        raise TypeError(
            f"data must be a FederatedDataset, got {shown(data)}; the order is "
            "evaluate_clients(model, params, data)"
        )
    _check_labelled(data.examples)
    params = _global_model(params)
    _check_labels_fit(model, params, data.examples)
    scores = _scores(params, data.examples, model, min(batch_size, data.num_examples))
    loss, correct, counted, owner = (np.asarray(leaf) for leaf in (*scores, data.client_of_example))

    def per_client(values: np.ndarray) -> np.ndarray:
        return np.bincount(owner, values.astype(np.float64), minlength=data.num_clients)

    size = np.asarray(data.sizes, np.int64)
    result = {"loss": _ratio(per_client(loss), size)}
    if _has_classes(data.examples):
        result["accuracy"] = _ratio(per_client(correct), per_client(counted))
    return result | {"size": size}


def _global_model(state: RoundState | Params) -> Params:
    """The model of a state; TypeError where parts of it are personal, and no one model exists."""
    if isinstance(state, tuple) and state and isinstance(state[0], RoundState):
        raise TypeError(
            "state must be a RoundState or parameters, got a tuple that begins with a RoundState; "
            "take it apart first: state, metrics = algo.round(key, state, data)"
        )
    check_not_donated(state)
    if not isinstance(state, RoundState):
        return state
    rows = getattr(state.clients, "row", state.clients)  # a HostTable's, or the rows themselves
    if jax.tree.leaves(getattr(rows, "leaves", None)):  # None in params may be the model's own
        raise TypeError(
            "state must hold a whole model, but parts of it stay with the clients (fedbn, "
            "local_leaves); use evaluate_personal(model, state, data)"
        )
    return state.server.params


def summarize_clients(
    values: Any, sizes: Any, *, fraction: float = 0.1, num_bins: int = 20
) -> dict[str, Any]:
    """Summarises a figure over clients, fairness included; clients with NaN are left out.

    With `N` clients counted, values `a_i`, sizes `n_i` and shares `p_i = a_i / sum a`:
    weighted mean `sum n_i a_i / sum n_i`; worst = mean of the `ceil(fraction N)` lowest values
    (not a percentile), best likewise; Gini `sum_ij |a_i - a_j| / (2 N^2 mean)`; Jain
    `(sum a)^2 / (N sum a^2)`; cosine to the uniform vector `sqrt(Jain)`; entropy
    `-sum p_i ln p_i`; Kullback-Leibler divergence to uniform `ln N - entropy`.

    Args:
      values: `[N]`, accuracies as a rule.
      sizes: `[N]`, examples per client.
      fraction: share of clients that count as worst and best, in (0, 1].
      num_bins: bins of the histogram, over [0, 1] where all values lie in it.

    Returns:
      ``num_clients, mean, weighted_mean, std`` (ddof 0), ``worst, best, gini, jain, cosine,
      entropy, kl_uniform`` as floats, ``histogram_counts`` `[num_bins]`, ``histogram_edges``
      `[num_bins + 1]`. Share-based figures are NaN where a value is negative or all are 0;
      everything is NaN where no client is left.

    Raises:
      ValueError: if shapes differ or `fraction` is out of range.

    Example:
      >>> summary = summarize_clients([1.0, 0.5, 0.0], [1, 1, 2])
      >>> summary["mean"], summary["weighted_mean"], summary["worst"]
      (0.5, 0.375, 0.0)

    Reference: Jain, Chiu, Hawe, "A Quantitative Measure of Fairness", 1984, DEC-TR-301;
      Li, Sanjabi, Beirami, Smith, "Fair Resource Allocation in Federated Learning", 2019,
      arXiv:1905.10497.
    """
    values, sizes = np.asarray(values, np.float64), np.asarray(sizes, np.float64)
    if values.ndim != 1 or values.shape != sizes.shape:
        raise ValueError(
            f"values and sizes must both have shape [N], got {values.shape} and {sizes.shape}"
        )
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction must lie in (0, 1], got {fraction}")
    check_count(num_bins, "num_bins", minimum=1)
    counted = ~np.isnan(values)
    values, sizes = np.sort(values[counted]), sizes[counted][np.argsort(values[counted])]
    num = len(values)
    inside = num == 0 or (values[0] >= 0 and values[-1] <= 1)
    counts, edges = np.histogram(values, bins=num_bins, range=(0.0, 1.0) if inside else None)
    tail = math.ceil(round(fraction * num, 9))  # 0.1 * 30 is a little more than 3
    summary = {
        "num_clients": num,
        "mean": values.mean() if num else math.nan,
        "weighted_mean": values @ sizes / sizes.sum() if sizes.sum() else math.nan,
        "std": values.std() if num else math.nan,
        "worst": values[:tail].mean() if num else math.nan,
        "best": values[num - tail :].mean() if num else math.nan,
        **_fairness(values),
    }
    plain = {n: value if n == "num_clients" else float(value) for n, value in summary.items()}
    return plain | {"histogram_counts": counts, "histogram_edges": edges}


def _fairness(values: np.ndarray) -> dict[str, float]:
    """Figures of the shares of sorted values `[N]`."""
    num, total = len(values), values.sum()
    if num == 0 or values[0] < 0 or total <= 0:
        return dict.fromkeys(("gini", "jain", "cosine", "entropy", "kl_uniform"), math.nan)
    ranks = np.arange(1, num + 1)
    shares = values / total
    positive = shares[shares > 0]
    entropy = -(positive * np.log(positive)).sum()
    jain = 1 / (num * (shares**2).sum())
    return {
        "gini": ((2 * ranks - num - 1) * shares).sum() / num,
        "jain": jain,
        "cosine": math.sqrt(jain),
        "entropy": entropy,
        "kl_uniform": math.log(num) - entropy,
    }


@functools.partial(jax.jit, static_argnums=(2, 3))
def _scores(
    params: Params, examples: PyTree, model: Model, batch_size: int
) -> tuple[Array, Array, Array]:
    """Loss, hits and labels that count, each `[E]`, in batches of one shape.

    The last batch reaches back over examples that were scored already; the repeated ones are
    dropped, so no padding ever goes through the model.
    """
    num_examples = jax.tree.leaves(examples)[0].shape[0]
    starts = np.minimum(
        np.arange(0, num_examples, batch_size, dtype=np.int32), num_examples - batch_size
    )

    def one_batch(start: Array) -> tuple[Array, Array, Array]:
        batch = jax.tree.map(
            lambda leaf: jax.lax.dynamic_slice_in_dim(leaf, start, batch_size), examples
        )
        loss = model.loss(params, batch, None)
        if loss.shape != (batch_size,):
            raise ValueError(f"model.loss must return one loss per example, got {loss.shape}")
        if not _has_classes(examples):
            return loss, jnp.zeros_like(loss), jnp.zeros_like(loss)
        labels, logits = batch["y"], model.predict(params, batch)
        if logits.shape[:-1] != labels.shape:
            raise ValueError(
                f"model.predict must return logits {[*labels.shape, 'classes']} for labels "
                f"{list(labels.shape)}, got {list(logits.shape)}"
            )
        counted = labels.astype(jnp.int32) >= 0
        hits = counted & (jnp.argmax(logits, axis=-1) == labels)
        axes = tuple(range(1, labels.ndim))
        return loss, hits.sum(axes, dtype=jnp.int32), counted.sum(axes, dtype=jnp.int32)

    results = jax.lax.map(one_batch, jnp.asarray(starts))
    whole = num_examples // batch_size * batch_size
    overlap = (batch_size - (num_examples - whole)) % batch_size

    def join(table: Array) -> Array:
        flat = table.reshape(-1)
        return jnp.concatenate([flat[:whole], flat[whole + overlap :]])

    return jax.tree.map(join, results)


def _has_classes(examples: PyTree) -> bool:
    return not jnp.issubdtype(examples["y"].dtype, jnp.floating)


def _ratio(total: np.ndarray, count: np.ndarray) -> np.ndarray:
    """``total / count``, NaN where the count is 0."""
    return np.divide(total, count, out=np.full(len(total), np.nan), where=np.asarray(count) > 0)


def _check_labelled(examples: PyTree) -> int:
    if not isinstance(examples, Mapping) or "y" not in examples:
        found = sorted(examples) if isinstance(examples, Mapping) else type(examples).__name__
        remedy = '{"x": images, "y": labels}'
        if isinstance(examples, ClientData):
            remedy = "data.examples, or score each client with evaluate_clients(model, state, data)"
        elif isinstance(examples, Model):
            remedy = "the order is evaluator(model, examples)"
        raise TypeError(f'examples must be a dict with labels under "y", got {found}; {remedy}')
    return check_examples(examples)


def _check_model(model: Any) -> None:
    if not callable(getattr(model, "loss", None)) or not hasattr(model, "predict"):
        raise TypeError(
            f"model must be a Model with loss and predict, got {type(model).__name__}; pass the "
            "model, not model.loss, in the order (model, examples)"
        )


def _check_labels_fit(model: Model, params: Params, examples: PyTree) -> None:
    """Raises ValueError where a label is beyond the model's outputs: JAX would clamp the index."""
    found = label_range(examples["y"])
    if found is None or found[1] < 1:
        return
    one = jax.tree.map(lambda x: jax.ShapeDtypeStruct((1, *x.shape[1:]), x.dtype), examples)
    logits = jax.eval_shape(model.predict, params, one)
    if logits.ndim == examples["y"].ndim + 1 and found[1] >= logits.shape[-1]:
        raise ValueError(labels_beyond(np.asarray(examples["y"]), logits.shape[-1]))
