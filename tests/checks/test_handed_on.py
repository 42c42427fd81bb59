"""What is handed on to an inner function is refused under the name that the caller knows it by."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen

import fedjax_lite as fl
from fedjax_lite.checks.about import about

EXAMPLES = {"x": np.linspace(-1, 1, 24, dtype=np.float32).reshape(6, 4), "y": np.arange(6) % 3}
DATA = fl.data.from_arrays(EXAMPLES, [0, 0, 1, 1, 2, 2])
MODEL = fl.models.linear(3, (4,))
PARAMS = MODEL.init(jax.random.key(0))
MATRIX = np.ones((2, 5), np.float32)
ALGO = fl.fedavg(MODEL.loss, optax.sgd(0.1), plan=fl.Plan(2), sampler=fl.everyone())


def attack(**changed):
    given = {"params": PARAMS, "members": EXAMPLES, "non_members": EXAMPLES, **changed}
    return fl.attacks.membership.membership_inference(MODEL.loss, **given)


def train(broadcasts=None, ids=(0, 1), round=0):
    start = jax.tree.map(lambda leaf: jnp.stack([leaf] * 2), PARAMS)
    broadcasts = start if broadcasts is None else broadcasts
    rows, key = fl.engine.Table((), ()), jax.random.key(0)
    return fl.engine.train_clients(
        ALGO.slots, key, broadcasts, rows, jnp.asarray(ids), jnp.int32(round), DATA
    )


def budgets(*epsilons):
    settings = {"num_clients": 6, "delta": 1e-5, "num_rounds": 2, "sampling_rate": 0.5}
    return fl.privacy.calibrate(epsilons, fl.privacy.central_gaussian, clip=1.0, **settings)


@pytest.mark.parametrize(
    ("call", "names"),
    [
        (lambda: attack(members=MATRIX), ["members", "examples"]),
        (lambda: attack(non_members=MATRIX), ["non_members", "examples"]),
        (lambda: attack(references=[MATRIX, MATRIX]), ["references", "params"]),
        (lambda: fl.side_by_side(MODEL, {"mine": MATRIX}, DATA), ["models['mine']", "params"]),
        (
            lambda: fl.fisher_information(fl.empirical_fisher(MODEL.loss), MATRIX, DATA),
            ["state", "params"],
        ),
        (
            lambda: fl.uncertainty.ensemble_scores(MODEL, MATRIX, EXAMPLES),
            ["members", "params"],
        ),
        (lambda: train(MATRIX), ["broadcasts", "params"]),
        (lambda: fl.matching.matched_average(MATRIX), ["models", "params"]),
        (lambda: budgets(1.0, np.nan), ["epsilons", "epsilon"]),
        (
            lambda: fl.models.from_linen(linen.Dense(3), np.ones((1, 4), np.int32)),
            ["example_x", "x"],
        ),
    ],
)
def test_the_callers_name_and_what_was_given_come_first(call, names):
    theirs, inner = names
    with pytest.raises((TypeError, ValueError)) as caught:
        call()
    told = str(caught.value)
    assert told.startswith(f"{theirs} cannot be used, got a"), told
    assert f": {inner} " in told


def test_what_the_caller_knows_by_that_name_stays_as_it_is():
    """Both sets of examples are right, so that nothing is said of them where the model is wrong."""
    with pytest.raises(ValueError, match=r"^params belong to another model.*bias") as caught:
        attack(params={"w": jnp.ones(3)})
    assert "members cannot" not in str(caught.value)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ValueError("inner is wrong"), "outer cannot be used, got 3: inner is wrong"),
        (ValueError("outer and inner differ"), "outer and inner differ"),
        (ValueError("inners differ"), "inners differ"),
        (OSError("inner is away"), "inner is away"),
    ],
)
def test_only_errors_of_that_argument_are_changed(error, message):
    with pytest.raises(type(error)) as caught, about("outer", 3, word="inner"):
        raise error
    assert str(caught.value) == message


def test_a_part_of_a_machines_own_data_is_named(tmp_path):
    loss = lambda w, e, key: 0.5 * (w - e["b"]) ** 2  # noqa: E731
    algo = fl.fedavg(loss, optax.sgd(0.1), plan=fl.Plan(1), sampler=fl.everyone())
    key, start, own = jax.random.key(0), jnp.float32(0), {"b": np.ones(3, np.float32)}
    with pytest.raises(ValueError, match=r"^splits\['a'\] cannot be used, got 1: examples must"):
        fl.deploy.node(algo, key, start, own, client_id=0, folder=tmp_path, splits={"a": 1})


def test_clients_of_no_number_and_rounds_before_the_first():
    with pytest.raises(TypeError, match=r"ids must hold integers, got float32\[2\]"):
        train(ids=(jnp.nan, 1.0))
    with pytest.raises(ValueError, match="round must not be negative, got -3"):
        train(round=-3)
    assert train(ids=(1, 1)).messages.weight.tolist() == [2, 2]  # two examples each


def test_true_in_place_of_an_array_is_shown():
    key = jax.random.key(0)
    with pytest.raises(ValueError, match=r"\(values=True was given\)"):
        fl.summarize_clients(True, np.ones(6, int))
    with pytest.raises(ValueError, match=r"\((fisher|optimum)=True was given\)"):
        fl.remember(fl.no_old_tasks(PARAMS), True, PARAMS)
    with pytest.raises(ValueError, match=r"output_dir=None \(resume=True was given\)"):
        fl.run(ALGO, key, ALGO.init(key, PARAMS, DATA), DATA, num_rounds=1, resume=True)
