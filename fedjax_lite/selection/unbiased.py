"""unbiased(): messages weighed by the inverse of how often their sender is drawn."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_lite.aggregation.total import total
from fedjax_lite.checks.made import made, signed
from fedjax_lite.data.population.population import Population
from fedjax_lite.engine.phases import Step, around
from fedjax_lite.round.compose import federated_algorithm
from fedjax_lite.selection.around import need_mean, slots_of
from fedjax_lite.selection.probabilities import check_length, check_scores
from fedjax_lite.types import (
    Array,
    Batch,
    ClientInfo,
    ClientUpdate,
    Cohort,
    FederatedAlgorithm,
    Key,
    Known,
    Message,
    Params,
    PyTree,
    Sampler,
    ServerUpdate,
)


@made
def unbiased(algo: FederatedAlgorithm, *, weights: Any = "examples") -> FederatedAlgorithm:
    r"""The same algorithm, whose aggregate is that of the whole population in expectation.

    .. math::
        \bar\Delta = \sum_{i \in S} \frac{p_i}{\pi_i} \Delta_i, \qquad
        p_i = \frac{w_i}{\sum_{j} w_j} \text{ over all clients}

    the estimator of Horvitz and Thompson; :math:`\pi_i` is how often client `i` is expected in a
    cohort, which the sampler says: `uniform` ``m / N``, `poisson` `q`, `multinomial` ``m q_i``,
    `importance`, `stratified`, `everyone`; `dropout` and `lost_midway` around them multiply by
    what comes through. The mean, which divides by the weights that came, has less variance and is
    biased where updates and sizes go together. Here the step is long in rounds of large clients
    and short in others.

    Args:
      algo: wired from slots, without privacy; its aggregator must be `mean`.
      weights: `w`: "examples" (`n_i`), "uniform" (1), or numbers `[N]`, perhaps traced; in place
        of the algorithm's weighting, whose zeros still mean that a client does not count.

    Returns:
      A `FederatedAlgorithm`; the server's state is `Expected`, ``state.server.params`` the model.
      O(N) memory for the factors, which clients are taken to know: nothing is billed for them.

    Raises:
      TypeError: if `algo` was not wired from slots.
      ValueError: if the sampler cannot say how often it draws whom, the aggregator is no mean, or
        (when a state is made) there is not one weight a client.

    Example:
      >>> import optax, fedjax_lite as fl
      >>> data = fl.data.from_arrays({"b": jnp.array([0.0, 6.0])}, [0, 1])
      >>> plain = fl.fedavg(lambda w, e, key: 0.5 * (w - e["b"]) ** 2, optax.sgd(1.0),
      ...                   plan=fl.Plan(1), sampler=fl.uniform(1))
      >>> algo, key = unbiased(plain), jax.random.key(0)
      >>> state = algo.init(key, jnp.array(0.0), data)
      >>> cohorts = [fl.Cohort(jnp.array([i]), jnp.ones(1, bool)) for i in (0, 1)]
      >>> [float(algo.round(key, state, data, one)[0].server.params) for one in cohorts]
      [0.0, 6.0]

    Reference: Horvitz, Thompson, "A Generalization of Sampling Without Replacement From a Finite
    Universe", 1952; Li, Huang, Yang, Wang, Zhang, "On the Convergence of FedAvg on Non-IID Data",
    2020, arXiv:1907.02189.
    """
    slots = slots_of(algo, "unbiased")
    need_mean(slots, "unbiased")
    if slots.sampler.inclusion is None:
        raise ValueError(
            "sampler of an unbiased estimator must say how often it draws whom, got "
            f"{slots.sampler.made or 'your own'}; take fl.uniform, fl.poisson, "
            "fl.selection.importance, multinomial or stratified, or give yours an `inclusion`"
        )
    if isinstance(weights, str):
        if weights not in ("examples", "uniform"):
            raise ValueError(
                f"weights must be 'examples', 'uniform' or numbers [N], got {weights!r}; give "
                "weights='examples'"
            )
    else:
        weights = check_scores(weights, "weights")
    return federated_algorithm(
        **{
            **slots._asdict(),
            "client": weighed(slots.client),
            "server": expecting(slots.server, slots.sampler, weights),
            "aggregator": total(),
        }
    )


class Expected(NamedTuple):
    """A server's state, and what a message of each client weighs."""

    inner: PyTree
    """The server's own."""
    factors: Array
    """float32 `[N]`: ``p_i / pi_i``; 0 for who is never drawn."""

    @property
    def params(self) -> Params:
        """The server's model."""
        return getattr(self.inner, "params", self.inner)


def expecting(server: ServerUpdate, sampler: Sampler, weights: Any) -> ServerUpdate:
    """A server that tells clients what their message weighs; see `unbiased`.

    Example:
      >>> from fedjax_lite.round.sampling import uniform
      >>> plain = ServerUpdate(lambda x, all: x, lambda x: x, lambda *args: args[1])
      >>> server = expecting(plain, uniform(1), "examples")
      >>> server.init(0.0, Population.of([1, 3])).factors.tolist()
      [0.5, 1.5]
    """

    def init(params: Params, population: Population) -> Expected:
        sizes = jnp.asarray(population.sizes)
        if isinstance(weights, str):
            given = sizes if weights == "examples" else jnp.ones(sizes.shape)
        else:
            check_length(weights, "weights", population.num_clients)
            given = jnp.asarray(weights)
        given = jnp.where(sizes > 0, given, 0).astype(jnp.result_type(float))
        assert sampler.inclusion is not None
        chances = sampler.inclusion(sizes)
        shares = given / jnp.where(given.sum() > 0, given.sum(), 1)
        factors = jnp.where(chances > 0, shares / jnp.where(chances > 0, chances, 1), 0)
        return Expected(server.init(params, population), factors)

    def broadcast(state: Expected) -> tuple[PyTree, Known]:
        return server.broadcast(state.inner), Known(state.factors)

    def update(
        key: Key, state: Expected, value: PyTree, cohort: Cohort, metrics: dict[str, Any]
    ) -> Expected:
        inner = server.update(key, state.inner, value, cohort, metrics)
        return Expected(inner, state.factors)

    return signed(ServerUpdate(init, broadcast, update), server.made)


def weighed(client: ClientUpdate) -> ClientUpdate:
    """A client whose message weighs what the broadcast says; 0 stays 0.

    Example:
      >>> import optax
      >>> from fedjax_lite.round.local import local_sgd
      >>> client = weighed(local_sgd(lambda w, e, key: w * e, optax.sgd(0.1)))
      >>> down = (jnp.array(1.0), Known(jnp.array([0.5, 1.5])))
      >>> carry = client.start(None, (), down, ClientInfo(*map(jnp.int32, (1, 9, 1, 0))))
      >>> float(client.finish(down, carry)[1].weight)
      1.5
    """

    def start(key: Key, row: PyTree, broadcast: Any, info: ClientInfo) -> PyTree:
        inner, factors = broadcast
        return client.start(key, row, inner, info), factors.value[info.id]

    def wrap(inner_step: Step) -> Step:
        def step(broadcast: Any, carry: PyTree, batch: Batch) -> PyTree:
            return inner_step(broadcast[0], carry[0], batch), carry[1]

        return step

    def finish(broadcast: Any, carry: PyTree) -> tuple[PyTree, Message, dict[str, Any]]:
        inner, factor = carry
        row, message, metrics = client.finish(broadcast[0], inner)
        return row, Message(message.value, reweighed(message.weight, factor)), metrics

    new = client._replace(start=start, step=around(client.step, wrap), finish=finish)
    return signed(new, client.made)


def reweighed(weight: PyTree, factor: Array) -> PyTree:
    """Another weight where there was one: a client that did not count still does not.

    Example:
      >>> reweighed((jnp.array(7.0), jnp.array(0.0)), jnp.array(0.5))
      (Array(0.5, dtype=float32), Array(0., dtype=float32))
    """
    return jax.tree.map(
        lambda w: jnp.where(w > 0, factor, 0).astype(jnp.result_type(w, jnp.float32)), weight
    )
