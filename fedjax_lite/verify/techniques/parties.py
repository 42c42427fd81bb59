"""Vertical and split learning: six people in two tables, a network of two layers, in numpy."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fedjax_lite.data.population.dataset import from_arrays
from fedjax_lite.engine.batches import Plan
from fedjax_lite.parties.columns import from_columns
from fedjax_lite.parties.cut import cut_layers
from fedjax_lite.parties.model import Part
from fedjax_lite.parties.regression import regression
from fedjax_lite.parties.split import split_learning, splitfed
from fedjax_lite.parties.vertical import fedbcd, vertical_sgd
from fedjax_lite.parties.wiretap import wiretap
from fedjax_lite.round.sampling import everyone
from fedjax_lite.transforms.top_k import top_k
from fedjax_lite.verify.records import Check

XA = np.cos(np.outer(np.arange(6), np.arange(2)) + 1)
XB = np.sin(np.arange(6)[:, None] + 2 * np.arange(2)[None] + 0.5)
Y = np.array([0, 1, 0, 1, 1, 0.0])
RATE, ROUNDS = 0.5, 10
W1, W2 = np.cos(np.arange(6.0).reshape(2, 3)), np.sin(np.arange(3.0)[:, None] + 1)
SIZES = (4, 2)
"""Examples of two clients of the cut network: the first four of the six, the last two."""


def sigmoid(z: Any) -> Any:
    """``1 / (1 + exp(-z))``."""
    return 1 / (1 + np.exp(-z))


def pooled(kind: str) -> np.ndarray:
    """Coefficients `[4]` after gradient descent on the table in one place."""
    table, w = np.c_[XA, XB], np.zeros(4)
    link = {"linear": lambda z: z, "logistic": sigmoid, "poisson": np.exp, "cox": None}[kind]
    for _ in range(ROUNDS):
        z = table @ w
        # Of Cox with times 0, 1, .. everybody from an event on is at risk.
        residual = _cox(z) if link is None else link(z) - Y
        w = w - RATE * table.T @ residual / 6
    return w


def _cox(z: np.ndarray) -> np.ndarray:
    """Derivatives of the negative log partial likelihood, times 0 to 5, events `Y`."""
    found = np.zeros(6)
    for i in np.flatnonzero(Y):
        found[i:] += np.exp(z[i:]) / np.exp(z[i:]).sum()
        found[i] -= 1
    return found


def stale(steps: int) -> np.ndarray:
    """FedBCD: `a` repeats its residuals, `b`, who has labels, sees its own part fresh."""
    a, b = np.zeros(2), np.zeros(2)
    for _ in range(ROUNDS):
        sent = XA @ a
        residual = sigmoid(sent + XB @ b) - Y
        a = a - steps * RATE * XA.T @ residual / 6
        for _ in range(steps):
            b = b - RATE * XB.T @ (sigmoid(sent + XB @ b) - Y) / 6
    return np.r_[a, b]


def columns(kind: str) -> Any:
    """The two tables; labels at `b`."""
    y = {"time": np.arange(6.0), "event": Y} if kind == "cox" else Y
    return from_columns({"a": XA, "b": XB}, {"b": y})


def trained(kind: Any = "logistic", *, local_steps: int = 0, **wires: Any) -> tuple[Any, Any]:
    """Coefficients `[4]` and the last round's metrics."""
    data = columns(kind)
    model = regression(kind, data, intercept=False)
    plan = Plan(batch_size=None)
    if local_steps:
        algo = fedbcd(model, optax.sgd(RATE), plan=plan, local_steps=local_steps, **wires)
    else:
        algo = vertical_sgd(model, optax.sgd(RATE), plan=plan, **wires)
    key = jax.random.key(0)
    state, metrics = algo.init(key, None, data), {}
    for _ in range(ROUNDS):
        state, metrics = algo.round(key, state, data)
    bottoms = state.server.params.bottoms
    return np.r_[bottoms["a"], bottoms["b"]], metrics


def stepped(w1: np.ndarray, w2: np.ndarray, rows: slice) -> tuple[np.ndarray, np.ndarray]:
    """One step on ``mean (tanh(x w1) w2 - y)^2 / 2`` by the chain rule."""
    x, y = XA[rows], Y[rows]
    h = np.tanh(x @ w1)
    gradient = ((h @ w2)[:, 0] - y)[:, None] / len(y)
    below = (gradient @ w2.T) * (1 - h**2)
    return w1 - RATE * x.T @ below, w2 - RATE * h.T @ gradient


FIRST, SECOND, ALL = slice(0, 4), slice(4, 6), slice(0, 6)


def flat(*weights: np.ndarray) -> np.ndarray:
    """Both layers as one vector `[9]`."""
    return np.concatenate([np.ravel(w) for w in weights])


def side_by_side() -> np.ndarray:
    """SplitFed 1: both halves are averaged by examples."""
    one, other = stepped(W1, W2, FIRST), stepped(W1, W2, SECOND)
    return flat(*((4 * a + 2 * b) / 6 for a, b in zip(one, other, strict=True)))


def handed_on(orders: Any = ((FIRST, SECOND), (SECOND, FIRST))) -> list[np.ndarray]:
    """Split learning in either order."""
    return [flat(*stepped(*stepped(W1, W2, a), b)) for a, b in orders]


def one_server(orders: Any = ((FIRST, SECOND), (SECOND, FIRST))) -> list[np.ndarray]:
    """SplitFed 2 in either order: one server's half, an average of the clients'."""
    found = []
    for a, b in orders:
        first, server = stepped(W1, W2, a)
        second, server = stepped(W1, server, b)
        weights = (4, 2) if a == FIRST else (2, 4)
        found.append(flat((weights[0] * first + weights[1] * second) / 6, server))
    return found


def cut(at: Any = 1) -> Any:
    """The network of two layers, or of three whose last does nothing."""

    def layer(shape: tuple[int, ...], squash: Any) -> Part:
        return Part(lambda key: jnp.ones(shape), lambda w, x, key: squash(x @ w))

    layers = [layer((2, 3), jnp.tanh), layer((3, 1), lambda z: z)]
    if at != 1:
        layers.append(Part(lambda key: jnp.zeros(1), lambda b, x, key: x + b))
    return cut_layers(layers, at=at, loss=lambda outputs, y: 0.5 * (outputs[:, 0] - y) ** 2)


def network(factory: Any, at: Any = 1, *, clients: Any = SIZES, **options: Any) -> Any:
    """The state and metrics of a round; each client takes one step on all that it has."""
    model, key = cut(at), jax.random.key(0)
    owners = np.repeat(np.arange(len(clients)), clients)
    data = from_arrays({"x": XA, "y": Y}, owners, num_clients=len(clients))
    plan = Plan(batch_size=None)
    algo = factory(model, optax.sgd(RATE), plan=plan, sampler=everyone(), **options)
    params = (jnp.asarray(W1), jnp.asarray(W2), *([jnp.zeros(1)] if at != 1 else []))
    return algo.round(key, algo.init(key, params, data), data)


def weights(factory: Any, at: Any = 1, **options: Any) -> np.ndarray:
    """The two layers after a round, `[9]`."""
    return flat(*map(np.asarray, network(factory, at, **options)[0].server.params[:2]))


def nearest(found: np.ndarray, candidates: list[np.ndarray]) -> float:
    """The distance to the nearer of the possible orders."""
    return min(float(np.abs(found - one).max()) for one in candidates)


def bits(factory: Any, at: Any = 1, **options: Any) -> list[float]:
    """What a round sends up and down."""
    metrics = network(factory, at, **options)[1]
    return [float(metrics["uplink_bits"]), float(metrics["downlink_bits"])]


def vertical_bits(**wires: Any) -> list[float]:
    """Of the regression."""
    metrics = trained(**wires)[1]
    return [float(metrics["uplink_bits"]), float(metrics["downlink_bits"])]


def returned() -> np.ndarray:
    """The residuals that `a` gets back in the first exchange."""
    data = columns("logistic")
    model, key = regression("logistic", data, intercept=False), jax.random.key(0)
    return np.asarray(wiretap(model, model.init(key), data, key=key).gradients["a"])


def checks() -> list[Check]:
    """Regressions are those of the pooled table; cut networks those of the chain rule; bits."""
    logistic = functools.cache(lambda: trained()[0])
    published = (-0.0103170706, -0.3516276171, -0.3125278737, -0.3895262389)
    kinds: tuple[Any, ...] = ("linear", "logistic", "poisson", "cox")
    labels, half = 64 * 6, 64 * 2 * 3
    crossing, small = 64 * 3 * 6, 64 * 1 * 6
    one, u = {"clients": (6,)}, (1, 2)
    return [
        *(
            Check(f"{kind} over columns = the pooled table", pooled(kind),
                  functools.partial(lambda kind: trained(kind)[0], kind))
            for kind in kinds
        ),
        Check("logistic, published coefficients", published, logistic, 1e-9),
        Check("FedBCD, three steps an exchange", stale(3), lambda: trained(local_steps=3)[0]),
        Check("FedBCD with one step = vertical SGD", pooled("logistic"),
              lambda: trained(local_steps=1)[0]),
        Check("residuals on the wire", (0.5 - Y) / 6, returned),
        Check("bits: a number a person, up and down", [64 * 6, 64 * 6], vertical_bits, 0.0),
        Check("bits: the largest residual only", [64 * 6, 64 + 3],
              lambda: vertical_bits(downlink=top_k(1)), 0.0),
        Check("SplitFed 1 = FedAvg by the chain rule", side_by_side(), lambda: weights(splitfed)),
        Check("SplitFed 1, labels stay", side_by_side(), lambda: weights(splitfed, u)),
        Check("split learning in turn, in one of two orders", 0.0,
              lambda: nearest(weights(split_learning), handed_on())),
        Check("SplitFed 2, in one of two orders", 0.0,
              lambda: nearest(weights(splitfed, version=2), one_server())),
        Check("one client, in turn, labels stay", flat(*stepped(W1, W2, ALL)),
              lambda: weights(split_learning, u, **one)),
        Check("bits of a cut: activations, labels, halves", [crossing + labels + 2 * half,
              crossing + 2 * half], lambda: bits(splitfed), 0.0),
        Check("bits in turn: the same", [crossing + labels + 2 * half, crossing + 2 * half],
              lambda: bits(split_learning), 0.0),
        Check("bits of a U: no labels, both ways twice",
              [crossing + small + 2 * (half + 64), crossing + small + 2 * (half + 64)],
              lambda: bits(split_learning, u), 0.0),
    ]  # fmt: skip
