"""check() sees models of the clients' own, and clients that read the padding of short batches."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_lite as fl
from fedjax_lite import trees, verify
from fedjax_lite.verify import limits
from fedjax_lite.verify.testbeds import ETA, A, B, P, averaging, fixed, shrink

LAM = 0.5
FEDAVG = fixed(shrink(5))


def by_name(found):
    return {record.check: record for record in found}


class Own(NamedTuple):
    """A row of the client's own model."""

    params: Any

    def own_model(self, server_model):
        return self.params


class Carry(NamedTuple):
    shared: Any
    own: Any
    info: Any


def gradient(loss, params, batch, masked=True):
    def mean(params):
        each = loss(params, batch.examples, batch.key)
        return (each * batch.mask).sum() / batch.mask.sum() if masked else each.mean()

    return jax.grad(mean)(params)


def ditto(pull=lambda own, server, start: own - server, keep=True, masked=True):
    """FedAvg, and beside it models that each client keeps, pulled to the server's."""

    def factory(loss, rate, **slots):
        def start(key, row, broadcast, info):
            return Carry(broadcast, row.params, info)

        def step(broadcast, carry, batch):
            descend = lambda y, *g: y - rate * sum(g)  # noqa: E731
            own = jax.tree.map(
                lambda v, g, x: v - rate * (g + LAM * pull(v, x, 0.0)),
                carry.own, gradient(loss, carry.own, batch, masked), broadcast,
            )  # fmt: skip
            shared = jax.tree.map(descend, carry.shared, gradient(loss, carry.shared, batch))
            return Carry(shared, own, carry.info)

        def finish(broadcast, carry):
            weight = fl.aggregation.weight_by("examples")(carry.info)
            row = Own(carry.own if keep else jax.tree.map(jnp.zeros_like, carry.own))
            return row, fl.Message(trees.subtract(broadcast, carry.shared), weight), {}

        return fl.federated_algorithm(
            fl.ClientUpdate(Own, start, step, finish),
            server=fl.optimizer_server(optax.sgd(1.0)), **slots,
        )  # fmt: skip

    return factory


def local_only(loss, rate, **slots):
    return fl.local_only(loss, optax.sgd(rate), **slots)


def test_training_alone_ends_in_each_clients_optimum():
    found = by_name(verify.check(local_only, laws=[]))
    assert not any(record.verdict == "FAIL" for record in found.values())
    for client in (1, 2):
        assert found[f"client {client}'s model = descent on its own data"].got == "holds"
        for label in ("K=5", "K=(20,2)"):
            point = found[f"{label}: client {client}'s model: nearest known point"]
            assert point.got == "its own optimum"
    assert found["one client = gradient descent"].got == "holds"
    assert "trains none" in found["K=5: the server's model"].got
    assert "K=5: limit" not in found


@pytest.mark.sample(1)
@pytest.mark.parametrize(
    ("pull", "pulled", "lams"),
    [
        # a (v - b) + lam (v - x) = 0
        (lambda v, x, start: v - x, (A * B + LAM * FEDAVG) / (A + LAM), (LAM, LAM)),
        (lambda v, x, start: x - v, (A * B - LAM * FEDAVG) / (A - LAM), (-LAM, -LAM)),
        (lambda v, x, start: v - start, A * B / (A + LAM), None),
    ],
    ids=["right", "sign turned", "pulled to the start"],
)
def test_models_that_are_pulled_to_the_servers(pull, pulled, lams):
    found = by_name(verify.check(ditto(pull), laws=[]))
    assert not any(record.verdict == "FAIL" for record in found.values())
    assert found["K=5: nearest known point"].got == "FedAvg's fixed point"
    for i, expected in enumerate(pulled):
        record = found[f"K=5: client {i + 1}'s model: limit"]
        assert abs(record.error - abs(expected - B[i])) < 1e-8
        assert abs(float(record.got) - expected) < 1e-8
    record = found["K=5: pull to the server, lam of each"]
    got = np.array([float(lam) for lam in record.got.strip("()").split(",")])
    implied = A * (B - pulled) / (pulled - FEDAVG)
    np.testing.assert_allclose(got, implied if lams is None else lams, atol=1e-6)
    assert (record.error > 0.1) == (lams is None)


def test_a_model_that_is_not_kept_fails():
    failed = [r for r in verify.check(ditto(keep=False), laws=[]) if r.verdict == "FAIL"]
    assert {record.check for record in failed} == {
        f"{label}: client {client}'s model: limit" for label in ("K=5", "K=(20,2)")
        for client in (1, 2)
    }  # fmt: skip
    assert all("never left 0" in record.got for record in failed)


def ignores_the_mask(loss, rate, **slots):
    def start(key, row, broadcast, info):
        return Carry(broadcast, (), info)

    def step(broadcast, carry, batch):
        down = gradient(loss, carry.shared, batch, masked=False)
        return carry._replace(shared=jax.tree.map(lambda y, g: y - rate * g, carry.shared, down))

    def finish(broadcast, carry):
        weight = fl.aggregation.weight_by("examples")(carry.info)
        return (), fl.Message(trees.subtract(broadcast, carry.shared), weight), {}

    return fl.federated_algorithm(
        fl.ClientUpdate(lambda params: (), start, step, finish),
        server=fl.optimizer_server(optax.sgd(1.0)), **slots,
    )  # fmt: skip


def with_padding(value, num_rounds):
    """FedAvg on (20, 2) steps of batches of 7 whose padding, read as examples, is `value`."""
    x, models = 0.0, []
    for _ in range(num_rounds):
        y = np.full(2, x)
        for i, (epochs, full, rest) in enumerate([(4, 4, 2), (1, 1, 3)]):
            for real in ([7] * full + [rest]) * epochs:
                slope = real * A[i] * (y[i] - B[i]) + (7 - real) * value * (y[i] - value)
                y[i] -= ETA * slope / 7
        x = float(P @ y)
        models.append(x)
    return np.array(models)


def test_a_leaf_that_stays_with_the_client():
    def fedper(loss, rate, **slots):
        return fl.algorithms.local_leaves(
            fl.local_sgd(loss, optax.sgd(rate)),
            is_local=lambda params: {"w": False, "b": True},
            server=fl.optimizer_server(optax.sgd(1.0)), **slots,
        )  # fmt: skip

    found = by_name(verify.check(fedper, laws=["structure_is_stable"]))
    assert not any(record.verdict == "FAIL" for record in found.values())
    assert found["leaf w: = FedAvg, example weights"].got == "holds"
    assert found["leaf w: K=(20,2): nearest known point"].got == "FedAvg's fixed point"
    assert "leaf w: K=5: client 1's model: limit" not in found
    for client in (1, 2):
        point = found[f"leaf b: K=5: client {client}'s model: nearest known point"]
        assert point.got == "its own optimum"
        assert found[f"leaf b: client {client}'s model = descent on its own data"].got == "holds"


def test_a_client_that_ignores_the_mask_fails():
    with jax.enable_x64(True):
        (padding,) = limits.by_epochs("mine", ignores_the_mask, None)
    assert padding.verdict == "FAIL"
    assert "the server's model" in padding.got
    assert "batch.mask is ignored" in padding.got
    apart = [with_padding(value, limits.EPOCHS_ROUNDS) for value in limits.PADDING]
    assert abs(padding.error - np.abs(apart[0] - apart[1]).max()) < 1e-9


def test_one_that_ignores_it_for_its_own_model_alone_fails():
    with jax.enable_x64(True):
        (padding,) = limits.by_epochs("mine", ditto(masked=False), None)
    assert padding.verdict == "FAIL"
    assert "client 1's model depends" in padding.got or "client 2's model depends" in padding.got


def test_epochs_are_steps_where_all_examples_are_alike():
    def fedavg(loss, rate, **slots):
        return fl.fedavg(loss, optax.sgd(rate), **slots)

    expected = np.array(averaging(limits.EPOCHS_ROUNDS, steps=(20, 2)))
    path = limits.Path(expected, np.stack([expected] * 2, 1), np.full(len(expected), True))
    with jax.enable_x64(True):
        padding, steps = limits.by_epochs("mine", fedavg, path)
    assert (padding.verdict, padding.error < 1e-12) == ("PASS", True)
    assert (steps.got, steps.error < 1e-12) == ("holds", True)


def test_rows_that_overflow_beside_sound_models_fail():
    sound, good = np.full(20, 0.5), np.arange(20) < 7
    found = limits.limits("mine", "K=5", limits.Path(sound, np.stack([sound] * 2, 1), good), (5, 5))
    (failed,) = [record for record in found if record.verdict == "FAIL"]
    assert failed.got == "not finite from round 8 on"
