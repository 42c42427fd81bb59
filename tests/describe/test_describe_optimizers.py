"""describe(): optimizers and schedules are told by what they do, ours by their factories."""

import jax
import jax.numpy as jnp
import optax
import pytest

import fedjax_lite as fl
from fedjax_lite.describe import describe
from fedjax_lite.describe.optimizers import read_optimizer

PLAN = fl.Plan(batch_size=10, epochs=3)
LEAKS = ("<locals>", "<function", "<lambda", "object at 0x", "Traced<", "PjitFunction", "None")


def loss(params, examples, key):
    return params * examples["x"]


def make(**options):
    return fl.fedavg(loss, optax.sgd(0.25), plan=PLAN, sampler=fl.uniform(4), **options)


def text_of(algorithm):
    return " ".join(describe(algorithm).split())


@pytest.mark.parametrize(
    ("chain", "title"),
    [
        ((optax.clip_by_global_norm(1.0), optax.sgd(1.0)),
         "FedAvg with a clipped pseudo-gradient (McMahan"),
        ((optax.sgd(1.0), optax.clip(0.5)), "FedAvg with a clipped server step (McMahan"),
        ((optax.sgd(optax.linear_schedule(1.0, 0.5, 9)),), "FedAvg (McMahan"),
        ((optax.inject_hyperparams(optax.sgd)(0.5),), "FedAvg (McMahan"),
        ((optax.inject_hyperparams(optax.sgd)(0.5, momentum=0.9),), "FedAvgM (Hsu"),
        ((optax.clip(1.0), optax.sgd(1.0, momentum=0.9)),
         "FedAvgM with a clipped pseudo-gradient (Hsu"),
        ((optax.zero_nans(), optax.clip(1.0), fl.server.adam(0.1)),
         "FedAdam with NaNs set to zero and a clipped pseudo-gradient (Reddi"),
        ((optax.add_decayed_weights(0.01), optax.sgd(1.0)), "FedAvg with weight decay (McMahan"),
        ((optax.add_decayed_weights(0.0), optax.sgd(1.0)), "FedAvg (McMahan"),
        ((optax.clip(1.0), optax.adam(0.1)), "FedOpt with a clipped pseudo-gradient (Reddi"),
        ((optax.adam(0.1),), "FedOpt (Reddi"),
        pytest.param((optax.clip(1.0),), "FedOpt with a clipped pseudo-gradient (Reddi",
                     marks=pytest.mark.filterwarnings("ignore:.*climbs")),
    ],
)  # fmt: skip
def test_the_servers_chain_names_the_method(chain, title):
    algorithm = make(server_optimizer=optax.chain(*chain))
    assert describe(algorithm).startswith(title + " et al.")
    cited = [
        key for key in ("mcmahan2017c", "hsu2019", "reddi2021") if key in fl.citation(algorithm)
    ]
    assert [key[:3] for key in cited][-1:] == [title.split(" (")[1][:3].lower()]


COSINE = optax.cosine_decay_schedule(0.5, 90)


@pytest.mark.parametrize(
    ("schedule", "words"),
    [
        (COSINE, "a schedule: along a cosine from 0.5 to 0 in 90 steps"),
        (optax.cosine_decay_schedule(0.5, 90, alpha=0.25),
         "a schedule: along a cosine from 0.5 to 0.125 in 90 steps"),
        (optax.linear_schedule(0.5, 0.25, 9), "a schedule: linearly from 0.5 to 0.25 in 9 steps"),
        (optax.exponential_decay(0.5, 1, 0.75), "a schedule: from 0.5 on, times 0.75 a step"),
        (optax.piecewise_constant_schedule(0.5, {7: 0.25, 20: 0.5}),
         "a schedule: 0.5, 0.125 from step 7 on, 0.0625 from step 20 on"),
        (optax.warmup_cosine_decay_schedule(0.0, 0.5, 10, 100),
         "a schedule: linearly from 0 to 0.5 in 10 steps, then along a cosine from 0.5 to 0 in 90"),
        (lambda round: 0.5 / (1 + round), f"the schedule your own function ({__name__}): 0.5 at "
         "step 0, 0.25 at step 1, 0.0454545 at step 10, 0.0049505 at step 100"),
    ],
)  # fmt: skip
def test_schedules_are_told_by_what_they_do(schedule, words):
    told = words.replace(f"the schedule your own function ({__name__})", "a schedule")
    assert f"learning rate by {told}" in read_optimizer(optax.sgd(schedule)).words
    assert f"learning rate by {told}" in read_optimizer(optax.adam(schedule)).words
    assert f"learning rate by {words}" in read_optimizer(fl.server.yogi(schedule)).words
    if schedule is COSINE:
        for factory in (fl.scaffold, fl.fednova, fl.mime):
            text = text_of(factory(loss, schedule, plan=PLAN, sampler=fl.uniform(4)))
            assert f"SGD with learning rate by {words}" in text


def test_an_optimizer_of_the_round_is_told_by_its_first_round():
    by_round = fl.fedavg(loss, lambda r: optax.sgd(COSINE(r)), plan=PLAN, sampler=fl.uniform(4))
    assert (
        "depends on the round: your own `test_an_optimizer_of_the_round_is_told_by_its_first_"
        f"round` ({__name__}), in round 0 SGD with learning rate 0.5."
    ) in text_of(by_round)


def test_what_is_known_of_an_optimizer():
    chained = optax.chain(optax.clip_by_global_norm(2.0), optax.adamw(0.5, weight_decay=0.25))
    assert read_optimizer(chained).words == (
        "optax.clip_by_global_norm(max_norm 2), then "
        "AdamW (b1 0.9, b2 0.999, eps 1e-08, weight decay 0.25) with learning rate 0.5"
    )
    scaled = optax.chain(optax.scale_by_trust_ratio(), optax.scale(-0.5))
    assert read_optimizer(scaled).words == "an optax chain of 2 transformations"
    assert read_optimizer(optax.sgd(0.1)).plain
    assert not read_optimizer(optax.sgd(0.1, momentum=0.9)).plain
    masked = optax.masked(optax.sgd(0.5), True)
    assert "SGD with learning rate 0.5" in read_optimizer(masked).words
    injected = "SGD with learning rate 0.5, its settings injected into its state"
    for optimizer, words in (
        (optax.rmsprop(0.5, momentum=0.75), "with learning rate 0.5, then momentum 0.75"),
        (optax.inject_hyperparams(optax.sgd)(0.5), injected),
        (optax.partition({"a": optax.sgd(0.5)}, "a"), " around (SGD with learning rate 0.5)"),
        (fl.server.yogi(lambda round: 0.5), "tau 0.001) with learning rate by the schedule your"),
    ):
        assert words in read_optimizer(optimizer).words
    for factory in (optax.lamb, optax.lbfgs, optax.adafactor, optax.novograd, optax.sm3):
        words = read_optimizer(factory(0.5)).words
        assert not [leak for leak in LEAKS if leak in words], words


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda r: optax.rmsprop(r), "(decay 0.9, eps 1e-08) with learning rate a traced value"),
        (lambda r: optax.adam(0.1, b1=r), "(b1 a traced value, b2 0.999, eps 1e-08) with learning "
         "rate 0.1"),
        (lambda r: optax.chain(optax.clip(r), optax.sgd(0.5)), "optax.clip(max_delta a traced "
         "value), then SGD with learning rate 0.5"),
        (lambda r: optax.chain(optax.add_decayed_weights(r), optax.sgd(0.5)), "weight_decay a "
         "traced value), then SGD with learning rate 0.5"),
        (lambda r: optax.sgd(lambda count: 0.5 * r**count), "SGD with learning rate by a schedule"),
        (lambda r: optax.chain(fl.server.adam(r)), "tau 0.001) with learning rate a traced value"),
    ],
)  # fmt: skip
def test_what_is_traced_is_not_told_by_a_number(make, words):
    found = []
    jax.make_jaxpr(lambda rate: (found.append(read_optimizer(make(rate)).words), rate)[1])(0.25)
    assert found[0].endswith(words)


def test_traced_settings_do_not_stop_it():
    texts = []

    @jax.jit
    def traced(rate):
        algorithm = fl.fedavg(
            loss, optax.sgd(rate), plan=PLAN, sampler=fl.uniform(4), uplink=fl.clip(rate),
            server_optimizer=optax.sgd(1.0, momentum=rate),
        )  # fmt: skip
        texts.append(describe(algorithm))
        return rate

    traced(0.5)
    assert "SGD with learning rate a traced value" in texts[0]
    assert "SGD with momentum a traced value and learning rate 1" in texts[0]
    assert not [leak for leak in LEAKS if leak in texts[0]]


def test_optimizers_of_the_users_own():
    class Halving:
        __hash__ = None

        def __call__(self, updates, state, params=None):
            return jax.tree.map(lambda leaf: -leaf / 2, updates), state

    def odd(updates, state, params=None):
        return jax.tree.map(lambda leaf: -(leaf**3), updates), state

    def broken(updates, state, params=None):
        raise RuntimeError("not today")

    for update, words in (
        (Halving(), "SGD with learning rate 0.5"),
        (odd, f"your own `test_optimizers_of_the_users_own` ({__name__})"),
        (broken, f"your own `test_optimizers_of_the_users_own` ({__name__})"),
    ):
        own = optax.GradientTransformation(lambda params: (), update)
        assert read_optimizer(own).words == words
    signed = fl.made(my_optimizer)(optax.sgd(0.5), 3)
    assert read_optimizer(signed).words == (
        f"your own `my_optimizer` ({__name__}) with times 3 around (SGD with learning rate 0.5)"
    )


def my_optimizer(inner, times):
    return optax.GradientTransformation(inner.init, lambda g, s, p=None: inner.update(g, s, p))


def test_an_optimizer_for_another_model_is_told_by_its_kind_only():
    """Masks and labels that do not fit a model of two numbers: nothing can be tried."""
    masked = optax.masked(optax.sgd(0.5), {"head": True, "body": False})
    assert read_optimizer(masked).words == "an optax transformation"
    labelled = optax.partition({"a": optax.sgd(0.5), "b": optax.adam(0.1)}, lambda params: "a")
    assert read_optimizer(labelled).words == "optax.partition by the labels a, b"


def test_a_mask_is_said_and_what_it_hides_is_not_guessed():
    hidden = optax.masked(optax.sgd(0.5), lambda params: jax.tree.map(lambda x: x.ndim > 1, params))
    shown = optax.masked(optax.sgd(0.5), True)
    for optimizer, words in (
        (hidden, "the gradient as it is"),
        (shown, "SGD with learning rate 0.5"),
    ):
        told = read_optimizer(optimizer).words
        assert told == f"{words} (it has a mask; so it treats a single leaf of two numbers)"
    assert read_optimizer(optax.identity()).words == "the gradient as it is"
    assert not read_optimizer(shown).plain  # not of all leaves: it names no method


def test_what_may_change_later_is_not_called_what_it_does_first():
    def late(updates, state, params=None):
        return jax.tree.map(lambda leaf: -leaf * jnp.where(state < 9, 0.5, 0.0), updates), state + 1

    counting = optax.GradientTransformation(lambda params: jnp.int32(0), late)
    assert read_optimizer(counting).words.startswith("your own `test_what_may_change_later")
    finite = optax.apply_if_finite(optax.sgd(0.5), 3)
    assert read_optimizer(finite).words == "an optax transformation with ApplyIfFiniteState"
    several = fl.fedavg(
        loss, optax.sgd(0.25), plan=PLAN, sampler=fl.uniform(4),
        server_optimizer=optax.MultiSteps(optax.sgd(1.0), 2),
    )  # fmt: skip
    assert "Server: an optax transformation with MultiStepsState on the aggregate" in text_of(
        several
    )
