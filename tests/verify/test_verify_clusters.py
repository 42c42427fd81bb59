"""`python -m fedjax_lite.verify clusters` fails where IFCA has a planted defect."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_lite.algorithms.clusters import ifca
from fedjax_lite.verify import records
from fedjax_lite.verify.techniques import clusters

GROUPS, EMPTY, TIES = (
    "two groups: assignments and weighted means",
    "a cluster of nobody keeps its model",
    "ties go to the lowest number",
)
ONE, GRADIENT, REST = (
    "one cluster = FedAvg",
    "gradient averaging: five rounds",
    "Adam at the server rests where nobody comes",
)


def as_index(rule):
    return lambda losses: rule(losses).astype(jnp.int32)


def last_of_equals(patch):
    patch.setattr(
        ifca, "least", as_index(lambda losses: len(losses) - 1 - jnp.argmin(losses[::-1]))
    )


def worst_model(patch):
    patch.setattr(ifca, "least", as_index(jnp.argmax))


def trains_the_first(patch):
    """The right choice, but local training starts from model 0."""
    patch.setattr(ifca, "one_of_several", lambda models, which: models[0])


def servers_of_all(patch):
    """Every cluster's server takes its step, whoever came."""
    good = ifca.cluster_server

    def make(server, num_clusters, averaging):
        def update(key, state, value, cohort, metrics):
            one = lambda state, change: server.update(key, state, change, cohort, metrics)  # noqa: E731
            return jax.vmap(one)(state, value.updates)

        return good(server, num_clusters, averaging)._replace(update=update)

    patch.setattr(ifca, "cluster_server", make)


def always_by_cluster(patch):
    good = ifca.cluster_server
    patch.setattr(
        ifca, "cluster_server", lambda server, number, averaging: good(server, number, "model")
    )


@pytest.mark.parametrize(
    ("defect", "caught", "right"),
    [
        (last_of_equals, (TIES,), (GROUPS, ONE)),
        (worst_model, (GROUPS, EMPTY), (ONE,)),
        (trains_the_first, (GROUPS,), (ONE,)),
        (servers_of_all, (REST, GRADIENT), (GROUPS, EMPTY)),
        (always_by_cluster, (GRADIENT,), (GROUPS,)),
    ],
)
def test_planted_defects(monkeypatch, defect, caught, right):
    defect(monkeypatch)
    chosen = [check for check in clusters.checks() if check.name in caught + right]
    assert len(chosen) == len(caught) + len(right)
    found = records.run_checks("clusters", chosen)
    assert not [record.got for record in found if "Error" in record.got]
    verdicts = {record.check: record.verdict for record in found}
    assert verdicts == dict.fromkeys(caught, "FAIL") | dict.fromkeys(right, "PASS")


def test_the_loop_tells_its_settings_apart():
    """The check's own loop differs where the method does, so no constant could pass."""
    near = (-1.0, 1.0)
    paths = [
        clusters.by_hand(near, 2, 0.3),
        clusters.by_hand(near, 2, 0.3, averaging="gradient"),
        clusters.by_hand(near, 2, 0.3, steps=2),
        clusters.by_hand(near, 2, 0.3, weights=np.ones(4)),
    ]
    assert len({round(float(path[-1, 0]), 9) for path in paths}) == 4
