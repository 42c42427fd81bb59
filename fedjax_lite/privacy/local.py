"""Local DP: every client clips and adds noise itself; the server is not trusted."""

from __future__ import annotations

import math
from typing import Literal

import jax.numpy as jnp

from fedjax_lite import trees
from fedjax_lite.aggregation.mean import mean
from fedjax_lite.checks.arguments import check_count, check_one
from fedjax_lite.checks.made import made, signed
from fedjax_lite.privacy.accounting.accountants import gdp_accountant, stated_noise
from fedjax_lite.privacy.accounting.analytic_gaussian import gdp_mu
from fedjax_lite.privacy.arguments import check_clip, check_delta, is_traced, shown
from fedjax_lite.privacy.participation import epoch_rounds, once_an_epoch
from fedjax_lite.round.ledger import LOCAL
from fedjax_lite.round.sampling import uniform
from fedjax_lite.transforms.chain import chain
from fedjax_lite.transforms.clip import clip as clipping
from fedjax_lite.transforms.noise import gaussian_noise
from fedjax_lite.types import (
    Aggregator,
    Array,
    Entry,
    Key,
    Mechanism,
    Message,
    PyTree,
    Sampler,
    Transform,
)

Adjacency = Literal["replace", "add_remove"]


@made
def local_gaussian(
    *,
    clip: float,
    delta: float,
    num_clients: int,
    cohort_size: int,
    num_rounds: int,
    epsilon: float | None = None,
    noise_multiplier: float | Array | None = None,
    adjacency: Adjacency = "replace",
    participation: Literal["uniform", "once_an_epoch"] = "uniform",
    seed: int = 0,
) -> Mechanism:
    r"""Every client clips its update to `C` and adds :math:`\mathcal N(0, \sigma^2 I)` itself.

    .. math::
        \sigma = \sqrt R\, s / \mu(\varepsilon, \delta), \qquad
        s = 2C \text{ (replace) or } C \text{ (add or remove)},

    with the exact Gaussian curve (`gdp_mu`) and `R` the most often that one client takes part. The
    server takes the mean of what it gets, with weight 1 each: its noise has variance
    :math:`\sigma^2 / m`.

    Args:
      clip: `C`, the largest norm of an update.
      delta: in `(0, 1)`.
      num_clients: `N`.
      cohort_size: `m`.
      num_rounds: `T`; the run stops there.
      epsilon: the budget of a client for the *whole run*.
      noise_multiplier: ``sigma / C`` instead (one of the two); may be traced.
      adjacency: "replace": whatever a client's data are, its reports look alike (the usual
        meaning of local DP); "add_remove": data against no data, half the sensitivity.
      participation: "uniform": `m` at random each round, so that a client may come up in all `T`
        rounds, ``R = T``; "once_an_epoch": in turns, ``R = ceil(T / ceil(N / m))``.
      seed: of the order of turns.

    Returns:
      A `Mechanism`; its `uplink` clips and adds noise with the key of the client and round, and
      sends float32 (or wider).

    Raises:
      ValueError: if an amount is out of range, or not exactly one of epsilon and noise is given.

    Guarantees:
      (epsilon, delta)-local DP of all reports of one client together, towards a server that sees
      each of them, with no help from sampling, shuffling or the other clients. Who takes part is
      not hidden. Each client's noise is a function of the key, which must not be the server's; here
      the server only simulates that. Otherwise as all mechanisms, with a key that serves one run
      (see `fedjax_lite.privacy`).

    Example:
      >>> dp = local_gaussian(clip=0.5, epsilon=1.0, delta=1e-5, num_clients=4, cohort_size=2,
      ...                     num_rounds=1)
      >>> round(dp.accountant.spent(1)["epsilon"], 6)
      1.0

    Reference: Balle, Wang, "Improving the Gaussian Mechanism for Differential Privacy", 2018,
    arXiv:1805.06530; Duchi, Jordan, Wainwright, "Local Privacy and Statistical Minimax Rates",
    2013, arXiv:1302.3203.
    """
    check_count(num_rounds, "num_rounds", minimum=1)
    check_delta(delta, num_clients=num_clients)
    if adjacency not in ("replace", "add_remove"):
        raise ValueError(f"adjacency must be 'replace' or 'add_remove', got {adjacency!r}")
    check_one(epsilon=epsilon, noise_multiplier=noise_multiplier)
    sampler = _sampler(participation, num_clients, cohort_size, seed)
    turns = epoch_rounds(num_clients, cohort_size) if participation == "once_an_epoch" else 1
    sensitivity = 2.0 if adjacency == "replace" else 1.0  # in units of clip
    most = -(-num_rounds // turns)
    z = stated_noise(
        epsilon=epsilon,
        noise_multiplier=noise_multiplier,
        calibrate=lambda budget: math.sqrt(most) * sensitivity / gdp_mu(budget, delta),
    )
    check_clip(clip, z)
    noisy = is_traced(z) or z > 0
    sigma = z * clip if noisy else 0.0

    def mu(rounds: int) -> float:
        return math.sqrt(-(-rounds // turns)) * sensitivity / z if z else math.inf

    return Mechanism(
        sampler=sampler,
        aggregator=uniform_mean(),
        accountant=gdp_accountant(
            mu,
            delta=delta,
            max_rounds=num_rounds,
            noise_multiplier=z,
            what=f"local DP per client ({adjacency}), all reports of one client together: "
            f"z={shown(z)}, sigma={shown(sigma)}, sensitivity {sensitivity * clip:.6g}, at most "
            f"{most} of {num_rounds} rounds a client, no amplification",
            entry=Entry(LOCAL, (z, sensitivity, float(turns))),
            chosen=Entry(LOCAL, (z, sensitivity, 1.0)),
            epsilon=epsilon,
        ),
        uplink=chain(_clipped(clip), gaussian_noise(sigma)) if noisy else _clipped(clip),
    )


@made
def uniform_mean() -> Aggregator:
    """The mean of the cohort with weight 1 each, whatever weights the messages carry.

    Example:
      >>> rows = Message(jnp.array([1.0, 3.0]), jnp.array([990.0, 10.0]))
      >>> agg = uniform_mean()
      >>> acc = agg.add(agg.init(Message(jnp.zeros(()), 1.0), 2), rows, jnp.arange(2),
      ...               jnp.ones(2, bool))
      >>> float(agg.finish(None, (), acc, None)[1])
      2.0
    """
    inner = mean()

    def init(message: Message, cohort_size: int) -> PyTree:
        return inner.init(Message(message.value, jnp.ones(())), cohort_size)

    def add(acc: PyTree, messages: Message, slots: Array, mask: Array) -> PyTree:
        return inner.add(acc, Message(messages.value, jnp.ones(mask.shape)), slots, mask)

    return inner._replace(init=init, add=add)


def _clipped(max_norm: float) -> Transform:
    """`clip` of the widened value: the norm holds for narrow dtypes too."""
    inner = clipping(max_norm)

    def update(key: Key, state: PyTree, value: PyTree) -> tuple[PyTree, PyTree]:
        return inner.update(key, state, trees.wide(value))

    return signed(inner._replace(update=update), inner.made)


def _sampler(participation: str, num_clients: int, cohort_size: int, seed: int) -> Sampler:
    turns = once_an_epoch(num_clients, cohort_size, seed=seed)  # checks the amounts
    if participation == "once_an_epoch":
        return turns
    if participation != "uniform":
        raise ValueError(
            f"participation must be 'uniform' or 'once_an_epoch', got {participation!r}"
        )
    inner = uniform(cohort_size)

    def init(size: int) -> PyTree:
        turns.init(size)  # the declared population
        return inner.init(size)

    return signed(Sampler(init, inner.sample), inner.made)
