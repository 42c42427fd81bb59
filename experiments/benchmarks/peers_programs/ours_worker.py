"""Our rounds: `fl.fedavg` and `fl.run` as a user calls them.

The variant is the strategy and the devices: "auto-cores" has a device a core (`fl.use_cores`, as
our scripts do), "auto" one device whose operations XLA splits over the cores. "vmapped" is the
padded round, with "-cores" dealt to the cores as well.
"""

import jax
import jax_models
import numpy as np
import optax
from worker_protocol import begin, serve

import fedjax_lite as fl

task, answers = begin()
way, _, cores = task.variant.partition("-")
if cores:
    fl.use_cores()
jax_models.set_precision(task.dtype)
sizes = np.diff(task.array("offsets"))
schedule = task.array("cohorts")
examples = {"x": np.asarray(task.array("x")), "y": np.asarray(task.array("y"))}
owners = np.repeat(np.arange(len(sizes)), sizes)
data = fl.data.from_arrays(examples, owners, num_clients=len(sizes))
model = jax_models.build(task.net)
uniform = fl.uniform(schedule.shape[1])


def sample(key, state, sizes):
    """`uniform`, with the cohort written down: the peers' schedule must be what is drawn here."""
    _, cohort = uniform.sample(key, (), sizes)
    return cohort.ids, cohort


# `auto` deals to the cores by itself, `vmapped` is told to.
mesh = fl.client_mesh() if way == "vmapped" and cores else None
strategy = {"auto": fl.auto, "vmapped": fl.vmapped}[way]()
if mesh is not None:
    strategy = fl.sharded(mesh, strategy)
    data = fl.replicate(data, mesh=mesh)
algo = fl.fedavg(
    model.loss,
    optax.sgd(task.learning_rate),
    plan=fl.Plan(batch_size=task.batch_size, epochs=task.epochs),
    sampler=fl.Sampler(lambda num_clients: jax.numpy.zeros(schedule.shape[1], "int32"), sample),
    weighting=task.weighting,
    strategy=strategy,
)
key, params = jax.random.key(task.seed), jax_models.unflatten(task.weights())
if mesh is None:
    state = algo.init(key, params, data)
else:
    state = fl.init_state(algo, key, params, data, mesh=mesh)
num_done = 0


def run_rounds(number: int) -> None:
    """Trains that many further rounds."""
    global num_done, state
    num_done += number
    # `every` above all rounds: one compiled program, whatever the number of rounds of a call.
    state, _ = fl.run(
        algo, key, state, data, num_rounds=num_done, every=len(schedule), progress=False
    )
    drawn, due = np.asarray(state.sampler), schedule[num_done - 1]
    if not np.array_equal(np.sort(drawn), np.sort(due)):
        raise RuntimeError(f"round {num_done} drew {drawn}, but the peers were given {due}")


def weights() -> dict[str, np.ndarray]:
    """The server's model."""
    return jax_models.flatten(state.server.params)


serve(answers, run_rounds, weights, ("jax", "jaxlib", "optax", "numpy"))
