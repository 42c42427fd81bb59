"""pfl-research's rounds on PyTorch: SimulatedBackend, FederatedAveraging, PyTorchModel.

As in its own CIFAR-10 benchmark: tensors of every user in memory, `FederatedDataset.from_slices`,
`WeightByUser` or `WeightByDatapoints`, plain SGD on both sides. `FederatedAlgorithm.run` goes on
where it stopped, so k rounds are one call with the total raised by k. Users come from the common
schedule; pfl does not shuffle a user's data, which spares it that work. Evaluation is off (pfl
evaluates in round 0 whatever it is told: its cold time has that). The variant is the number of
PyTorch's threads, because small batches gain nothing from two.
"""

import itertools

import torch
import torch_models
from pfl.aggregate.simulate import SimulatedBackend
from pfl.aggregate.weighting import WeightByDatapoints, WeightByUser
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.data.federated_dataset import FederatedDataset
from pfl.hyperparam import NNTrainHyperParams
from pfl.metrics import Weighted
from pfl.model.pytorch import PyTorchModel
from worker_protocol import begin, serve

task, answers = begin()
torch.set_num_threads(int(task.variant))


class Net(torch.nn.Module):
    """The exported network with the two methods that `PyTorchModel` asks for."""

    def __init__(self):
        super().__init__()
        self.layers = torch_models.build(task.net, task.weights())

    def loss(self, x, y):
        """Mean cross-entropy of a batch."""
        return torch.nn.functional.cross_entropy(self.layers(x), y)

    @torch.no_grad()
    def metrics(self, x, y):
        """What an evaluation would measure."""
        return {"loss": Weighted(self.loss(x, y).item() * len(y), len(y))}


net = Net()
model = PyTorchModel(
    model=net,
    local_optimizer_create=torch.optim.SGD,
    central_optimizer=torch.optim.SGD(net.parameters(), 1.0),
)
schedule = task.array("cohorts")
users = itertools.cycle(schedule.ravel().tolist())
data = FederatedDataset.from_slices(torch_models.clients(task), lambda: next(users))
backend = SimulatedBackend(
    training_data=data,
    val_data=data,
    postprocessors=[WeightByUser() if task.weighting == "uniform" else WeightByDatapoints()],
)
algorithm = FederatedAveraging()
local = NNTrainHyperParams(
    local_learning_rate=task.learning_rate,
    local_num_epochs=task.epochs,
    local_batch_size=task.batch_size,
)
num_done = 0


def run_rounds(number: int) -> None:
    """Trains that many further rounds."""
    global num_done
    num_done += number
    algorithm.run(
        algorithm_params=NNAlgorithmParams(
            central_num_iterations=num_done,
            evaluation_frequency=10**9,
            train_cohort_size=schedule.shape[1],
            val_cohort_size=0,
        ),
        backend=backend,
        model=model,
        model_train_params=local,
    )


serve(answers, run_rounds, lambda: torch_models.export(net.layers), ("pfl", "torch", "numpy"))
