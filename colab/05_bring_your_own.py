"""Source of 05_bring_your_own.ipynb; `python colab/build.py` makes the notebook."""

# %% [markdown]
# [![Open In Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/fedjax-lite/fedjax_lite/blob/main/colab/05_bring_your_own.ipynb)
#
# # Bring your own data, model, loss, sampler, aggregator
#
# You will turn arrays and columns of a table into federated data, train models of flax (nnx and
# linen), haiku, equinox and plain functions through the same call, write a loss of your own, read
# prepared TFDS data, and write a sampler and an aggregator.
#
# Time: less than a minute on two CPU cores. Once the cells down to "Flax nnx" have run, each of the
# others can be run on its own.

# %%
# On Colab this installs fedjax_lite and nothing else: its jax stays as it is. Elsewhere the cell
# does nothing.
import sys

if "google.colab" in sys.modules:
    # %pip install -q --no-deps "fedjax_lite @ git+https://github.com/fedjax-lite/fedjax_lite"
    pass

# %%
# Only the cells on haiku, equinox and TFDS need these, and say so where they are missing:
# # %pip install -q --no-deps dm-haiku jmp tabulate equinox jaxtyping wadler-lindig
# # %pip install -q --no-deps tensorflow-datasets array-record

# %%
# %matplotlib inline
import os

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from IPython.display import display

import fedjax_lite as fl
from fedjax_lite import report

fl.use_cores()  # without an accelerator: each core trains clients of its own

# %% [markdown]
# ## Settings

# %%
num_rounds = 40  # @param {type: "integer"}
learning_rate = 0.1  # @param {type: "number"}
cohort_size = 5  # @param {type: "integer"}
tfds_name = ""  # @param {type: "string"}

SMALL = bool(os.environ.get("FEDJAX_LITE_SMALL"))  # the settings of the automatic tests
if SMALL:
    num_rounds = 6

# %% [markdown]
# ## Your arrays
#
# `from_arrays` takes a dict of arrays with one row an example, and the owner of each row: any keys
# that can be sorted, such as names of hospitals or writers. Use `"x"` and `"y"` for inputs and
# integer labels, unless the loss is your own (below). Images are `[E, height, width, channels]`;
# keep them as uint8 if they are: they take a quarter of the memory, and models scale them.
#
# Here the arrays are scikit-learn's digits, and 20 imaginary writers prefer some digits to others.

# %%
train, test = fl.data.load("digits")
x, y = train["x"], train["y"]  # float32 [1437, 8, 8, 1] in [0, 1], int32 [1437]

rng = np.random.default_rng(0)
taste = rng.dirichlet(np.full(20, 0.5), size=10)  # of each digit, how it is spread over writers
writers = np.array([f"writer-{rng.choice(20, p=taste[label]):02d}" for label in y])

data = fl.data.from_arrays({"x": x, "y": y}, writers)
print(f"{data.num_examples} examples on {data.num_clients} clients, sizes {data.sizes.tolist()}")
display(report.plot_partition(fl.data.label_counts(data, 10), dataset="digits by writer"))

# %% [markdown]
# One `train_model` for all that follows. It keeps the histories, for a figure at the end.

# %%
histories = {}


def train_model(name, model, data=data, evaluate=None, learning_rate=learning_rate, **slots):
    slots = {"sampler": fl.uniform(cohort_size), **slots}
    algo = fl.fedavg(
        model.loss, optax.sgd(learning_rate), plan=fl.Plan(batch_size=20, epochs=2), **slots
    )
    key = jax.random.key(0)
    _, histories[name] = fl.run(
        *(algo, key, algo.init(key, model.init(key), data), data),
        num_rounds=num_rounds,
        evaluate=evaluate or fl.evaluator(model, test),
        every=num_rounds,
    )


# %% [markdown]
# ## Flax nnx
#
# Give a function that makes the module from its random streams. Dropout draws from a key of its
# own for every batch. A module with BatchNorm needs a decision, `statistics=`; see the help of
# `fl.models.from_nnx`.

# %%
from flax import nnx


class Net(nnx.Module):
    def __init__(self, rngs):
        self.hidden = nnx.Linear(64, 64, rngs=rngs)
        self.dropout = nnx.Dropout(0.1, rngs=rngs)
        self.logits = nnx.Linear(64, 10, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.hidden(x.reshape(len(x), -1)))
        return self.logits(self.dropout(x))


train_model("flax nnx", fl.models.from_nnx(lambda rngs: Net(rngs)))

# %% [markdown]
# ## Flax linen
#
# An argument `train` (or `training`, `deterministic`, ...) of `__call__` is found and set.

# %%
from flax import linen as nn


class LinenNet(nn.Module):
    @nn.compact
    def __call__(self, x, train: bool):
        x = nn.relu(nn.Dense(64)(x.reshape(len(x), -1)))
        x = nn.Dropout(0.1, deterministic=not train)(x)
        return nn.Dense(10)(x)


train_model("flax linen", fl.models.from_linen(LinenNet(), x[:1]))

# %% [markdown]
# ## Haiku
#
# Anything with an `init` and an `apply` goes through `from_functions`. Key None means evaluation,
# without dropout.

# %%
try:
    import haiku as hk
except ImportError as error:
    print(f"skipped: {error}; see the second cell")
else:

    def forward(x, training):
        key = hk.next_rng_key() if training else None
        mlp = hk.nets.MLP([64, 10])
        return mlp(hk.Flatten()(x), dropout_rate=0.1 if training else None, rng=key)

    net = hk.transform(forward)
    haiku_model = fl.models.from_functions(
        lambda key: net.init(key, x[:1], False),
        lambda params, x, key: net.apply(params, key, x, key is not None),
    )
    train_model("haiku", haiku_model)

# %% [markdown]
# ## Equinox
#
# A module is a pytree of arrays and functions: its arrays are the parameters, and `apply` puts
# them back into the rest. Equinox modules see one example, so `vmap` over the batch.

# %%
try:
    import equinox as eqx
except ImportError as error:
    print(f"skipped: {error}; see the second cell")
else:

    def make_net(key):
        return eqx.nn.MLP(in_size=64, out_size=10, width_size=64, depth=1, key=key)

    _, rest = eqx.partition(make_net(jax.random.key(0)), eqx.is_array)

    def init_net(key):
        return eqx.filter(make_net(key), eqx.is_array)

    def apply_net(params, x, key):
        return jax.vmap(eqx.combine(params, rest))(x.reshape(len(x), -1))

    train_model("equinox", fl.models.from_functions(init_net, apply_net))

# %% [markdown]
# ## A plain function


# %%
def init(key):
    return {"w": jnp.zeros((64, 10)), "b": jnp.zeros(10)}


def apply(params, x, key):
    return x.reshape(len(x), -1) @ params["w"] + params["b"]


train_model("a plain function", fl.models.from_functions(init, apply))

# %% [markdown]
# ## A loss of your own
#
# A model is three functions. Two things to remember of `loss(params, examples, key)`: it returns
# **one loss per example**, since the library masks the padding of short batches and takes the
# mean itself; and the data are its argument, never a global that it closes over. Here: labels
# smoothed by 0.1 in training, plain logits for `predict`.

# %%
network = fl.models.mlp((64,), num_classes=10, input_shape=(8, 8, 1))


def smoothed_loss(params, examples, key):
    targets = optax.smooth_labels(jax.nn.one_hot(examples["y"], 10), 0.1)
    return optax.softmax_cross_entropy(network.predict(params, examples), targets)  # [B]


smoothed = fl.models.Model(init=network.init, loss=smoothed_loss, predict=network.predict)
train_model("label smoothing", smoothed)

# %% [markdown]
# ## A table
#
# Columns of a table (a pandas `DataFrame` works as the dict does here): stack the features,
# standardise them, number the categories. Clients are the values of a column. This one is a
# regression, so the label is a float, the loss is a squared error, and there is no accuracy.
#
# `split_clients` holds out a fifth of each hospital's rows, and `client_evaluator` scores every
# hospital on its own: all together, the mean and the worst over hospitals, and, with `groups`, one
# by one.

# %%
num_rows = 2000
hospital = rng.choice(["Basel", "Lagos", "Lima", "Oslo"], num_rows, p=[0.1, 0.4, 0.2, 0.3])
table = {
    "hospital": hospital,
    "age": rng.uniform(20, 90, num_rows),
    "smoker": rng.choice(["no", "yes"], num_rows),
    "pressure": rng.normal(120, 15, num_rows) + 8 * (hospital == "Lima"),
}
table["stay"] = (  # days, what is to be predicted
    0.05 * table["age"] + 2 * (table["smoker"] == "yes") + 0.1 * (table["pressure"] - 120) + 1
    + rng.normal(0, 0.5, num_rows)
)  # fmt: skip

numbers = np.stack([table["age"], table["pressure"]], axis=1)
numbers = (numbers - numbers.mean(0)) / numbers.std(0)
smoker = np.asarray(table["smoker"]) == "yes"
features = np.concatenate([numbers, smoker[:, None]], axis=1).astype(np.float32)
columns = {"x": features, "y": np.asarray(table["stay"], np.float32)}

hospitals, held_out = fl.data.split_clients(
    fl.data.from_arrays(columns, table["hospital"]), 0.2, seed=0
)
names = np.unique(table["hospital"])  # clients are numbered in the sorted order of their keys
for name, kept, tested in zip(names, hospitals.sizes, held_out.sizes, strict=True):
    print(f"{name}: {kept} to train on, {tested} held out")


def predict_days(params, examples):
    return examples["x"] @ params["w"] + params["b"]


def squared_error(params, examples, key):
    return (predict_days(params, examples) - examples["y"]) ** 2  # [B]


regression = fl.models.Model(
    init=lambda key: {"w": jnp.zeros(3), "b": jnp.zeros(())},
    loss=squared_error,
    predict=predict_days,
)
train_model(
    *("table", regression),
    data=hospitals,
    evaluate=fl.client_evaluator(
        regression,
        held_out,
        name="held_out",
        metrics={"days": fl.metrics.mean_absolute_error()},
        groups=np.arange(len(names)),
    ),
    learning_rate=0.02,
    sampler=fl.everyone(),
)
first, *_, last = histories["table"]
print(
    f"held-out mean squared error {first['held_out_loss']:.2f} -> {last['held_out_loss']:.2f} "
    "days^2 (noise: 0.25)"
)
for number, name in enumerate(names):
    print(f"{name}: off by {last[f'held_out_days_group_{number}']:.2f} days")

# %% [markdown]
# ## TFDS
#
# `load("tfds:NAME")` reads what TensorFlow Datasets has prepared, without TensorFlow. Prepare it
# once, on a machine that has TensorFlow, in a format that can be read without:
#
# ```
# tfds build mnist --file_format=array_record
# ```
#
# Then write `mnist` into the setting `tfds_name`.

# %%
if tfds_name:
    tfds_train, tfds_test = fl.data.load(
        f"tfds:{tfds_name}", data_dir=os.environ.get("TFDS_DATA_DIR")
    )
    print({name: (column.dtype, column.shape) for name, column in tfds_train.items()})
    tfds_data = fl.data.partition(tfds_train, fl.data.dirichlet(alpha=0.5, num_clients=100))
    tfds_model = fl.models.cnn(
        num_classes=int(tfds_train["y"].max()) + 1, input_shape=tfds_train["x"].shape[1:]
    )
    train_model(tfds_name, tfds_model, data=tfds_data, evaluate=fl.evaluator(tfds_model, tfds_test))
else:
    print("skipped: no tfds_name in the settings")

# %% [markdown]
# ## A sampler of your own
#
# A sampler has a state and a function `(key, state, sizes) -> (state, cohort)` under jit. The
# cohort's length is fixed; its mask says who really takes part. Here clients live in four time
# zones, and only those of one zone are awake: the zone moves on every round.


# %%
def awake(cohort_size, num_zones=4):
    def sample(key, zone, sizes):
        num_clients = sizes.shape[0]
        here = jnp.arange(num_clients) % num_zones == zone
        draws = jnp.where(here, jax.random.uniform(key, (num_clients,)), -1.0)
        best, ids = jax.lax.top_k(draws, cohort_size)
        return (zone + 1) % num_zones, fl.Cohort(ids.astype(jnp.int32), best >= 0)

    return fl.Sampler(lambda num_clients: jnp.int32(0), sample)


train_model("sampler: time zones", network, sampler=awake(cohort_size))

# %% [markdown]
# ## An aggregator of your own
#
# `stacked` makes an aggregator of a rule that sees all messages of a cohort at once: leaves
# `[C, ...]`, their weights and who sent one. This rule limits what a single client can do: every
# message is shortened to the median norm, then averaged.
#
# The laws of aggregators (who is masked leaves no trace, the order of clients does not matter, ...)
# are one call.

# %%
from fedjax_lite import testing
from fedjax_lite.aggregation import stacked


def median_clipped(key, state, stack, cohort):
    norms = jax.vmap(optax.global_norm)(stack.values)  # [C]
    bound = jnp.nanmedian(jnp.where(stack.mask, norms, jnp.nan))
    factors = stack.mask * jnp.minimum(1, bound / jnp.maximum(norms, 1e-12))
    mean = jax.tree.map(
        lambda leaf: jnp.tensordot(factors, leaf, axes=1) / stack.mask.sum(), stack.values
    )
    return state, mean


train_model("aggregator: clipped", network, aggregator=stacked(median_clipped))
testing.check_aggregator(stacked(median_clipped))
print(f"{len(testing.AGGREGATOR_LAWS)} laws hold")

# %% [markdown]
# ## All of them

# %%
scored = {
    name: rows[-1]["test_accuracy"]
    for name, rows in histories.items()
    if "test_accuracy" in rows[-1] and name != tfds_name
}
fig, ax = plt.subplots(figsize=(6, 0.5 + 0.34 * len(scored)), layout="constrained")
bars = ax.barh(list(scored), list(scored.values()), color="#0072B2", height=0.6)
ax.bar_label(bars, fmt="%.3f", padding=3)
ax.set(xlabel=f"Test accuracy on digits after {num_rounds} rounds (fraction)", xlim=(0, 1.1))
ax.invert_yaxis()
ax.spines[["top", "right"]].set_visible(False)
