"""Source of 02_write_an_algorithm.ipynb; `python colab/build.py` makes the notebook."""

# %% [markdown]
# [![Open In Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/fedjax-lite/fedjax_lite/blob/main/colab/02_write_an_algorithm.ipynb)
#
# # Write an algorithm: SCAFFOLD from the paper
#
# You will write SCAFFOLD (Karimireddy et al. 2020, [arXiv:1910.06378](https://arxiv.org/abs/1910.06378))
# in about 30 lines, put it through the laws that every algorithm of the library obeys, learn where
# it converges on a problem with a known answer, compare it with FedAvg, and then plant three bugs
# and see which check finds which.
#
# Time: about 2 minutes on two CPU cores.

# %%
# On Colab this installs fedjax_lite and nothing else: Colab has all that it needs, and its jax
# stays as it is. Elsewhere the cell does nothing.
import sys

if "google.colab" in sys.modules:
    # %pip install -q --no-deps "fedjax_lite @ git+https://github.com/fedjax-lite/fedjax_lite"
    pass

# %%
# %matplotlib inline
import os
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

import fedjax_lite as fl
from fedjax_lite import testing, trees

# %% [markdown]
# ## Settings

# %%
num_rounds_quadratics = 80  # @param {type: "integer"}
num_rounds_digits = 100  # @param {type: "integer"}
num_seeds = 3  # @param {type: "integer"}

SMALL = bool(os.environ.get("FEDJAX_LITE_SMALL"))  # the settings of the automatic tests
laws = None  # all of them
if SMALL:
    num_rounds_quadratics, num_rounds_digits, num_seeds = 60, 10, 1
    laws = ["structure_is_stable", "empty_clients_change_nothing"]

# %% [markdown]
# ## The paper's algorithm
#
# Clients with different data pull local SGD in different directions. SCAFFOLD estimates this
# pull with *control variates*: $c_i$ of each client and $c$ of the server, all zero at first.
# With the model $x$, the client's model $y_i$, $K$ local steps of rate $\eta$, a cohort $S$ out of
# $N$ clients (the paper's option II and server rate 1):
#
# $$y_i \leftarrow y_i - \eta\,(g_i(y_i) - c_i + c) \quad K \text{ times from } y_i = x$$
#
# $$c_i^+ = c_i - c + \frac{x - y_i}{K \eta}$$
#
# $$x \leftarrow x - \frac{1}{|S|} \sum_{i \in S} (x - y_i), \qquad
#   c \leftarrow c + \frac{|S|}{N} \cdot \frac{1}{|S|} \sum_{i \in S} (c_i^+ - c_i)$$
#
# ## In code
#
# A client is four functions of ONE client; the library batches the data, masks the padding, and
# runs many clients side by side.
#
# | function | when | here |
# |---|---|---|
# | `init(params)` | once | the client's row, kept between rounds: $c_i = 0$ |
# | `start(key, row, broadcast, info)` | every round | $y_i = x$ |
# | `step(broadcast, carry, batch)` | every batch | the corrected SGD step |
# | `finish(broadcast, carry)` | every round | the new row, the message, metrics |
#
# A message is what the server minus what the client has, here $x - y_i$ and $c_i^+ - c_i$; the
# aggregator (by default the mean) makes one of them all. The server is three functions: `init`,
# `broadcast` (what clients download: here all that it has) and `update`.


# %%
def scaffold_client(loss, learning_rate):
    gradient = fl.mean_grad(loss)  # of the mean loss over a batch's real examples
    weight = fl.aggregation.weight_by("uniform")  # 1; 0 for a client that does no step

    def start(key, row, server, info):
        return {"y": server.params, "c_i": row, "info": info}

    def step(server, carry, batch):
        _, grad = gradient(carry["y"], batch)
        y = jax.tree.map(
            lambda y, g, c_i, c: y - learning_rate * (g - c_i + c),
            *(carry["y"], grad, carry["c_i"], server.control),
        )
        return {**carry, "y": y}

    def finish(server, carry):
        moved = trees.subtract(server.params, carry["y"])  # x - y_i
        num_steps = carry["info"].num_steps
        work = learning_rate * jnp.maximum(num_steps, 1)
        change = jax.tree.map(  # c_i^+ - c_i; a client without data learns nothing
            lambda m, c: jnp.where(num_steps > 0, m / work - c, 0), moved, server.control
        )
        row = jax.tree.map(jnp.add, carry["c_i"], change)
        return row, fl.Message({"x": moved, "c": change}, weight(carry["info"])), {}

    return fl.ClientUpdate(trees.zeros, start, step, finish)


class ServerState(NamedTuple):
    params: Any  # x
    control: Any  # c
    num_clients: Any  # N


def scaffold_server():
    def update(key, server, mean, cohort, metrics):
        share = cohort.mask.sum() / server.num_clients  # |S| / N, those who really took part
        params = trees.subtract(server.params, mean["x"])
        control = jax.tree.map(lambda c, change: c + share * change, server.control, mean["c"])
        return ServerState(params, control, server.num_clients)

    def init(params, population):  # clients without data never take part
        num_clients = jnp.sum(population.sizes > 0, dtype=jnp.float32)
        return ServerState(params, trees.zeros(params), num_clients)

    return fl.ServerUpdate(init, broadcast=lambda server: server, update=update)


# %% [markdown]
# `federated_algorithm` wires the two with sampler, aggregator, uplink and the rest.


# %%
def scaffold(loss, learning_rate, **slots):
    client = scaffold_client(loss, learning_rate)
    return fl.federated_algorithm(client, server=scaffold_server(), **slots)


# %% [markdown]
# ## Does it obey the laws?
#
# `check_algorithm` runs your algorithm on a tiny problem with all that goes wrong in real ones:
# uneven clients, short batches, a client without data, drop-outs. Among the laws: all execution
# strategies give the same result, who is masked leaves no trace (even with NaN in the data),
# nothing is compiled twice, a restored checkpoint goes on in the same bits. It raises with the name
# of the law that does not hold.


# %%
def make(learning_rate, sampler, strategy):
    return scaffold(
        testing.loss, learning_rate, plan=fl.Plan(batch_size=2), sampler=sampler, strategy=strategy
    )


testing.check_algorithm(make, laws=laws)
print(f"{len(laws or testing.ALGORITHM_LAWS)} laws hold")

# %% [markdown]
# ## What does it compute?
#
# Laws do not know what an algorithm is for. `verify.check` puts it on two quadratic clients with
# different curvatures and optima, where the answers are known: which method it equals after one
# round, and where it goes in the end. FedAvg goes to a point of its own, away from the optimum;
# SCAFFOLD should reach the optimum. As one client has 30 examples and the other has 10, there are
# two optima: 0.714 where clients weigh by their examples, and 1.4 where they weigh alike.


# %%
def show(records, *wanted):
    for record in records:
        if any(word in record.check for word in wanted):
            print(f"{record.check + ':':38} {record.got}")


records = fl.verify.check(scaffold, name="scaffold", laws=[])
show(records, "round 1", "one client", "limit", "nearest")

# %% [markdown]
# It starts as FedAvg (all controls are zero) with uniform weights, and with one client it is
# gradient descent. Its limit is the uniform optimum, as in the paper, whose weights are uniform,
# with 5 steps for everybody and with 20 for one client and 2 for the other.
#
# ## Against FedAvg, heterogeneous quadratics
#
# Ten clients $f_i(x) = \frac{a_i}{2} \lVert x - b_i \rVert^2$, of which four take part in a round.
# The optimum is $\sum a_i b_i / \sum a_i$. FedAvg stays away from it: by drift, because clients
# of high curvature come closer to their own optimum in five local steps, and by the sampling
# of the cohorts. (SCAFFOLD levels off where float32 ends.)

# %%
rng = np.random.default_rng(0)
curvatures, centres = rng.uniform(0.5, 4, 10), rng.normal(0, 3, 10)
pooled = fl.data.quadratics(curvatures, centres)
quadratics = fl.data.from_arrays({"a": pooled["a"], "b": pooled["b"]}, pooled["client"])
optimum = (curvatures * centres).sum() / curvatures.sum()


def distances(algo, num_rounds=num_rounds_quadratics):
    """`|x - optimum|` after every round, and the last state."""
    key = jax.random.key(0)
    state = algo.init(key, jnp.float32(5.0), quadratics)
    state, rows = fl.run(
        *(algo, key, state, quadratics),
        num_rounds=num_rounds,
        evaluate=lambda state: {"distance": abs(float(state.server.params) - optimum)},
        every=1,
        progress=False,
    )
    return np.array([row["distance"] for row in rows]), state


slots = {"plan": fl.Plan(batch_size=1, steps=5), "sampler": fl.uniform(4)}
fedavg = fl.fedavg(fl.data.quadratic_loss, optax.sgd(0.05), weighting="uniform", **slots)
ours, state = distances(scaffold(fl.data.quadratic_loss, 0.05, **slots))
curves = {"FedAvg": distances(fedavg)[0], "SCAFFOLD (ours)": ours}

BLUE, ORANGE, GREEN = "#0072B2", "#D55E00", "#009E73"  # Okabe and Ito's
LOOKS = [{"color": ORANGE, "ls": "--"}, {"color": BLUE, "ls": "-"}, {"color": GREEN, "ls": ":"}]


def draw(ax, curves, **labels):
    for look, (name, (x, y)) in zip(LOOKS, curves.items(), strict=False):
        ax.plot(x, y, lw=1.8, label=name, **look)
    ax.set(**labels)
    ax.legend(frameon=False)
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(axis="y", color="#DDDDDD", lw=0.6)


fig, ax = plt.subplots(figsize=(5.5, 3.6), layout="constrained")
draw(
    ax,
    {name: (np.arange(len(y)), y) for name, y in curves.items()},
    xlabel="Communication round",
    ylabel="Distance to the optimum",
    yscale="log",
)

# %% [markdown]
# ## Against FedAvg, digits by shards
#
# 50 clients with two label shards each, five local passes. Our SCAFFOLD beside the library's own:
# the same cohorts and batches, so the same model up to rounding.

# %%
train, test = fl.data.load("digits")
digits = fl.data.partition(train, fl.data.shards(num_clients=50, shards_per_client=2, seed=0))
model = fl.models.mlp((64,), num_classes=10, input_shape=(8, 8, 1))
slots = {"plan": fl.Plan(batch_size=10, epochs=5), "sampler": fl.uniform(10)}
methods = {
    "FedAvg": fl.fedavg(model.loss, optax.sgd(0.1), weighting="uniform", **slots),
    "SCAFFOLD (ours)": scaffold(model.loss, 0.1, **slots),
    "SCAFFOLD (library)": fl.scaffold(model.loss, 0.1, **slots),
}


def train_model(algo, seed, num_rounds=num_rounds_digits, **options):
    key = jax.random.key(seed)
    state = algo.init(key, model.init(key), digits)
    return fl.run(
        *(algo, key, state, digits),
        num_rounds=num_rounds,
        evaluate=fl.evaluator(model, test),
        every=max(num_rounds // 20, 1),
        **options,
    )


curves = {}
for name in ("FedAvg", "SCAFFOLD (ours)"):
    print(name)
    runs = [train_model(methods[name], seed)[1] for seed in range(num_seeds)]
    scored = [[row for row in rows if "test_accuracy" in row] for rows in runs]
    accuracy = np.array([[row["test_accuracy"] for row in rows] for rows in scored])
    curves[name] = [row["round"] for row in scored[0]], accuracy.mean(0)

fig, ax = plt.subplots(figsize=(5.5, 3.6), layout="constrained")
draw(
    ax,
    curves,
    xlabel="Communication round",
    ylabel="Test accuracy, digits (fraction)",
    title=f"Two label shards a client, seeds averaged: {num_seeds}",
)

# %%
both = [methods["SCAFFOLD (ours)"], methods["SCAFFOLD (library)"]]
states = [train_model(algo, 0, 5, progress=False)[0] for algo in both]
gaps = jax.tree.map(
    lambda a, b: float(jnp.abs(a - b).max()), *(state.server.params for state in states)
)
print(f"largest difference to the library's after 5 rounds: {max(jax.tree.leaves(gaps)):.1e}")

# %% [markdown]
# ## Plant a bug: what finds it?
#
# **Bug 1: the sign of the correction.** The step adds $c_i - c$ where it should take it away. Every
# law still holds: the algorithm is clean, it is only not SCAFFOLD. `verify.check` sees that it
# does not settle in the optimum; it settles nowhere.
#
# We need not write SCAFFOLD again for this: a client is four functions, and we replace one.


# %%
def inspect(factory, *, laws, limit=True):
    """Prints whether the laws hold, and where the algorithm goes on two quadratic clients."""

    def make(learning_rate, sampler, strategy):
        plan = fl.Plan(batch_size=2)
        return factory(testing.loss, learning_rate, plan=plan, sampler=sampler, strategy=strategy)

    try:
        testing.check_algorithm(make, laws=laws)
        print("laws: hold")
    except AssertionError as error:
        print(error)
    if limit:
        show(fl.verify.check(factory, name="planted", laws=[]), "K=5: limit", "K=5: nearest")


def flipped(client):
    def step(server, carry, batch):
        difference = trees.subtract(carry["c_i"], server.control)
        wrong = {**carry, "c_i": trees.subtract(server.control, difference)}
        return {**client.step(server, wrong, batch), "c_i": carry["c_i"]}

    return client._replace(step=step)


def bug_1(loss, learning_rate, **slots):
    client = flipped(scaffold_client(loss, learning_rate))
    return fl.federated_algorithm(client, server=scaffold_server(), **slots)


inspect(bug_1, laws=[] if SMALL else laws)

# %% [markdown]
# **Bug 2: a client without data divides by zero steps.** Its $c_i^+$ is then NaN or wrong, and is
# averaged in with weight 1. On two clients that both have data nothing is wrong; a law finds it.


# %%
def without_guard(client):
    def finish(server, carry):
        row, message, metrics = client.finish(server, carry)
        num_steps = carry["info"].num_steps
        change = jax.tree.map(
            lambda good, c: jnp.where(num_steps > 0, good, -c), message.value["c"], server.control
        )
        weight = jnp.ones_like(message.weight)
        return row, fl.Message({**message.value, "c": change}, weight), metrics

    return client._replace(finish=finish)


def bug_2(loss, learning_rate, **slots):
    client = without_guard(scaffold_client(loss, learning_rate))
    return fl.federated_algorithm(client, server=scaffold_server(), **slots)


inspect(bug_2, laws=["empty_clients_change_nothing"], limit=not SMALL)

# %% [markdown]
# **Bug 3: the factor $|S| / N$ is forgotten.** This one is in published code. With all clients in
# every round the factor is 1, so the two-client problem cannot see it; the laws cannot either,
# and with some of the clients the limit is the optimum all the same. What does see it is what the
# paper says of $c$: after every round $c = \frac1N \sum_i c_i$, whoever took part. An algorithm's
# own invariant is worth a test of its own.


# %%
def unscaled(server):
    def update(key, state, mean, cohort, metrics):
        new = server.update(key, state, mean, cohort, metrics)
        return new._replace(control=jax.tree.map(jnp.add, state.control, mean["c"]))

    return server._replace(update=update)


def bug_3(loss, learning_rate, **slots):
    client, server = scaffold_client(loss, learning_rate), unscaled(scaffold_server())
    return fl.federated_algorithm(client, server=server, **slots)


inspect(bug_3, laws=[] if SMALL else laws, limit=not SMALL)

slots = {"plan": fl.Plan(batch_size=1, steps=5), "sampler": fl.uniform(4)}
curves = {}
for name, factory in {"without |S| / N": bug_3, "SCAFFOLD": scaffold}.items():
    curve, state = distances(factory(fl.data.quadratic_loss, 0.05, **slots))
    curves[name] = np.arange(len(curve)), curve
    _, early = distances(factory(fl.data.quadratic_loss, 0.05, **slots), 3)
    gap = abs(float(early.server.control) - float(early.clients.mean()))
    print(f"{name}: |c - mean of c_i| after 3 rounds: {gap:.2g}")

fig, ax = plt.subplots(figsize=(5.5, 3.6), layout="constrained")
draw(
    ax,
    curves,
    xlabel="Communication round",
    ylabel="Distance to the optimum",
    yscale="log",
    title="4 of 10 clients a round",
)

# %% [markdown]
# ## Into the library, or a package of your own
#
# The library's SCAFFOLD ([source](https://github.com/fedjax-lite/fedjax_lite/blob/main/fedjax_lite/algorithms/scaffold.py))
# is the same with option I, schedules, other weights, and checks of its arguments.
# [CONTRIBUTING.md](https://github.com/fedjax-lite/fedjax_lite/blob/main/CONTRIBUTING.md) says how
# to add a method: one file, one line in the registry, the laws, and an answer known in advance.
