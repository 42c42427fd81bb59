"""The methods of personal_har.py: how each is made, and among which settings it may choose."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import optax

import fedjax_lite as fl

GLOBAL, POOLED, ALONE = "FedAvg", "pooled", "local only"
NUM_PEOPLE = 30
MOMENTUM = 0.9
Private = Callable[[Any], fl.Mechanism] | None
Maker = Callable[..., tuple[fl.FederatedAlgorithm, fl.FederatedAlgorithm | None]]


class Method(NamedTuple):
    """One line of the table."""

    make: Maker
    """``(**settings) -> (algorithm, who tunes the server's model afterwards or None)``; settings
    may be traced."""
    grid: Mapping[str, Sequence[float]]
    """Settings to choose from."""
    has_head: bool = False
    """Needs a body under a head: not for the softmax regression."""

    def points(self) -> list[dict[str, float]]:
        """All combinations of the grid."""
        return [
            dict(zip(self.grid, values, strict=True))
            for values in itertools.product(*self.grid.values())
        ]


def methods(
    model: fl.models.Model, *, batch_size: int, steps: int, tune_steps: int, privacy: Private = None
) -> dict[str, Method]:
    """All methods by name; baselines first.

    Args:
      model: softmax regression or a perceptron.
      batch_size: examples in a local step.
      steps: of a person in a round.
      tune_steps: of tuning a global model on a person's own windows.
      privacy: None; or ``(clip) -> fl.Mechanism`` for the shared part, whose clip is then a setting
        of each method that sends something, too.
    """
    loss = model.loss
    rates, pulls = (0.1, 0.3, 1.0), (0.003, 0.01, 0.03, 0.1, 0.3)
    plan = fl.Plan(batch_size, steps=steps)
    slots: dict[str, Any] = {"plan": plan, "strategy": fl.vmapped()}

    def tuning(rate: Any) -> fl.FederatedAlgorithm:
        """What `fl.fine_tuned` does, as an algorithm: of it a traced rate can be asked."""
        own = fl.Plan(batch_size, steps=tune_steps)
        return fl.local_only(loss, optax.sgd(rate), plan=own, strategy=fl.vmapped())

    def shared(factory: Any, *, tuned_by: str | None = None, **more: Any) -> Maker:
        """A method with a server; settings that are not its own arguments are taken out."""

        def make(
            rate: Any, clip: Any = None, **own: Any
        ) -> tuple[fl.FederatedAlgorithm, fl.FederatedAlgorithm | None]:
            after = None
            if tuned_by is not None:
                after = tuning(own[tuned_by])
                if tuned_by == "tune_rate":
                    own.pop("tune_rate")
            hidden = {} if privacy is None else {"privacy": privacy(clip)}
            sampler = {"sampler": fl.everyone()} if privacy is None else {}
            return factory(
                loss, optax.sgd(rate), **slots, **sampler, **hidden, **own, **more
            ), after

        return make

    def pooled(rate: Any, decay: Any) -> tuple[fl.FederatedAlgorithm, None]:
        """As many examples a round as all people together, in ten times as large batches."""
        optimizer = optax.chain(
            optax.add_decayed_weights(decay), optax.sgd(rate, momentum=MOMENTUM)
        )
        whole = fl.Plan(10 * batch_size, steps=NUM_PEOPLE * steps // 10)
        return fl.centralised(loss, optimizer, plan=whole), None

    def alone(rate: Any, decay: Any) -> tuple[fl.FederatedAlgorithm, None]:
        optimizer = optax.chain(optax.add_decayed_weights(decay), optax.sgd(rate))
        return fl.local_only(loss, optimizer, **slots), None

    def pfedme(rate: Any, pull: Any, share: Any) -> tuple[fl.FederatedAlgorithm, None]:
        given: dict[str, Any] = {"pull": pull, "learning_rate": share / pull}
        return fl.pfedme(loss, optax.sgd(rate), sampler=fl.everyone(), **given, **slots), None

    server = {"server_optimizer": optax.sgd(1.0, momentum=MOMENTUM)}
    decays = (0.0, 0.001, 0.01)
    found = {
        POOLED: Method(pooled, {"rate": (0.03, 0.1), "decay": decays}),
        ALONE: Method(alone, {"rate": rates, "decay": decays}),
        GLOBAL: Method(shared(fl.fedavg, **server), {"rate": rates}),
        "FedAvg + tuned": Method(
            shared(fl.fedavg, tuned_by="tune_rate", **server),
            {"rate": rates[:2], "tune_rate": (0.03, 0.1, 0.3)},
        ),
        "Ditto": Method(shared(fl.ditto, **server), {"rate": rates[:2], "pull": pulls}),
        "APFL": Method(
            shared(fl.apfl, **server), {"rate": rates[:2], "mixing": (0.25, 0.5, 0.75, 0.9)}
        ),
        "pFedMe": Method(pfedme, {"rate": (0.03, 0.1), "pull": (0.1, 1.0), "share": (0.1, 0.5)}),
        "Per-FedAvg": Method(
            shared(fl.per_fedavg, tuned_by="alpha", **server),
            {"rate": rates[:2], "alpha": (0.03, 0.1)},
        ),
        "Reptile": Method(
            shared(fl.reptile, tuned_by="tune_rate", epsilon=0.5),
            {"rate": rates[:2], "tune_rate": (0.03, 0.1)},
        ),
        "FedPer": Method(shared(fl.fedper, **server), {"rate": rates}, has_head=True),
        "FedRep": Method(shared(fl.fedrep, **server), {"rate": rates}, has_head=True),
        "LG-FedAvg": Method(shared(fl.lg_fedavg, **server), {"rate": rates}, has_head=True),
        "FedBABU + tuned": Method(
            shared(fl.fedbabu, tuned_by="tune_rate", **server),
            {"rate": rates[:2], "tune_rate": (0.03, 0.1, 0.3)},
            has_head=True,
        ),
    }
    if privacy is None:
        return found
    return {
        name: method._replace(grid={**method.grid, "clip": (0.1, 0.3, 1.0)})
        for name, method in found.items()
        if name not in (POOLED, ALONE, "pFedMe", "Reptile")
    }
