"""Replies that are well-formed and lie: metrics, flags, weights, sizes."""

import functools

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from federations import (
    EVERYONE,
    KEY,
    PLAN,
    SIZES,
    algorithm,
    hub_of,
    loss,
    near,
    nodes_of,
    population,
    start,
)
from test_lost_and_found import encode_named

import fedjax_lite as fl
from fedjax_lite.deploy import (
    FederationAborted,
    decode,
    encode,
    federate,
    in_process,
    server,
    unpack,
)
from fedjax_lite.deploy.packets import PacketError


def altered(reply, path, value):
    """The same reply with other numbers in one place."""
    packet = decode(reply)
    shapes = {path: jnp.zeros(shape, dtype) for path, dtype, shape in packet.leaves}
    numbered = [(f"[{i}]", *leaf[1:]) for i, leaf in enumerate(packet.leaves)]
    found = unpack(packet._replace(leaves=numbered), list(shapes.values()))
    named = dict(zip(shapes, found, strict=True))
    old = np.asarray(named[path])
    named[path] = np.full(old.shape, value, np.uint8 if old.dtype == bool else old.dtype)
    if old.dtype == bool:
        named[path] = named[path].view(bool)
    return encode_named(packet.fields, named)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """``(name) ->`` a server, its state, and what all clients replied, once for all tests."""

    @functools.cache
    def made(name):
        algo = algorithm(name, EVERYONE)
        hub = hub_of(algo)
        exchange = in_process(nodes_of(algo, population()[0], tmp_path_factory.mktemp(name)))
        served = hub.init(hub.told(exchange(dict.fromkeys(range(len(SIZES)), hub.hello()))))
        return hub, served, exchange(hub.requests(served))

    return made


@pytest.mark.parametrize(
    ("name", "path", "value", "why"),
    [
        ("feddyn", "['metrics']['weight']", np.nan, "metric 'weight' that is not finite"),
        ("feddyn", "['metrics']['train_loss'].count", -1.0, "'train_loss' that is no amount"),
        ("feddyn", "['metrics']['train_loss'].total", np.inf, "'train_loss' that is not finite"),
        ("feddyn", "['metrics']['uplink_bits']", -64.0, "'uplink_bits' that is no amount"),
        ("feddyn", "['metrics']['client_steps']", 1e30, "'client_steps' that is no amount"),
        ("feddyn", "['metrics']['client_counted']", 0.0, "counts: True, and says"),
        ("feddyn", "['metrics']['client_counted']", np.nan, "counts: True, and says"),
        ("feddyn", "['counts']", 0, "counts: False, and says"),
        ("feddyn", "['counts']", 254, "neither 0 nor 1"),
        ("private", "['counts']", 0, "counts: False, and says"),
    ],
)
def test_a_lie_is_refused_and_the_others_are_merged(name, path, value, why, world):
    hub, served, replies = world(name)
    who = min(replies)
    merged = hub.merge(served, {**replies, who: altered(replies[who], path, value)})
    ((client, said),) = merged.refusals
    assert client == who
    assert why in said
    absent = hub.merge(served, {i: replies[i] for i in replies if i != who})
    near(merged.served.state.server, absent.served.state.server)


def test_refusals_are_short(world):
    hub, served, replies = world("fedavg")
    long = "x" * 10**6
    packets = [encode(long, {}), encode("refused", {"why": long}), encode("trained", {"run": long})]
    packets.append(encode_named(decode(replies[3]).fields, {long: np.zeros(1)}))
    refusals = hub.merge(served, dict(enumerate(packets))).refusals
    assert len(refusals) == 4
    assert all(len(why) <= 1000 for _, why in refusals)


def test_values_that_no_sum_holds_end_the_run_before_it_is_saved(tmp_path):
    """Several times 3e38 is infinite, whatever it is divided by."""
    algo = algorithm("fedavg", EVERYONE)
    answers = nodes_of(algo, population()[0], tmp_path / "rows")

    def huge(honest):
        def answer(request):
            reply = honest(request)
            if decode(reply).kind != "trained":
                return reply
            return altered(reply, "['message'].value['b']", 3e38)

        return answer

    hub = hub_of(algo)
    lying = {**answers, 0: huge(answers[0]), 1: huge(answers[1])}
    with pytest.raises(FederationAborted, match="model is not finite"):
        federate(hub, in_process(lying), num_rounds=1, folder=tmp_path / "run")
    done = federate(hub, in_process(answers), num_rounds=1, folder=tmp_path / "run")
    data = population()[1]
    near(done.served.state.server, algo.round(KEY, algo.init(KEY, start(), data), data)[0].server)


def test_sizes_that_no_population_has_are_refused():
    algo = fl.fedavg(loss, optax.sgd(0.1), plan=PLAN, sampler=fl.weighted(2))
    hub = server(algo, KEY, start(), num_clients=3)

    def greeting(size, counted):
        return encode("sizes", {"client": 0, "sizes": {"": size}, "counted": counted})

    with pytest.raises(PacketError, match=r"client 1 says 2147483647"):
        hub.told({0: greeting(1, 1), 1: greeting(2**31 - 1, 0)})
    with pytest.raises(PacketError, match="says that 3 of 2 examples count"):
        hub.told({0: greeting(2, 3)})
    told = hub.told({0: greeting(2, 1), 2: greeting(4, 4)})
    assert (told.sizes.tolist(), told.counted.tolist()) == (
        [2, 0, 4],
        [1, 0, 4],
    )
