"""Source of 04_scale.ipynb; `python colab/build.py` makes the notebook."""

# %% [markdown]
# [![Open In Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/fedjax-lite/fedjax_lite/blob/main/colab/04_scale.ipynb)
#
# # Scale: lanes, devices, sweeps, populations on disk
#
# You will lay a cohort on the hardware in several ways that give the same result, see what uneven
# clients cost, use every device there is, run a grid of learning rates and seeds as one compiled
# program, and train on a population that stays on the disk.
#
# Time: less than a minute on two CPU cores. With a GPU or TPU runtime
# (*Runtime > Change runtime type*) the same cells use it.

# %%
# On Colab this installs fedjax_lite and nothing else: Colab has all that it needs, and its jax
# stays as it is. Elsewhere the cell does nothing.
import sys

if "google.colab" in sys.modules:
    # %pip install -q --no-deps "fedjax_lite @ git+https://github.com/fedjax-lite/fedjax_lite"
    pass

# %% [markdown]
# A CPU counts as one device. To try code for several, let it pose as two; this has to be said
# before JAX touches a device, and changes nothing on GPUs and TPUs.

# %%
# %matplotlib inline
import os

os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=2")

import tempfile
import time
from pathlib import Path

import jax
import matplotlib.pyplot as plt
import numpy as np
import optax
from IPython.display import display

import fedjax_lite as fl
from fedjax_lite import report

plt.rcParams.update({"axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False})
BLUE, ORANGE, GREEN, PINK, BLACK = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000"
print(f"fedjax_lite {fl.__version__}, jax {jax.__version__} on {jax.devices()}")
print("compiled programs are kept in", fl.keep_compiled_programs())

# %% [markdown]
# `keep_compiled_programs` lets JAX look on the disk before it compiles: a second start of the same
# notebook or script skips most of the waiting.
#
# ## Settings

# %%
num_clients = 100  # @param {type: "integer"}
cohort_size = 20  # @param {type: "integer"}
sigma = 1.5  # @param {type: "number"}
num_rounds = 60  # @param {type: "integer"}
num_seeds = 5  # @param {type: "integer"}
num_streamed_clients = 20000  # @param {type: "integer"}

SMALL = bool(os.environ.get("FEDJAX_LITE_SMALL"))  # the settings of the automatic tests
if SMALL:
    num_rounds, num_seeds, num_streamed_clients = 10, 2, 1000
repeats = 3 if SMALL else 15  # timed rounds

train, test = fl.data.load("digits")
model = fl.models.mlp((64,), num_classes=10, input_shape=(8, 8, 1))
evaluate = fl.evaluator(model, test)
key = jax.random.key(0)
params = model.init(key)
plan = fl.Plan(batch_size=5, epochs=1)

# %% [markdown]
# ## 1. Uneven clients
#
# Real populations are uneven; here sizes are log-normal. Clients that train side by side ("lanes")
# take as many steps as the longest of them. Side by side with the whole cohort, everyone waits for
# the largest client; in small groups of similar sizes, which is what `chunked(L)` makes, nearly
# nobody waits.

# %%
data = fl.data.partition(
    train, fl.data.lognormal(sigma=sigma, num_clients=num_clients, seed=0, min_size=1)
)
steps = -(-np.asarray(data.sizes) // plan.batch_size)
print(f"examples a client: median {np.median(data.sizes):g}, largest {data.max_client_size}")


def computed_over_real(num_lanes, num_draws=200):
    """Steps computed over steps needed, in the mean over random cohorts."""
    rng = np.random.default_rng(0)
    ratios = []
    for _ in range(num_draws):
        cohort = np.sort(rng.choice(steps, cohort_size, replace=False))[::-1]
        longest = cohort[::num_lanes]  # of each group
        ratios.append(longest.sum() * num_lanes / cohort.sum())
    return np.mean(ratios)


lanes = [n for n in (1, 2, 5, 10, 20) if cohort_size % n == 0]
fig, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
left.bar(range(num_clients), np.sort(steps)[::-1], 1.0, color=BLUE)
left.set(xlabel="client, by size", ylabel="local steps of an epoch")
left.yaxis.get_major_locator().set_params(integer=True)
right.plot(lanes, [computed_over_real(n) for n in lanes], "o-", color=ORANGE)
right.set(xlabel=f"lanes, of a cohort of {cohort_size}", ylabel="steps computed / steps needed")
right.set(ylim=(0, None), xticks=lanes)
plt.show()

# %% [markdown]
# ## 2. Strategies: the same round, laid out in other ways
#
# `explain` says what the default, `auto()`, does here and why:

# %%
print(fl.explain(params, data, plan=plan, cohort_size=cohort_size))

# %% [markdown]
# Whatever the strategy, cohorts, batches and keys are the same, so results agree to rounding.
# `forecast` reads the memory of a compiled round before it runs.
#
# The `sharded` row deals each cohort over all devices; they meet in one sum at the end of the
# round. `replicate` puts the data on every device once. With a single device it does the same as
# `auto()`.

# %%
mesh = fl.client_mesh()
strategies = {
    "auto": fl.auto(),
    "sequential": fl.sequential(),
    "chunked(5)": fl.chunked(5),
    "vmapped": fl.vmapped(),
    f"sharded({mesh.size})": fl.sharded(mesh),
}


def fedavg(learning_rate, strategy=None):
    """FedAvg on uniform cohorts."""
    return fl.fedavg(
        model.loss,
        optax.sgd(learning_rate),
        plan=plan,
        sampler=fl.uniform(cohort_size),
        strategy=fl.auto() if strategy is None else strategy,
    )


compiled, arguments = {}, {}
for name, strategy in strategies.items():
    algo = fedavg(0.1, strategy)
    placed, state = data, algo.init(key, params, data)
    if name.startswith("sharded"):
        placed = fl.replicate(data, mesh=mesh)
        state = fl.place_state(state, placed, mesh=mesh)
    compiled[name] = jax.jit(algo.round).lower(key, state, placed).compile()
    arguments[name] = [state, placed]

seconds = {name: [] for name in strategies}
for _ in range(repeats + 1):  # in turns, so that other work on the machine hits all alike
    for name, run_round in compiled.items():
        state, placed = arguments[name]
        began = time.perf_counter()
        arguments[name][0], _ = jax.block_until_ready(run_round(key, state, placed))
        seconds[name].append(time.perf_counter() - began)
timed = {name: 1e3 * np.array(values[1:]) for name, values in seconds.items()}

print("strategy         ms a round (median)  memory on top  differs from auto by")
weights = {name: jax.device_get(state.server.params) for name, (state, _) in arguments.items()}
for name in strategies:
    forecast = fl.forecast(compiled[name])
    extra = forecast.extra_bytes / 2**20 if forecast else float("nan")
    gaps = jax.tree.map(lambda a, b: np.abs(a - b).max(), weights[name], weights["auto"])
    gap, middle = max(jax.tree.leaves(gaps)), np.median(timed[name])
    print(f"{name:15s}  {middle:19.2f}  {extra:9.1f} MiB  {gap:.1e}")

# %%
middle = np.array([np.median(t) for t in timed.values()])
low, high = (np.array([np.percentile(t, p) for t in timed.values()]) for p in (25, 75))
fig, axes = plt.subplots(figsize=(6, 3), layout="constrained")
axes.barh(list(timed), middle, xerr=[middle - low, high - middle], color=BLUE, capsize=4)
axes.invert_yaxis()
axes.set(xlabel=f"milliseconds a round: median of {repeats}, bars: quartiles")
plt.show()

# %% [markdown]
# Which layout wins depends on the device, the model and how uneven clients are; on an accelerator
# lanes pay, on a CPU often not. `fl.fastest` times them for your problem. Two pretended CPU
# devices on a busy machine need not be faster than one.
#
# ## 3. A sweep with error bars
#
# `fl.sweep` runs every learning rate with every seed side by side, as one compiled program: `make`
# gets the learning rate as a traced number. Seeds decide parameters, cohorts and batches. The bar
# counts the rounds of all runs together and shows the best of them. Called again with other
# numbers, but as many of them, a sweep compiles nothing.

# %%
began = time.perf_counter()
rates = [0.03, 0.3] if SMALL else [0.01, 0.03, 0.1, 0.3, 1.0]
sweep = fl.sweep(
    fedavg,
    {"learning_rate": rates},
    seeds=range(num_seeds),
    init=model.init,
    data=data,
    num_rounds=num_rounds,
    evaluate=evaluate,
    every=num_rounds // 10,
)
print(
    f"{len(sweep.points)} runs of {num_rounds} rounds in {time.perf_counter() - began:.1f} s, "
    "compiling and evaluations included"
)
best = sweep.best("test_accuracy")
print(f"best: {best['learning_rate']}, {best['mean']:.3f} +- {best['std']:.3f}")

table = sweep.table("test_accuracy")
display(report.plot_sweep(table, x="learning_rate", metric="test_accuracy", dataset="digits"))

# %% [markdown]
# The rows hold every evaluation of every member, so curves with a band over seeds take a few lines.
# The band is the standard deviation over seeds, not a confidence interval of the mean: it says how
# far two runs may differ by luck alone.

# %%
fig, axes = plt.subplots(figsize=(6, 3.4), layout="constrained")
looks = zip((BLACK, PINK, GREEN, BLUE, ORANGE), (":", "-.", "--", "-", (0, (5, 1))), strict=True)
for rate, (colour, dash) in zip(rates, looks, strict=False):
    mine = [row for row in sweep.rows if row["learning_rate"] == rate]
    rounds = sorted({row["round"] for row in mine})
    values = np.array([[r["test_accuracy"] for r in mine if r["round"] == at] for at in rounds])
    mean, std = values.mean(1), values.std(1, ddof=int(num_seeds > 1))
    axes.plot(rounds, mean, color=colour, ls=dash, label=f"learning rate {rate:g}")
    axes.fill_between(rounds, mean - std, mean + std, color=colour, alpha=0.15, lw=0)
axes.set(xlabel="round", ylabel=f"test accuracy (fraction),\nmean and s.d. of {num_seeds} seeds")
axes.set(ylim=(0, 1))
axes.legend(fontsize=8)
plt.show()

# %% [markdown]
# `sweep(..., mesh=mesh)` deals the members to all devices. A choice that changes shapes or code (a
# model, a batch size) belongs into a Python loop around the sweep.
#
# ## 4. Populations that do not fit into memory
#
# `write_streamed` writes a population chunk by chunk, from a generator, so it never has to be in
# memory as a whole. `open_streamed` maps the files; `run` then draws each cohort ahead of time and
# reads it while the round before computes. Here every client draws examples from a planted
# linear model that it shares in part with the others.

# %%
num_features, num_classes = 32, 10
rng = np.random.default_rng(0)
common = rng.normal(size=(num_features, num_classes))


def draw(sizes, own_part=0.5):
    """Examples of clients with these sizes, client after client."""
    own = rng.normal(size=(len(sizes), num_features, num_classes))
    x = rng.normal(size=(sizes.sum(), num_features)).astype(np.float16)
    owner = np.repeat(np.arange(len(sizes)), sizes)
    logits = x @ common
    for i in range(len(sizes)):
        logits[owner == i] += own_part * (x[owner == i] @ own[i])
    return {"x": x, "y": logits.argmax(1).astype(np.uint8)}


def chunks(clients_per_chunk=500):
    """The whole population, a few hundred clients at a time."""
    for _ in range(num_streamed_clients // clients_per_chunk):
        sizes = np.clip(rng.lognormal(2.5, 1.0, clients_per_chunk), 1, 500).astype(np.int32)
        yield sizes, draw(sizes)


folder = Path(tempfile.mkdtemp()) / "population"
fl.data.write_streamed(folder, chunks())
streamed = fl.open_streamed(folder)
megabytes = sum(file.stat().st_size for file in folder.iterdir()) / 1e6
needed = fl.streamed_bytes(streamed.sizes, streamed.store.leaves, cohort_size=100)
print(f"{streamed.num_clients:,} clients, {streamed.num_examples:,} examples, {megabytes:.1f} MB")
print(f"cohorts of 100 hold {needed.device / 1e6:.2f} MB on the device, whatever the disk holds")

# %%
logistic = fl.models.linear(num_classes=num_classes, input_shape=(num_features,))
algo = fl.fedavg(
    logistic.loss,
    optax.sgd(0.1),
    plan=fl.Plan(batch_size=10, epochs=1),
    sampler=fl.uniform(100),
)
state = algo.init(key, logistic.init(key), streamed)
unseen = draw(np.ones(2000, np.int32))  # examples of clients that are not in the population
every = max(num_rounds // 6, 1)
state, history = fl.run(
    algo,
    key,
    state,
    streamed,
    num_rounds=num_rounds,
    every=every,
    evaluate=fl.evaluator(logistic, unseen),
)
waited = streamed.timings.waited / streamed.timings.seconds
print(f"the device waited for data for {100 * waited:.1f} % of the time, compiling included")
display(report.plot_curves(history, dataset="planted, streamed from disk"))

# %% [markdown]
# Algorithms with a state for each client, such as SCAFFOLD, keep those rows outside of the device
# with `open_streamed(folder, state="host")` or `state="disk"`. `experiments/million_clients.py`
# does this for a million clients.
#
# ## 5. Several hosts
#
# A notebook is one process. Scripts run as several; each executes the same file:
#
# ```bash
# python -m fedjax_lite.hosts.launch --num-processes 2 experiments/fedavg_cifar.py  # one machine
# srun --ntasks=4 python experiments/fedavg_cifar.py                           # Slurm
# ```
#
# and on a TPU pod the same command on every worker. What such a script has beside this notebook:
#
# ```python
# fl.distributed.initialize()              # first of all; does nothing in a single process
# mesh = fl.client_mesh()                  # all devices of all processes
# data = fl.replicate(data, mesh=mesh)     # or fl.shard_population(...), each process its part
# algo = fl.fedavg(..., strategy=fl.sharded(mesh))
# state = fl.init_state(algo, key, params, data, mesh=mesh)
# state, history = fl.run(algo, key, state, data, num_rounds=..., output_dir=...)
# ```
#
# Process 0 prints and writes. A process that dies stops the others; the run goes on from its last
# checkpoint with `resume=True`, also on another number of devices.
