"""FedAvg on CIFAR-10: a federated run from the command line, start to plots.

    python experiments/fedavg_cifar.py
    python experiments/fedavg_cifar.py --partition shards --server-optimizer momentum --seed 1
    python experiments/fedavg_cifar.py --output-dir outputs/mine --resume
    python -m fedjax_lite.hosts.launch --num-processes 2 experiments/fedavg_cifar.py

Writes config.json, metrics.jsonl and .csv, clients.json, checkpoints/ and PNG plots to the output
folder. To compare runs: python -m fedjax_lite.report outputs/fedavg-* --output comparison.html
"""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
import tyro
from shared.flags import ClientFlags, DataFlags, ServerFlags, device_mesh, with_labels
from shared.layout import lay_out, recorded_layout
from shared.script import script

import fedjax_lite as fl
from fedjax_lite import report
from fedjax_lite.hosts import distributed
from fedjax_lite.models.precision import with_precision
from fedjax_lite.run.files import save_json_atomic

DENSE = ("linear", "2nn")


@dataclasses.dataclass(frozen=True)
class RunFlags:
    """Length of the run, model, and where results go."""

    num_rounds: int = 200
    """Rounds of communication in all."""
    model: Literal["auto", "cnn", "2nn", "linear", "lenet", "mcmahan_cnn", "pfl_cnn"] = "auto"
    """Network; auto is cnn, a small one with group normalisation."""
    centralised: bool = False
    """Also train on the union of the clients' data, with as many steps, and report the gap."""
    augment: bool = False
    """Random flips and crops in local training."""
    precision: Literal["default", "float32", "bfloat16", "tensorfloat32"] = "default"
    """Precision of products and convolutions, in training and evaluation; default: the device's
    own."""
    strategy: str = "auto"
    """How clients are laid on the device: auto, vmapped, sequential, chunked:L, or fastest, which
    times lanes and convolution forms first (auto does that on accelerators)."""
    devices: str = "all"
    """Devices that share the cohorts: all (those of other processes too) or a number."""
    seed: int = 0
    """Seed of partition, parameters, cohorts and batches."""
    every: int = 10
    """Rounds between evaluations."""
    output_dir: Path | None = None
    """Folder for the results; by default a new one, outputs/fedavg-<data set>-<date>-<time>."""
    resume: bool = False
    """Go on from the newest checkpoint in --output-dir."""
    overwrite: bool = False
    """Replace an earlier run's files in --output-dir."""
    tensorboard: bool = False
    """Also write TensorBoard event files."""
    smoke: bool = False
    """A run of seconds, to see that everything works: 4 rounds, few examples, small cohorts."""


@dataclasses.dataclass(frozen=True)
class Flags:
    """FedAvg and its server optimizers on partitioned image data."""

    data: tyro.conf.OmitArgPrefixes[DataFlags] = dataclasses.field(default_factory=DataFlags)
    client: tyro.conf.OmitArgPrefixes[ClientFlags] = dataclasses.field(default_factory=ClientFlags)
    server: tyro.conf.OmitArgPrefixes[ServerFlags] = dataclasses.field(default_factory=ServerFlags)
    run: tyro.conf.OmitArgPrefixes[RunFlags] = dataclasses.field(default_factory=RunFlags)


def load(flags: DataFlags) -> tuple[str, dict[str, np.ndarray], dict[str, np.ndarray]]:
    """The data set really used, and its two splits."""
    name = "cifar10" if flags.dataset == "auto" else flags.dataset
    try:
        return name, *fl.data.load(name, data_dir=flags.data_dir)
    except fl.data.DatasetNotFoundError as error:
        if flags.dataset != "auto":
            raise
        print(
            f"\nNOTICE: CIFAR-10 is not at hand, so this run uses scikit-learn's digits.\n{error}\n"
        )
        return "digits", *fl.data.load("digits")


def build_model(
    flags: RunFlags, train: dict[str, np.ndarray], num_classes: int, form: str = "auto"
) -> fl.models.Model:
    """The model that the flags name for the images at hand."""
    shape = train["x"].shape[1:]
    dense = flags.model in DENSE
    factories: dict[str, Any] = {
        "auto": fl.models.cnn,
        "cnn": fl.models.cnn,
        "linear": fl.models.linear,
        "lenet": fl.models.lenet,
        "mcmahan_cnn": fl.models.mcmahan_cnn,
        "pfl_cnn": fl.models.pfl_cnn,
        "2nn": lambda **options: fl.models.mlp((200, 200), **options),
    }
    options: dict[str, Any] = {} if dense else {"form": form}
    model = factories[flags.model](num_classes=num_classes, input_shape=shape, **options)
    return model if flags.precision == "default" else with_precision(model, flags.precision)


def smoke(flags: Flags, train: dict, test: dict) -> tuple[Flags, dict, dict]:
    """The same run in seconds: 4 rounds on 500 examples."""
    rows = np.random.default_rng(0).permutation(len(train["y"]))[:500]
    flags = dataclasses.replace(
        flags,
        data=dataclasses.replace(
            flags.data, num_clients=min(flags.data.num_clients, 10), min_size=1
        ),
        client=dataclasses.replace(flags.client, cohort_size=min(flags.client.cohort_size, 4)),
        run=dataclasses.replace(flags.run, num_rounds=4, every=2),
    )
    return flags, {k: v[rows] for k, v in train.items()}, {k: v[:200] for k, v in test.items()}


def main(flags: Flags) -> dict[str, Any]:
    """Runs the experiment and returns the last row of its history."""
    began = time.perf_counter()
    distributed.initialize()
    name, train, test = load(flags.data)
    num_classes = int(max(train["y"].max(), test["y"].max())) + 1
    if flags.run.smoke:
        flags, train, test = smoke(flags, train, test)
    run = flags.run
    if run.resume and run.output_dir is None:
        raise ValueError("--resume needs the --output-dir of the run to go on with")
    stamp = distributed.from_coordinator(time.strftime("%Y%m%d-%H%M%S"))
    output_dir = run.output_dir or Path("outputs") / f"fedavg-{name}-{stamp}"
    writes, mesh = distributed.is_coordinator(), device_mesh(run.devices)

    owners = fl.data.partition(train, flags.data.partitioner(run.seed))
    whole = dataclasses.replace(owners, examples=with_labels(owners.examples))
    data, scored, split = flags.data.split(whole, with_labels(test), run.seed)
    model = build_model(run, train, num_classes)
    trained = fl.models.augmented(model) if run.augment else model

    def make(form: str, laid: fl.engine.Strategy) -> fl.FederatedAlgorithm:
        model = build_model(run, train, num_classes, form)
        return fl.fedavg(
            (fl.models.augmented(model) if run.augment else model).loss,
            flags.client.optimizer(run.num_rounds),
            plan=flags.client.plan(),
            sampler=flags.client.sampler(),
            server_optimizer=flags.server.optimizer(run.num_rounds),
            weighting=flags.server.weighting,
            strategy=laid,
        )

    key = jax.random.key(run.seed)
    params = jax.jit(model.init)(key)
    algo, layout = lay_out(
        make,
        params,
        data,
        name=run.strategy,
        mesh=mesh,
        forms=("auto",) if run.model in DENSE else ("matmul", "xla"),
        cohort_size=flags.client.cohort_size,
        recorded=recorded_layout(output_dir, run.resume),
    )
    placed, state = data, algo.init(key, params, data)
    if mesh is not None:
        placed = fl.replicate(data, mesh=mesh)
        state = fl.engine.place_state(state, placed, mesh=mesh)

    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    num_devices = 1 if mesh is None else mesh.size
    if writes:
        print(
            f"{name}: {data.num_examples} examples, {data.num_clients} clients, {size} parameters"
        )
    if writes and layout == "auto":
        share = -(-flags.client.cohort_size // num_devices)
        print(f"{num_devices} devices, each:\n" * (num_devices > 1), end="")
        print(fl.explain(params, data, plan=flags.client.plan(), cohort_size=share))
    state, history = fl.run(
        algo,
        key,
        state,
        placed,
        num_rounds=run.num_rounds,
        evaluate=fl.evaluator(model, with_labels(test)),
        every=run.every,
        output_dir=output_dir,
        resume=run.resume,
        overwrite=run.overwrite,
        tensorboard=run.tensorboard,
        config={
            **settings(flags),
            "dataset_used": name,
            "num_parameters": size,
            "layout": layout,
            "schedule_rounds": horizon(flags),
        },
    )
    gap = ""
    if run.centralised:
        gap = centralised_gap(flags, trained.loss, model, data, test, history, output_dir)
    last = history[-1]
    if writes:
        counts = fl.data.label_counts(whole, num_classes)
        clients = write_clients(
            output_dir, name, model, distributed.local(state), scored, split, counts
        )
        plots(output_dir, name, history, clients, split, counts)
        if run.centralised:
            print(gap)
        print(
            f"{name}: test accuracy {last['test_accuracy']:.4f} after {last['round']} rounds; on "
            f"the clients' own {split} data {clients['all']['accuracy']:.4f}; "
            f"{time.perf_counter() - began:.0f} s in all; results in {output_dir}"
        )
    distributed.barrier("all is written")
    return last


def write_clients(
    output_dir: Path,
    name: str,
    model: fl.models.Model,
    state: Any,
    scored: Any,
    split: str,
    counts: np.ndarray,
) -> dict[str, Any]:
    """The model on every client's data of this split, as clients.json; returns the scores."""
    clients = fl.evaluate_clients(model, state, scored)
    report.save_clients(
        output_dir,
        clients,
        dataset=name,
        split=split,
        round=int(state.round),
        label_counts=counts,
    )
    return clients


def centralised_gap(
    flags: Flags,
    loss: Any,
    model: fl.models.Model,
    data: Any,
    test: dict[str, np.ndarray],
    history: list,
    output_dir: Path,
) -> str:
    """Trains on the pooled data through the same code, writes gap.json, and says the last gap."""
    run, client = flags.run, flags.client
    batch_size = client.batch_size or data.num_examples
    share = client.cohort_size * client.epochs / data.num_clients
    steps = max(round(share * data.num_examples / batch_size), 1)
    algo = fl.centralised(
        loss,
        client.optimizer(run.num_rounds),
        plan=fl.Plan(batch_size=client.batch_size or None, steps=steps),
    )
    key = jax.random.key(run.seed)
    _, baseline = fl.run(
        algo,
        key,
        algo.init(key, model.init(key), data),
        data,
        num_rounds=run.num_rounds,
        evaluate=fl.evaluator(model, with_labels(test)),
        every=run.every,
        output_dir=output_dir / "centralised",
        resume=run.resume,
        overwrite=run.overwrite,
    )
    gaps = fl.algorithms.gap_to_baseline(history, baseline)
    if distributed.is_coordinator():
        save_json_atomic(output_dir / "gap.json", {"steps_per_round": steps, "gaps": gaps})
    return (
        f"centralised, {steps} steps a round: test accuracy {baseline[-1]['test_accuracy']:.4f}; "
        f"gap of the federated run {gaps[-1]['test_accuracy_gap']:+.4f}"
    )


def horizon(flags: Flags) -> int | None:
    """The rounds that a schedule is made for: another number of them is another run."""
    schedules = (flags.client.client_schedule, flags.server.server_schedule)
    return flags.run.num_rounds if "cosine" in schedules else None


def settings(flags: Flags) -> dict[str, Any]:
    """The flags as a flat dict of JSON values."""
    flat: dict[str, Any] = {}
    for group in dataclasses.asdict(flags).values():
        flat.update({k: str(v) if isinstance(v, Path) else v for k, v in group.items()})
    return flat


def plots(
    output_dir: Path, name: str, history: list, clients: dict, split: str, counts: np.ndarray
) -> None:
    """Curves, client accuracies and the partition, as PNG files."""
    report.plot_curves(history, dataset=name, title="FedAvg", path=output_dir / "curves.png")
    report.plot_client_accuracies(
        clients["accuracy"],
        dataset=name,
        split=split,
        title=f"FedAvg, {split} data by client",
        path=output_dir / "clients.png",
    )
    report.plot_partition(counts, dataset=name, path=output_dir / "partition.png")


if __name__ == "__main__":
    script(main, Flags, __doc__)
