"""citation(): the BibTeX of what a run used."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from types import FunctionType
from typing import Any

import optax

from fedjax_lite.checks.made import maker_of
from fedjax_lite.describe.columns import columns_note
from fedjax_lite.describe.composed import (
    Composed,
    client_optimizer,
    composed,
    server_optimizer,
)
from fedjax_lite.describe.notes import PACKAGE, Piece, is_ours, is_part, read
from fedjax_lite.describe.optimizers import is_optimizer, read_optimizer
from fedjax_lite.describe.references import entries, named_in
from fedjax_lite.describe.text import Text
from fedjax_lite.engine.batches import Plan
from fedjax_lite.round.downlink import downlinked
from fedjax_lite.types import FederatedAlgorithm, Mechanism
from fedjax_lite.version import __version__

YEAR = 2026
URL = "https://github.com/fedjax-lite/fedjax_lite"
DATASETS = {
    "cifar10": ("krizhevsky2009learning",),
    "cifar100": ("krizhevsky2009learning",),
    "mnist": ("lecun1998mnist",),
    "fashion_mnist": ("xiao2017fashion",),
    "shakespeare": ("mcmahan2017communication",),
    "heart_disease": ("janosi1988heart", "terrail2022flamby"),
    "uci_har": ("anguita2013public",),
    "digits": ("alpaydin1998cascading",),
    "synthetic": ("li2020federated",),
}
"""Papers of the data sets of `fedjax_lite.data.load`."""
OPTAX = {
    "scale_by_adam": "kingma2015adam",
    "add_decayed_weights": "loshchilov2019decoupled",
}
"""Papers of optax' transformations; decoupled weight decay counts only after Adam."""
MECHANISMS = {
    "gaussian_sum": ("gaussian", "central_gaussian"),
    "adaptive_sum": ("adaptive", "adaptive_clipping"),
    "tree_sum": ("tree_noise", "tree_noise"),
    "matrix_sum": ("matrix_noise", "matrix_noise"),
    "secure_gaussian_sum": ("secure_gaussian", "secure_gaussian"),
    "modular_mean": ("discrete.mechanism", "distributed_discrete_gaussian"),
}
"""Private aggregators, and module and name of the mechanism whose docstring names the paper."""
ACCOUNTANTS = {
    "poisson_accountant": ("accounting.poisson", "epsilon"),
    "gdp_accountant": ("accounting.analytic_gaussian", "gdp_delta"),
    "local_gaussian": ("local", "local_gaussian"),
    "distributed_discrete_gaussian": ("accounting.discrete_losses", "epsilon_of"),
}
RDP = "mironov2019renyi"
QUIET = frozenset(("mean", "optimizer_server", "uniform_mean"))
"""What their docstrings cite is cited by the algorithm, where it applies."""


def citation(*used: Any) -> Text:
    """The BibTeX entries of fedjax_lite and of every paper behind what a run used.

    The papers are those that the docstrings of the composed pieces name: method, local steps,
    sampler, uplink, downlink, aggregator with attack and inner rules, privacy mechanism and its
    accounting. Nothing is run but optimizers of optax, on two numbers.

    Args:
      *used: algorithms, parts of them (aggregators, transforms, privacy mechanisms ...), models,
        partitioners, factories (``fl.krum``, ``optax.adam``), and names of data sets
        (``"cifar10"``).

    Returns:
      BibTeX, each entry once, fedjax_lite first; a REPL or notebook shows it as it reads.

    Raises:
      TypeError: if something is none of these, or a factory that was not called and names no paper.
      ValueError: if the name of a data set is unknown.

    Example:
      >>> import optax, fedjax_lite as fl
      >>> algo = fl.fedavg(lambda w, e, key: w * e["x"], optax.sgd(0.1), aggregator=fl.krum(1),
      ...                  plan=fl.Plan(batch_size=20), sampler=fl.uniform(10))
      >>> bibtex = citation(algo, fl.data.dirichlet(alpha=0.5, num_clients=10, seed=0), "cifar10")
      >>> [line for line in bibtex.splitlines() if line.startswith("@")][:3]
      ['@software{fedjax_lite,', '@inproceedings{mcmahan2017communication,', \
'@inproceedings{blanchard2017machine,']
    """
    keys = dict.fromkeys(key for thing in used for key in keys_of(thing))
    return Text("\n\n".join([own_entry(), *(entries()[key].text for key in keys)]))


def own_entry() -> str:
    """The BibTeX entry of this software, with its version.

    Example:
      >>> own_entry().splitlines()[0]
      '@software{fedjax_lite,'
    """
    return (
        "@software{fedjax_lite,\n"
        "  author = {{The fedjax_lite authors}},\n"
        "  title = {{fedjax_lite: federated-learning research as pure JAX functions}},\n"
        f"  year = {{{YEAR}}},\n"
        f"  version = {{{__version__}}},\n"
        f"  url = {{{URL}}},\n"
        "}"
    )


def keys_of(thing: Any) -> Iterator[str]:
    """Keys of the papers behind one thing, in order; a key may come twice.

    Example:
      >>> from fedjax_lite.transforms import qsgd
      >>> list(keys_of(qsgd(7)))
      ['alistarh2017qsgd']
    """
    if isinstance(thing, str):
        if thing not in DATASETS:
            raise ValueError(
                f"the data set {thing!r} is not known to citation; it knows {sorted(DATASETS)}"
            )
        yield from DATASETS[thing]
    elif isinstance(thing, FederatedAlgorithm):
        yield from _algorithm(thing)
    elif isinstance(thing, Mechanism):
        yield from _mechanism(thing)
    elif isinstance(thing, Plan):
        return
    elif is_optimizer(thing):
        yield from _optimizer_names(read_optimizer(thing).names)
    elif isinstance(thing, FunctionType) and (found := _uncalled(thing)) is not None:
        yield from found
    elif is_part(thing) or isinstance(thing, FunctionType):
        yield from _parts(thing)
    else:
        raise TypeError(
            "citation takes algorithms, their parts, models, partitioners and names of data sets, "
            f"got {type(thing).__name__}"
        )


def _algorithm(algorithm: FederatedAlgorithm) -> Iterator[str]:
    if (columns := columns_note(algorithm)) is not None:
        yield from _doc(columns.factory)
        for part in columns.arguments.values():
            if is_part(part) or is_optimizer(part):
                yield from _parts(part)
        return
    whole = composed(algorithm)
    if whole is None:
        return
    slots = whole.slots
    yield from _doc(whole.origin)
    yield from _client(whole)
    yield from _parts(slots.sampler)
    if slots.uplink is not None:
        yield from _parts(slots.uplink)
    if slots.privacy is not None:
        yield from _mechanism(slots.privacy)
    else:
        yield from _parts(slots.aggregator)
    if slots.downlink is not None:
        yield from _doc(downlinked)
        yield from _parts(slots.downlink.transform)
    yield from _server(whole.server)


def _client(whole: Composed) -> Iterator[str]:
    client = whole.client
    if not client.own and client.note is not None:
        yield from _doc(client.note.factory)
    if (optimizer := client_optimizer(whole)) is not None:
        yield from _optimizer_names(optimizer.names)
    for name in ("weighting", "loss"):
        if (note := maker_of(whole.known.get(name))) is not None:
            yield from _doc(note.factory)


def _server(server: Piece) -> Iterator[str]:
    if not server.own and server.name not in QUIET and server.note is not None:
        yield from _doc(server.note.factory)
    if (optimizer := server_optimizer(server)) is None:
        return
    step = optimizer.plain or optimizer.momentum or optimizer.core.startswith(PACKAGE)
    if not step and server.name == "optimizer_server" and server.note is not None:
        yield from _doc(server.note.factory)
    yield from _optimizer_names(optimizer.names)


def _optimizer_names(names: tuple[str, ...]) -> Iterator[str]:
    for name in names:
        if name == "add_decayed_weights" and "scale_by_adam" not in names:
            continue
        if name in OPTAX:
            yield OPTAX[name]
        elif is_ours(name):
            yield from _documented(*name.rpartition(".")[::2])


def _mechanism(privacy: Mechanism) -> Iterator[str]:
    yield from _parts(privacy.aggregator)
    if privacy.uplink is not None:
        yield from _parts(privacy.uplink)
    yield from _accountant(privacy)


def _accountant(privacy: Mechanism) -> Iterator[str]:
    note = privacy.accountant.made
    by_rdp = note is not None and note.arguments.get("method") == "rdp"
    for maker in (note, privacy.made):
        if maker is not None and maker.name in ACCOUNTANTS:
            module, name = ACCOUNTANTS[maker.name]
            found = _documented(f"{PACKAGE}.privacy.{module}", name)
            # The other papers that accounting names are of the default, PLD.
            yield from (key for key in found if key == RDP or not by_rdp)


def _parts(part: Any) -> Iterator[str]:
    """The papers of a part, then of those inside it."""
    if isinstance(part, tuple | list) and not hasattr(part, "_fields"):
        for one in part:
            yield from _parts(one)
        return
    if is_optimizer(part):
        yield from _optimizer_names(read_optimizer(part).names)
        return
    piece = read(part)
    if piece.name in MECHANISMS and not piece.own:
        module, name = MECHANISMS[piece.name]
        yield from _documented(f"{PACKAGE}.privacy.{module}", name)
    elif piece.note is not None and not piece.own and piece.name not in QUIET:
        yield from _doc(piece.note.factory)
    yield from _inner_parts(piece)


def _inner_parts(piece: Piece) -> Iterator[str]:
    # An attack before the rule that withstands it: the order of the arguments.
    for name in sorted(piece.parts, key=lambda name: name != "attack"):
        yield from _parts(piece.parts[name])


def _doc(factory: Callable[..., Any] | None) -> Iterator[str]:
    yield from named_in(factory.__doc__ if factory else None)


def _documented(module: str, name: str) -> Iterator[str]:
    yield from _doc(getattr(importlib.import_module(module), name))


def _uncalled(function: FunctionType) -> list[str] | None:
    """The papers of a factory itself, ours or optax'; None for what a factory made.

    Raises:
      TypeError: if it names none; what it makes may have some.
    """
    module, name = function.__module__ or "", function.__name__
    if is_ours(module) and hasattr(function, "__wrapped__") and maker_of(function) is None:
        called, found = name, named_in(function.__doc__)
    elif getattr(optax, name, None) is function:
        called = f"optax.{name}"
        found = [OPTAX[name]] if name in OPTAX else []
        found = found or named_in((function.__doc__ or "").replace("arxiv.org/abs/", "arXiv:"))
    else:
        return None
    if not found:
        raise TypeError(
            f"{called} is a function that was not called, and its docstring names no paper that "
            f"citation knows; give what it makes, {called}(...), or leave it out"
        )
    return list(found)
