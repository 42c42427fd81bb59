"""Linear, logistic, Poisson and Cox regression over columns of several parties."""

from __future__ import annotations

from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_lite.checks.arguments import check_bool, check_slot
from fedjax_lite.checks.made import made
from fedjax_lite.models.model import Model
from fedjax_lite.parties.columns import ColumnDataset, holder_of
from fedjax_lite.parties.model import Joint, Part, VerticalModel, summed
from fedjax_lite.types import Array, Key, Params, PyTree

Kind = Literal["linear", "logistic", "poisson", "cox"]


@made
def regression(
    kind: Kind, data: ColumnDataset, *, holder: str | None = None, intercept: bool = True
) -> VerticalModel:
    r"""A generalised linear model whose coefficients lie with the parties.

    .. math::  z_i = b + \sum_p x_{p,i}^\top w_p, \qquad
       \ell_i = \begin{cases} \tfrac12 (z_i - y_i)^2 & \text{linear} \\
       \ln(1 + e^{z_i}) - y_i z_i & \text{logistic} \\
       e^{z_i} - y_i z_i & \text{Poisson} \\
       e_i \bigl(\ln \sum_{k: t_k \ge t_i} e^{z_k} - z_i \bigr) & \text{Cox} \end{cases}

    Each party sends its partial predictor, the holder of the labels returns the residuals
    :math:`\partial \ell / \partial z_i`: nobody sends features, weights or labels. (What residuals
    tell of labels: `fedjax_lite.parties` is about how, not whether, to send them.) Cox compares
    entities with each other, so it needs all of them in one batch, ``fl.Plan(batch_size=None)``;
    ties are Breslow's.

    Args:
      kind: "linear", "logistic" (labels 0 and 1), "poisson" (counts) or "cox" (labels
        ``{"time": [n], "event": [n]}``, event 1 where the time was not cut off).
      data: whose columns, features `[n, d_p]`; only their shapes and dtypes are used.
      holder: the party with labels, where several have some.
      intercept: train `b`, at the holder; Cox has none.

    Returns:
      A `VerticalModel` that starts at zero. Its prediction is `z`, of Poisson :math:`e^z`.

    Raises:
      ValueError: if features are no tables of floats, or labels are not what the kind needs.

    Example:
      >>> import optax, fedjax_lite as fl
      >>> data = fl.parties.from_columns({"a": jnp.array([[1.0], [2.0]]), "b": jnp.ones((2, 1))},
      ...                                {"a": jnp.array([0.0, 1.0])})
      >>> model = regression("linear", data, intercept=False)
      >>> algo = fl.parties.vertical_sgd(model, optax.sgd(0.5), plan=fl.Plan(batch_size=None))
      >>> state = algo.init(jax.random.key(0), model.init(jax.random.key(0)), data)
      >>> state, metrics = algo.round(jax.random.key(0), state, data)
      >>> state.server.params.bottoms["a"].round(4).tolist()  # 0.5 * (1 * 0 + 2 * 1) / 2
      [0.5]

    Reference: Hardy et al., "Private federated learning on vertically partitioned data via entity
    resolution and additively homomorphic encryption", 2017, arXiv:1711.10677.
    """
    if kind not in _LOSSES:
        raise ValueError(f"kind must be one of {sorted(_LOSSES)}, got {kind!r}")
    check_slot(data, "data", ColumnDataset)
    check_bool(intercept, "intercept")
    holder = holder_of(data.labels, holder)
    widths = {}
    for party, x in data.features.items():
        if not hasattr(x, "dtype") or x.ndim != 2 or not jnp.issubdtype(x.dtype, jnp.floating):
            raise ValueError(
                f"features[{party!r}] must be floats [n, d], got "
                f"{getattr(x, 'dtype', type(x).__name__)}{list(getattr(x, 'shape', ()))}; flatten "
                "and scale them first"
            )
        widths[party] = (x.shape[1], x.dtype)
    _check_labels(kind, data.labels[holder])
    dtype = jnp.result_type(*(dtype for _, dtype in widths.values()))
    has_intercept = intercept and kind != "cox"

    def init_head(key: Key) -> Params:
        return {"intercept": jnp.zeros((), dtype)} if has_intercept else {}

    def predictor(params: Params, examples: PyTree) -> Array:
        return examples["x"] + params["intercept"] if has_intercept else examples["x"]

    def loss(params: Params, examples: PyTree, key: Key | None) -> Array:
        return _LOSSES[kind](predictor(params, examples), examples["y"])

    def predict(params: Params, examples: PyTree) -> Array:
        z = predictor(params, examples)
        return jnp.exp(z) if kind == "poisson" else z

    def bottom(width: int, dtype: Any) -> Part:
        return Part(lambda key: jnp.zeros(width, dtype), lambda w, x, key: x @ w)

    parts = {party: bottom(*widths[party]) for party in sorted(widths)}
    head = Model(init_head, loss, predict)

    def init(key: Key) -> Joint:
        weights = {party: part.init(key) for party, part in parts.items()}
        return Joint(weights, {holder: init_head(key)}, {})

    return VerticalModel(init, parts, {holder: head}, summed, kind == "cox")


def _squared(z: Array, y: Array) -> Array:
    return 0.5 * (z - y) ** 2


def _logistic(z: Array, y: Array) -> Array:
    return jax.nn.softplus(z) - y * z


def _poisson(z: Array, y: Array) -> Array:
    return jnp.exp(z) - y * z


def _cox(z: Array, y: dict[str, Array]) -> Array:
    """Terms of the negative log partial likelihood, Breslow's; 0 where the time was cut off."""
    order = jnp.argsort(y["time"])  # no minus: that of unsigned numbers is none
    log_risk = jax.lax.cumlogsumexp(z[order], reverse=True)
    first = jnp.searchsorted(y["time"][order], y["time"], side="left")  # who ties is at risk, too
    return jnp.where(y["event"] > 0, log_risk[first] - z, 0)


_LOSSES: dict[str, Any] = {
    "linear": _squared,
    "logistic": _logistic,
    "poisson": _poisson,
    "cox": _cox,
}


def _check_labels(kind: str, labels: PyTree) -> None:
    if kind == "cox":
        if not isinstance(labels, dict) or not {"time", "event"} <= set(labels):
            raise ValueError(
                'labels must be {"time": [n], "event": [n]} for kind=\'cox\', got '
                f"{sorted(labels) if isinstance(labels, dict) else 'an array'}"
            )
        for name in ("time", "event"):
            _check_numbers(labels[name], f"labels[{name!r}]")
        return
    _check_numbers(labels, "labels")
    if _is_elsewhere(labels):
        return
    values = np.asarray(labels)  # by numpy, for the model may be made inside of a traced function
    low, high = float(values.min()), float(values.max())
    if kind == "logistic" and not (0 <= low <= high <= 1):
        raise ValueError(
            f"labels must lie in [0, 1] for kind='logistic', got {low:g}..{high:g}; (y > 0) makes "
            "0 and 1 of -1 and 1"
        )
    if kind == "poisson" and low < 0:
        raise ValueError(f"labels must be counts for kind='poisson', got {low:g}; take 'linear'")


def _check_numbers(labels: Any, name: str) -> None:
    if not hasattr(labels, "ndim") or labels.ndim != 1:
        found = f"shape {labels.shape}" if hasattr(labels, "shape") else sorted(labels)
        raise ValueError(f"{name} must be one number an entity, [n], got {found}; y[:, 0]")
    if _is_elsewhere(labels):
        return
    finite = np.isfinite(np.asarray(labels, np.float64))
    if not finite.all():
        row = int(np.argmin(finite))
        raise ValueError(
            f"{name} must be finite, got {labels[row]} in row {row}; fill it in, or leave the "
            "entity out"
        )


def _is_elsewhere(labels: Any) -> bool:
    """Whether the values cannot be looked at: traced, or with other processes."""
    return isinstance(labels, jax.core.Tracer) or not getattr(labels, "is_fully_addressable", True)
