"""Source of 01_quickstart.ipynb; `python colab/build.py` makes the notebook."""

# %% [markdown]
# [![Open In Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/fedjax-lite/fedjax_lite/blob/main/colab/01_quickstart.ipynb)
#
# # Federated averaging in minutes
#
# You will deal CIFAR-10 to 100 clients that hold different classes, train one model on them with
# FedAvg, see how well it serves each client, compare more local work with an adaptive server,
# put error bars over seeds on a result, and stop and resume a run.
#
# Time: about 4 minutes on two CPU cores, and the download of CIFAR-10 (170 MB) where it is not on
# the machine. A GPU or TPU runtime is faster (*Runtime > Change runtime type*). Everything also
# runs on the 8x8 digits of scikit-learn, in less than a minute and without a download: choose
# `digits` in the settings.

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
import tempfile

import jax
import matplotlib.pyplot as plt
import numpy as np
import optax
from IPython.display import display

import fedjax_lite as fl
from fedjax_lite import report

fl.use_cores()  # without an accelerator: each core trains clients of its own
print(f"fedjax_lite {fl.__version__}, jax {jax.__version__} on {jax.devices()[0].device_kind}")

# %% [markdown]
# ## Settings

# %%
dataset = "cifar10"  # @param ["cifar10", "digits"]
network = "cnn"  # @param ["cnn", "mlp"]
num_clients = 100  # @param {type: "integer"}
alpha = 0.5  # @param {type: "number"}
cohort_size = 5  # @param {type: "integer"}
learning_rate = 0.1  # @param {type: "number"}
num_rounds = 30  # @param {type: "integer"}
num_seeds = 3  # @param {type: "integer"}

SMALL = bool(os.environ.get("FEDJAX_LITE_SMALL"))  # the settings of the automatic tests
if SMALL:
    dataset, network, num_clients, num_rounds, num_seeds = "digits", "mlp", 20, 6, 2
every = max(num_rounds // 6, 1)  # rounds between evaluations

# %% [markdown]
# ## Data: who holds what
#
# `load` looks for the files on this machine and downloads them otherwise. `dirichlet` spreads
# each class over the clients by a Dirichlet draw: the smaller `alpha`, the more the clients
# differ. A small `alpha` also leaves some clients with little data; `min_size` fills them up.

# %%
try:
    train, test = fl.data.load(dataset)
except fl.data.DatasetNotFoundError as error:
    print(f"{error}\n\nWithout CIFAR-10 this notebook goes on with scikit-learn's digits.")
    dataset = "digits"
    train, test = fl.data.load(dataset)

deal = fl.data.dirichlet(alpha=alpha, num_clients=num_clients, seed=0, min_size=5)
clients = fl.data.partition(train, deal)
print(f"{dataset}: {clients.num_examples} examples on {clients.num_clients} clients")

counts = fl.data.label_counts(clients, 10)
display(report.plot_partition(counts, dataset=dataset))

# %% [markdown]
# Of every client's examples a tenth is held out: clients train on the rest, and later you will see
# how well each is served on examples that nobody trained on. Both parts have the same clients.

# %%
data, held_out = fl.data.split_clients(clients, 0.1, seed=0)
print(f"{data.num_examples} to train on, {held_out.num_examples} held out")

# %% [markdown]
# ## FedAvg
#
# In every round the server draws `cohort_size` clients; each makes one pass over its own data,
# starting from the server's model; the server averages the results, weighted by numbers of
# examples. A whole round, all clients included, is one compiled program, so the bar says
# "compiling" before the first round.
#
# A model is three pure functions: `init(key)`, `loss(params, examples, key)` with one loss per
# example, and `predict(params, examples)`.

# %%
input_shape = train["x"].shape[1:]
if network == "cnn":
    model = fl.models.cnn(num_classes=10, input_shape=input_shape)
else:
    model = fl.models.mlp((100,), num_classes=10, input_shape=input_shape)
score = fl.evaluator(model, test)


def train_model(algo, *, seed=0, rounds=num_rounds, **options):
    key = jax.random.key(seed)  # of the model's start, the cohorts and the batches
    state = algo.init(key, model.init(key), data)
    return fl.run(algo, key, state, data, num_rounds=rounds, every=every, evaluate=score, **options)


fedavg = fl.fedavg(
    model.loss,
    optax.sgd(learning_rate),
    plan=fl.Plan(batch_size=20, epochs=1),
    sampler=fl.uniform(cohort_size),
)
state, history = train_model(fedavg)
display(report.plot_curves(history, dataset=dataset, title="FedAvg"))

# %% [markdown]
# `history` has one row a round: what the clients measured while they trained, what was sent over
# the network (in bits), and every few rounds the test set.

# %%
for name, value in history[-1].items():
    print(f"{name:30} {value:,.0f}" if value == int(value) else f"{name:30} {value:.4g}")

# %% [markdown]
# ## The same model on every client
#
# The mean over a test set hides who is served badly. Here is the global model on each client's
# own held-out data; `summarize_clients` has the usual measures of fairness. Its `worst` is the
# mean over the tenth of the clients that are served worst, its `best` over the tenth served best.
# `metrics` measures more than accuracy, for each client and (`scores["all"]`) for all together.
# To have such figures in the history, hand `fl.client_evaluator(model, held_out)` to `fl.run`.

# %%
scores = fl.evaluate_clients(model, state, held_out, metrics={"f1": fl.metrics.f1(10)})
display(
    report.plot_client_accuracies(
        scores["accuracy"], dataset=dataset, split="held out", title="FedAvg, held-out data"
    )
)
print(f"F1, mean over classes, of all held-out examples: {scores['all']['f1']:.3f}")

fairness = fl.summarize_clients(scores["accuracy"], scores["size"])
for name in ("mean", "weighted_mean", "std", "worst", "best", "gini", "jain"):
    print(f"{name:15} {fairness[name]:.3f}")

# %% [markdown]
# ## More local work, or an adaptive server
#
# Three local passes do three times the work between two messages, which saves communication and
# makes clients with different data drift apart. FedAdam keeps one pass and lets Adam take the
# server's step. Everything else stays: an algorithm is a choice of slots.

# %%
slots = {"sampler": fl.uniform(cohort_size)}
methods = {
    "FedAvg, E=1": fedavg,
    "FedAvg, E=3": fl.fedavg(
        model.loss, optax.sgd(learning_rate), plan=fl.Plan(batch_size=20, epochs=3), **slots
    ),
    "FedAdam, E=1": fl.fedadam(
        model.loss,
        optax.sgd(learning_rate),
        plan=fl.Plan(batch_size=20, epochs=1),
        server_learning_rate=0.01,
        **slots,
    ),
}
histories = {"FedAvg, E=1": history}
for name in list(methods)[1:]:
    print(name)
    _, histories[name] = train_model(methods[name])

# %% [markdown]
# Which one is better depends on what is dear. Left: rounds, that is messages. Right: local steps
# of all clients together, that is computing.

# %%
colours, styles = ["#0072B2", "#D55E00", "#009E73"], ["-", "--", ":"]  # Okabe and Ito's
fig, axes = plt.subplots(1, 2, figsize=(9, 3.6), sharey=True, layout="constrained")
for colour, style, (name, rows) in zip(colours, styles, histories.items(), strict=True):
    steps = np.cumsum([row.get("num_steps", 0) for row in rows])
    scored = [i for i, row in enumerate(rows) if "test_accuracy" in row]
    accuracy = [rows[i]["test_accuracy"] for i in scored]
    line = {"color": colour, "ls": style, "lw": 1.8, "label": name}
    axes[0].plot([rows[i]["round"] for i in scored], accuracy, **line)
    axes[1].plot(steps[scored], accuracy, **line)
axes[0].set(xlabel="Communication round", ylabel=f"Test accuracy, {dataset} (fraction)")
axes[1].set(xlabel="Local steps of all clients (count)")
axes[0].legend(frameon=False)
for ax in axes:
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(axis="y", color="#DDDDDD", lw=0.6)

# %% [markdown]
# ## Seeds
#
# One run is one draw of the start, the cohorts and the batches. The same program with other keys
# shows how much a difference between two methods has to be before it means something. (`fl.sweep`
# runs seeds and grids of settings side by side: see `04_scale`.)

# %%
curves = {}
for name in ("FedAvg, E=1", "FedAdam, E=1"):
    runs = [histories[name]]
    for seed in range(1, num_seeds):
        print(f"{name}, seed {seed}")
        runs.append(train_model(methods[name], seed=seed)[1])
    curves[name] = [[row for row in rows if "test_accuracy" in row] for rows in runs]

fig, ax = plt.subplots(figsize=(5.5, 3.6), layout="constrained")
for colour, style, (name, runs) in zip(colours[::2], styles[::2], curves.items(), strict=True):
    rounds = [row["round"] for row in runs[0]]
    accuracy = np.array([[row["test_accuracy"] for row in rows] for rows in runs])  # a row a seed
    mean, std = accuracy.mean(0), accuracy.std(0, ddof=int(len(runs) > 1))
    ax.plot(rounds, mean, color=colour, ls=style, lw=1.8, label=name)
    ax.fill_between(rounds, mean - std, mean + std, color=colour, alpha=0.2, lw=0)
    print(f"{name}: {mean[-1]:.3f} +- {std[-1]:.3f} (s.d. of {len(runs)} seeds)")
ax.set(
    xlabel="Communication round",
    ylabel=f"Test accuracy, {dataset} (fraction)",
    title=f"Mean and s.d. of {num_seeds} seeds",
)
ax.legend(frameon=False)
ax.spines[["top", "right"]].set_visible(False)
ax.grid(axis="y", color="#DDDDDD", lw=0.6)

# %% [markdown]
# ## Stop and resume
#
# With `output_dir` a run leaves its metrics, its settings and checkpoints in a folder; a resumed
# run has to have the same settings. Here one stops half-way and is resumed, and ends in the same
# bytes as the run above that never stopped: everything random is a function of key, round and
# client. On Colab choose a folder of your mounted Drive, and a lost runtime costs nothing.
# `python -m fedjax_lite.report FOLDER FOLDER ...` compares such folders on one page.

# %%
folder = os.path.join(tempfile.mkdtemp(), "fedavg")
settings = {"dataset": dataset, "alpha": alpha, "learning_rate": learning_rate}
train_model(fedavg, rounds=num_rounds // 2, output_dir=folder, config=settings)
resumed, _ = train_model(fedavg, output_dir=folder, config=settings, resume=True)

equal = jax.tree.map(np.array_equal, resumed.server.params, state.server.params)
print("every parameter has the same bytes:", all(jax.tree.leaves(equal)))
print(sorted(os.listdir(folder)))

# %% [markdown]
# ## Where to go on
#
# * `02_write_an_algorithm`: SCAFFOLD from the paper in 30 lines, and how to prove it right.
# * `03_privacy_and_robustness`: differential privacy with its epsilon, hostile clients, an audit.
# * `04_scale`: several devices, sweeps, large populations.
# * `05_bring_your_own`: your arrays, your model (flax, equinox, haiku), your sampler.
