"""Methods over columns, and split networks, in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fedjax_lite.checks.made import Made, maker_of
from fedjax_lite.describe.notes import read
from fedjax_lite.describe.numbers import figure
from fedjax_lite.describe.optimizers import of_the_round
from fedjax_lite.describe.phrases import paragraph, phrase
from fedjax_lite.describe.plans import plan_words
from fedjax_lite.describe.references import named_in, short
from fedjax_lite.describe.sentences import strategy_words
from fedjax_lite.types import FederatedAlgorithm

TITLES = {
    "vertical_sgd": "Vertical SGD",
    "fedbcd": "FedBCD",
    "split_learning": "Split learning",
    "splitfed": "SplitFed {version}",
}
"""By the factory in `fedjax_lite.parties`."""


def columns_note(algorithm: FederatedAlgorithm) -> Made | None:
    """The note of a method of `fedjax_lite.parties`; None of any other, or where it was changed.

    Example:
      >>> import optax, fedjax_lite as fl
      >>> loss = lambda w, e, key: w * e["x"]
      >>> columns_note(fl.fedsgd(loss, optax.sgd(0.1), sampler=fl.everyone())) is None
      True
    """
    note = maker_of(algorithm)
    if note is None or note.name not in TITLES or read(algorithm).own:
        return None
    return note


def columns_words(note: Made) -> str:
    """Such a method in words, line by line.

    Example:
      >>> import numpy as np, optax, fedjax_lite as fl
      >>> data = fl.parties.from_columns({"a": np.ones((4, 2)), "b": np.ones((4, 3))},
      ...                                {"a": np.zeros(4)})
      >>> print(fl.describe(fl.parties.fedbcd(
      ...     fl.parties.regression("poisson", data), optax.sgd(0.1), local_steps=5,
      ...     plan=fl.Plan(batch_size=2), uplink=fl.clip(1.0))))
      FedBCD (Liu et al., 2019)
        Parties: a, b; labels at a.
        Model: poisson regression.
        Work: 1 epoch in batches of 2.
        Steps: 5 for each exchange, SGD with learning rate 0.1.
        Uplink: activations are sent clipped to L2 norm 1.
    """
    given = note.arguments
    papers = named_in(note.factory.__doc__)
    title = TITLES[note.name].format_map({"version": "", **given})
    head = f"{title} ({short(papers[0])})" if papers else title
    lines = _cut_lines(given) if "cut" in given else _party_lines(given)
    if given.get("strategy") is not None:
        lines.append(("Execution", strategy_words(given["strategy"])))
    for name, what in (("uplink", "activations"), ("downlink", "gradients")):
        if given[name] is not None:
            lines.append((name.capitalize(), f"{what} are sent {phrase(given[name])}"))
    if any("noise" in given[name].kinds for name in ("uplink", "downlink") if given[name]):
        lines.append(
            (
                "Privacy",
                "none is accounted; noise covers one message, not labels, epochs or weights",
            )
        )
    absence = given.get("absence", 0)
    if not (isinstance(absence, int | float) and absence == 0):
        lines.append(
            ("Absence", f"a party is not there in a batch with probability {figure(absence)}")
        )
    return "\n".join([head, *(paragraph(label, text) for label, text in lines)])


def model_words(model: Any) -> str:
    """What is trained.

    Example:
      >>> import fedjax_lite as fl
      >>> net = fl.models.linear(2, (3,))
      >>> model_words(fl.parties.vertical_model({"a": net, "b": net}, net, holder="a"))
      'a bottom network at every party and a head on their activations (concatenate)'
    """
    note = maker_of(model)
    if note is None:
        return "your own"
    if note.name == "regression":
        return f"{note.arguments['kind']} regression"
    return f"a bottom network at every party and a head on their activations ({_combined(note)})"


def _party_lines(given: dict[str, Any]) -> list[tuple[str, str]]:
    model = given["model"]
    return [
        ("Parties", f"{', '.join(model.bottoms)}; labels at {', '.join(model.heads)}"),
        ("Model", model_words(model)),
        ("Work", plan_words(given["plan"])),
        ("Steps", _steps(given)),
    ]


def _cut_lines(given: dict[str, Any]) -> list[tuple[str, str]]:
    cut, note = given["cut"], maker_of(given["cut"])
    at = None if note is None else note.arguments.get("at")
    place = "" if at is None else f" before {figure(at)}"
    shape = "labels stay at the clients" if cut.labels_stay else "labels go to the server"
    words = of_the_round(given["optimizer"]).words
    server = given["server_optimizer"]
    theirs = "" if server is None else f"; the server's half: {of_the_round(server).words}"
    return [
        ("Cohort", f"each round {phrase(given['sampler'])}"),
        ("Cut", f"{'in three' if cut.labels_stay else 'in two'}{place}; {shape}"),
        ("Local work", plan_words(given["plan"])),
        ("Steps", f"{words}{theirs}"),
    ]


def _combined(note: Made) -> str:
    combine = note.arguments["combine"]
    return combine if isinstance(combine, str) else figure(combine)


def _steps(given: dict[str, Any]) -> str:
    optimizer = given["optimizer"]
    if isinstance(optimizer, Mapping):
        words = "; ".join(f"{p}: {of_the_round(one).words}" for p, one in optimizer.items())
    else:
        words = of_the_round(optimizer).words
    steps = given.get("local_steps")
    return words if steps is None else f"{steps} for each exchange, {words}"
