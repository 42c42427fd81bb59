"""The sentences on a composed round, line by line."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from fedjax_lite.anatomy.composed import Composed, client_optimizer, round_words, server_optimizer
from fedjax_lite.anatomy.figures import figure, function_words
from fedjax_lite.anatomy.optimizers import rate_words
from fedjax_lite.anatomy.pieces import PLUMBING, Piece, Step, factory_of, is_part, read, steps
from fedjax_lite.anatomy.words import own_words, phrase, plain_words, weighting_words
from fedjax_lite.engine.batches import Plan
from fedjax_lite.models.batch_norm import statistics_mask
from fedjax_lite.types import Accountant

UNWEIGHTED = frozenset(
    ("median", "trimmed_mean", "krum", "multi_krum", "bulyan", "centered_clipping")
    + ("redundancy", "majority_vote", "uniform_mean", "gaussian_sum", "adaptive_sum")
    + ("tree_sum", "matrix_sum", "modular_mean", "bucketing")
)
"""Rules to which a message's weight says no more than whether it counts."""
LOCAL_KEEPS = {
    "scaffold_client": "its control variate",
    "feddyn_client": "its gradient correction",
    "local_leaves": "its local leaves",
}
UPLINK_KEEPS = {
    "error_feedback": "what compression left out",
    "ef21": "the estimate of its update",
    "worker_momentum": "its momentum",
    "powersgd": "PowerSGD's last factor",
}
MODEL_WRAPPERS = ("with_precision", "augmented")
SPECIAL = {
    "scaffold_client": "SGD with learning rate {learning_rate}, each gradient corrected by the "
    "control variates (option {option})",
    "mime_client": "SGD with learning rate {learning_rate} along the server's momentum {momentum}",
    "dp_sgd": "DP-SGD with learning rate {learning_rate}: each example's gradient clipped to L2 "
    "norm {clip}, Gaussian noise of {noise_multiplier} times the clip on the sum",
    "local_gradient": "none: the gradient itself is sent",
}


def lines(whole: Composed, accountant: Accountant | None) -> list[tuple[str, str]]:
    """Labels and sentences of a round, in the order in which it happens.

    Example:
      >>> import optax, fedjax_lite as fl
      >>> from fedjax_lite.anatomy.composed import composed
      >>> algo = fl.fedavg(lambda w, e, key: w * e["x"], optax.sgd(0.1),
      ...                  plan=fl.Plan(batch_size=10), sampler=fl.uniform(10))
      >>> [label for label, _ in lines(composed(algo), None)][:3]
      ['Cohort', 'Local work', 'Local steps']
    """
    shown = [("Cohort", f"each round {phrase(whole.sampler)}")]
    if whole.title == "Centralised training":
        shown = [("Data", "the union of all clients, as one client")]
    if whole.prologue is not None:
        passes = read(whole.prologue.client)
        gradient = passes.name == "full_gradient"
        what = "the gradient at the server's model" if gradient else part_words(passes)
        rule = phrase(whole.prologue.aggregator)
        words = f"each client sends {what} ({plan_words(whole.prologue.plan)}), aggregated: {rule}"
        shown.append(("First pass", words))
    shown.append(("Local work", plan_words(whole.plan)))
    shown.append(("Local steps", training_words(whole.client, whole.server)))
    if (loss := loss_words(whole.client)) is not None:
        shown.append(("Loss", loss))
    if whole.title == "Local training only":
        kept = "its model" + (" and optimizer state" if keeps_optimizer(whole.client) else "")
        shown += [("Messages", "nothing is sent or averaged"), ("Clients keep", kept)]
        return [*shown, ("Execution", strategy_words(whole.strategy))]
    if whole.title != "Centralised training":
        words = uplink_words(whole.uplink)
        shown.append(("Uplink", f"messages are sent {words.removeprefix('sent ')}"))
        shown.append(("Aggregation", aggregation_words(whole)))
    if accountant is not None:
        shown.append(("Privacy", privacy_words(accountant)))
    shown.append(("Server", server_words(whole.server)))
    if whole.downlink is not None:
        shown.append(("Downlink", downlink_words(whole.downlink)))
    if kept := keeps(whole):
        central = whole.title == "Centralised training"
        shown.append(("Kept between rounds" if central else "Clients keep", ", ".join(kept)))
    return [*shown, ("Execution", strategy_words(whole.strategy))]


def plan_words(plan: Plan) -> str:
    """The local work of a round.

    Example:
      >>> plan_words(Plan(batch_size=20)), plan_words(Plan(batch_size=None, steps=2))
      ('1 epoch in batches of 20', '2 steps in one batch of all its data')
    """
    unit = "epoch" if plan.steps is None else "step"
    amount: Any = plan.epochs if plan.steps is None else plan.steps
    if callable(amount):
        work = f"{unit}s drawn by {function_words(amount)},"
    elif np.ndim(amount) and not isinstance(amount, jax.core.Tracer):
        values = np.asarray(amount)
        work = f"{values.min()} to {values.max()} {unit}s a client,"
    else:
        words = figure(amount)
        work = f"{words} {unit}" + ("" if words == "1" else "s")
    size = plan.batch_size
    return f"{work} in " + ("one batch of all its data" if size is None else f"batches of {size}")


def training_words(client: Piece, server: Piece) -> str:
    """What a client does in a step.

    Example:
      >>> import optax, fedjax_lite as fl
      >>> training_words(read(fl.local_sgd(lambda w, e, key: w, optax.sgd(0.1))), None)
      'SGD with learning rate 0.1'
    """
    if client.own:
        return own_words(client)
    optimizer = client_optimizer(client)
    if client.name in SPECIAL:
        known = {k: figure(v) for k, v in client.found.items() if not is_part(v)}
        # A function of the round is used as it is.
        rate = client.found.get("learning_rate", client.found.get("rate_at"))
        known |= {} if rate is None else {"learning_rate": rate_words(rate)}
        try:
            words = SPECIAL[client.name].format(**known)
        except KeyError:
            return plain_words(client)
        corrected = client.name == "mime_client" and client.found.get("correct")
        return words + (", corrected by gradients at the server's model" if corrected else "")
    if client.name == "nova_client":
        extra = [
            f"{k} {figure(client.found[k])}" for k in ("momentum", "mu") if client.found.get(k)
        ]
        rate = rate_words(client.found.get("learning_rate"))
        joined = f" ({', '.join(extra)})" if extra else ""
        return (
            f"SGD with learning rate {rate}{joined}; what is sent is normalised by the steps done"
        )
    if optimizer is None:
        if client.name in ("local_sgd", "adaptive_client", "feddyn_client", "local_leaves"):
            words = round_words(_resolve(client))
        else:
            return part_words(client)
    else:
        words = optimizer.words
    if client.name == "adaptive_client":
        mu = figure(server.found.get("mu"))
        return f"{words}, pulled towards the server's model (mu from {mu}, adapted by the server)"
    if client.name == "feddyn_client":
        return (
            f"{words} on the dynamically regularised loss (alpha {figure(client.found['alpha'])})"
        )
    return words


def aggregation_words(whole: Composed) -> str:
    """How messages become one value, and what they weigh.

    Example:
      >>> import optax, fedjax_lite as fl
      >>> from fedjax_lite.anatomy.composed import composed
      >>> algo = fl.fedavg(lambda w, e, key: w * e["x"], optax.sgd(0.1),
      ...                  plan=fl.Plan(batch_size=10), sampler=fl.uniform(10))
      >>> aggregation_words(composed(algo))
      'the weighted mean; a message weighs its number of examples'
    """
    words = phrase(whole.aggregator)
    innermost = read(whole.aggregator)
    while innermost.name not in UNWEIGHTED and "inner" in innermost.parts:
        innermost = read(innermost.parts["inner"])
    weight = _weight(whole.client)
    if whole.privacy is not None or innermost.name in UNWEIGHTED or weight is None:
        return words
    if innermost.found.get("weighting") == "uniform" or innermost.found.get("weighted") is False:
        return words  # secure_mean, geometric_median: weights can count, but here they do not
    if whole.client.own:
        return f"{words}; a message weighs what your own client says"
    if innermost.own:  # it may count the weights, or not
        return f"{words}, handed each message with the weight: {weighting_words(weight)}"
    return f"{words}; a message weighs {weighting_words(weight)}"


def server_words(server: Piece) -> str:
    """What the server does with the aggregate.

    Example:
      >>> import optax, fedjax_lite as fl
      >>> server_words(read(fl.optimizer_server(optax.sgd(1.0))))
      'SGD with learning rate 1 on the aggregate'
    """
    if server.own:
        return own_words(server)
    if server.name == "centralised" or server.name == "local_only" or server.name == "init":
        return "takes the result as its model"
    if server.name == "feddyn_server":
        alpha = figure(server.found["alpha"])
        return f"the model less the aggregate, corrected by what clients keep (alpha {alpha})"
    if server.name == "edge_server":
        return (
            "every edge takes the mean of its own clients; the cloud averages the edges that meet"
        )
    optimizer = server_optimizer(server)
    if optimizer is None:
        return part_words(server)
    words = f"{optimizer.words} on the aggregate"
    if server.name == "scaffold_server":
        return f"{words}; its control variate moves by the mean change of the clients'"
    if server.name == "mime_server":
        momentum = figure(server.found.get("momentum"))
        return f"{words}; its momentum {momentum} is fed with the gradients of the first pass"
    if server.name == "nova_server":
        return f"{words}, scaled by the mean number of effective steps"
    if server.name == "adaptive_mu":
        figures = [f"{k} {figure(server.found[k])}" for k in ("increment", "patience")]
        return f"{words}; mu follows {server.found.get('metric')} ({', '.join(figures)})"
    return words


def uplink_words(uplink: Any) -> str:
    """What happens to messages on their way.

    Example:
      >>> import fedjax_lite as fl
      >>> uplink_words(fl.clip(1.0)), uplink_words(fl.top_k(0.01))
      ('clipped to L2 norm 1', 'reduced to the 1% largest coordinates')
    """
    return phrase(uplink)


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
    found = []
    if whole.client.name in LOCAL_KEEPS:
        found.append(LOCAL_KEEPS[whole.client.name])
    waiting = [whole.uplink]
    while waiting:
        part = waiting.pop(0)
        if not hasattr(part, "_fields"):
            waiting = [*part, *waiting]
            continue
        piece = read(part)
        if piece.name in UPLINK_KEEPS:
            found.append(UPLINK_KEEPS[piece.name])
        waiting += [inner for inner in piece.parts.values() if is_part(inner)]
    if whole.title == "Centralised training" and keeps_optimizer(whole.client):
        found.append("the optimizer's state")
    return found


def loss_words(client: Piece) -> str | None:
    """Whose loss is minimised; None where closures do not say.

    Example:
      >>> import optax, fedjax_lite as fl
      >>> model = fl.models.mlp((4,), num_classes=3, input_shape=(2,))
      >>> loss_words(read(fl.local_sgd(model.loss, optax.sgd(0.1))))
      'cross_entropy of mlp (27 parameters)'
    """
    loss = client.found.get("loss")
    if not callable(loss):
        return next((w for p in client.parts.values() if (w := loss_words(read(p)))), None)
    words = function_words(loss)
    if words.startswith("your own"):
        return words
    within = [
        step
        for step in steps([loss], into_parts=True)
        if step.module.startswith("fedjax_lite.models.")
    ]
    criteria = [s.name for s in within if s.module.endswith(".losses") and not s.factory]
    # A model's own functions bear the name of the factory that was called; what they are built of
    # may bear that of another.
    within.sort(key=lambda step: step.name not in ("losses", "predict"))
    models = dict.fromkeys(s.factory for s in within if factory_of(s.module, s.factory))
    told = [name for name in models if name not in (*PLUMBING, *MODEL_WRAPPERS)]
    around = [f", {name}" for name in models if name in MODEL_WRAPPERS]
    if not criteria or not told:
        return words
    name = f"{kind} ({told[0]})" if (kind := _flax_class(within)) else told[0]
    count = num_parameters(within)
    size = f" ({count:,} parameters)" if count else ""
    return f"{criteria[0]} of {name}{size}{''.join(around)}"


def part_words(piece: Piece) -> str:
    """A piece by its name and settings, the user's as such."""
    return own_words(piece) if piece.own else plain_words(piece)


def keeps_optimizer(client: Piece) -> bool:
    """Whether a baseline's optimizer lives on between rounds."""
    return bool(client.found.get("keep_optimizer"))


def _flax_class(within: list[Step]) -> str:
    """The class of the flax module that a loss runs; "" where there is none."""
    for step in within:
        if step.factory == "from_linen" and "module" in step.cells:
            return type(step.cells["module"]).__name__
        if step.factory == "from_nnx" and "evaluation" in step.cells:
            nodes = getattr(step.cells["evaluation"], "nodes", ())
            return getattr(getattr(nodes[0], "type", None), "__name__", "") if nodes else ""
    return ""


def num_parameters(within: list[Step]) -> int | None:
    """How many numbers the model behind a loss trains; None where that is not known.

    Example:
      >>> import fedjax_lite as fl
      >>> num_parameters(list(steps([fl.models.linear(3, (4,)).loss], into_parts=True)))
      15
    """
    init = next((s.cells["init"] for s in within if {"init", "apply"} <= set(s.cells)), None)
    if init is None:
        return None
    try:
        shapes = jax.eval_shape(lambda: init(jax.random.key(0)))
    except Exception:  # whatever a user's network raises: its size is left out
        return None
    trained = zip(jax.tree.leaves(shapes), jax.tree.leaves(statistics_mask(shapes)), strict=True)
    return sum(leaf.size for leaf, is_statistic in trained if not is_statistic)


def _weight(client: Piece) -> Any:
    """The weighting of a client's messages, from the closure of `weight_by`."""
    weight = client.found.get("weight")
    if weight is not None and callable(weight):
        return read(weight).found.get("function")
    if isinstance(name := client.found.get("weighting"), str):
        return name
    for part in client.parts.values():
        if (found := _weight(read(part))) is not None:
            return found
    return client.found.get("function")


def _resolve(client: Piece) -> Any:
    """What `resolve_optimizer` made, of this client or of the one inside it."""
    inner = next((p for p in map(_resolve, map(read, client.parts.values())) if p), None)
    return client.found.get("resolve", inner)
