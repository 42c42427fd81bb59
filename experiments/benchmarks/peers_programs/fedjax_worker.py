"""FedJAX's rounds: `fedjax.algorithms.fed_avg` as it is published, on its `for_each_client`.

The variant is the backend ("jit", one client at a time; "pmap", a device a core, as many clients
side by side, masked until the longest of them ends) and, where there are any, the form of the
convolutions. FedJAX 0.0.17 needs a JAX before 0.6 (`environments`), so the network is written in
JAX's own functions (`plain_network`). What it does otherwise: a client's last batch is not short
but filled up from a second permutation, so there are as many steps and a few more examples; clients
count by their examples (where a workload weights all alike, they have equally many); each round
also computes the norms of the clients' updates. Its "pmap" stacks batches, so where clients of
uneven sizes train with all their data at once, in the check of agreement, "jit" stands in for it.
"""

import dataclasses
import functools
import itertools

import fedjax
import jax
import numpy as np
import plain_network
from fedjax.algorithms import fed_avg
from worker_protocol import begin, serve

task, answers = begin()
backend, _, form = task.variant.partition("-")
if backend == "pmap":
    jax.config.update("jax_num_cpu_devices", task.num_threads)
    # FedJAX takes a shard of a pmapped array to have no axis of its device, as before jax 0.4.36.
    jax.config.update("jax_pmap_no_rank_reduction", False)
    if task.batch_size is None and len(set(np.diff(task.array("offsets")).tolist())) > 1:
        backend = "jit"
if task.dtype == "float64":
    jax.config.update("jax_enable_x64", True)


class Whole(fedjax.ClientDataset):
    """A client whose batches are all it has, whatever is asked for: for the check of agreement."""

    def shuffle_repeat_batch(self, hparams, **more):
        """FedJAX's own, with the client's size."""
        hparams = dataclasses.replace(hparams, batch_size=len(self))
        return super().shuffle_repeat_batch(hparams, **more)


x, y = task.array("x"), task.array("y")
make = fedjax.ClientDataset if task.batch_size else Whole
clients = [
    make({"x": np.asarray(x[low:high]), "y": np.asarray(y[low:high])})
    for low, high in itertools.pairwise(task.array("offsets").tolist())
]
schedule = itertools.cycle(task.array("cohorts").tolist())
loss = functools.partial(plain_network.loss, task.net, form=form or "matmul")
with fedjax.for_each_client_backend(backend):
    algorithm = fed_avg.federated_averaging(
        jax.grad(loss),
        fedjax.optimizers.sgd(task.learning_rate),
        fedjax.optimizers.sgd(1.0),
        fedjax.ShuffleRepeatBatchHParams(task.batch_size or 1, num_epochs=task.epochs),
    )
params = {}
for name, value in task.weights().items():
    layer, _, leaf = name.partition("/")
    params.setdefault(layer, {})[leaf] = jax.numpy.asarray(value)
state, key = algorithm.init(params), jax.random.PRNGKey(task.seed)


def run_rounds(number):
    """Trains that many further rounds."""
    global state, key
    for _ in range(number):
        cohort = next(schedule)
        key, *keys = jax.random.split(key, 1 + len(cohort))
        state, _ = algorithm.apply(
            state, [(cid, clients[cid], use) for cid, use in zip(cohort, keys)]
        )
    jax.block_until_ready(state.params)


def weights():
    """The server's model."""
    return {
        f"{layer}/{leaf}": np.asarray(value)
        for layer, leaves in state.params.items()
        for leaf, value in leaves.items()
    }


serve(answers, run_rounds, weights, ("fedjax", "jax", "jaxlib", "optax", "numpy"))
