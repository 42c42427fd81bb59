"""Everything that must pass the laws, each with tiny arguments: one line an entry."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fedjax_lite.aggregation import (
    bucketing,
    bulyan,
    centered_clipping,
    diagnosed,
    geometric_median,
    hierarchical,
    inverse_variance,
    krum,
    majority_vote,
    mean,
    median,
    min_norm,
    multi_krum,
    norm_bound,
    redundancy,
    secure_mean,
    total,
    trimmed_mean,
)
from fedjax_lite.algorithms import (
    afl,
    apfl,
    ditto,
    ewc,
    fedadagrad,
    fedadam,
    fedavg,
    fedavgm,
    fedbabu,
    fedbn,
    fedcurv,
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
    pfedme,
    q_fedavg,
    q_fedsgd,
    reptile,
    scaffold,
    term,
    three_way,
    with_old_tasks,
)
from fedjax_lite.arrivals import (
    asynchronous,
    exponential,
    fedasync,
    fedbuff,
    latency,
)
from fedjax_lite.attacks import alie, byzantine
from fedjax_lite.checks.made import signed
from fedjax_lite.engine import Plan
from fedjax_lite.models import Adapted, LowRank, merged
from fedjax_lite.objectives.ewc import remember
from fedjax_lite.privacy import (
    dp_sgd,
    uniform_mean,
)
from fedjax_lite.round.compose import federated_algorithm
from fedjax_lite.round.local import local_sgd
from fedjax_lite.round.server import optimizer_server
from fedjax_lite.selection import optimal, power_of_choice, unbiased
from fedjax_lite.testing.algorithm_laws import Make
from fedjax_lite.testing.problem import loss
from fedjax_lite.testing.registered_beyond import beyond
from fedjax_lite.testing.registered_clusters import clusters
from fedjax_lite.testing.registered_slots import private_sums, samplers
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
    rotated,
    scaled_sign,
    sparse_ternary,
    stochastic_levels,
    ternary,
    top_k,
    worker_momentum,
)
from fedjax_lite.types import Aggregator, FederatedAlgorithm, Sampler, Transform

PLAN = Plan(batch_size=2, epochs=2)
THIRDS = Plan(batch_size=4, epochs=2)
VARIABLE = Plan(batch_size=2, steps=np.array([1, 4, 2, 3, 0, 5, 1]))


def _made(factory, *, client=optax.sgd, plan: Plan = PLAN, **options) -> Make:
    def make(learning_rate, sampler, strategy) -> FederatedAlgorithm:
        return factory(
            loss, client(learning_rate), plan=plan, sampler=sampler, strategy=strategy, **options
        )

    return make


def _rate(learning_rate):
    """For methods that take a rate instead of an optimizer."""
    return learning_rate


def _fedsgd(learning_rate, sampler, strategy) -> FederatedAlgorithm:
    return fedsgd(loss, optax.sgd(learning_rate), sampler=sampler, strategy=strategy)


def _q_fedsgd(learning_rate, sampler, strategy) -> FederatedAlgorithm:
    return q_fedsgd(loss, learning_rate, q=0.5, sampler=sampler, strategy=strategy, batch_size=2)


def _scheduled(learning_rate, sampler, strategy) -> FederatedAlgorithm:
    return fedavg(
        loss,
        lambda round: optax.sgd(learning_rate * 0.9**round),
        plan=PLAN,
        sampler=sampler,
        strategy=strategy,
    )


SECONDS = latency(overhead=exponential(1.0))


def _asynchronous(factory, *, client=optax.sgd, **options) -> Make:
    """Four of the laws' seven clients in flight; who takes part is not the laws' to choose."""

    def make(learning_rate, sampler, strategy) -> FederatedAlgorithm:
        given = {"concurrency": 4, "latency": SECONDS, **options}
        return factory(loss, client(learning_rate), plan=PLAN, strategy=strategy, **given)

    return make


def _asynchronous_scaffold(learning_rate, sampler, strategy) -> FederatedAlgorithm:
    method = scaffold(loss, learning_rate, plan=PLAN, sampler=sampler, strategy=strategy)
    return asynchronous(method, concurrency=4, buffer=3, latency=SECONDS)


def _bias(params):
    """The head of the laws' model."""
    return {name: name == "b" for name in params}


def _personal_bias(learning_rate, sampler, strategy) -> FederatedAlgorithm:
    return local_leaves(
        local_sgd(loss, optax.sgd(learning_rate)),
        is_local=_bias,
        plan=PLAN,
        sampler=sampler,
        server=optimizer_server(optax.sgd(1.0)),
        strategy=strategy,
    )


def _lora(averaging) -> Make:
    """The problem's weights move by a product of rank 1, from the law's parameters on."""

    def adapted_loss(params, examples, key):
        return loss(merged(params), examples, key)

    def make(learning_rate, sampler, strategy) -> FederatedAlgorithm:
        algo = fedlora(
            adapted_loss,
            optax.sgd(learning_rate),
            averaging=averaging,
            plan=PLAN,
            sampler=sampler,
            strategy=strategy,
        )

        def init(key, params, data):
            pair = LowRank(
                jnp.ones((3, 1), params["w"].dtype), jnp.zeros((1, 1), params["w"].dtype)
            )
            adapters = {"w": pair, "b": None}
            return algo.init(key, Adapted(params, adapters, jnp.ones_like(params["b"])), data)

        return signed(algo._replace(init=init), algo.made)

    return make


def _remembering(factory, **options) -> Make:
    """A method that has learnt a task before, whose optimum is 1."""

    def make(learning_rate, sampler, strategy) -> FederatedAlgorithm:
        algo = _made(factory, **options)(learning_rate, sampler, strategy)

        def init(key, params, data):
            state = algo.init(key, params, data)
            fisher = jax.tree.map(jnp.ones_like, params)
            return with_old_tasks(state, remember(state.server.old, fisher, fisher))

        return signed(algo._replace(init=init), algo.made)

    return make


def _dp_sgd(learning_rate, sampler, strategy) -> FederatedAlgorithm:
    return federated_algorithm(
        # Without noise: with it a client without data would still move its model.
        dp_sgd(loss, learning_rate, clip=1.0, noise_multiplier=0.0),
        plan=PLAN,
        sampler=sampler,
        server=optimizer_server(optax.sgd(1.0)),
        strategy=strategy,
    )


def _chosen(choice, **options) -> Make:
    """FedAvg, put into a way to choose its clients."""

    def make(learning_rate, sampler, strategy) -> FederatedAlgorithm:
        plain = _made(fedavg)(learning_rate, sampler, strategy)
        return choice(plain, **options)

    return make


ALGORITHMS: dict[str, Make] = {
    "fedsgd": _fedsgd,
    "fedavg": _made(fedavg),
    "fedavg full batch": _made(fedavg, plan=Plan(batch_size=None, steps=2)),
    "fedavg uniform": _made(fedavg, weighting="uniform"),
    "fedavg clipped": _made(fedavg, uplink=clip(0.5)),
    "fedavg momentum clients": _made(fedavg, client=partial(optax.sgd, momentum=0.9)),
    "fedavg adam clients": _made(fedavg, client=optax.adam),
    "fedavg variable work": _made(fedavg, plan=VARIABLE),
    "fedavg stragglers": _made(
        fedavg,
        plan=Plan(batch_size=2, epochs=lambda key, client: jax.random.randint(key, (), 0, 4)),
    ),
    "fedavg schedule": _scheduled,
    "fedavg optax yogi server": _made(fedavg, server_optimizer=optax.yogi(0.1)),
    "fedavgm": _made(fedavgm),
    "fedadagrad": _made(fedadagrad, server_learning_rate=0.1),
    "fedadam": _made(fedadam, server_learning_rate=0.1),
    "fedyogi": _made(fedyogi, server_learning_rate=0.1),
    "fedavg inverse variance": _made(fedavg, weighting=inverse_variance(np.arange(7.0), floor=0.5)),
    "fedavg diagnosed": _made(fedavg, aggregator=diagnosed(mean())),
    "fedprox": _made(fedprox, mu=0.1),
    "fedprox adaptive": _made(fedprox, mu=0.1, adaptive=True),
    "fednova": _made(fednova, client=_rate),
    "fednova momentum proximal": _made(fednova, client=_rate, momentum=0.9, mu=0.1, plan=VARIABLE),
    "scaffold": _made(scaffold, client=_rate),
    "scaffold option 1": _made(scaffold, client=_rate, option=1),
    "scaffold weighted": _made(scaffold, client=_rate, weighting="examples"),
    "scaffold bfloat16": _made(scaffold, client=_rate, table_dtype=jnp.bfloat16),
    "scaffold variable work": _made(scaffold, client=_rate, plan=VARIABLE),
    "feddyn": _made(feddyn, alpha=0.1),
    "feddyn weighted": _made(feddyn, alpha=0.1, weighting="examples"),
    "mime": _made(mime, client=_rate),
    "mimelite": _made(mimelite, client=_rate),
    "local leaves": _personal_bias,
    "apfl": _made(apfl, mixing=0.4, mixing_rate=0.1),
    "apfl unscaled": _made(apfl, variant="unscaled", client=optax.adam),
    "ditto": _made(ditto, pull=0.5),
    "fedper": _made(fedper, is_head=_bias),
    "lg fedavg": _made(lg_fedavg, is_head=_bias),
    "fedrep": _made(fedrep, is_head=_bias, head_plan=VARIABLE),
    "fedbabu": _made(fedbabu, is_head=_bias),
    "pfedme": _made(pfedme, learning_rate=0.1, pull=2.0, inner_steps=2),
    "ditto own work": _made(
        ditto,
        pull=0.5,
        personal_plan=VARIABLE,
        personal_optimizer=optax.sgd(0.02, momentum=0.9),
        keep_optimizer=True,
    ),
    "per-fedavg": _made(per_fedavg, alpha=0.1, plan=THIRDS),
    "per-fedavg first order": _made(per_fedavg, alpha=0.1, first_order=True),
    "fomaml": _made(fomaml, alpha=0.1, inner_steps=2, plan=THIRDS),
    "reptile": _made(reptile, epsilon=0.5),
    "ewc": _remembering(ewc, lam=0.5),
    "fedcurv": _made(fedcurv, lam=0.05),
    "three-way": _remembering(three_way, lam=0.5, mu=0.3),
    "frozen leaves": _made(frozen_leaves, is_frozen=lambda params: {"w": False, "b": True}),
    "fedlora": _lora("factors"),
    "fedlora frozen a": _lora("frozen_a"),
    "fedlora residual": _lora("residual"),
    "fedlora stacked": _lora("stacked"),
    "q-fedavg": _made(q_fedavg, client=_rate, q=0.5),
    "q-fedsgd": _q_fedsgd,
    "afl": _made(afl, mixture_rate=0.1),
    "afl groups": _made(afl, mixture_rate=0.1, groups=[0, 1, 0, 2, 1, 0, 1]),
    "term": _made(term, tilt=0.5),
    "fedmgda": _made(fedmgda, deviation=0.3),
    **clusters(),
    **beyond(),
    "hierfavg": _made(hierfavg, edges=[0, 1, 0, 2, 1, 0, 1], edge_rounds=2),
    "power of choice": _chosen(power_of_choice, loss=loss, cohort_size=2),
    "optimal": _chosen(optimal, cohort_size=2),
    "unbiased": _chosen(unbiased),
    "fedbuff": _asynchronous(fedbuff, buffer=2),
    "fedasync": _asynchronous(fedasync, mixing=0.5),
    "scaffold asynchronous": _asynchronous_scaffold,
    "local only": _made(local_only),
    "fedbn": _made(fedbn),
    "dp-sgd": _dp_sgd,
    "fedavg median": _made(fedavg, aggregator=median()),
    "fedavg secure": _made(
        fedavg, weighting="uniform", aggregator=secure_mean(max_abs=4.0, bits=22, exact_zero=True)
    ),
    "fedavg compressed both ways": _made(
        fedavg, uplink=chain(clip(0.5), error_feedback(top_k(2))), downlink=drive()
    ),
}

AGGREGATORS: dict[str, Aggregator] = {
    "mean": mean(),
    "diagnosed": diagnosed(mean()),
    "median": median(),
    "trimmed mean": trimmed_mean(0.25),
    "krum": krum(1),
    "multi krum": multi_krum(1),
    "bulyan": bulyan(0),
    "geometric median": geometric_median(),
    "centered clipping": centered_clipping(1.0),
    "min norm": min_norm(deviation=0.4, normalise=False),
    "norm bound": norm_bound(1.0),
    "bucketing": bucketing(2, inner=median()),
    "hierarchical": hierarchical([0, 1, 0, 1, 0]),
    "redundancy": redundancy([0, 0, 1, 1, 2]),
    "majority vote": majority_vote(),
    "byzantine": byzantine(alie(), clients=[1, 3], inner=median()),
    "secure mean": secure_mean(max_abs=20.0),
    "secure mean weighted": secure_mean(max_abs=20.0, weighting="message", max_weight=60),
    "secure mean masked": secure_mean(max_abs=20.0, bits=20, masks="pairwise"),
    **private_sums(),
    "uniform mean": uniform_mean(),
    "total": total(3.0),
}

TRANSFORMS: dict[str, Transform] = {
    "identity": identity(),
    "clip": clip(1.0),
    "clip wide": clip(jnp.inf),
    "chain": chain(clip(2.0), identity(), clip(1.0)),
    "gaussian noise": gaussian_noise(0.5),
    "worker momentum": worker_momentum(0.9),
    "qsgd": qsgd(7),
    "stochastic levels": stochastic_levels(4),
    "scaled sign": scaled_sign(),
    "ternary": ternary(),
    "sparse ternary": sparse_ternary(2),
    "top-k": top_k(2),
    "random-k": random_k(2),
    "rotated": rotated(stochastic_levels(4), block_size=4),
    "drive": drive(),
    "powersgd": powersgd(1),
    "error feedback": error_feedback(top_k(2)),
    "ef21": ef21(scaled_sign()),
}

SAMPLERS: dict[str, Sampler] = samplers()
