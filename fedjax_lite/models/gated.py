"""gated_experts(): several models whose outputs are mixed by a router, example by example."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp

from fedjax_lite.checks.arguments import check_count, check_key, check_slot, shown
from fedjax_lite.checks.made import made
from fedjax_lite.data.population.counting import counts_of, with_counts
from fedjax_lite.models.losses import check_per_example, cross_entropy
from fedjax_lite.models.model import Model
from fedjax_lite.types import Array, Key, Params, PyTree

Routing = Literal["soft", "top-1"]


@made
def gated_experts(
    expert: Model,
    router: Model,
    num_experts: int,
    *,
    routing: Routing = "soft",
    loss: Callable[[Array, Array], Array] = cross_entropy,
) -> Model:
    r"""A mixture of `K` experts: a router says, for each example, how much each of them counts.

    .. math::
        g(x) = \mathrm{softmax}(r(x)) \in \mathbb{R}^K, \qquad
        h(x) = \textstyle\sum_k g_k(x)\, h_k(x) \quad\text{("soft")}, \qquad
        h(x) = h_{\arg\max_k g_k(x)}(x) \quad\text{("top-1")} .

    With "top-1" only the chosen expert's gradient is not zero; the router's is that of soft gates
    under the chosen output (straight through the choice), and of equal gates the lowest number is
    chosen. All experts are computed in either case, but what an expert says of examples that did
    not choose it is not in the answer, be it infinite; the router learns of it as of a zero then,
    and the gradient of an expert that no example of a batch chose is zero. One expert is that
    expert, whatever the router says.

    Args:
      expert: what every expert is.
      router: a model with `K` outputs, of the same examples: ``fl.models.linear(K, input_shape)``.
      num_experts: `K`, at least 1.
      routing: "soft" or "top-1".
      loss: ``(outputs, y) -> [B]``.

    Returns:
      A `Model` with parameters ``{"experts": leaves [K, ...], "router": ...}``; experts are each
      drawn by a key of their own. Neither dropout in experts nor in the router is done.

    Raises:
      TypeError: if `expert` or `router` is no `Model`.
      ValueError: if `num_experts` is below 1 or `routing` unknown; when traced, if the router has
        not `K` outputs.

    Example:
      >>> constant = lambda w, e: jnp.broadcast_to(w, (len(e["x"]), len(w)))
      >>> part = Model(None, None, constant)
      >>> params = {"experts": jnp.array([[-4.5], [4.5]]), "router": jnp.log(jnp.array([2.0, 1.0]))}
      >>> soft = gated_experts(part, part, 2).predict(params, {"x": jnp.zeros(1)})
      >>> top = gated_experts(part, part, 2, routing="top-1").predict(params, {"x": jnp.zeros(1)})
      >>> f"{float(soft[0, 0]):.2f}", f"{float(top[0, 0]):.2f}"
      ('-1.50', '-4.50')

    Reference: Jacobs, Jordan, Nowlan, Hinton, "Adaptive Mixtures of Local Experts", 1991.
    """
    check_slot(expert, "expert", Model)
    check_slot(router, "router", Model)
    check_count(num_experts, "num_experts", minimum=1)
    if routing not in get_args(Routing):
        raise ValueError(
            f"routing must be one of {get_args(Routing)}, got {shown(routing)}; routing='soft'"
        )

    def init(key: Key) -> Params:
        check_key(key)
        *of_experts, of_router = jax.random.split(key, num_experts + 1)
        each = [expert.init(one) for one in of_experts]
        experts = jax.tree.map(lambda *leaves: jnp.stack(leaves), *each)
        return {"experts": experts, "router": router.init(of_router)}

    def predict(params: Params, examples: PyTree) -> Array:
        told = router.predict(params["router"], examples)
        if told.shape[-1] != num_experts:
            raise ValueError(
                f"router must have num_experts={num_experts} outputs, got {told.shape[-1]}; "
                f"fl.models.linear({num_experts}, input_shape)"
            )
        gates = jax.nn.softmax(told, axis=-1)
        answers = jax.vmap(lambda one: expert.predict(one, examples))
        if routing == "soft":
            outputs = answers(params["experts"])
            return jnp.einsum("bk,kb...->b...", gates.astype(outputs.dtype), outputs)
        chosen = jax.nn.one_hot(gates.argmax(-1), num_experts, dtype=bool)
        outputs = answers(_resting(params["experts"], ~chosen.any(0)))
        answer = jnp.where(_aside(chosen.T, outputs), outputs, 0).sum(0)  # not 0 * inf
        slopes = gates - jax.lax.stop_gradient(gates)  # zero, but for the router's gradient
        seen = jnp.where(jnp.isfinite(outputs), outputs, 0)
        return answer + jnp.einsum("bk,kb...->b...", slopes.astype(outputs.dtype), seen)

    def losses(params: Params, examples: Any, key: Key | None) -> Array:
        del key
        return check_per_example(loss(predict(params, examples), examples["y"]), len(examples["y"]))

    counts = counts_of(loss)
    if counts is not None:
        losses = with_counts(losses, lambda examples: counts(examples["y"]))
    return Model(init, losses, predict)


def _resting(experts: Params, rests: Array) -> Params:
    """The experts, of which some have a gradient of exactly zero, whatever comes back to them.

    Args:
      experts: leaves `[K, ...]`.
      rests: bool `[K]`.
    """
    return jax.tree.map(
        lambda leaf: jnp.where(_aside(rests, leaf), jax.lax.stop_gradient(leaf), leaf), experts
    )


def _aside(flags: Array, of: Array) -> Array:
    """Flags of the first axes, with an axis of one for each that follows."""
    return flags.reshape(flags.shape + (1,) * (of.ndim - flags.ndim))
