"""Epsilon belongs to a state's history: what was spent before is counted, or refused."""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from dp_accounting import dp_event
from dp_accounting.pld import PLDAccountant
from dp_accounting.rdp import RdpAccountant

import fedjax_lite as fl
from fedjax_lite import privacy as dp
from fedjax_lite.data.stores.store import ArrayStore
from fedjax_lite.engine import client_mesh
from fedjax_lite.privacy.accounting.history import composed_epsilon, family, sensitivity_squared
from fedjax_lite.round import ledger
from fedjax_lite.run import checkpoint
from fedjax_lite.stream import StreamedDataset
from fedjax_lite.types import Entry

KEY = jax.random.key(0)
N, DELTA = 6, 1e-2
DATA = fl.data.from_arrays({"b": jnp.arange(6.0)}, np.arange(6))
RUN = {"progress": False, "every": 5}


def loss(w, e, key):
    return 0.5 * (w - e["b"]) ** 2


def fedavg(**slots):
    return fl.fedavg(loss, optax.sgd(0.1), plan=fl.Plan(batch_size=None), **slots)


# Strong noise throughout: dp-accounting convolves a number for each loss that may occur.
def central(z=4.0, q=0.5, **options):
    return dp.central_gaussian(
        clip=1.0, num_clients=N, sampling_rate=q, noise_multiplier=z, delta=DELTA, **options
    )


def adaptive(z=1.0):
    return dp.adaptive_clipping(
        num_clients=N,
        sampling_rate=0.5,
        noise_multiplier=z,
        delta=DELTA,
        count_noise_multiplier=9.0,
    )


def turns(factory, z=1.0, **options):
    options = {"clip": 1.0, "num_clients": N, "cohort_size": 2, "num_rounds": 8} | options
    return factory(delta=DELTA, noise_multiplier=z, **options)


def tree(z=6.0):
    return turns(dp.tree_noise, z)


def matrix(z=6.0):
    return turns(dp.matrix_noise, z, coefficients=[1.0, 0.5])


def local(z=4.0, adjacency="replace", participation="uniform"):
    return turns(dp.local_gaussian, z, adjacency=adjacency, participation=participation)


def discrete(z=1.0):
    return dp.distributed_discrete_gaussian(
        clip=1.0, cohort_size=3, dimension=1, delta=DELTA, noise_multiplier=z, bits=12
    )


def custom(words="made by hand"):
    spends = fl.Accountant(lambda rounds: {"epsilon": 0.5 * rounds}, None, words)
    return fl.Mechanism(fl.everyone(), dp.uniform_mean(), spends)


# Cached, so that tests share compiled programs.
private = functools.cache(lambda z=4.0: fedavg(privacy=central(z)))
plain = functools.cache(lambda: fedavg(sampler=fl.poisson(0.5)))


def begun(algo):
    return algo.init(KEY, jnp.float32(0.0), DATA)


def by_hand(*events, method=PLDAccountant, delta=DELTA):
    """Epsilon of ``(z, q, rounds)``, composed one by one by dp-accounting."""
    accountant = method()
    for z, q, rounds in events:
        one = dp_event.GaussianDpEvent(z)
        one = one if q == 1 else dp_event.PoissonSampledDpEvent(q, one)
        accountant.compose(one, rounds)
    return accountant.get_epsilon(delta)


def with_past(*pasts, round=None):
    """A state whose ledger holds rounds of some mechanisms."""
    book = ledger.empty()
    for mechanism, rounds in pasts:
        for _ in range(rounds):
            book = ledger.record(book, ledger.accounted(mechanism).accountant.entry)
    done = sum(rounds for _, rounds in pasts) if round is None else round
    return fl.RoundState(jnp.int32(done), (), (), (), (), (), book)


def test_another_noise_goes_on_with_what_was_spent(tmp_path):
    first, second = private(6.0), private(10.0)
    state, history = fl.run(first, KEY, begun(first), DATA, num_rounds=10, **RUN)
    expected = by_hand((6.0, 0.5, 10))
    assert history[-1]["epsilon"] == pytest.approx(expected, rel=1e-6)
    after, history = fl.run(second, KEY, state, DATA, num_rounds=20, **RUN)
    whole = ((6.0, 0.5, 10), (10.0, 0.5, 10))
    assert history[-1]["epsilon"] == pytest.approx(by_hand(*whole), rel=1e-6)
    rdp = by_hand(*whole, method=RdpAccountant)
    assert history[-1]["epsilon_rdp"] == pytest.approx(rdp, rel=1e-6)
    assert second.accountant.spent(20)["epsilon"] < expected  # what was said before

    # The same on disk: stopped after the first, and gone on with under the other.
    folder = {"output_dir": tmp_path, **RUN}
    fl.run(first, KEY, begun(first), DATA, num_rounds=10, **folder)
    with pytest.raises(ValueError, match="privacy"):
        fl.run(second, KEY, begun(second), DATA, num_rounds=20, resume=True, **folder)
    folder |= {"resume": True, "config_may_change": ["privacy"]}
    _, on_disk = fl.run(second, KEY, begun(second), DATA, num_rounds=20, **folder)
    assert on_disk[-1]["epsilon"] == history[-1]["epsilon"]
    np.testing.assert_array_equal(after.privacy.rounds[:3], [10, 10, 0])


def test_rounds_without_a_mechanism_make_epsilon_infinite():
    without, algo = plain(), private()
    before = begun(without)
    for _ in range(2):
        before, _ = without.round(KEY, before, DATA)
    with pytest.warns(UserWarning, match="2 of the state's 2 rounds"):
        after, history = fl.run(algo, KEY, before, DATA, num_rounds=4, **RUN)
    assert history[-1]["epsilon"] == math.inf == algo.accountant.spent(after)["epsilon"]
    # The other way round, and back: rounds between those of a mechanism are as public.
    own, _ = algo.round(KEY, begun(algo), DATA)
    assert algo.accountant.spent(own)["epsilon"] < math.inf
    mixed, _ = without.round(KEY, own, DATA)
    assert algo.accountant.spent(mixed)["epsilon"] == math.inf
    stops = fedavg(privacy=central(8.0, epsilon=1.0))
    with pytest.raises(ValueError, match="more than that epsilon is spent"), pytest.warns():
        fl.run(stops, KEY, mixed, DATA, num_rounds=9, **RUN)


def test_checkpoints_with_and_without_a_ledger(tmp_path):
    algo = private()
    one, _ = algo.round(KEY, begun(algo), DATA)
    checkpoint.save(tmp_path / "private", one, step=1)
    checkpoint.save(tmp_path / "old", one._replace(privacy=()), step=1)
    back = checkpoint.restore(tmp_path / "private", begun(plain()))
    assert algo.accountant.spent(back) == algo.accountant.spent(1)
    old = checkpoint.restore(tmp_path / "old", begun(algo))
    assert algo.accountant.spent(old)["epsilon"] == math.inf


def test_a_round_by_hand_keeps_to_the_budget():
    algo = fedavg(privacy=central(num_rounds=2))
    state = begun(algo)
    for _ in range(2):
        state, _ = algo.round(KEY, state, DATA)
    with pytest.raises(ValueError, match="2 rounds, and the privacy budget ends after 2"):
        algo.round(KEY, state, DATA)
    # Where a program is being traced nobody can say no: it is counted, and said afterwards.
    state, _ = jax.jit(algo.round)(KEY, state, DATA)
    assert algo.accountant.spent(state)["epsilon"] == pytest.approx(by_hand((4.0, 0.5, 3)))
    with pytest.raises(ValueError, match="more than that epsilon is spent"):
        fl.run(algo, KEY, state, DATA, num_rounds=9, **RUN)


def test_the_budget_counts_what_others_spent():
    past = with_past((central(8.0), 8))
    two, three = (by_hand((8.0, 0.5, 8), (12.0, 0.5, more)) for more in (2, 3))
    assert two < three
    mechanism = central(12.0, epsilon=(two + three) / 2)
    assert mechanism.accountant.last_round(past) == 8 + 2
    assert central(12.0, epsilon=two / 2).accountant.last_round(past) < 8  # spent already
    one_more = central(8.0, epsilon=50.0, num_rounds=9, method="rdp")
    assert one_more.accountant.last_round(past) == 9


MADE = {
    "central": central,
    "noisier": lambda: central(6.0),
    "everyone": lambda: central(5.0, q=1.0),
    "adaptive": lambda: adaptive(4.5),
    "tree": tree,
    "matrix": matrix,
    "local": local,
    "in turns": lambda: local(5.0, participation="once_an_epoch"),
    "add or remove": lambda: local(4.0, "add_remove"),
    "discrete": discrete,
    "coarser": lambda: discrete(2.0),
    "custom": custom,
    "other custom": lambda: custom("made by another"),
}
CENTRAL = {"central", "noisier", "everyone", "adaptive", "tree", "matrix"}
TOGETHER = [CENTRAL, {"local", "in turns"}, {"add or remove"}, {"discrete", "coarser"}]


@pytest.mark.sample(60)
@pytest.mark.parametrize(("before", "now"), itertools.product(MADE, MADE))
def test_every_pair_composes_or_is_refused(before, now):
    past, accountant = with_past((MADE[before](), 2)), ledger.accounted(MADE[now]()).accountant
    earlier = ledger.accounted(MADE[before]()).accountant
    if before == now:
        assert accountant.spent(past) == earlier.spent(2)
    elif any({before, now} <= group for group in TOGETHER):
        book = ledger.record(past.privacy, accountant.entry)
        both = accountant.spent(past._replace(round=jnp.int32(3), privacy=book))["epsilon"]
        assert max(earlier.spent(2)["epsilon"], accountant.spent(1)["epsilon"]) < both < math.inf
    else:
        with pytest.raises(ValueError, match=r"cannot be composed with .*: go on with"):
            accountant.spent(past)
        with pytest.raises(ValueError, match="cannot be composed with"):
            accountant.last_round(past)


def test_what_is_exactly_gaussian_is_one_gaussian():
    past = with_past((central(2.0, q=1.0), 3), (central(3.0, q=1.0), 5))
    expected = dp.gdp_epsilon(DELTA, math.sqrt(3 / 4 + 5 / 9))
    assert central(3.0, q=1.0).accountant.spent(past)["epsilon"] == pytest.approx(expected)
    # Four rounds of a tree of 8, everyone once in 3: client 0 has turns 0 and 3, so it moves the
    # leaf of round 0, the node of rounds 0 and 1 and that of rounds 0 to 3: 1 + 1 + 4.
    past = with_past((tree(8.0), 4), (central(4.0), 2))
    expected = by_hand((4.0, 0.5, 2), (8 / math.sqrt(6), 1, 1))
    assert central(4.0).accountant.spent(past)["epsilon"] == pytest.approx(expected, rel=1e-6)
    past = with_past((local(4.0), 2), (local(5.0), 3))
    expected = dp.gdp_epsilon(DELTA, math.sqrt(2 * 4 / 16 + 3 * 4 / 25))
    assert local(5.0).accountant.spent(past)["epsilon"] == pytest.approx(expected)


def test_turns_that_two_mechanisms_share_are_bounded_for_every_order():
    entry = local(1.0, "add_remove", "once_an_epoch").accountant.entry
    for used in itertools.product([False, True], repeat=7):
        most = max(sum(used[phase::3]) for phase in range(3))
        if any(used):
            assert sensitivity_squared(entry, sum(used), 7) >= most


def test_rounds_of_chosen_clients_are_counted_in_full():
    cohort = fl.Cohort(jnp.array([1, 2]), jnp.ones(2, bool))
    algo = private()
    state, _ = algo.round(KEY, begun(algo), DATA)
    with pytest.warns(UserWarning, match="without amplification"):
        state, _ = algo.round(KEY, state, DATA, cohort)
    expected = by_hand((4.0, 0.5, 1), (4.0, 1, 1))
    assert algo.accountant.spent(state)["epsilon"] == pytest.approx(expected, rel=1e-6)
    algo = fedavg(privacy=tree())
    with pytest.warns(UserWarning, match="nobody accounts"):
        state, _ = algo.round(KEY, begun(algo), DATA, cohort)
    assert algo.accountant.spent(state)["epsilon"] == math.inf


def test_correlated_noise_of_another_run_is_not_gone_on_with():
    weak, strong = fedavg(privacy=tree(1.0)), fedavg(privacy=tree(3.0))
    state, _ = weak.round(KEY, begun(weak), DATA)
    with pytest.raises(ValueError, match=r"noise of other rounds .* take sampler and aggregator"):
        strong.round(KEY, state, DATA)
    traced, _ = jax.jit(strong.round)(KEY, state, DATA)
    assert strong.accountant.spent(traced)["epsilon"] == math.inf
    new = strong.init(KEY, state.server.params, DATA)
    state = state._replace(aggregator=new.aggregator, sampler=new.sampler)
    state, _ = strong.round(KEY, state, DATA)
    expected = dp.gdp_epsilon(DELTA, math.sqrt(1 + 1 / 9))
    assert strong.accountant.spent(state)["epsilon"] == pytest.approx(expected)


def test_parts_of_another_mechanism_are_named():
    algo, other = private(), fedavg(privacy=adaptive())
    state, _ = algo.round(KEY, begun(algo), DATA)
    with pytest.raises(ValueError, match=r"state\.aggregator .*another algorithm made it"):
        other.round(KEY, state, DATA)
    with pytest.raises(ValueError, match=r"state\.sampler"):
        fedavg(privacy=local()).round(KEY, state._replace(privacy=()), DATA)
    # A run says so before anything is traced, and names what the state has seen.
    words = r"state\.sampler is not what privacy=tree noise .* under Gaussian noise .*z=4, q=0.5"
    with pytest.raises(ValueError, match=words):
        fl.run(fedavg(privacy=tree()), KEY, state, DATA, num_rounds=9, **RUN)
    for before, now in (
        (tree, central),
        (local, lambda: local(5.0, participation="once_an_epoch")),
    ):
        state = begun(fedavg(privacy=before()))
        with pytest.raises(ValueError, match="keeps there"):
            fl.run(fedavg(privacy=now()), KEY, state, DATA, num_rounds=9, **RUN)


def test_another_population_is_refused():
    algo = private()
    fewer = fl.data.from_arrays({"b": jnp.arange(5.0)}, np.arange(5))
    with pytest.raises(ValueError, match="declared for 6 clients, but the population has 5"):
        algo.init(KEY, jnp.float32(0.0), fewer)
    with pytest.raises(ValueError, match="declared for 6 clients, but the population has 5"):
        algo.round(KEY, begun(algo), fewer)


@pytest.mark.sample(2)
@pytest.mark.parametrize("name", ["vmapped", "chunked", "sequential", "sharded"])
def test_the_ledger_is_the_same_under_every_strategy(name):
    options = {"chunked": [2], "sharded": [client_mesh()]}.get(name, [])
    algo = fedavg(privacy=central(1.5), strategy=getattr(fl, name)(*options))
    state, _ = algo.round(KEY, begun(algo), DATA)
    past = ledger.read(state)
    assert (past.of(algo.accountant.entry), past.unaccounted) == (1, 0)


def test_noise_that_a_sweep_traces_is_in_every_members_ledger():
    noise = [5.4, 8.6]

    def make(z):
        return fedavg(privacy=central(z))

    result = fl.sweep(
        make, {"z": noise}, init=lambda key: jnp.float32(0), data=DATA, num_rounds=2, progress=False
    )
    other = make(8.0)
    for index, z in enumerate(noise):
        state = jax.tree.map(lambda leaf, i=index: leaf[i], result.states)
        used = float(np.float32(z))
        assert ledger.read(state).of(Entry(ledger.POISSON, (used, 0.5, 0.0))) == 2
        _, history = fl.run(other, KEY, state, DATA, num_rounds=3, **RUN)
        expected = by_hand((z, 0.5, 2), (8.0, 0.5, 1))
        assert history[-1]["epsilon"] == pytest.approx(expected, rel=1e-5)
    with pytest.raises(ValueError, match="one run's, got several"):
        make(1.0).accountant.spent(result.states)


def test_float32_is_widened_as_numpy_does():
    values = [0.0, 1.0, 1.1, 3e-39, 1e-38, 1.17e-38, 3.4e38, math.inf, -2.5, 0.1]
    for value in values:
        traced = jax.jit(lambda z: ledger.record(ledger.empty(), Entry(ledger.LOCAL, (z,))))
        (entry, _), *_ = ledger.read(traced(jnp.float32(value))).parts
        wide = float(np.float32(value))
        tiny = 0.0 if abs(wide) < np.finfo(np.float32).tiny else wide  # JAX flushes them
        assert entry.numbers[0] == tiny, value


def test_more_mechanisms_than_a_ledger_holds_are_not_forgotten():
    past = with_past(*[(central(4.0 + i), 1) for i in range(ledger.SLOTS)])
    assert central(4.0).accountant.spent(past)["epsilon"] < math.inf
    past = with_past(*[(central(4.0 + i), 1) for i in range(ledger.SLOTS + 1)])
    assert central(4.0).accountant.spent(past)["epsilon"] == math.inf


def test_an_overflow_of_either_is_paid_for():
    tight, roomy = central(6.0, capacity=5), central(9.0)
    entry = tight.accountant.entry
    assert entry.numbers[2] == pytest.approx(0.5**6)  # all six come up
    small = Entry(ledger.POISSON, (6.0, 0.5, 1e-5))
    parts = ((small, 3), (roomy.accountant.entry, 2))
    epsilon = composed_epsilon(parts, DELTA, "pld", 5)
    # Any split: what is left of delta after what the overflow costs at this epsilon must do.
    rest = DELTA - (1 + math.exp(epsilon)) * 3e-5
    assert by_hand((6.0, 0.5, 3), (9.0, 0.5, 2), delta=rest) <= epsilon + 1e-9
    assert epsilon > by_hand((6.0, 0.5, 3), (9.0, 0.5, 2))
    assert family(small) == family(roomy.accountant.entry)


def test_planning_needs_no_state():
    accountant = central().accountant
    assert accountant.spent(0)["epsilon"] == 0
    with pytest.raises(TypeError, match="rounds"):
        accountant.spent("three")
    with pytest.raises(TypeError, match="state is traced"):
        jax.jit(lambda state: accountant.spent(state)["epsilon"])(with_past())


def test_members_of_a_vmap_have_ledgers_of_their_own():
    algo = private()
    fresh = begun(algo)
    one, _ = algo.round(KEY, fresh, DATA)
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), fresh, one)
    after, _ = jax.vmap(algo.round, (None, 0, None))(KEY, stacked, DATA)
    for index, rounds in enumerate((1, 2)):
        member = jax.tree.map(lambda leaf, i=index: leaf[i], after)
        assert algo.accountant.spent(member) == algo.accountant.spent(rounds)


@pytest.mark.sample(1)
@pytest.mark.parametrize("mechanism", [central, tree])
def test_cohorts_of_a_stream_are_the_mechanisms_own(mechanism):
    stream = StreamedDataset(ArrayStore({"b": np.arange(6.0, dtype=np.float32)}, np.ones(6, int)))
    algo = fedavg(privacy=mechanism())
    state = algo.init(KEY, jnp.float32(0.0), stream)
    state, history = fl.run(algo, KEY, state, stream, num_rounds=3, **RUN)
    assert algo.accountant.spent(state) == algo.accountant.spent(3)
    assert history[-1]["epsilon"] == algo.accountant.spent(3)["epsilon"]
