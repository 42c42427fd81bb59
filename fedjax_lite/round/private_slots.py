"""What a privacy mechanism fixes in a round, so that no wrong combination can be written."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from fedjax_lite.checks.arguments import shown
from fedjax_lite.checks.made import made
from fedjax_lite.transforms.chain import chain
from fedjax_lite.types import (
    Aggregator,
    Cohort,
    Key,
    Mechanism,
    PyTree,
    Sampler,
    ServerUpdate,
    Transform,
)


def private_slots(
    privacy: Mechanism,
    sampler: Sampler | None,
    aggregator: Aggregator | None,
    uplink: Transform | None,
    prologue: Any,
) -> tuple[Sampler, Aggregator, Transform | None]:
    """The sampler, aggregator and uplink of a private round.

    Raises:
      TypeError: if `privacy` is not a `Mechanism`.
      ValueError: if another sampler or aggregator is given, or the method aggregates twice.

    Example:
      >>> from fedjax_lite.aggregation.mean import mean
      >>> from fedjax_lite.round.sampling import everyone, uniform
      >>> from fedjax_lite.types import Accountant
      >>> dp = Mechanism(everyone(), mean(), Accountant(lambda rounds: {}, None, "none"))
      >>> private_slots(dp, None, None, None, None)[0] is dp.sampler
      True
      >>> try:
      ...     private_slots(dp, uniform(2), None, None, None)
      ... except ValueError as error:
      ...     print(str(error)[:47])
      sampler must be left out where privacy is given
    """
    if not isinstance(privacy, Mechanism):
        raise TypeError(
            f"privacy must be a Mechanism, got {shown(privacy)}; e.g. "
            "fl.privacy.central_gaussian(...)"
        )
    if sampler is not None and sampler is not privacy.sampler:
        raise ValueError(
            "sampler must be left out where privacy is given (or be privacy.sampler): the bound "
            "holds for the mechanism's own sampling only"
        )
    if aggregator is not None and aggregator is not privacy.aggregator:
        raise ValueError(
            "aggregator must be left out where privacy is given: the mechanism clips, sums with "
            "weight 1, adds its noise and divides by a fixed number"
        )
    if prologue is not None:
        raise ValueError(
            "privacy covers one aggregate a round, but this method aggregates twice (Mime's "
            "gradient at the server's model); use another method"
        )
    if privacy.uplink is not None:
        uplink = privacy.uplink if uplink is None else chain(uplink, privacy.uplink)
    return privacy.sampler, privacy.aggregator, uplink


@made
def blindfolded(server: ServerUpdate) -> ServerUpdate:
    """The same server, shown nothing but the private aggregate.

    Neither metrics nor who took part reach it: both are exact statistics of the clients. A round
    in which nobody took part is noise like any other.

    Example:
      >>> import optax
      >>> from fedjax_lite.round.server import optimizer_server
      >>> server = blindfolded(optimizer_server(optax.sgd(1.0)))
      >>> nobody = Cohort(jnp.arange(1), jnp.zeros(1, bool))
      >>> state = server.init(jnp.array(1.0), None)
      >>> float(server.update(None, state, jnp.array(0.25), nobody, {}).params)
      0.75
    """

    def update(
        key: Key, state: PyTree, value: PyTree, cohort: Cohort, metrics: dict[str, Any]
    ) -> PyTree:
        unknown = Cohort(jnp.zeros_like(cohort.ids), jnp.ones_like(cohort.mask))
        return server.update(key, state, value, unknown, Hidden())

    return server._replace(update=update)


def without_repeats(cohort: Cohort) -> Cohort:
    """The cohort with every client at most once: the first of its slots counts.

    Example:
      >>> without_repeats(Cohort(jnp.array([3, 1, 3]), jnp.ones(3, bool))).mask.tolist()
      [True, True, False]
    """
    same = (cohort.ids[:, None] == cohort.ids[None, :]) & cohort.mask[None, :]
    return cohort._replace(mask=cohort.mask & ~jnp.tril(same, -1).any(1))


class Hidden(dict):
    """Metrics that must not be read."""

    def __missing__(self, name: str) -> Any:
        raise ValueError(
            f"privacy does not cover this method: its server reads {name!r}, an exact statistic "
            "of the clients; use a method whose server needs the aggregate only (FedAvg, FedProx, "
            "the FedOpt family)"
        )
