"""pfl-research's rounds on PyTorch: SimulatedBackend, FederatedAveraging, PyTorchModel.

As in its own CIFAR-10 benchmark: tensors of every user in memory, `FederatedDataset`,
`WeightByUser` or `WeightByDatapoints`, plain SGD on both sides. `FederatedAlgorithm.run` goes on
where it stopped, so k rounds are one call with the total raised by k. Users come from the common
schedule; pfl does not shuffle a user's data, which spares it that work. Evaluation is off (pfl
evaluates in round 0 whatever it is told: its cold time has that).

The variant is PyTorch's threads ("2", "1": small batches gain nothing from two) or worker processes
by threads of each ("2x1"), joined by torch.distributed with gloo as `torchrun` would start them.
Where sizes are uneven these have pfl's own balancing (`user_id_to_weight`), which puts users on the
process with the least work so far. The first process starts the others and hands every command on.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from typing import Any

import numpy as np
import torch
import torch_models
from worker_protocol import begin, commands, serve, workers_and_threads


class Schedule:
    """The users of the common schedule, one a call; pfl samples in processes of their own."""

    def __init__(self, cohorts: np.ndarray) -> None:
        self.users = cohorts.ravel().tolist()
        self.place = 0

    def __call__(self) -> int:
        """The next user."""
        self.place += 1
        return self.users[(self.place - 1) % len(self.users)]


class Users:
    """The data of a user; without them in the process that samples, which pfl sends this to."""

    def __init__(self, clients: Any) -> None:
        self.clients = clients

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def __call__(self, user: int) -> Any:
        """A pfl dataset."""
        from pfl.data.dataset import Dataset

        return Dataset(self.clients[user], user_id=user)


class Net(torch.nn.Module):
    """The exported network with the two methods that `PyTorchModel` asks for."""

    def __init__(self, task: Any) -> None:
        super().__init__()
        self.layers = torch_models.build(task.net, task.weights())

    def loss(self, x, y):
        """Mean cross-entropy of a batch."""
        return torch.nn.functional.cross_entropy(self.layers(x), y)

    @torch.no_grad()
    def metrics(self, x, y):
        """What an evaluation would measure."""
        from pfl.metrics import Weighted

        return {"loss": Weighted(self.loss(x, y).item() * len(y), len(y))}


def start_others(number: int) -> list[subprocess.Popen[str]]:
    """The other processes, with the environment that torchrun gives; sets this one's own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {"TORCHELASTIC_RUN_ID": "peers", "WORLD_SIZE": str(number), "MASTER_PORT": str(port)}
    common |= {"MASTER_ADDR": "127.0.0.1", "LOCAL_WORLD_SIZE": str(number)}
    os.environ.update(common, RANK="0", LOCAL_RANK="0")
    return [
        subprocess.Popen(
            [sys.executable, *sys.argv],
            stdin=subprocess.PIPE,
            text=True,
            env={**os.environ, "RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(1, number)
    ]


def trainer(task: Any, net: Net, num_workers: int) -> Any:
    """A function that trains so many further rounds."""
    # Imported here: with torchrun's environment pfl joins the other processes when it is imported.
    from pfl.aggregate.simulate import SimulatedBackend
    from pfl.aggregate.weighting import WeightByDatapoints, WeightByUser
    from pfl.algorithm.base import NNAlgorithmParams
    from pfl.algorithm.federated_averaging import FederatedAveraging
    from pfl.data.federated_dataset import FederatedDataset
    from pfl.hyperparam import NNTrainHyperParams
    from pfl.model.pytorch import PyTorchModel

    model = PyTorchModel(
        model=net,
        local_optimizer_create=torch.optim.SGD,
        central_optimizer=torch.optim.SGD(net.parameters(), 1.0),
    )
    schedule, sizes = task.array("cohorts"), np.diff(task.array("offsets")).tolist()
    # Without it pfl deals users in turn, and an odd cohort puts the processes out of step.
    uneven = len(set(sizes)) > 1 or schedule.shape[1] % num_workers
    weights = dict(enumerate(sizes)) if num_workers > 1 and uneven else None
    data = FederatedDataset(Users(torch_models.clients(task)), Schedule(schedule), weights)
    weighting = WeightByUser() if task.weighting == "uniform" else WeightByDatapoints()
    backend = SimulatedBackend(training_data=data, val_data=data, postprocessors=[weighting])
    algorithm = FederatedAveraging()
    local = NNTrainHyperParams(
        local_learning_rate=task.learning_rate,
        local_num_epochs=task.epochs,
        local_batch_size=task.batch_size,
    )
    done = [0]

    def run_rounds(number: int) -> None:
        done[0] += number
        algorithm.run(
            algorithm_params=NNAlgorithmParams(
                central_num_iterations=done[0],
                evaluation_frequency=10**9,
                train_cohort_size=schedule.shape[1],
                val_cohort_size=0,
            ),
            backend=backend,
            model=model,
            model_train_params=local,
        )

    return run_rounds


def main() -> None:
    """Answers commands, or trains along where another process answers."""
    task, answers = begin()
    num_workers, num_threads = workers_and_threads(task.variant)
    torch.set_num_threads(num_threads)
    is_other = "RANK" in os.environ
    others = start_others(num_workers) if num_workers > 1 and not is_other else []
    net = Net(task)
    run_rounds = trainer(task, net, num_workers)
    if is_other:
        for command in commands():
            run_rounds(command["rounds"])
        return

    def run_all(number: int) -> None:
        for other in others:
            assert other.stdin is not None
            other.stdin.write(json.dumps({"rounds": number}) + "\n")
            other.stdin.flush()
        run_rounds(number)

    serve(answers, run_all, lambda: torch_models.export(net.layers), ("pfl", "torch", "numpy"))
    for other in others:
        assert other.stdin is not None
        other.stdin.close()
        other.wait()


if __name__ == "__main__":
    main()
