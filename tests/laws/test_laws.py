"""Registry x laws: everything registered passes every law of its kind."""

import hashlib
import itertools
import os

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_lite as fl
from fedjax_lite import testing
from fedjax_lite.testing.algorithm_laws import (
    CHUNKS,
    FOUR,
    LANES,
    RATE,
    SCANNED,
    SINGLE,
    four_clients,
)
from fedjax_lite.types import Aggregator, Message, Transform

FULL = ("fedavg", "scaffold", "ditto")
"""With messages alone, with rows, with models of one's own: these pass every law under every
strategy; variants those that an option could break."""
OF_THEIR_OWN = ("fedsgd", "fedadam", "fedprox", "fednova", "feddyn", "mime")
"""Each is a family, and passes what costs it no further program."""
OF_VARIANTS = (
    "structure_is_stable",
    "strategies_agree",
    "never_retraces",
    "masked_clients_leave_no_trace",
    "empty_cohort_changes_nothing",
)
AT_THE_SERVER = {"fedavg optax yogi server", "fedavgm", "fedadagrad", "fedyogi"}
"""What these change comes after the strategy's work, which is FedAvg's: FedAdam obeys every law."""
OF_METHODS = (
    *OF_VARIANTS,
    *("slots_do_not_matter", "empty_clients_change_nothing", "survives_a_checkpoint"),
)
OF_SERVERS = ("structure_is_stable", "never_retraces", "empty_cohort_changes_nothing")
WHOLE = os.environ.get("FEDJAX_LITE_TESTS") == "all"
"""Variants meet their laws under all strategies, as `testing.check_algorithm` asks it of users;
by default under two, other ones for each variant, in two programs instead of five."""
VARIANTS = [name for name in testing.ALGORITHMS if name not in FULL]
STRATEGIES = (LANES, SINGLE, SCANNED, CHUNKS)
PAIRS_OF_THEM = list(itertools.combinations(STRATEGIES, 2))


def of(name):
    """The laws of a variant."""
    if name in OF_THEIR_OWN:
        return OF_METHODS
    return OF_SERVERS if name in AT_THE_SERVER else OF_VARIANTS


OWN_PROGRAMS = {
    "jit_changes_nothing": ("fedavg",),
    "vmap_equals_loop": ("scaffold",),
    "scan_equals_calls": ("fedavg", "scaffold"),  # the same two, for the same programs
    "caller_keeps_its_arrays": ("fedavg", "scaffold"),
    "keys_are_used_once": ("scaffold",),
    "padding_leaves_no_trace": ("ditto",),
    "never_retraces": ("fedavg",),  # and all variants, see `OnTwo`
    "finite": ("fedavg", "ditto"),
}
"""Laws that compile programs which no other law uses, or run a round eagerly: by default so few."""
KIN = {
    "work and messages of FedAvg": ("fedavg", "dp-sgd"),
    "optimizers of the server": ("fedavgm", "fedadagrad", "fedyogi"),
    "corrected steps": ("fedprox", "fednova", "scaffold", "feddyn", "mimelite"),
    "leaves that stay": ("local leaves", "fedper", "lg fedavg", "fedrep", "fedbabu", "fedbn"),
    "models beside the server's": ("apfl", "pfedme", "ditto", "local only"),
    "adapted models": ("per-fedavg", "fomaml", "reptile"),
    "adapters": ("fedlora", "frozen leaves"),
    "fair weights": ("q-fedavg", "q-fedsgd", "afl", "term", "fedmgda", "precision"),
    "matched layers": ("fedma",),
    "paired networks": ("fedgan",),
    "cut networks": ("splitfed",),
    "clusters": ("ifca", "fedem", "mixture of experts"),
    "what earlier tasks left": ("ewc", "fedcurv"),
    "messages that come late": ("fedbuff", "fedasync", "ca2fl"),
    "adversaries": ("debiasing",),
    "choice of clients": ("power of choice", "optimal", "unbiased"),
}
"""Families of variants, by the words their names begin with; any other is a family of its own."""
OF_A_FAMILY = {"work and messages of FedAvg": 3}
"""So many variants of a family meet their laws by default, else one."""


def family(name):
    """The kind of a variant: of which some run by default."""
    if name in OF_THEIR_OWN:
        return name
    found = [kind for kind, kin in KIN.items() if any(f"{name} ".startswith(f"{k} ") for k in kin)]
    assert len(found) <= 1, f"{name} is in {found}"
    return found[0] if found else name


CASES = [
    pytest.param(name, law, marks=[] if law in OF_VARIANTS else [pytest.mark.slow])
    for name in FULL
    for law in testing.ALGORITHM_LAWS
    if WHOLE or name in OWN_PROGRAMS.get(law, FULL)
]
if WHOLE:
    CASES += [
        pytest.param(name, law, marks=pytest.mark.slow)
        for name in VARIANTS
        for law in (testing.ALGORITHM_LAWS if name in OF_THEIR_OWN else of(name))
    ]


@pytest.mark.parametrize(("name", "law"), CASES)
def test_algorithm(name, law):
    testing.check_algorithm(testing.ALGORITHMS[name], laws=[law])


def pair_of(name):
    """Two strategies, chosen by the variant's name."""
    number = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big")
    return PAIRS_OF_THEM[number % len(PAIRS_OF_THEM)]


class OnTwo:
    """A variant's `make` for the laws, with two strategies in place of all that they name.

    Its rounds are programs that take the learning rate, so `never_retraces` needs no other ones.
    """

    def __init__(self, variant, pair):
        self.variant, (self.left, self.right) = variant, pair
        self.traces = []
        self.programs = {one: self.program(one) for one in (self.left, self.right)}

    def program(self, strategy):
        def one_round(rate, key, state, data, cohort):
            self.traces.append(strategy)
            return self.variant(rate, FOUR, strategy).round(key, state, data, cohort)

        return jax.jit(one_round)

    def __call__(self, rate, sampler, strategy):
        chosen = self.left if strategy in (LANES, SINGLE) else self.right
        everyone_counts = four_clients([5, 2, 1, 6])

        def one_round(key, state, data, cohort=None):
            cohort = everyone_counts if cohort is None else cohort
            return self.programs[chosen](rate, key, state, data, cohort)

        return self.variant(rate, sampler, chosen)._replace(round=one_round)

    def check_one_trace_for_each(self):
        key, data = jax.random.key(0), testing.population()
        algo = self(RATE, FOUR, self.right)
        state = algo.init(key, testing.init_params(jax.random.key(7)), data)
        after, _ = algo.round(key, state, data)
        again, _ = algo.round(key, after, data)
        other, _ = self(RATE / 2, FOUR, self.right).round(key, after, data)
        assert max(map(self.traces.count, self.programs)) == 1, "a second trace"
        learnt = [jax.tree.leaves((one.server, one.clients)) for one in (again, other)]
        moved = any((np.asarray(a) != np.asarray(b)).any() for a, b in zip(*learnt, strict=True))
        assert moved, "the learning rate has no effect: it was compiled in"


@pytest.mark.skipif(WHOLE, reason="test_algorithm has them under every strategy")
@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.sample(OF_A_FAMILY.get(kind, 1), of=kind))
        for name, kind in ((name, family(name)) for name in VARIANTS)
    ],
)
def test_variant(name):
    make = OnTwo(testing.ALGORITHMS[name], pair_of(name))
    laws = [law for law in of(name) if law != "never_retraces"]
    testing.check_algorithm(make, laws=laws)
    make.check_one_trace_for_each()


def test_variants_meet_every_strategy():
    met = [pair_of(name) for name in VARIANTS if name not in AT_THE_SERVER]
    for strategy in STRATEGIES:
        assert sum(strategy in pair for pair in met) >= len(met) / 4
    assert all(len(of(name)) >= 3 for name in VARIANTS)
    assert {family(name) for name in VARIANTS} >= KIN.keys(), "a family without a variant"


@pytest.mark.sample(50)
@pytest.mark.parametrize("law", testing.AGGREGATOR_LAWS)
@pytest.mark.parametrize("name", testing.AGGREGATORS)
def test_aggregator(name, law):
    testing.check_aggregator(testing.AGGREGATORS[name], laws=[law])


@pytest.mark.sample(26)
@pytest.mark.parametrize("law", testing.TRANSFORM_LAWS)
@pytest.mark.parametrize("name", testing.TRANSFORMS)
def test_transform(name, law):
    testing.check_transform(testing.TRANSFORMS[name], laws=[law])


@pytest.mark.sample(14)
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


def test_a_rate_that_is_compiled_in_is_caught_on_two_strategies_too():
    with pytest.raises(AssertionError, match="compiled in"):
        OnTwo(planted("rate compiled in"), (SINGLE, CHUNKS)).check_one_trace_for_each()


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
