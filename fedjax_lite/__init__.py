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
>>> history[-1]["round"], 0 <= history[-1]["test_accuracy"] <= 1
(2, True)
"""

from typing import TYPE_CHECKING as _TYPE_CHECKING

# Before the rest, which a jax that is too old would break in less telling ways.
from fedjax_lite.version import __version__ as __version__  # isort: split

from fedjax_lite import (
    aggregation,
    algorithms,
    arrivals,
    attacks,
    crypto,
    data,
    engine,
    metrics,
    models,
    privacy,
    selection,
    transforms,
)
from fedjax_lite.aggregation import (
    bucketing,
    bulyan,
    centered_clipping,
    diagnosed,
    geometric_median,
    krum,
    mean,
    median,
    min_norm,
    multi_krum,
    norm_bound,
    secure_mean,
    trimmed_mean,
)
from fedjax_lite.algorithms import (
    afl,
    apfl,
    centralised,
    ditto,
    evaluate_personal,
    ewc,
    fedadagrad,
    fedadam,
    fedavg,
    fedavgm,
    fedbabu,
    fedbn,
    feddyn,
    fedlora,
    fedmgda,
    fednova,
    fedper,
    fedprox,
    fedrep,
    fedsgd,
    fedyogi,
    fomaml,
    frozen_leaves,
    hierfavg,
    lg_fedavg,
    local_leaves,
    local_only,
    mime,
    mimelite,
    per_fedavg,
    personal_models,
    pfedme,
    pooled,
    q_fedavg,
    q_fedsgd,
    reptile,
    scaffold,
    term,
    three_way,
    with_frozen,
    with_old_tasks,
)
from fedjax_lite.attacks import alie, byzantine, ipm, label_flip, sign_flip
from fedjax_lite.checks.calls import check_calls as _check_calls
from fedjax_lite.checks.made import Made, made
from fedjax_lite.data.population.population import Population
from fedjax_lite.describe import citation, describe
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
from fedjax_lite.evaluate import (
    client_evaluator,
    drift,
    evaluate_clients,
    evaluator,
    fine_tuned,
    fisher_information,
    side_by_side,
    summarize_clients,
)
from fedjax_lite.hosts import distributed
from fedjax_lite.hosts.cores import use_cores
from fedjax_lite.objectives.ewc import OldTasks, ewc_penalty, no_old_tasks, remember
from fedjax_lite.objectives.fisher import empirical_fisher, exact_fisher
from fedjax_lite.objectives.proximal import proximal
from fedjax_lite.round import server
from fedjax_lite.round.compose import federated_algorithm
from fedjax_lite.round.downlink import Downlink
from fedjax_lite.round.local import local_sgd, mean_grad, mean_loss
from fedjax_lite.round.sampling import dropout, everyone, poisson, uniform, weighted
from fedjax_lite.round.server import optimizer_server
from fedjax_lite.run.compilation import keep_compiled_programs
from fedjax_lite.run.divergence import RunDiverged
from fedjax_lite.run.fastest import Timing, fastest, lane_strategies
from fedjax_lite.run.interrupt import RunInterrupted
from fedjax_lite.run.loop import run
from fedjax_lite.run.sweep import Sweep, sweep
from fedjax_lite.run.unroll import unroll
from fedjax_lite.transforms import (
    chain,
    clip,
    drive,
    ef21,
    error_feedback,
    gaussian_noise,
    identity,
    powersgd,
    qsgd,
    random_k,
    scaled_sign,
    ternary,
    top_k,
    worker_momentum,
)
from fedjax_lite.types import (
    Accountant,
    Aggregator,
    Batch,
    ClientInfo,
    ClientUpdate,
    Cohort,
    FederatedAlgorithm,
    Known,
    Mean,
    Mechanism,
    Message,
    Phase,
    RoundState,
    Sampler,
    ServerUpdate,
    Slots,
    Transform,
    Wire,
)

if _TYPE_CHECKING:
    from fedjax_lite import report as report
    from fedjax_lite import stream as stream
    from fedjax_lite import testing as testing
    from fedjax_lite import verify as verify
    from fedjax_lite.stream import HostTable as HostTable
    from fedjax_lite.stream import StreamedDataset as StreamedDataset
    from fedjax_lite.stream import open_streamed as open_streamed
    from fedjax_lite.stream import streamed_bytes as streamed_bytes

__all__ = [
    "Accountant",
    "Aggregator",
    "Batch",
    "Timing",
    "ClientInfo",
    "ClientUpdate",
    "Cohort",
    "Downlink",
    "FederatedAlgorithm",
    "HostTable",
    "Known",
    "Made",
    "Mean",
    "Mechanism",
    "Message",
    "OldTasks",
    "Phase",
    "Plan",
    "Population",
    "RoundState",
    "RunDiverged",
    "RunInterrupted",
    "Sampler",
    "ServerUpdate",
    "Slots",
    "StreamedDataset",
    "Sweep",
    "Transform",
    "Wire",
    "aggregation",
    "afl",
    "algorithms",
    "alie",
    "apfl",
    "arrivals",
    "attacks",
    "auto",
    "bucketing",
    "bulyan",
    "byzantine",
    "fastest",
    "centered_clipping",
    "centralised",
    "chain",
    "chunked",
    "citation",
    "client_evaluator",
    "client_mesh",
    "clip",
    "crypto",
    "data",
    "describe",
    "diagnosed",
    "differentiable",
    "distributed",
    "ditto",
    "drift",
    "drive",
    "dropout",
    "ef21",
    "empirical_fisher",
    "engine",
    "error_feedback",
    "evaluate_clients",
    "evaluate_personal",
    "evaluator",
    "everyone",
    "ewc",
    "ewc_penalty",
    "exact_fisher",
    "explain",
    "fedadagrad",
    "fedadam",
    "fedavg",
    "fedavgm",
    "fedbabu",
    "fedbn",
    "feddyn",
    "federated_algorithm",
    "fedlora",
    "fedmgda",
    "fednova",
    "fedper",
    "fedprox",
    "fedrep",
    "fedsgd",
    "fedyogi",
    "fine_tuned",
    "fisher_information",
    "fomaml",
    "forecast",
    "frozen_leaves",
    "gaussian_noise",
    "geometric_median",
    "hierfavg",
    "identity",
    "init_state",
    "ipm",
    "keep_compiled_programs",
    "krum",
    "label_flip",
    "lane_strategies",
    "lg_fedavg",
    "local_leaves",
    "local_only",
    "local_sgd",
    "made",
    "mean",
    "mean_grad",
    "mean_loss",
    "median",
    "metrics",
    "mime",
    "mimelite",
    "min_norm",
    "models",
    "multi_krum",
    "no_old_tasks",
    "norm_bound",
    "open_streamed",
    "optimizer_server",
    "per_fedavg",
    "personal_models",
    "pfedme",
    "place_state",
    "poisson",
    "pooled",
    "powersgd",
    "privacy",
    "proximal",
    "q_fedavg",
    "q_fedsgd",
    "qsgd",
    "random_k",
    "remember",
    "replicate",
    "report",
    "reptile",
    "run",
    "scaffold",
    "scaled_sign",
    "secure_mean",
    "selection",
    "sequential",
    "server",
    "shard_population",
    "sharded",
    "shuffle_index",
    "side_by_side",
    "sign_flip",
    "stream",
    "streamed_bytes",
    "summarize_clients",
    "sweep",
    "term",
    "ternary",
    "testing",
    "three_way",
    "top_k",
    "transforms",
    "trimmed_mean",
    "uniform",
    "unroll",
    "use_cores",
    "verify",
    "vmapped",
    "weighted",
    "with_frozen",
    "with_old_tasks",
    "worker_momentum",
]


_LATER = {
    **dict.fromkeys(("report", "stream", "testing", "verify"), ""),
    **dict.fromkeys(("HostTable", "StreamedDataset", "open_streamed", "streamed_bytes"), "stream"),
}
"""What few programs use is imported when it is asked for: which module offers each name."""


def __getattr__(name: str) -> object:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    module = importlib.import_module(f"{__name__}.{_LATER[name] or name}")
    value = getattr(module, name) if _LATER[name] else module
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_LATER})


_check_calls(globals())
