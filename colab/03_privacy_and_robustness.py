"""Source of 03_privacy_and_robustness.ipynb; `python colab/build.py` makes the notebook."""

# %% [markdown]
# [![Open In Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/fedjax-lite/fedjax_lite/blob/main/colab/03_privacy_and_robustness.ipynb)
#
# # Privacy and robustness
#
# You will train with client-level differential privacy and watch epsilon being spent, draw
# accuracy against epsilon, read images out of a client's update, audit a private method with
# canaries (and catch a planted bug), and see how many hostile clients several aggregators stand.
#
# Time: about 1.5 minutes on two CPU cores. The data are scikit-learn's 8x8 digits: no download.

# %%
# On Colab this installs fedjax_lite and nothing else: Colab has all that it needs, and its jax
# stays as it is. Elsewhere the cell does nothing.
import sys

if "google.colab" in sys.modules:
    # %pip install -q --no-deps "fedjax_lite @ git+https://github.com/fedjax-lite/fedjax_lite"
    pass

# %%
# The accountant needs dp-accounting, which Colab lacks; what that needs is there.
if "google.colab" in sys.modules:
    # %pip install -q --no-deps dp-accounting
    pass

# %%
# %matplotlib inline
import os

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

import fedjax_lite as fl
from fedjax_lite.attacks import leakage
from fedjax_lite.privacy import audit

plt.rcParams.update({"axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False})
BLUE, ORANGE, GREEN, PINK, BLACK = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000"
print(f"fedjax_lite {fl.__version__}, jax {jax.__version__} on {jax.devices()[0].device_kind}")

# %% [markdown]
# ## Settings

# %%
num_clients = 300  # @param {type: "integer"}
sampling_rate = 0.2  # @param {type: "number"}
clip = 1.0  # @param {type: "number"}
epsilon = 4.0  # @param {type: "number"}
delta = 1e-4  # @param {type: "number"}
num_rounds = 60  # @param {type: "integer"}
num_seeds = 3  # @param {type: "integer"}

SMALL = bool(os.environ.get("FEDJAX_LITE_SMALL"))  # the settings of the automatic tests
if SMALL:
    num_rounds, num_seeds = 10, 2
every = max(num_rounds // (2 if SMALL else 10), 1)  # rounds between evaluations

train, test = fl.data.load("digits")
data = fl.data.partition(train, fl.data.iid(num_clients=num_clients, seed=0))
model = fl.models.linear(num_classes=10, input_shape=(8, 8, 1))
evaluate = fl.evaluator(model, test)
key = jax.random.key(0)
cohort = num_clients * sampling_rate
print(f"{data.num_examples} images on {num_clients} clients, about {cohort:g} of them a round")

# %% [markdown]
# ## 1. DP-FedAvg, with epsilon shown
#
# What is promised: whoever sees all the models of the run can hardly tell whether one client,
# with *all* its data, took part. "Hardly" is (epsilon, delta): any conclusion becomes at most
# e^epsilon times as likely, but for a probability of delta, which should be well below one over
# the number of clients.
#
# `central_gaussian` brings what has to agree with each other:
#
# - **Poisson sampling**: every client takes part with probability q, by its own coin, and who did
#   stays secret. Cohorts vary in size.
# - **Clipping** of each client's update to length `clip`, and weight 1 for everyone.
# - **Noise** once on the sum, with standard deviation z times `clip`; division by the *expected*
#   size of a cohort.
# - **The server is trusted**: it sees the updates. (`local_gaussian` and
#   `distributed_discrete_gaussian` trust it less.)
#
# The noise multiplier z follows from the budget, the sampling rate and the number of rounds:

# %%
epsilons = [1.0, 4.0] if SMALL else [1.0, 2.0, 4.0, 8.0]


def mechanism(**noise_or_budget):
    """Central DP for these clients."""
    return fl.privacy.central_gaussian(
        clip=clip,
        num_clients=num_clients,
        sampling_rate=sampling_rate,
        delta=delta,
        num_rounds=num_rounds,
        **noise_or_budget,
    )


noise = fl.privacy.calibrate(epsilons, mechanism)
for e, z in zip(epsilons, noise, strict=True):
    print(f"epsilon {e:g} over {num_rounds} rounds: z = {z:.2f}")

# %% [markdown]
# A mechanism goes into any algorithm as `privacy=`. It finds z by itself. We ask for ten rounds
# more than were planned: the run stops at the budget and says so.
#
# Every row of the history has `epsilon_rdp`, of an accountant that is quick and looser. The one
# that z and the stop go by (PLD) takes up to half a second, so `epsilon` is in the rows of
# evaluations only. Both are upper bounds for the same run: that the dashed line crosses the budget
# breaks no promise.


# %%
def dp_fedavg(private):
    """FedAvg with a privacy mechanism."""
    plan = fl.Plan(batch_size=5, epochs=2)
    return fl.fedavg(model.loss, optax.sgd(0.5), plan=plan, privacy=private)


algo = dp_fedavg(mechanism(epsilon=epsilon))
state = algo.init(key, model.init(key), data)
state, history = fl.run(
    algo, key, state, data, num_rounds=num_rounds + 10, every=every, evaluate=evaluate
)

rows = [row for row in history if "epsilon" in row]
print(f"stopped after round {history[-1]['round']}, {rows[-1]['epsilon']:.4f} spent")

rounds = [row["round"] for row in rows]
fig, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
left.plot(rounds, [row["test_accuracy"] for row in rows], "o-", color=BLUE)
left.set(xlabel="round", ylabel="test accuracy (fraction)", ylim=(0, 1))
right.plot(rounds, [row["epsilon"] for row in rows], "s-", color=ORANGE, label="PLD accountant")
bound = [(row["round"], row["epsilon_rdp"]) for row in history]
right.plot(*zip(*bound, strict=True), "--", color=GREEN, label="RDP, a looser bound")
right.axhline(epsilon, color=BLACK, lw=1, ls=":", label="budget")
right.set(xlabel="round", ylabel=f"epsilon spent (delta = {delta:g})", ylim=(0, None))
right.legend()
plt.show()

# %% [markdown]
# `state.server.params` is what may be published. The history, the metrics, the checkpoints and the
# key belong to the server: metrics are exact, and who knows the key knows the noise.
#
# ## 2. Accuracy against epsilon
#
# One program for all budgets and seeds: finding z is a search on the host, but z itself may be
# traced, so `fl.sweep` sweeps over the noise that `calibrate` found. Rows have the epsilon of each.
#
# Two honest notes on such figures. The curve compares runs; of runs with one seed only *one* may be
# published, for they share their noise. And choosing hyper-parameters by looking at the results
# spends privacy that no accountant here counts.


# %%
def make(noise_multiplier):
    """DP-FedAvg whose noise may be traced."""
    return dp_fedavg(mechanism(noise_multiplier=noise_multiplier))


table = fl.sweep(
    make,
    {"noise_multiplier": [*noise, 0.0]},
    seeds=range(num_seeds),
    init=model.init,
    data=data,
    num_rounds=num_rounds,
    evaluate=evaluate,
).table("test_accuracy")

labels = [*(f"epsilon {e:g}" for e in epsilons), "no noise\n(not private)"]
mean, std = (100 * np.array([row[name] for row in table]) for name in ("mean", "std"))
fig, axes = plt.subplots(figsize=(5.4, 3.4), layout="constrained")
axes.errorbar(range(len(labels)), mean, std, fmt="o-", color=BLUE, capsize=4)
axes.set_xticks(range(len(labels)), labels)
axes.set(
    xlabel=f"guarantee after {num_rounds} rounds (delta = {delta:g})",
    ylabel=f"test accuracy (%), mean and\nstandard deviation of {num_seeds} seeds",
)
axes.grid(axis="y", alpha=0.3)
plt.show()
for label, m, s in zip(labels, mean, std, strict=True):
    print(f"{label.splitlines()[0]}: {m:.1f} % +- {s:.1f}")

# %% [markdown]
# These clients are a small crowd to hide in. With ten times as many clients and ten times the
# cohort, the same epsilon needs the same z, and the noise on the average is a tenth.
#
# ## 3. Why: what an update gives away
#
# A server that follows the protocol looks at the update of one client with one image. Of a dense
# first layer with a bias the input can be read off: kernel gradient over bias gradient, no search.
# `leakage.observe` runs a real round with chosen clients and hands over what the server sees, so
# whatever is in the uplink counts as a defence.

# %%
num_images = 4
picked = [int(np.flatnonzero(np.asarray(train["y"]) == label)[0]) for label in (0, 3, 6, 9)]
images = np.asarray(train["x"])[picked]
victims = fl.data.from_arrays({k: np.asarray(v)[picked] for k, v in train.items()}, range(4))
network = fl.models.mlp((64,), num_classes=10, input_shape=(8, 8, 1))


def seen_by_server(groups, **uplink):
    """Images read off the first layer, from one update for each group of clients."""
    plan = fl.Plan(batch_size=1, steps=1)
    algo = fl.fedavg(
        network.loss,
        optax.sgd(0.1),
        plan=plan,
        sampler=fl.everyone(),
        weighting="uniform",
        **uplink,
    )
    state = algo.init(key, network.init(key), victims)
    found = []
    for clients in groups:
        update, _ = leakage.observe(algo, state, data=victims, clients=clients, key=key)
        layer = update["dense1"]
        found.append(leakage.linear_input(layer["kernel"], layer["bias"]).reshape(8, 8))
    return np.clip(np.stack(found), 0, 1)


alone = [[i] for i in range(num_images)]
local_noise = fl.chain(fl.clip(0.1), fl.gaussian_noise(0.01))
shown = {
    "the clients' images": images[..., 0],
    "read from plain\nupdates": seen_by_server(alone),
    "clipped to 0.1,\nnoise 0.01": seen_by_server(alone, uplink=local_noise),
    "read from the sum of\nall four (secure\naggregation)": seen_by_server([range(num_images)]),
}
fig, grid = plt.subplots(len(shown), num_images, figsize=(5.6, 5), layout="constrained")
for axes_row, (name, pictures) in zip(grid, shown.items(), strict=True):
    for axes, column in zip(axes_row, range(num_images), strict=True):
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set(visible=column < len(pictures), color="#BBBBBB")
        if column < len(pictures):
            axes.imshow(pictures[column], cmap="gray_r", vmin=0, vmax=1)
    axes_row[0].text(-0.3, 0.5, name, transform=axes_row[0].transAxes, ha="right", va="center")
plt.show()
error = np.abs(shown["read from plain\nupdates"] - images[..., 0]).max()
print(f"largest error of a pixel read from plain updates: {error:.1g} (black is 1)")

# %% [markdown]
# Noise and sums stop *this* attack. A picture that failed proves nothing: only the accounted
# epsilon is a guarantee. (`experiments/leakage.py` attacks convolutional networks, local steps and
# compressed updates, and infers membership.)
#
# ## 4. An audit: is epsilon what the accountant says?
#
# Mistakes in clipping, weights or noise leave the accountant's figure as it was. An audit looks at
# what the model gives away: canary clients join, each sends its own direction by a fair coin or
# nothing, and an observer of the last model guesses the coins. From the scores follows a *lower*
# bound on epsilon that holds with 95 % confidence; a correct method has it below the accounted one.
#
# We audit DP-FedAvg and then the same with the noise left out, as after a slip in a refactoring;
# its accountant does not notice.

# %%
num_canaries, audit_rounds, audit_noise = (300, 3, 3.0) if SMALL else (600, 10, 6.0)
honest = fl.data.partition(train, fl.data.iid(num_clients=50, seed=0))
population = honest.num_clients + num_canaries
params = network.init(key)

correct = fl.privacy.central_gaussian(
    clip=0.5,
    num_clients=population,
    sampling_rate=1.0,
    noise_multiplier=audit_noise,
    delta=1e-5,
)
no_noise = fl.privacy.gaussian_sum(clip=0.5, noise_multiplier=0.0, denominator=population)
broken = correct._replace(aggregator=no_noise)


def run_audit(private):
    """One run with canaries."""
    plan = fl.Plan(batch_size=10, steps=2)
    return audit.audit(
        lambda uplink: fl.fedavg(
            network.loss, optax.sgd(0.1), plan=plan, uplink=uplink, privacy=private
        ),
        params,
        data=honest,
        num_rounds=audit_rounds,
        num_canaries=num_canaries,
        delta=1e-5,
        key=key,
        bound="gaussian",  # the tighter one where everybody takes part in every round
        canary="coordinate",
        canary_norm=15.0,  # clipped to 0.5 like everything else
        strict=False,  # report a failure; by default it is an AuditFailed error
    )


reports = {"correct": run_audit(correct), "noise left out": run_audit(broken)}
fig, panels = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
for axes, (name, report) in zip(panels, reports.items(), strict=True):
    print(f"{name}: {report}")
    bins = np.linspace(report.scores.min(), report.scores.max(), 30)
    for there, colour, style in ((False, BLACK, "--"), (True, ORANGE, "-")):
        label = "sent its direction" if there else "sent nothing"
        scores = report.scores[report.present == there]
        axes.hist(scores, bins, histtype="step", color=colour, ls=style, lw=1.8, label=label)
    bound = f"epsilon >= {report.epsilon_lower_bound:.3g}"
    axes.set_title(f"{name}: {bound}, accounted {report.accounted_epsilon:.3g}", fontsize=10)
    axes.set(xlabel="score of a canary (trace in the model)", ylabel="canaries")
labelled = panels[0].get_legend_handles_labels()
fig.legend(*labelled, loc="outside lower center", ncols=2, fontsize=9)
plt.show()

# %% [markdown]
# Without noise the two groups come apart and the audit fails the method. A pass is weaker: it
# says that this attack found no more than was promised.
#
# ## 5. Hostile clients
#
# `fl.byzantine(attack, inner=rule, clients=...)` lets some clients send what an attack makes of all
# the others' messages, and aggregates with `rule`. Here it is inner product manipulation
# (Xie et al. 2019): hostile clients send the honest mean, turned round and scaled. Scaled by 10 it
# is crude and strong; scaled by 0.5 it is small enough to pass for an honest client, where clients
# differ, as these do (Dirichlet 0.3). Krum is built to stand 5 of 20; the figure goes beyond. How
# many are hostile and the scale are traced, so each rule is one program with all seeds inside.

# %%
num_workers, tolerated = 20, 5
skewed = fl.data.dirichlet(alpha=0.3, num_clients=num_workers, seed=0, min_size=10)
workers = fl.data.partition(train, skewed)
rules = {
    "mean": fl.mean(),
    "median": fl.median(),
    "Krum": fl.krum(tolerated),
    "centered clipping": fl.centered_clipping(0.1, iterations=3),
    "RFA on buckets of 2": fl.bucketing(2, inner=fl.geometric_median()),
}
num_hostile, robust_rounds = [0, 1, 2, 4, 6, 8], 100
if SMALL:
    rules = {name: rules[name] for name in ("mean", "centered clipping")}
    num_hostile, robust_rounds = [0, 4], 20


def under_attack(rule):
    """How to make an algorithm of a scale and a number of hostile clients."""

    def make(scale, num_hostile):
        ids = jnp.arange(num_workers)
        hostile = jnp.where(ids < num_hostile, ids, -1)  # -1 is nobody
        return fl.fedavg(
            model.loss,
            optax.sgd(0.5),
            plan=fl.Plan(batch_size=32, steps=1),
            sampler=fl.everyone(),
            weighting="uniform",
            uplink=fl.worker_momentum(0.9),
            aggregator=fl.byzantine(fl.ipm(scale), inner=rule, clients=hostile),
        )

    return make


results = {}
for name, rule in rules.items():
    print(name)
    results[name] = fl.sweep(
        under_attack(rule),
        {"scale": [10.0, 0.5], "num_hostile": num_hostile},
        seeds=range(num_seeds),
        init=model.init,
        data=workers,
        num_rounds=robust_rounds,
        evaluate=evaluate,
    ).table("test_accuracy")

# %%
dashes = ("-", "--", ":", "-.", (0, (5, 1)))
looks = list(zip("os^Dv", dashes, (BLACK, BLUE, ORANGE, GREEN, PINK), strict=True))
fig, panels = plt.subplots(1, 2, figsize=(9.6, 3.6), sharey=True, layout="constrained")
for (name, table), (marker, dash, colour) in zip(results.items(), looks, strict=False):
    look = {"marker": marker, "ls": dash, "color": colour, "capsize": 3, "ms": 5}
    for axes, scale in zip(panels, (10.0, 0.5), strict=True):
        mine = [row for row in table if row["scale"] == scale]
        mean, std = ([100 * row[figure] for row in mine] for figure in ("mean", "std"))
        axes.errorbar(num_hostile, mean, std, label=name, **look)
        axes.set(xlabel=f"hostile clients of {num_workers}", ylim=(0, 100))
        axes.set_title(f"honest mean times -{scale:g}", fontsize=10)
        axes.grid(axis="y", alpha=0.3)
panels[0].set_ylabel(f"test accuracy (%), mean and\nstandard deviation of {num_seeds} seeds")
fig.legend(*panels[0].get_legend_handles_labels(), loc="outside right center", fontsize=9)
plt.show()

for scale in (10.0, 0.5):
    at = {
        name: next(100 * r["mean"] for r in t if (r["scale"], r["num_hostile"]) == (scale, 4))
        for name, t in results.items()
    }
    print(f"4 hostile, times -{scale:g}: " + ", ".join(f"{n} {a:.1f} %" for n, a in at.items()))

# %% [markdown]
# No rule wins everywhere. The mean falls to a few clients that shout, and hardly minds the quiet
# ones. Rules that pick or vote (median, Krum) lose accuracy without any attack where clients
# differ, because honest minorities look like outliers to them; the quiet attack uses that. Centered
# clipping bounds what each client can do, which helps against shouting up to a share, and its
# radius has to be chosen. Buckets average a few messages before the rule sees them: nearly the
# mean's accuracy on clients that differ, but a hostile client spoils its whole bucket, so that
# fewer of them are tolerated.
#
# Other attacks go into the same place: `fl.alie()`, `fl.sign_flip()`, `fl.attacks.min_max()`,
# `fl.attacks.mimic()`; `fl.label_flip(data, clients, num_classes=10)` and `fl.attacks.backdoor`
# poison data. Try one before trusting a rule.
#
# ## Further
#
# - All attacks against all rules on MNIST, beside published numbers: `experiments/byzantine.py`
# - Accuracy against epsilon on MNIST by writer and CIFAR-10: `experiments/dp_fedavg.py`
# - Five planted bugs and audits at several noise levels: `experiments/privacy_audit.py`
# - Secure aggregation between client and server objects: `experiments/secure_aggregation.py`
