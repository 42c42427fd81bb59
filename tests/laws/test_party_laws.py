"""Methods over columns and of cut networks: registered, lawful; planted defects are caught."""

import ast
import importlib
import inspect
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest

import fedjax_lite as fl
from fedjax_lite import testing, trees
from fedjax_lite.checks.made import maker_of
from fedjax_lite.describe.columns import TITLES
from fedjax_lite.testing import registered_parties
from fedjax_lite.testing.registered_parties import in_turn
from fedjax_lite.types import Wire

EXCHANGE, SPLIT_STEP, PARALLEL, TURNS, VERTICAL, WIRES = (
    importlib.import_module(f"fedjax_lite.parties.{name}")
    for name in (
        *("exchange", "split_step", "split_parallel", "split_turns", "vertical_round", "wires"),
    )
)
NETWORK, REGRESSION = testing.PARTIES["vertical network"], testing.PARTIES["vertical logistic"]
TWO, U = testing.PARTIES["split learning"], testing.PARTIES["split learning labels stay"]
FIRST = ("vertical network", "vertical cox", "splitfed 1", "split learning labels stay")
"""Of these kinds two pass every law by default, of the others one."""
MAKE = ("FederatedAlgorithm", "VerticalModel", "CutModel", "Model")
"""What factories of `fl.parties` make."""
LEARN_IN_PARTS = {"vertical_sgd": 6, "fedbcd": 2, "splitfed": 5, "split_learning": 3}
"""How many entries each method has."""
NEED_NO_STRATEGY = (
    *("structure_is_stable", "scan_equals_calls", "vmap_equals_loop"),
    *("no_host_transfer", "masked_clients_leave_no_trace"),
    *("empty_clients_change_nothing", "empty_cohort_changes_nothing", "finite"),
    *("survives_a_checkpoint", "caller_keeps_its_arrays"),
)
"""Laws of algorithms for those in turn: they have no strategies, and the order is the method's.
That they never retrace and use keys once are laws of parties, too."""


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(
            name, marks=pytest.mark.sample(2 if name in FIRST else 1, of=f"laws, {name in FIRST}")
        )
        for name in testing.PARTIES
    ],
)
def test_every_law(name):
    testing.check_parties(testing.PARTIES[name])


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.sample(1)) for name in in_turn()]
)
def test_laws_of_algorithms_in_turn(name):
    testing.check_algorithm(in_turn()[name], laws=NEED_NO_STRATEGY)


def test_every_factory_of_parties_is_registered():
    """All that makes models or methods in `fl.parties` is used there; each method so often."""
    factories = {
        name
        for name in fl.parties.__all__
        if inspect.isfunction(inspect.unwrap(getattr(fl.parties, name)))
        and inspect.unwrap(getattr(fl.parties, name)).__annotations__.get("return") in MAKE
    }
    models = {"regression", "vertical_model", "joint", "cut_layers", "cut_linen", "cut_nnx"}
    assert factories == {*TITLES, *models}
    tree = ast.parse(Path(registered_parties.__file__).read_text())
    used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    assert factories <= used, f"register in {registered_parties.__name__}: {factories - used}"
    made = [maker_of(case.make(0.1, None, None)) for case in testing.PARTIES.values()]
    names = [note.name for note in made if note is not None]
    assert {name: names.count(name) for name in TITLES} == LEARN_IN_PARTS
    assert len(names) == len(testing.PARTIES) == sum(LEARN_IN_PARTS.values())


@pytest.mark.parametrize("name", testing.PARTIES)
def test_described_and_cited(name):
    algo = testing.PARTIES[name].make(0.1, fl.gaussian_noise(1.0), None)
    note: Any = maker_of(algo)
    text = fl.describe(algo)
    assert text.startswith(TITLES[note.name].split(" {")[0])
    assert "Uplink: activations are sent with Gaussian noise" in text
    assert "Privacy: none is accounted; noise covers one message" in text
    assert "Privacy" not in fl.describe(testing.PARTIES[name].make(0.1, fl.clip(1.0), None))
    papers = fl.citation(algo).split("\n@")[1:]
    assert papers, "no paper is cited"
    lines = {"splitfed": "thapa2020splitfed", "fedbcd": "liu2019communication"}
    lines |= {"split_learning": "gupta2018distributed", "vertical_sgd": "yang2019federated"}
    assert any(lines[note.name] in paper for paper in papers), papers


def test_unknown_law_is_an_error():
    with pytest.raises(ValueError, match=r"laws must be among .*, got 'gravity'"):
        testing.check_parties(NETWORK, laws=["gravity"])


# Planted defects: each is caught by the law that is named, which the method itself obeys.


def times_two_to_a_party(patch):
    """The gradient that comes back to `a` is twice what it should be."""
    good = EXCHANGE.exchange

    def bad(*args, **options):
        found = good(*args, **options)
        return found._replace(returned={**found.returned, "a": 2 * found.returned["a"]})

    patch.setattr(VERTICAL, "exchange", bad)


def summed_over_the_batch(patch):
    """The head's loss is a sum where it should be a mean."""
    good = EXCHANGE.head_loss
    patch.setattr(EXCHANGE, "head_loss", lambda *a: good(*a) * a[-1].mask.sum().astype(jnp.float32))


def change_of_steps(patch, change):
    """What a batch of split learning gives is changed."""
    good = SPLIT_STEP.split_gradients

    def bad(cut, client, server, batch, **wires):
        return change(good, cut, client, server, batch, wires)

    for module in (PARALLEL, TURNS):
        patch.setattr(module, "split_gradients", bad)


def times_two_to_the_clients(patch):
    def change(good, cut, client, server, batch, wires):
        found = good(cut, client, server, batch, **wires)
        return found._replace(client=jax.tree.map(lambda g: 2 * g, found.client))

    change_of_steps(patch, change)


def labels_on_the_activations(patch):
    """A client adds its labels to what it sends, a thousandth of them."""

    def change(good, cut, client, server, batch, wires):
        y = batch.examples["y"]

        def telling(params, x, key):
            return cut.stages[0](params, x, key) + 1e-3 * y[:, None]

        return good(cut._replace(stages=(telling, *cut.stages[1:])), client, server, batch, **wires)

    change_of_steps(patch, change)


def labels_are_not_billed(patch):
    def change(good, cut, client, server, batch, wires):
        found = good(cut, client, server, batch, **wires)
        bits = found.up.bits - trees.num_bits(batch.examples["y"])
        return found._replace(up=Wire(bits, bits))

    change_of_steps(patch, change)


def a_bit_less(module):
    """Every message costs one bit less than it does."""

    def plant(patch):
        good = module.carried

        def bad(*args):
            value, wire = good(*args)
            return value, Wire(wire.bits - 1, wire.entropy)

        patch.setattr(module, "carried", bad)

    return plant


def only_the_first_is_billed(module):
    """The second message of a direction is never added to what the first one cost."""

    def plant(patch):
        patch.setattr(module, "add_cost", lambda left, right, times=1.0: left)

    return plant


def same_key_up_and_down(patch):
    """A party's gradient comes back under the key that its activation went up with."""
    good = EXCHANGE._wire_key
    patch.setattr(EXCHANGE, "_wire_key", lambda key, kind, party: good(key, 0, party))


def same_key_for_all_parties(patch):
    good = EXCHANGE._wire_key
    patch.setattr(EXCHANGE, "_wire_key", lambda key, kind, party: good(key, kind, 0))


def same_key_both_ways_of_a_cut(patch):
    patch.setattr(SPLIT_STEP, "DOWN", SPLIT_STEP.UP)


def same_key_twice_up_in_a_u(patch):
    patch.setattr(SPLIT_STEP, "UP_AGAIN", SPLIT_STEP.UP)


def one_key_for_a_batch(patch):
    """All examples of a batch are noised alike."""
    good = jax.random.split

    def alike(key, num=2):
        keys = good(key, num)
        return jnp.broadcast_to(keys[:1], keys.shape)

    patch.setattr(WIRES.jax.random, "split", alike)


def tells_of_others(patch):
    """A party's bottom is given the neighbour's first column, too."""
    good = EXCHANGE.exchange

    def bad(model, params, batch, **options):
        x = batch.examples["x"]
        mixed = {**x, "a": x["a"] + 1e-3 * x["c"][:, :1]}
        batch = batch._replace(examples={**batch.examples, "x": mixed})
        return good(model, params, batch, **options)

    patch.setattr(VERTICAL, "exchange", bad)


def rate_compiled_in(case):
    """No patch: the rate of the round is not the one that is given."""
    make = case.make
    return case._replace(make=lambda rate, up, down: make(0.05, up, down))


PLANTED = [
    (times_two_to_a_party, NETWORK, "equals_the_whole"),
    (times_two_to_a_party, REGRESSION, "equals_the_whole"),
    (summed_over_the_batch, NETWORK, "equals_the_whole"),
    (times_two_to_the_clients, TWO, "equals_the_whole"),
    (times_two_to_the_clients, U, "equals_the_whole"),
    (labels_on_the_activations, TWO, "labels_are_not_sent_along"),
    (labels_on_the_activations, U, "labels_are_not_sent_along"),
    (labels_are_not_billed, TWO, "bits_are_those_on_the_wires"),
    (a_bit_less(EXCHANGE), NETWORK, "bits_are_those_on_the_wires"),
    (a_bit_less(EXCHANGE), REGRESSION, "bits_are_those_on_the_wires"),
    (a_bit_less(SPLIT_STEP), U, "bits_are_those_on_the_wires"),
    (only_the_first_is_billed(EXCHANGE), NETWORK, "bits_are_those_on_the_wires"),
    (only_the_first_is_billed(SPLIT_STEP), U, "bits_are_those_on_the_wires"),
    (same_key_up_and_down, NETWORK, "messages_draw_by_themselves"),
    (same_key_for_all_parties, REGRESSION, "messages_draw_by_themselves"),
    (same_key_both_ways_of_a_cut, TWO, "messages_draw_by_themselves"),
    (same_key_twice_up_in_a_u, U, "messages_draw_by_themselves"),
    (one_key_for_a_batch, TWO, "messages_draw_by_themselves"),
    (tells_of_others, NETWORK, "messages_are_of_ones_own"),
]


HELD = set()


def obeys(case, law):
    """Checked once for all defects."""
    if (case.make, law) not in HELD:
        testing.check_parties(case, laws=[law])
        HELD.add((case.make, law))
    return True


def another(case):
    """The same under another name: laws keep programs by the function that makes them."""
    make = case.make
    return case._replace(make=lambda *args: make(*args))


@pytest.mark.parametrize(
    ("plant", "case", "law"),
    [pytest.param(*row, id=f"{row[2]}-{i}") for i, row in enumerate(PLANTED)],
)
def test_planted_defects_are_caught(plant, case, law, monkeypatch):
    assert obeys(case, law)
    plant(monkeypatch)
    with pytest.raises(AssertionError, match=f"law '{law}' does not hold"):
        testing.check_parties(another(case), laws=[law])


def test_a_rate_that_is_compiled_in_is_caught():
    with pytest.raises(AssertionError, match="compiled in"):
        testing.check_parties(rate_compiled_in(TWO), laws=["never_retraces"])


def test_a_party_that_never_moves_is_caught(monkeypatch):
    """`c` keeps its weights."""
    good = VERTICAL.local_gradient

    def bad(model, exchanged, agent, own, batch):
        found = good(model, exchanged, agent, own, batch)
        return jax.tree.map(jnp.zeros_like, found) if agent == "c" else found

    monkeypatch.setattr(VERTICAL, "local_gradient", bad)
    with pytest.raises(AssertionError, match=r"\['c'\].* never moved"):
        testing.check_parties(another(NETWORK), laws=["something_is_learnt"])
