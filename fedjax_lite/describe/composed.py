"""Which parts a round is wired from, by an algorithm's slots, and what the method is called."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from fedjax_lite import algorithms
from fedjax_lite.checks.made import Made, maker_of
from fedjax_lite.describe.notes import Piece, called, is_ours, notes_of, read, replaced_in
from fedjax_lite.describe.optimizers import Optimizer, is_optimizer, of_the_round, read_optimizer
from fedjax_lite.describe.stages import PROXIMAL
from fedjax_lite.types import FederatedAlgorithm, Slots


class Composed(NamedTuple):
    """A round, read."""

    slots: Slots
    title: str
    """What the method is called."""
    origin: Callable[..., Any] | None
    """The factory whose docstring names its paper."""
    method: str
    """Its name, where it is a method of the package; else ""."""
    client: Piece
    """The client's update, or the method's own arguments where it wires one itself."""
    server: Piece
    known: dict[str, Any]
    """Arguments of all factories that had a part in it, the client's first."""
    around: str = ""
    """What was put around the method, in words that begin with a comma."""


METHODS = {
    "fedsgd": "FedSGD",
    "fedprox": "FedProx",
    "fednova": "FedNova",
    "scaffold": "SCAFFOLD",
    "feddyn": "FedDyn",
    "mime": "Mime",
    "mimelite": "MimeLite",
    "hierfavg": "HierFAVG",
    "q_fedavg": "q-FedAvg",
    "q_fedsgd": "q-FedSGD",
    "afl": "AFL",
    "term": "TERM",
    "fedmgda": "FedMGDA+",
    "debiasing": "Adversarial debiasing",
    "precision_weighted": "FedAvg with inverse-variance weights",
    "fedgan": "FedGAN",
    "fedma": "FedMA",
    "ifca": "IFCA",
    "fedem": "FedEM",
    "mixture_of_experts": "Federated mixture of experts",
    "ca2fl": "CA2FL",
    "fedasync": "FedAsync",
    "fedbuff": "FedBuff",
    "fedbn": "FedBN",
    "fedlora": "Federated LoRA",
    "per_fedavg": "Per-FedAvg",
    "fomaml": "First-order MAML",
    "reptile": "Reptile",
    "frozen_leaves": "FedAvg with frozen leaves",
    "local_leaves": "FedAvg with local leaves",
    "apfl": "APFL",
    "ditto": "Ditto",
    "fedper": "FedPer",
    "lg_fedavg": "LG-FedAvg",
    "fedrep": "FedRep",
    "fedbabu": "FedBABU",
    "pfedme": "pFedMe",
    "ewc": "FedAvg with EWC",
    "fedcurv": "FedCurv",
    "three_way": "The three-way objective",
    "centralised": "Centralised training",
    "local_only": "Local training only",
}
"""By the factory in `fedjax_lite.algorithms`; FedAvg's family is told by its server."""
SERVERS = {
    "fedjax_lite.round.server.adagrad": ("FedAdagrad", "fedadagrad"),
    "fedjax_lite.round.server.adam": ("FedAdam", "fedadam"),
    "fedjax_lite.round.server.yogi": ("FedYogi", "fedyogi"),
}


def composed(algorithm: FederatedAlgorithm) -> Composed | None:
    """The slots of an algorithm; None where it has none.

    Args:
      algorithm: any; one whose factory signed it, and was given another algorithm, is looked
        through.

    Returns:
      What was composed. Nothing is run or traced.

    Example:
      >>> import optax, fedjax_lite as fl
      >>> algo = fl.fedavg(lambda w, e, key: w * e["x"], optax.sgd(0.1),
      ...                  plan=fl.Plan(batch_size=10), sampler=fl.uniform(10))
      >>> whole = composed(algo)
      >>> whole.title, whole.client.name, whole.slots.plan.batch_size
      ('FedAvg', 'local_sgd', 10)
    """
    notes = list(notes_of(algorithm))
    inner = _wrapped(notes[0]) if notes else None
    slots = algorithm.slots or (inner.slots if inner else None)
    if slots is None:
        return None
    if inner is not None and notes[0].before is None:
        notes += notes_of(inner)
    method = next((n for n in notes if is_ours(n.module) and n.name in METHODS), None)
    client = read(_client(notes, slots))
    author = next((n for n in notes if not is_ours(n.module) and _wrapped(n) is None), None)
    if client.note is None and author is not None and method is None:
        given = author.arguments.items()
        settings = {k: v for k, v in given if k not in (*Slots._fields, "loss")}
        client = Piece(author.name, author.module, settings, author, True)
    server = read(slots.server)
    # The innermost knows best what is done; the user's own factories may call anything anything.
    sources = [
        *reversed(list(_inside(client))),
        *sorted(notes, key=lambda n: not is_ours(n.module)),
    ]
    known: dict[str, Any] = {}
    for note in sources:
        for name, value in note.arguments.items():
            if known.get(name) is None:
                known[name] = value
    whole = Composed(slots, "", None, method.name if method else "", client, server, known)
    title, origin = _title(whole, method)
    notes = [note for note in notes if note is not client.note]
    return whole._replace(title=title, origin=origin, around=_around(algorithm, notes, method))


def client_optimizer(whole: Composed) -> Optimizer | None:
    """The optimizer of a client's local steps; None where it has none.

    Example:
      >>> import optax, fedjax_lite as fl
      >>> algo = fl.fedavg(lambda w, e, key: w * e["x"], optax.adam(0.1),
      ...                  plan=fl.Plan(batch_size=10), sampler=fl.uniform(10))
      >>> client_optimizer(composed(algo)).names
      ('scale_by_adam',)
    """
    # The client's own argument goes first: the method may have put something around the optimizer.
    sources = [note.arguments for note in _inside(whole.client)] + [whole.known]
    for arguments in sources:
        if (chosen := arguments.get("client_optimizer")) is not None:
            return of_the_round(chosen)
    return None


def server_optimizer(server: Piece) -> Optimizer | None:
    """The optimizer that descends on the aggregate; None where the server has none.

    Example:
      >>> import optax, fedjax_lite as fl
      >>> server_optimizer(read(fl.optimizer_server(optax.sgd(1.0)))).plain
      True
    """
    optimizer = server.arguments.get("optimizer")
    if is_optimizer(optimizer):
        return read_optimizer(optimizer)
    inner = server.arguments.get("server")
    return None if inner is None else server_optimizer(read(inner))


def _client(notes: list[Made], slots: Slots) -> Any:
    """The client's update that a factory was given: methods may put their own around it."""
    for note in notes:
        if (client := note.arguments.get("client")) is not None:
            return client
    return slots.client


def _inside(client: Piece) -> Iterator[Made]:
    """The notes of a client, and of the clients inside it."""
    while not client.own and client.note is not None:
        yield client.note
        if (inner := client.arguments.get("client")) is None:
            return
        client = read(inner)


def _wrapped(note: Made) -> FederatedAlgorithm | None:
    values = note.arguments.values()
    return next((v for v in values if isinstance(v, FederatedAlgorithm)), None)


def _around(algorithm: FederatedAlgorithm, notes: list[Made], method: Made | None) -> str:
    """What was put around a method: by a factory that was given it, by `_replace`, by the user."""
    words = ""
    for note in notes[: notes.index(method)] if method else notes:
        own = not is_ours(note.module)
        name = f"your own `{note.name}` ({note.module})" if own else f"`{note.name}`"
        if _wrapped(note) is not None:
            words = f", wrapped in {name}{words}"
        elif own:
            words = f", made by {name}{words}"
    note = maker_of(algorithm)
    if note is not None and (replaced := replaced_in(algorithm, note)):
        name, module = called(getattr(algorithm, replaced[0]))
        whose = f"your own `{name}` ({module})" if name else f"your own function ({module})"
        words += f", its {' and '.join(replaced)} replaced by {whose}; the slots that it had"
    return words


def _title(whole: Composed, method: Made | None) -> tuple[str, Callable[..., Any] | None]:
    client, server = whole.client, whole.server
    if method is not None:
        adaptive = " with an adaptive mu" if method.arguments.get("adaptive") else ""
        return METHODS[method.name] + adaptive, method.factory
    if client.own:
        named = f" (client `{client.name}`)" if client.name else ""
        if client.note is not None and whole.slots.client.made is not client.note:
            named = f" `{client.name}`"  # its factory signed
        return f"Your own algorithm{named}", None
    names = [note.name for note in _inside(client)]
    if names[-1] == "dp_sgd":
        return "FedAvg with DP-SGD on every client", algorithms.fedavg
    if names[-1] != "local_sgd" or (len(names) > 1 and names[0] != "with_client_losses"):
        return f"An algorithm of its own (client {names[0]})", None
    training, descent = client_optimizer(whole), server_optimizer(server)
    if training and PROXIMAL in training.names:
        return "FedProx", algorithms.fedprox
    if server.own or server.name != "optimizer_server":
        return "FedAvg's clients with another server", algorithms.fedavg
    if descent is None:
        return "FedAvg", algorithms.fedavg
    # A server that clips, say, before its step is still the method that its step is.
    more = f" with {' and '.join(descent.aside)}" if descent.aside else ""
    if descent.core in SERVERS:
        title, name = SERVERS[descent.core]
        return title + more, getattr(algorithms, name)
    if descent.momentum:
        return "FedAvgM" + more, algorithms.fedavgm
    if descent.plain:
        return "FedAvg" + more, algorithms.fedavg
    return "FedOpt" + more, server.note.factory if server.note else None
