"""Which slots `federated_algorithm` wired, read from the round's closures."""

from __future__ import annotations

from types import FunctionType
from typing import Any, NamedTuple

from fedjax_lite.anatomy.figures import figure, function_words, within
from fedjax_lite.anatomy.optimizers import Optimizer, is_optimizer, read_optimizer
from fedjax_lite.anatomy.pieces import Piece, factory_of, read, step_of, steps, unwrapped
from fedjax_lite.anatomy.words import own_words
from fedjax_lite.types import FederatedAlgorithm


class Composed(NamedTuple):
    """The slots of a round."""

    client: Piece
    plan: Any
    sampler: Any
    server: Piece
    """The innermost server that is not merely wrapped for privacy or the downlink."""
    aggregator: Any
    uplink: Any
    downlink: Any
    """A `Downlink`, or None."""
    privacy: Any
    strategy: Any
    prologue: Any
    title: str
    """What the method is called."""
    origin: FunctionType | None
    """The factory whose docstring names its paper."""


TITLES: dict[str, tuple[str, str, str]] = {
    "local_gradient": ("FedSGD", "fedsgd", "fedsgd"),
    "adaptive_client": ("FedProx with an adaptive mu", "fedprox", "fedprox"),
    "nova_client": ("FedNova", "fednova", "fednova"),
    "scaffold_client": ("SCAFFOLD", "scaffold", "scaffold"),
    "feddyn_client": ("FedDyn", "feddyn", "feddyn"),
    "mime_client": ("Mime", "mime", "mime"),
    "at_edges": ("HierFAVG", "hierfavg", "hierfavg"),
    "local_leaves": ("FedAvg with local leaves", "local_leaves", "local_leaves"),
    "centralised": ("Centralised training", "baselines", "centralised"),
    "local_only": ("Local training only", "baselines", "local_only"),
    "dp_sgd": ("FedAvg with DP-SGD on every client", "fedavg", "fedavg"),
}
"""By the client's factory: the method, and module and name of the factory in `algorithms`."""
SERVERS = {
    "fedjax_lite.server.adagrad": ("FedAdagrad", "fedadagrad"),
    "fedjax_lite.server.adam": ("FedAdam", "fedadam"),
    "fedjax_lite.server.yogi": ("FedYogi", "fedyogi"),
}
PROXIMAL = "fedjax_lite.proximal.proximal"


def composed(algorithm: FederatedAlgorithm) -> Composed | None:
    """The slots of an algorithm; None where `federated_algorithm` did not wire it.

    Args:
      algorithm: any; algorithms that wrap another's round are looked through.

    Returns:
      What was composed. Nothing is run or traced.

    Example:
      >>> import optax, fedjax_lite as fl
      >>> algo = fl.fedavg(lambda w, e, key: w * e["x"], optax.sgd(0.1),
      ...                  plan=fl.Plan(batch_size=10), sampler=fl.uniform(10))
      >>> whole = composed(algo)
      >>> whole.title, whole.client.name, whole.plan.batch_size
      ('FedAvg', 'local_sgd', 10)
    """
    for step in steps([algorithm.round]):
        if step.factory == "federated_algorithm" and {"program", "strategy"} <= set(step.cells):
            break
    else:
        return _wrapped(algorithm)
    slots, program = step.cells, step.cells["program"]
    server, downlink = read(slots["server"]), None
    while (
        server.name in ("blindfolded", "downlinked", "standing_still") and "server" in server.parts
    ):
        downlink = server.parts.get("downlink", downlink)
        server = read(server.parts["server"])
    client = read(program.client)
    title, origin = _title(algorithm, client, server)
    return Composed(
        client=client,
        plan=program.plan,
        sampler=slots.get("sampler"),
        server=server,
        aggregator=program.aggregator,
        uplink=program.uplink,
        downlink=downlink,
        privacy=slots.get("privacy"),
        strategy=slots.get("strategy"),
        prologue=slots.get("prologue"),
        title=title,
        origin=origin,
    )


def _wrapped(algorithm: FederatedAlgorithm) -> Composed | None:
    """An algorithm whose round is the user's function around that of a composed one."""
    wrapper = read(algorithm.round)
    for part in wrapper.parts.values():
        if isinstance(part, FederatedAlgorithm) and (inner := composed(part)) is not None:
            title = f"{inner.title}, its round wrapped in {own_words(wrapper._replace(parts={}))}"
            return inner._replace(title=title)
    return None


def client_optimizer(piece: Piece) -> Optimizer | None:
    """The optimizer of a client's local steps; None where it has none or it is not known.

    Example:
      >>> import optax, fedjax_lite as fl
      >>> client_optimizer(read(fl.local_sgd(lambda w, e, key: w, optax.adam(0.1)))).names
      ('scale_by_adam', 'scale')
    """
    for name in ("resolve", "client_optimizer", "local"):
        if name in piece.found and (found := _resolved(piece.found[name])) is not None:
            return found
    for part in piece.parts.values():
        if not is_optimizer(part) and (found := client_optimizer(read(part))) is not None:
            return found
    return None


def round_words(resolve: Any) -> str:
    """An optimizer that is a function of the round, behind `resolve_optimizer`.

    Example:
      >>> from fedjax_lite.local import resolve_optimizer
      >>> from textwrap import dedent  # a function from elsewhere
      >>> round_words(resolve_optimizer(dedent))
      'an optimizer that depends on the round: your own `dedent` (textwrap)'
    """
    function = unwrapped(resolve) if callable(resolve) else None
    cells = step_of(function).cells if isinstance(function, FunctionType) else {}
    chosen = cells.get("client_optimizer")
    told = "a function of its own"
    if callable(chosen):
        told = function_words(chosen) + within(chosen)
    return f"an optimizer that depends on the round: {told}"


def server_optimizer(piece: Piece) -> Optimizer | None:
    """The optimizer that descends on the aggregate; None where the server has none.

    Example:
      >>> import optax, fedjax_lite as fl
      >>> server_optimizer(read(fl.optimizer_server(optax.sgd(1.0)))).plain
      True
    """
    optimizer = piece.parts.get("optimizer", piece.found.get("optimizer"))
    if optimizer is not None and is_optimizer(optimizer):
        return read_optimizer(optimizer)
    inner = piece.parts.get("server", piece.found.get("server"))
    return None if inner is None else server_optimizer(read(inner))


def _resolved(value: Any) -> Optimizer | None:
    """An optimizer behind `resolve_optimizer`, with FedProx' pull before it."""
    if is_optimizer(value):
        return read_optimizer(value)
    if not isinstance(value, FunctionType):
        return None
    step = step_of(value)
    if "constant" in step.cells:
        return _resolved(step.cells["constant"])
    if step.factory == "_pulled" and "resolve" in step.cells:
        inner = _resolved(step.cells["resolve"])
        words = inner.words if inner else round_words(step.cells["resolve"])
        pull = f"a pull towards the server's model (mu {figure(step.cells.get('mu'))})"
        names = (PROXIMAL, *(inner.names if inner else ()))
        return Optimizer(f"{pull}, then {words}", names, False, False, "", ())
    if step.factory == "resolve_optimizer" and "client_optimizer" in step.cells:
        return _resolved(step.cells["client_optimizer"])
    return None


def _title(
    algorithm: FederatedAlgorithm, client: Piece, server: Piece
) -> tuple[str, FunctionType | None]:
    if client.own:
        name = (
            f"Your own algorithm (client `{client.name}`)" if client.name else "Your own algorithm"
        )
        return name, None
    if client.name == "mime_client" and client.found.get("correct") is False:
        return "MimeLite", factory_of("fedjax_lite.algorithms.mime", "mimelite")
    if algorithm.made is not None and algorithm.made.name == "fedbn":
        return "FedBN", factory_of("fedjax_lite.algorithms.local_leaves", "fedbn")
    if client.name in TITLES:
        title, module, name = TITLES[client.name]
        return title, factory_of(f"fedjax_lite.algorithms.{module}", name)
    if client.name != "local_sgd":
        return f"An algorithm of its own (client {client.name})", None
    training, descent = client_optimizer(client), server_optimizer(server)
    if training and PROXIMAL in training.names:
        return "FedProx", factory_of("fedjax_lite.algorithms.fedprox", "fedprox")
    if server.own or server.name != "optimizer_server":
        return "FedAvg's clients with another server", factory_of(
            "fedjax_lite.algorithms.fedavg", "fedavg"
        )
    if descent is None:
        return "FedAvg", factory_of("fedjax_lite.algorithms.fedavg", "fedavg")
    # A server that clips, say, before its step is still the method that its step is.
    more = f" with {' and '.join(descent.aside)}" if descent.aside else ""
    if descent.core in SERVERS:
        title, name = SERVERS[descent.core]
        return title + more, factory_of("fedjax_lite.algorithms.fedopt", name)
    if descent.momentum:
        return "FedAvgM" + more, factory_of("fedjax_lite.algorithms.fedopt", "fedavgm")
    if descent.plain:
        return "FedAvg" + more, factory_of("fedjax_lite.algorithms.fedavg", "fedavg")
    return "FedOpt" + more, factory_of("fedjax_lite.server", "optimizer_server")
