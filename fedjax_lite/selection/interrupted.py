"""Clients that stop midway: their work kept (a plan's limit) or lost (late in the cohort)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_lite.checks.arguments import check_fraction, check_positive, check_slot, shown
from fedjax_lite.checks.made import made
from fedjax_lite.types import Array, ClientInfo, Cohort, Key, PyTree, Sampler

Limit = Callable[[Key, ClientInfo], Array]
"""``(key, info) ->`` int32 steps, of ``info.num_steps`` planned; for ``Plan(limit=...)``."""


@made
def interrupted(rate: float | Array) -> Limit:
    """Clients that drop out in the middle of a round, and what they did until then counts.

    With probability `rate` a client stops after `s` of its `S` steps, `s` uniform in
    ``0 .. S - 1``; else it does all of them. What it sends is the update after `s` steps, bit for
    bit that of a plan of `s` steps; with ``s = 0`` it does not count.

    Args:
      rate: in `[0, 1]`, may be traced.

    Returns:
      A limit for a `fedjax_lite.Plan`. For work that is lost see `lost_midway`.

    Raises:
      ValueError: if `rate` lies outside `[0, 1]`.

    Example:
      >>> import fedjax_lite as fl
      >>> plan = fl.Plan(batch_size=10, steps=4, limit=interrupted(1.0))
      >>> int(plan.num_steps(jax.random.key(0), jnp.int32(0), jnp.int32(30))) < 4
      True

    Reference: Li, Sahu, Zaheer, Sanjabi, Talwalkar, Smith, "Federated Optimization in
    Heterogeneous Networks", 2020, arXiv:1812.06127.
    """
    check_fraction(rate, "rate")

    def limit(key: Key, info: ClientInfo) -> Array:
        key_stops, key_steps = jax.random.split(key)
        done = jax.random.randint(key_steps, (), 0, jnp.maximum(info.num_steps, 1))
        return jnp.where(jax.random.uniform(key_stops) < rate, done, info.num_steps)

    return limit


@made
def in_time(deadline: float | Array, step_seconds: Any, *, other_seconds: Any = 0.0) -> Limit:
    r"""As many steps as a deadline allows: :math:`\lfloor (T - o_i) / t_i \rfloor`.

    Args:
      deadline: `T`, in seconds from the beginning of the round; may be traced.
      step_seconds: `t`, `[N]` or one number: what a client takes for a step.
      other_seconds: `o`, `[N]` or one number: what it takes beside, for down- and upload.

    Returns:
      A limit for a `fedjax_lite.Plan`. A client that has no time for a single step does not count.

    Raises:
      ValueError: if a step takes no time, or an amount is negative.

    Example:
      >>> import fedjax_lite as fl
      >>> plan = fl.Plan(batch_size=10, epochs=5, limit=in_time(2.0, [0.1, 0.9]))
      >>> [int(plan.num_steps(jax.random.key(0), jnp.int32(i), jnp.int32(20))) for i in (0, 1)]
      [10, 2]

    Reference: Nishio, Yonetani, "Client Selection for Federated Learning with Heterogeneous
    Resources in Mobile Edge", 2019, arXiv:1804.08333.
    """
    check_positive(deadline, "deadline")
    times = _seconds(step_seconds, "step_seconds", positive=True)
    others = _seconds(other_seconds, "other_seconds", positive=False)

    def of(table: Array, client: Array) -> Array:
        return table[client] if table.shape[0] > 1 else table[0]

    def limit(key: Key, info: ClientInfo) -> Array:
        left = (deadline - of(others, info.id)) / of(times, info.id)
        return jnp.clip(jnp.floor(left * (1 + 1e-6)), 0, 2.0**30).astype(jnp.int32)

    return limit


@made
def lost_midway(sampler: Sampler, rate: float | Array) -> Sampler:
    """Clients that drop out in the middle of a round, and whose work is lost.

    Each client of a cohort does so with probability `rate`. It was sent the broadcast, which is
    billed, but nothing of it arrives: it counts nowhere, and its row is not touched.

    Args:
      sampler: who is asked.
      rate: in `[0, 1]`, may be traced.

    Returns:
      A `Sampler` whose cohorts have such clients as `late`. For work that is kept see
      `interrupted`; for clients that never came `fedjax_lite.dropout`.

    Raises:
      TypeError: if `sampler` is none.
      ValueError: if `rate` lies outside `[0, 1]`.

    Example:
      >>> from fedjax_lite.round.sampling import everyone
      >>> cohort = lost_midway(everyone(), 1.0).sample(jax.random.key(0), (), jnp.ones(3))[1]
      >>> bool(cohort.mask.any()), bool(cohort.late.all())
      (False, True)
    """
    check_slot(sampler, "sampler", Sampler)
    check_fraction(rate, "rate")

    def sample(key: Key, state: PyTree, sizes: Array) -> tuple[PyTree, Cohort]:
        key_sample, key_lost = jax.random.split(key)
        state, cohort = sampler.sample(key_sample, state, sizes)
        # Keyed by client, so that it does not depend on the slot.
        draws = jax.vmap(lambda i: jax.random.uniform(jax.random.fold_in(key_lost, i)))(cohort.ids)
        lost = cohort.mask & (draws < rate)
        late = lost if cohort.late is None else cohort.late | lost
        return state, cohort._replace(mask=cohort.mask & ~lost, late=late)

    told, asked = sampler.at, sampler.inclusion
    at = None if told is None else lambda errand: lost_midway(told(errand), rate)
    inclusion = None if asked is None else lambda sizes: asked(sizes) * (1 - rate)
    return sampler._replace(sample=sample, at=at, inclusion=inclusion, made=None)


def _seconds(given: Any, name: str, *, positive: bool) -> Array:
    """Seconds `[N]` or `[1]`, checked where they are not traced."""
    if not isinstance(given, jax.core.Tracer):
        is_key = isinstance(given, jax.Array) and jnp.issubdtype(given.dtype, jax.dtypes.prng_key)
        found = np.empty(0) if is_key or isinstance(given, str) else np.atleast_1d(given)
        if found.ndim != 1 or not found.size or found.dtype.kind not in "iuf":
            raise TypeError(f"{name} must be a number or numbers [N], got {shown(given)}; 0.1")
        least = "positive" if positive else "not negative"
        if not np.isfinite(found).all() or found.min() < 0 or (positive and found.min() == 0):
            raise ValueError(f"{name} must be finite and {least}, got {found.min()}; give 0.1")
    return jnp.atleast_1d(jnp.asarray(given, jnp.result_type(float)))
