"""A population that aggregates securely, and its parts, for the tests of it."""

import functools
import secrets

import jax
import jax.numpy as jnp
import numpy as np
import optax
from federations import EVERYONE, KEY, PLAN, SIZES, loss, population, start

import fedjax_lite as fl
from fedjax_lite.deploy import SecureSettings, decode, in_process, node, secure_server

N = len(SIZES)
SECURE = SecureSettings(threshold=3)


def mean(**options):
    return fl.secure_mean(max_abs=2.0, bits=12, exact_zero=True, **options)


def fedavg(**slots):
    return fl.fedavg(loss, optax.sgd(0.1), plan=PLAN, **slots)


# Cached, as programs belong to an algorithm and a server: tests and files share them.
@functools.cache
def everyones():
    """The mean of everybody's updates."""
    return fedavg(sampler=EVERYONE, aggregator=mean())


@functools.cache
def _hub_of(algo):
    return secure_server(algo, KEY, start(), num_clients=N, secure=SECURE)


def hub_of(algo, secure=SECURE):
    """A server: it has no state of its own."""
    if secure is SECURE:
        return _hub_of(algo)
    return secure_server(algo, KEY, start(), num_clients=N, secure=secure)


def nodes_of(algo, folder, secure=SECURE, identities=None):
    identities = dict.fromkeys(range(N)) if identities is None else identities
    options = {"folder": folder, "secure": secure}
    return {
        i: node(algo, KEY, start(), part, client_id=i, identity=identities[i], **options)
        for i, part in enumerate(population()[0])
    }


def anew(algo, folder, secure=SECURE, identities=None):
    """Clients of which every message is answered by a node that was just made."""
    parts, _ = population()
    identities = dict.fromkeys(range(N)) if identities is None else identities

    def one(i):
        def answer(request):
            made = node(
                *(algo, KEY, start(), parts[i]),
                client_id=i, folder=folder, secure=secure, identity=identities[i],
                keep_session=True,
            )  # fmt: skip
            return made(request)

        return answer

    return {i: one(i) for i in range(N)}


def dropping(answers, drops):
    """An exchange in which clients are gone from a phase on."""

    def exchange(requests):
        phase = decode(next(iter(requests.values()))).kind
        order = ("advertise", "share", "mask", "confirm", "unmask")
        there = {
            i: answer
            for i, answer in answers.items()
            if i not in drops or order.index(phase) < order.index(drops[i])
        }
        return in_process(there)(requests)

    return exchange


def begun(hub, answers):
    return hub.init(hub.told(in_process(answers)(dict.fromkeys(range(N), hub.hello()))))


def new_run(served):
    """The same state in a run of another name, of which clients know no round."""
    return served._replace(run=jnp.asarray(np.frombuffer(secrets.token_bytes(16), np.uint8)))


def same_bytes(left, right):
    for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()
