"""Registry x laws: everything registered passes every law of its kind."""

import jax.numpy as jnp
import optax
import pytest

import fedjax_lite as fl
from fedjax_lite import testing
from fedjax_lite.types import Aggregator, Message, Transform

FULL = {"fedsgd", "fedavg", "fedadam", "fedprox", "fednova", "scaffold", "feddyn", "mime"}
"""One of each family passes every law; its variants those that an option could break."""
OF_VARIANTS = (
    "structure_is_stable",
    "strategies_agree",
    "never_retraces",
    "masked_clients_leave_no_trace",
    "empty_cohort_changes_nothing",
)
AT_THE_SERVER = {"fedavg optax yogi server", "fedavgm", "fedadagrad", "fedyogi"}
"""What these change comes after the strategy's work, which is FedAvg's: FedAdam obeys every law."""
OF_SERVERS = ("structure_is_stable", "never_retraces", "empty_cohort_changes_nothing")
CASES = [
    pytest.param(name, law, marks=() if name in FULL and law in OF_VARIANTS else pytest.mark.slow)
    for name in testing.ALGORITHMS
    for law in (
        testing.ALGORITHM_LAWS
        if name in FULL
        else OF_SERVERS
        if name in AT_THE_SERVER
        else OF_VARIANTS
    )
]


@pytest.mark.parametrize(("name", "law"), CASES)
def test_algorithm(name, law):
    testing.check_algorithm(testing.ALGORITHMS[name], laws=[law])


@pytest.mark.parametrize("law", testing.AGGREGATOR_LAWS)
@pytest.mark.parametrize("name", testing.AGGREGATORS)
def test_aggregator(name, law):
    testing.check_aggregator(testing.AGGREGATORS[name], laws=[law])


@pytest.mark.parametrize("law", testing.TRANSFORM_LAWS)
@pytest.mark.parametrize("name", testing.TRANSFORMS)
def test_transform(name, law):
    testing.check_transform(testing.TRANSFORMS[name], laws=[law])


@pytest.mark.parametrize("law", testing.SAMPLER_LAWS)
@pytest.mark.parametrize("name", testing.SAMPLERS)
def test_sampler(name, law):
    testing.check_sampler(testing.SAMPLERS[name], laws=[law])


# The laws themselves can fail: one planted defect each.


def planted(name):
    def make(rate, sampler, strategy):
        options = {"plan": fl.Plan(batch_size=2), "sampler": sampler, "strategy": strategy}
        optimizer = optax.sgd(rate)
        if name == "rate compiled in":
            optimizer = optax.sgd(0.05)
        if name == "masks weights only":
            options["aggregator"] = sloppy_mean()
        if name == "noise in the optimizer's state":
            optimizer = optax.sgd(jnp.nan)
        return fl.fedavg(testing.loss, optimizer, **options)

    return make


def sloppy_mean() -> Aggregator:
    """A mean that masks weights but not values: 0 * NaN is NaN (defect 19)."""
    good = fl.mean()

    def add(acc, messages: Message, slots, mask):
        weight = messages.weight * mask
        total = jnp.sum(weight)
        values = {k: jnp.tensordot(weight, v, 1) for k, v in messages.value.items()}
        return type(acc)({k: acc.values[k] + values[k] for k in values}, acc.weights + total)

    return good._replace(add=add)


@pytest.mark.parametrize(
    ("defect", "law"),
    [
        ("rate compiled in", "never_retraces"),
        ("noise in the optimizer's state", "finite"),
    ],
)
def test_laws_catch_planted_algorithms(defect, law):
    testing.check_algorithm(planted("none"), laws=[law])
    with pytest.raises(AssertionError, match=law):
        testing.check_algorithm(planted(defect), laws=[law])


def test_laws_catch_a_server_that_moves_for_clients_without_steps():
    def make(rate, sampler, strategy):
        algo = planted("none")(rate, sampler, strategy)

        def round(key, state, data, cohort):
            state, metrics = algo.round(key, state, data, cohort)
            came = (cohort.mask & (data.sizes[cohort.ids] > 0)).any()  # with data, if without steps
            decayed = {k: v * jnp.where(came, 0.9, 1.0) for k, v in state.server.params.items()}
            return state._replace(server=state.server._replace(params=decayed)), metrics

        return algo._replace(round=round)

    law = "empty_cohort_changes_nothing"
    testing.check_algorithm(planted("none"), laws=[law])
    with pytest.raises(AssertionError, match=law):
        testing.check_algorithm(make, laws=[law])


def test_laws_catch_a_sloppy_mask():
    with pytest.raises(AssertionError, match="masked_messages_leave_no_trace"):
        testing.check_aggregator(sloppy_mean())


def test_laws_catch_a_transform_that_divides_by_the_norm():
    def update(key, state, value):
        norm = jnp.sqrt(sum((v**2).sum() for v in value.values()))
        return state, {k: v / norm for k, v in value.items()}

    with pytest.raises(AssertionError, match="zero_stays_finite"):
        testing.check_transform(Transform(lambda value: (), update))


def test_unknown_law_is_an_error():
    with pytest.raises(ValueError, match="laws must be among"):
        testing.check_algorithm(planted("none"), laws=["gravity"])
