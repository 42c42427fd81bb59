"""The sentences on a composed round, line by line."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from fedjax_lite.describe.by_loss import BY_LOSS, by_loss
from fedjax_lite.describe.composed import Composed, client_optimizer, server_optimizer
from fedjax_lite.describe.models import loss_words
from fedjax_lite.describe.notes import Piece, is_part, read
from fedjax_lite.describe.numbers import figure
from fedjax_lite.describe.pairs import gan_words
from fedjax_lite.describe.personal import OWN_KEEPS, own_lines
from fedjax_lite.describe.phrases import own_words, phrase, plain_words, weighting_words
from fedjax_lite.describe.plans import plan_words, work_words
from fedjax_lite.describe.schedules import rate_words
from fedjax_lite.types import Accountant

FIRST_PASSES = {
    "full_gradient": "the gradient at the server's model",
    "loss_at": "its mean loss at the server's model",
    "rehearsed": "the norm of its update",
}
"""What clients send in a first pass, by the factory of the client."""
UNWEIGHTED = frozenset(
    ("median", "trimmed_mean", "krum", "multi_krum", "bulyan", "centered_clipping")
    + ("redundancy", "majority_vote", "uniform_mean", "gaussian_sum", "adaptive_sum")
    + ("tree_sum", "matrix_sum", "modular_mean", "secure_gaussian_sum", "bucketing", "total")
)
"""Rules to which a message's weight says no more than whether it counts."""
LOCAL_KEEPS = {
    "scaffold": "its control variate",
    "feddyn": "its gradient correction",
    "local_leaves": "its local leaves",
    "ifca": "the number of its cluster",
    "fedem": "its weights of the shared models",
    "mixture_of_experts": "its router",
    "fedbn": "its local leaves",
    "fedma": "its own network",
    "ca2fl": "its last update",
    **OWN_KEEPS,
}
KEEPS_BY_CHOICE = {
    "fedgan": ("share", "generator", "its discriminator"),
    "debiasing": ("adversary", "client", "its adversary"),
}
"""The argument that has clients keep something, its value then, and what is kept."""
UPLINK_KEEPS = {
    "error_feedback": "what compression left out",
    "ef21": "the estimate of its update",
    "worker_momentum": "its momentum",
    "powersgd": "PowerSGD's last factor",
}
SPECIAL = {
    "scaffold": "SGD with learning rate {learning_rate}, each gradient corrected by the control "
    "variates (option {option})",
    "mime": "SGD with learning rate {learning_rate} along the server's momentum {momentum}, "
    "corrected by gradients at the server's model",
    "mimelite": "SGD with learning rate {learning_rate} along the server's momentum {momentum}",
    "dp_sgd": "DP-SGD with learning rate {learning_rate}: each example's gradient clipped to L2 "
    "norm {clip}, Gaussian noise of {noise_multiplier} times the clip on the sum",
    "fedsgd": "none: the gradient itself is sent",
    "q_fedavg": "SGD with learning rate {learning_rate}",
    "q_fedsgd": "none: the gradient itself is sent (learning rate {learning_rate})",
    "local_gradient": "none: the gradient itself is sent",
}
"""Local steps by the method's factory, or the client's."""
LOW_RANK = {
    "factors": ", factor by factor",
    "frozen_a": "; the first factors stay as they were drawn (FFA-LoRA)",
    "residual": "; what averaging factors misses is added to the kernels (FedEx-LoRA)",
    "stacked": "; the mean product is added to the kernels, and adapters start anew (FLoRA)",
}
"""What becomes of adapters, by `fedlora`'s averaging."""


def lines(whole: Composed, accountant: Accountant | None) -> list[tuple[str, str]]:
    """Labels and sentences of a round, in the order in which it happens.

    Example:
      >>> import optax, fedjax_lite as fl
      >>> from fedjax_lite.describe.composed import composed
      >>> algo = fl.fedavg(lambda w, e, key: w * e["x"], optax.sgd(0.1),
      ...                  plan=fl.Plan(batch_size=10), sampler=fl.uniform(10))
      >>> [label for label, _ in lines(composed(algo), None)][:3]
      ['Cohort', 'Local work', 'Local steps']
    """
    slots = whole.slots
    central, alone = whole.method == "centralised", whole.method == "local_only"
    shown = [("Cohort", f"each round {phrase(slots.sampler)}")]
    if central:
        shown = [("Data", "the union of all clients, as one client")]
    if slots.prologue is not None:
        passes = read(slots.prologue.client)
        what = FIRST_PASSES.get(passes.name) or part_words(passes)
        rule = phrase(slots.prologue.aggregator)
        words = f"each client sends {what} ({plan_words(slots.prologue.plan)}), aggregated: {rule}"
        shown.append(("First pass", words))
    shown.append(("Local work", work_words(slots.client, slots.plan)))
    shown.append(("Local steps", training_words(whole)))
    shown += own_lines(whole)
    if callable(loss := whole.known.get("loss")):
        shown.append(("Loss", loss_words(loss)))
    if alone:
        kept = "its model" + (" and optimizer state" if whole.known["keep_optimizer"] else "")
        shown += [("Messages", "nothing is sent or averaged"), ("Clients keep", kept)]
        return [*shown, ("Execution", strategy_words(slots.strategy))]
    if not central:
        words = ", then ".join(phrase(part) for part in uplinks(whole)) or "as they are"
        shown.append(("Uplink", f"messages are sent {words.removeprefix('sent ')}"))
        shown.append(("Aggregation", aggregation_words(whole)))
    if accountant is not None:
        shown.append(("Privacy", privacy_words(accountant)))
    shown.append(("Server", server_words(whole)))
    if slots.downlink is not None:
        shown.append(("Downlink", downlink_words(slots.downlink)))
    if kept := keeps(whole):
        shown.append(("Kept between rounds" if central else "Clients keep", ", ".join(kept)))
    return [*shown, ("Execution", strategy_words(slots.strategy))]


LIFELONG = ("lam", "mu")
PULLED = {
    "ewc": ", pulled to what old tasks taught (EWC, lam {lam})",
    "fedcurv": ", pulled to the models of the last round's other clients by their Fisher "
    "information (lam {lam})",
    "three_way": ", pulled to what old tasks taught (EWC, lam {lam}) and to the server's model "
    "(mu {mu})",
}
"""What is added to local steps, by method."""


def uplinks(whole: Composed) -> list[Any]:
    """What is done to a message on its way: the algorithm's own, then the privacy mechanism's."""
    privacy = whole.slots.privacy
    both = (whole.slots.uplink, privacy.uplink if privacy is not None else None)
    return [part for part in both if part is not None]


def training_words(whole: Composed) -> str:
    """What a client does in a step.

    Example:
      >>> import optax, fedjax_lite as fl
      >>> from fedjax_lite.describe.composed import composed
      >>> algo = fl.fedavg(lambda w, e, key: w * e["x"], optax.sgd(0.1),
      ...                  plan=fl.Plan(batch_size=10), sampler=fl.uniform(10))
      >>> training_words(composed(algo))
      'SGD with learning rate 0.1'
    """
    known = whole.known
    special = next((SPECIAL[n] for n in (whole.method, whole.client.name) if n in SPECIAL), None)
    if special is not None:
        shown = {k: figure(v) for k, v in known.items() if not is_part(v)}
        return special.format(**{**shown, "learning_rate": rate_words(known.get("learning_rate"))})
    if whole.method == "fedgan":
        return gan_words(known)
    if whole.method == "fednova":
        extra = [f"{k} {figure(known[k])}" for k in ("momentum", "mu") if _is_set(known[k])]
        joined = f" ({', '.join(extra)})" if extra else ""
        rate = rate_words(known["learning_rate"])
        return (
            f"SGD with learning rate {rate}{joined}; what is sent is normalised by the steps done"
        )
    optimizer = client_optimizer(whole)
    if optimizer is None:
        return part_words(whole.client)
    words = optimizer.words
    if whole.method == "fedprox" and known.get("adaptive"):
        mu = figure(known["mu"])
        return f"{words}, pulled towards the server's model (mu from {mu}, adapted by the server)"
    if whole.method in ("per_fedavg", "fomaml"):
        return f"{words} along gradients after {adaptation_words(known)}"
    if whole.method in PULLED:
        return words + PULLED[whole.method].format(**{k: figure(known.get(k)) for k in LIFELONG})
    if whole.method == "feddyn":
        return f"{words} on the dynamically regularised loss (alpha {figure(known['alpha'])})"
    return words


def adaptation_words(known: dict[str, Any]) -> str:
    """How a client's model is adapted before its gradient is taken.

    Example:
      >>> adaptation_words({"alpha": 0.1, "first_order": False})
      '1 step of adaptation (alpha 0.1), with the Hessian'
    """
    steps, order = known.get("inner_steps", 1), known.get("first_order", True)
    words = (
        f"{figure(steps)} step{'s' * (steps != 1)} of adaptation (alpha {figure(known['alpha'])})"
    )
    return f"{words}, {'to first order' if order else 'with the Hessian'}"


def aggregation_words(whole: Composed) -> str:
    """How messages become one value, and what they weigh.

    Example:
      >>> import optax, fedjax_lite as fl
      >>> from fedjax_lite.describe.composed import composed
      >>> algo = fl.fedavg(lambda w, e, key: w * e["x"], optax.sgd(0.1),
      ...                  plan=fl.Plan(batch_size=10), sampler=fl.uniform(10))
      >>> aggregation_words(composed(algo))
      'the weighted mean; a message weighs its number of examples'
    """
    words = phrase(whole.slots.aggregator)
    innermost = read(whole.slots.aggregator)
    while innermost.name not in UNWEIGHTED and "inner" in innermost.parts:
        innermost = read(innermost.parts["inner"])
    weight = whole.known.get("weighting")
    if whole.slots.privacy is not None or innermost.name in UNWEIGHTED:
        return words
    settings = innermost.settings
    if settings.get("weighting") == "uniform" or settings.get("weighted") is False:
        return words  # secure_mean, geometric_median: weights can count, but here they do not
    if whole.client.own and not whole.method:
        return f"{words}; a message weighs what your own client says"
    if whole.method in BY_LOSS:
        shown = {k: figure(v) for k, v in whole.known.items() if not is_part(v)}
        return f"{words}; a message weighs {by_loss(whole.method, weight, shown)}"
    if weight is None:
        return words
    if innermost.own:  # it may count the weights, or not
        return f"{words}, handed each message with the weight: {weighting_words(weight)}"
    return f"{words}; a message weighs {weighting_words(weight)}"


def server_words(whole: Composed) -> str:
    """What the server does with the aggregate.

    Example:
      >>> import optax, fedjax_lite as fl
      >>> from fedjax_lite.describe.composed import composed
      >>> algo = fl.fedavg(lambda w, e, key: w * e["x"], optax.sgd(0.1),
      ...                  plan=fl.Plan(batch_size=10), sampler=fl.uniform(10))
      >>> server_words(composed(algo))
      'SGD with learning rate 1 on the aggregate'
    """
    server, method, known = whole.server, whole.method, whole.known
    if method == "centralised":
        return "takes the result as its model"
    if method == "feddyn":
        alpha = figure(known["alpha"])
        return f"the model less the aggregate, corrected by what clients keep (alpha {alpha})"
    if method == "hierfavg":
        edge, cloud = known.get("edge_aggregator"), known.get("cloud_aggregator")
        first = "the mean" if edge is None else phrase(edge)
        then = "averages" if cloud is None else f"takes {phrase(cloud)} of"
        return f"every edge takes {first} of its own clients; the cloud {then} the edges that meet"
    if method in ("scaffold", "mime", "mimelite"):
        words = f"SGD with learning rate {rate_words(known['server_learning_rate'])} on the "
        words += "aggregate"
        if method == "scaffold":
            return f"{words}; its control variate moves by the mean change of the clients'"
        momentum = figure(known["momentum"])
        return f"{words}; its momentum {momentum} is fed with the gradients of the first pass"
    if server.own:
        return own_words(server)
    optimizer = server_optimizer(server)
    if optimizer is None:
        return part_words(server)
    words = f"{optimizer.words} on the aggregate"
    if method == "afl":
        rate = figure(known["mixture_rate"])
        return f"{words}; the mixture rises by {rate} times the losses, back onto the simplex"
    if method == "ca2fl":
        return f"{optimizer.words} on the mean of all clients' last updates, corrected by the new"
    if method == "fednova":
        return f"{words}, scaled by the mean number of effective steps"
    if method == "ifca":
        part = ", times the cluster's part in all weights"
        return f"{words} of each cluster{part if known['averaging'] == 'gradient' else ''}"
    if method == "fedlora":
        return words + LOW_RANK[known["averaging"]]
    if server.name == "adaptive_mu":
        figures = [f"{k} {figure(server.settings[k])}" for k in ("increment", "patience")]
        return f"{words}; mu follows {server.settings['metric']} ({', '.join(figures)})"
    return words


def downlink_words(downlink: Any) -> str:
    """What happens to the broadcast on its way.

    Example:
      >>> import fedjax_lite as fl
      >>> downlink_words(fl.Downlink(fl.drive(), of="model"))
      'the model is sent by DRIVE, one bit a coordinate after a random rotation, unbiased'
    """
    transform = getattr(downlink, "transform", downlink)
    of = getattr(downlink, "of", "update")
    what = "the model" if of == "model" else "the change of the model, to every client,"
    words = phrase(transform)
    return f"{what} is {words}"


def privacy_words(accountant: Accountant) -> str:
    """What the accountant says of itself, and when the run ends.

    Example:
      >>> privacy_words(Accountant(lambda rounds: {}, 30, "a guarantee", delta=1e-5))
      'a guarantee; the run stops after round 30'
    """
    words = accountant.description.rstrip(".")
    if accountant.max_rounds is not None and f"round {accountant.max_rounds}" not in words:
        words += f"; the run stops after round {accountant.max_rounds}"
    return words


def strategy_words(strategy: Any) -> str:
    """How the cohort is executed; it changes no result.

    Example:
      >>> import fedjax_lite as fl
      >>> strategy_words(fl.chunked(4))
      'chunked(4)'
    """
    return str(getattr(strategy, "name", strategy))


def keeps(whole: Composed) -> list[str]:
    """What every client keeps between rounds, a table over the population."""
    found = [LOCAL_KEEPS[whole.method]] if whole.method in LOCAL_KEEPS else []
    if whole.method in KEEPS_BY_CHOICE:
        argument, value, what = KEEPS_BY_CHOICE[whole.method]
        found += [what] * (whole.known[argument] == value)
    waiting = uplinks(whole)
    while waiting:
        part = waiting.pop(0)
        if not hasattr(part, "_fields"):
            waiting = [*part, *waiting]
            continue
        piece = read(part)
        if piece.name in UPLINK_KEEPS:
            found.append(UPLINK_KEEPS[piece.name])
        waiting += piece.parts.values()
    if whole.method == "centralised" and whole.known["keep_optimizer"]:
        found.append("the optimizer's state")
    return found


def part_words(piece: Piece) -> str:
    """A piece by its name and settings, the user's as such."""
    return own_words(piece) if piece.own else plain_words(piece)


def _is_set(value: Any) -> bool:
    """Whether a setting says something; a traced one does, whatever it will be."""
    return isinstance(value, jax.core.Tracer) or bool(np.any(value))
