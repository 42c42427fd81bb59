"""oort(): clients by what they are good for, statistically and in time."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_lite.checks.arguments import check_count, check_fraction, check_positive
from fedjax_lite.checks.made import made
from fedjax_lite.round.sampling import check_population
from fedjax_lite.selection.probabilities import check_length, check_scores
from fedjax_lite.selection.reported import reported, written
from fedjax_lite.types import Array, Cohort, Key, Sampler


class OortState(NamedTuple):
    """What the sampler knows."""

    round: Array
    """int32 scalar, rounds drawn; the first is 1."""
    loss: Array
    """float32 `[N]`, as it was reported last."""
    last: Array
    """int32 `[N]`: the round in which a client took part last; 0: never."""
    sizes: Array
    """int32 `[N]`."""
    patience: Array
    """float32 scalar: `T`, the seconds that a client may take."""
    gains: Array
    """float32 `[2]`: utility gathered in the last window of the pacer, and in this one."""

    @property
    def metrics(self) -> dict[str, Array]:
        """``num_explored``: clients that have taken part; ``patience``, in seconds."""
        return {"num_explored": (self.last > 0).sum(), "patience": self.patience}


@made
def oort(
    cohort_size: int,
    *,
    metric: str = "train_loss",
    seconds: Any = None,
    patience: float | Array = jnp.inf,
    penalty: float | Array = 2.0,
    exploration: float | Array = 0.9,
    decay: float | Array = 0.98,
    least_exploration: float | Array = 0.2,
    cutoff: float | Array = 0.95,
    window: int = 20,
) -> Sampler:
    r"""Oort: exploits clients of high utility and explores those that were never asked.

    .. math::
        U_i = n_i\,\bar\ell_i, \qquad
        u_i = \Big(\hat U_i + \sqrt{0.1 \log R / L_i}\Big)
              \Big(\frac{T}{t_i}\Big)^{\alpha\,[t_i > T]}

    :math:`\hat U` is `U` cut at its 95 % quantile and scaled to `[0, 1]` over the clients that have
    taken part, as the authors' code does; :math:`L_i` is the round of the last time, `R` this one.
    Of the cohort, :math:`\lfloor (1 - \varepsilon) m \rceil` are drawn in proportion to `u` among
    those with at least `cutoff` times the utility of the last of the best so many; the others are
    clients that never took part: in proportion to their speed where `seconds` are known, else
    uniformly. :math:`\varepsilon` decays from round to round. The pacer gives clients `T` more
    patience when the utility of a window of rounds falls below that of the window before.

    `\bar\ell` is the mean that clients report. The paper has the root mean square of an example's
    loss: equal where a client's losses are, below it otherwise; a client update of your own may
    report that under another `metric`. Left out: the testing selector, and the list of clients
    that are not asked again after many rounds.

    Args:
      cohort_size: clients a round, `m`, at most the population.
      metric: the clients' loss, a scalar or a `Mean`.
      seconds: `t`, `[N]` > 0: what a client takes for a round. None: time plays no part.
      patience: `T` at the beginning, in seconds; grows by its first value.
      penalty: :math:`\alpha` >= 0 of clients that take longer.
      exploration: :math:`\varepsilon` in round 1.
      decay: of :math:`\varepsilon`, a round.
      least_exploration: what it does not fall below.
      cutoff: in `[0, 1]`.
      window: rounds between two decisions of the pacer.

    Returns:
      A `Sampler` that learns from the rounds it drew: a streamed population refuses it. Metrics:
      ``num_explored``, ``patience``. Clients without data are not drawn.

    Raises:
      ValueError: if an amount is out of range, or (in ``init``) there is not one of `seconds` a
        client.

    Example:
      >>> sampler = oort(1, exploration=0.0, least_exploration=0.0)
      >>> state, cohort = sampler.init(3), Cohort(jnp.arange(3), jnp.ones(3, bool))
      >>> state, _ = sampler.sample(jax.random.key(0), state, jnp.ones(3))
      >>> state = sampler.learn(state, cohort, {"train_loss": jnp.array([1.0, 9.0, 2.0])})
      >>> sampler.sample(jax.random.key(0), state, jnp.ones(3))[1].ids.tolist()
      [1]

    Reference: Lai, Zhu, Madhyastha, Chowdhury, "Oort: Efficient Federated Learning via Guided
    Participant Selection", 2021, arXiv:2010.06081.
    """
    check_count(cohort_size, "cohort_size", minimum=1)
    check_count(window, "window", minimum=1)
    for value, name in (
        (exploration, "exploration"),
        (decay, "decay"),
        (least_exploration, "least_exploration"),
        (cutoff, "cutoff"),
    ):
        check_fraction(value, name)
    check_positive(patience, "patience")
    check_positive(penalty, "penalty")
    times = None if seconds is None else check_scores(seconds, "seconds")
    check = check_population(cohort_size)

    def init(num_clients: int) -> OortState:
        check(num_clients)
        check_length(times, "seconds", num_clients)
        return OortState(
            jnp.int32(0),
            jnp.zeros(num_clients, jnp.float32),
            jnp.zeros(num_clients, jnp.int32),
            jnp.zeros(num_clients, jnp.int32),
            jnp.asarray(patience, jnp.float32),
            jnp.zeros(2, jnp.float32),
        )

    def sample(key: Key, state: OortState, sizes: Array) -> tuple[OortState, Cohort]:
        key_exploit, key_explore = jax.random.split(key)
        now = state.round + 1
        state = paced(state._replace(round=now, sizes=sizes.astype(jnp.int32)))
        explored, new = (state.last > 0) & (sizes > 0), (state.last == 0) & (sizes > 0)
        share = jnp.maximum(least_exploration, exploration * decay ** (now - 1))
        num_new = jnp.round(share * cohort_size).astype(jnp.int32)
        num_new = jnp.clip(num_new, cohort_size - explored.sum(), new.sum())
        useful = jnp.where(explored, utility(state, times, penalty, explored), -jnp.inf)
        least = jnp.sort(useful)[::-1][jnp.maximum(cohort_size - num_new - 1, 0)]
        useful = jnp.where(useful >= cutoff * least, useful, -jnp.inf)
        draws = jnp.log(jnp.maximum(useful, 1e-12)) + jax.random.gumbel(key_exploit, useful.shape)
        exploited = best(jnp.where(useful > -jnp.inf, draws, -jnp.inf), cohort_size - num_new)
        speed = 0.0 if times is None else -jnp.log(jnp.maximum(jnp.asarray(times), 1e-12))
        draws = speed + jax.random.gumbel(key_explore, new.shape)
        found = exploited | best(jnp.where(new, draws, -jnp.inf), num_new)
        mask, ids = jax.lax.top_k(found.astype(jnp.int32), cohort_size)
        return state, Cohort(ids.astype(jnp.int32), mask > 0)

    def paced(state: OortState) -> OortState:
        decides = (state.round > 1) & ((state.round - 1) % window == 0)
        falls = decides & (state.gains[0] > state.gains[1])
        moved = jnp.where(decides, jnp.stack([state.gains[1], jnp.zeros(())]), state.gains)
        grown = state.patience + jnp.where(falls, jnp.asarray(patience, jnp.float32), 0)
        return state._replace(patience=grown, gains=moved)

    def learn(state: OortState, cohort: Cohort, metrics: dict[str, Any]) -> OortState:
        loss = reported(metrics, metric)
        gain = jnp.where(cohort.mask, state.sizes[cohort.ids] * loss, 0).sum()
        return state._replace(
            loss=written(state.loss, cohort, loss),
            last=written(state.last, cohort, state.round),
            gains=state.gains.at[1].add(gain.astype(jnp.float32)),
        )

    return Sampler(init, sample, learn=learn)


def utility(state: OortState, seconds: Any, penalty: Any, explored: Array) -> Array:
    """`u`, `[N]`, of the clients that have taken part; see `oort`.

    Example:
      >>> ones = jnp.ones(2, jnp.int32)
      >>> state = OortState(jnp.int32(1), jnp.array([1.0, 3.0]), ones, ones, 1.0, None)
      >>> utility(state, None, 2.0, ones > 0).round(2).tolist()
      [0.0, 1.0]
    """
    value = state.sizes * state.loss
    known = jnp.where(explored, value, jnp.nan)
    high, low = jnp.nanquantile(known, 0.95), jnp.nanmin(known)
    span = jnp.where(high > low, high - low, 1)
    scaled = (jnp.minimum(value, high) - low) / span
    age = jnp.log(state.round.astype(jnp.float32)) / jnp.maximum(state.last, 1)
    useful = scaled + jnp.sqrt(0.1 * age)
    if seconds is None:
        return useful
    times = jnp.asarray(seconds, jnp.float32)
    late = jnp.where(times > state.patience, state.patience / jnp.maximum(times, 1e-12), 1.0)
    return useful * late**penalty


def best(scores: Array, count: Array) -> Array:
    """Which `[N]` are the so many highest, those of -inf not among them.

    Example:
      >>> best(jnp.array([1.0, -jnp.inf, 3.0, 2.0]), 2).tolist()
      [False, False, True, True]
    """
    order = jnp.argsort(-scores)
    rank = jnp.zeros(scores.shape, jnp.int32)
    rank = rank.at[order].set(jnp.arange(len(scores), dtype=jnp.int32))
    return (rank < count) & (scores > -jnp.inf)
