"""BlazeFL's rounds on PyTorch: the FedAvg of its `contrib` package, in each of its three modes.

The variant is the mode and workers by PyTorch threads of each: "serial", "threads" (recommended by
its documentation for builds of Python without the interpreter's lock; with the lock they take
turns, and `versions` says which Python it was) or "processes" (a pool made anew in every round,
shared memory between). Loop, trainers and aggregation are BlazeFL's. What its user writes is as
quick as we could make it: tensors in memory, one gather a batch instead of one an example, data
inherited by forked processes and not sent, the largest clients first. BlazeFL weights clients by
their examples; where a workload weights all alike, they have equally many. Its SGD, shuffling and
short last batches are the common ones. In "processes" it writes each client's random state to a
file after training, which its interface does not let one leave out.
"""

import copy
import itertools
import sys
import tempfile
from pathlib import Path

import torch
import torch.multiprocessing as mp
import torch_models
from blazefl.contrib import (
    FedAvgBaseClientTrainer,
    FedAvgBaseServerHandler,
    FedAvgProcessPoolClientTrainer,
    FedAvgThreadPoolClientTrainer,
)
from blazefl.core import IPCMode
from torch.utils.data import DataLoader, TensorDataset
from worker_protocol import begin, serve, workers_and_threads

task, answers = begin()
mode = task.variant.partition("-")[0]
num_workers, num_threads = workers_and_threads(task.variant)
torch.set_num_threads(num_threads)
schedule = itertools.cycle(task.array("cohorts").tolist())
cohort_size = task.array("cohorts").shape[1]
clients = torch_models.clients(task)
template = torch_models.build(task.net, task.weights())


class Batches:
    """Rows of a fresh permutation, batch by batch, the last one short."""

    def __init__(self, number, size, generator):
        self.number, self.size, self.generator = number, size, generator

    def __iter__(self):
        return iter(torch.randperm(self.number, generator=self.generator).split(self.size))

    def __len__(self):
        return -(-self.number // self.size)


class Clients:
    """BlazeFL's `PartitionedDataset`; empty where it is sent: forked processes have the data."""

    def get_dataset(self, type_, cid):
        """A client's examples."""
        return TensorDataset(*clients[cid])

    def set_dataset(self, type_, cid, dataset):
        """Nothing: the examples do not change."""

    def get_dataloader(self, type_, cid, batch_size, generator=None):
        """Shuffled batches."""
        dataset = self.get_dataset(type_, cid)
        batches = Batches(len(dataset), batch_size or len(dataset), generator)
        return DataLoader(dataset, sampler=batches, batch_size=None)


class Models:
    """BlazeFL's `ModelSelector`."""

    def select_model(self, model_name):
        """A copy of the initial network."""
        return copy.deepcopy(template)


class Scheduled(FedAvgBaseServerHandler):
    """FedAvg with the clients of the common schedule."""

    def sample_clients(self):
        """Those of the next round, the largest first so that workers end together."""
        return sorted(next(schedule), key=lambda cid: -len(clients[cid][1]))


common = {
    "model_selector": Models(),
    "model_name": "net",
    "dataset": Clients(),
    "device": "cpu",
    "num_clients": len(clients),
    "batch_size": task.batch_size,
    "seed": task.seed,
}
server = Scheduled(**common, global_round=sys.maxsize, sample_ratio=cohort_size / len(clients))
server.num_clients_per_round = cohort_size  # the product of the two may round down
local = {**common, "epochs": task.epochs, "lr": task.learning_rate}
if mode == "threads":
    trainer = FedAvgThreadPoolClientTrainer(**local, num_parallels=num_workers)
elif mode == "processes":
    mp.set_start_method("fork", force=True)
    # PyTorch imports seconds of modules with the first optimizer: here, not in every round's pool.
    torch.optim.SGD(template.parameters(), lr=1.0).zero_grad()
    folder = Path(tempfile.mkdtemp(prefix="blazefl-", dir=task.folder))
    trainer = FedAvgProcessPoolClientTrainer(
        **local,
        num_parallels=num_workers,
        share_dir=folder,
        state_dir=folder / "states",
        ipc_mode=IPCMode.SHARED_MEMORY,
    )
else:
    trainer = FedAvgBaseClientTrainer(**local)


def run_rounds(number):
    """Trains that many further rounds."""
    for _ in range(number):
        cohort = server.sample_clients()
        trainer.local_process(server.downlink_package(), cohort)
        for package in trainer.uplink_package():
            server.load(package)


serve(answers, run_rounds, lambda: torch_models.export(server.model), ("blazefl", "torch", "numpy"))
