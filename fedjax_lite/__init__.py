"""fedjax_lite: federated-learning research as pure JAX functions.

A federated algorithm is a pair of pure functions, ``init`` and ``round``; a whole round, all of
its clients included, is one compiled program; the state of a run is one immutable pytree.

>>> import jax, optax, fedjax_lite as fl
>>> train, test = fl.data.load("digits")
>>> data = fl.data.partition(train, fl.data.dirichlet(alpha=0.5, num_clients=20, seed=0))
>>> model = fl.models.mlp((64,), num_classes=10, input_shape=(8, 8, 1))
>>> algo = fl.fedavg(model.loss, optax.sgd(0.1), plan=fl.Plan(batch_size=10), sampler=fl.uniform(5))
>>> key = jax.random.key(0)
>>> state = algo.init(key, model.init(key), data)
>>> state, history = fl.run(algo, key, state, data, num_rounds=2, every=2, progress=False,
...                         evaluate=fl.evaluator(model, test))
>>> sorted(history[-1])[:3]
['num_clients', 'num_steps', 'round']
"""

from fedjax_lite import (
    aggregation,
    algorithms,
    data,
    distributed,
    drift,
    engine,
    models,
    server,
    stream,
    transforms,
    verify,
)
from fedjax_lite.aggregation import diagnosed, mean
from fedjax_lite.algorithms import (
    centralised,
    evaluate_personal,
    fedadagrad,
    fedadam,
    fedavg,
    fedavgm,
    fedbn,
    feddyn,
    fednova,
    fedprox,
    fedsgd,
    fedyogi,
    local_leaves,
    local_only,
    mime,
    mimelite,
    personal_models,
    pooled,
    scaffold,
)
from fedjax_lite.calibration import Calibration, calibrate, lane_strategies
from fedjax_lite.compilation import keep_compiled_programs
from fedjax_lite.compose import federated_algorithm
from fedjax_lite.engine import (
    Plan,
    auto,
    chunked,
    client_mesh,
    differentiable,
    explain,
    forecast,
    init_state,
    place_state,
    replicate,
    sequential,
    shard_population,
    sharded,
    shuffle_index,
    vmapped,
)
from fedjax_lite.evaluate import evaluate_clients, evaluator, summarize_clients
from fedjax_lite.local import local_sgd, mean_grad, mean_loss
from fedjax_lite.loop import RunInterrupted, run
from fedjax_lite.meta import unroll
from fedjax_lite.proximal import proximal
from fedjax_lite.sampling import dropout, everyone, poisson, uniform, weighted
from fedjax_lite.server import optimizer_server
from fedjax_lite.stream import HostTable, StreamedDataset, open_streamed, streamed_bytes
from fedjax_lite.sweep import Sweep, sweep
from fedjax_lite.transforms import chain, clip, identity
from fedjax_lite.types import (
    Aggregator,
    Batch,
    ClientInfo,
    ClientUpdate,
    Cohort,
    FederatedAlgorithm,
    Mean,
    Message,
    RoundState,
    Sampler,
    ServerUpdate,
    Transform,
)
from fedjax_lite.version import __version__ as __version__

__all__ = [
    "Aggregator",
    "Batch",
    "Calibration",
    "ClientInfo",
    "ClientUpdate",
    "Cohort",
    "FederatedAlgorithm",
    "HostTable",
    "Mean",
    "Message",
    "Plan",
    "RoundState",
    "RunInterrupted",
    "Sampler",
    "ServerUpdate",
    "StreamedDataset",
    "Sweep",
    "Transform",
    "aggregation",
    "algorithms",
    "auto",
    "calibrate",
    "centralised",
    "chain",
    "chunked",
    "client_mesh",
    "clip",
    "data",
    "diagnosed",
    "differentiable",
    "distributed",
    "drift",
    "dropout",
    "engine",
    "evaluate_clients",
    "evaluate_personal",
    "evaluator",
    "everyone",
    "explain",
    "fedadagrad",
    "fedadam",
    "fedavg",
    "fedavgm",
    "fedbn",
    "feddyn",
    "federated_algorithm",
    "fednova",
    "fedprox",
    "fedsgd",
    "fedyogi",
    "forecast",
    "identity",
    "init_state",
    "keep_compiled_programs",
    "lane_strategies",
    "local_leaves",
    "local_only",
    "local_sgd",
    "mean",
    "mean_grad",
    "mean_loss",
    "mime",
    "mimelite",
    "models",
    "open_streamed",
    "optimizer_server",
    "personal_models",
    "place_state",
    "poisson",
    "pooled",
    "proximal",
    "replicate",
    "run",
    "scaffold",
    "sequential",
    "server",
    "shard_population",
    "sharded",
    "shuffle_index",
    "stream",
    "streamed_bytes",
    "summarize_clients",
    "sweep",
    "transforms",
    "uniform",
    "unroll",
    "verify",
    "vmapped",
    "weighted",
]
