"""Matched averages of a network and its copies in other orders."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_lite.aggregation.matching.assignment import assignment
from fedjax_lite.aggregation.matching.atoms import pfnm_atoms
from fedjax_lite.aggregation.matching.hidden_units import Layer, reorder
from fedjax_lite.aggregation.matching.matched_average import matched_average
from fedjax_lite.verify.records import Check

LAYER = Layer(5, (("w", -1),), (("v", -2),))
COSTS = np.array([[4.0, 1.0, 3.0], [2.0, 0.0, 5.0], [3.0, 2.0, 2.0]])
UNITS = np.arange(6.0)[:, None] * np.ones(2)


def network() -> dict[str, np.ndarray]:
    """Five hidden units between three inputs and two outputs."""
    w = np.cos(np.outer(np.arange(3), np.arange(5)) + 1)
    return {"w": w, "v": np.sin(np.arange(2)[None] + np.arange(5.0)[:, None] ** 2)}


def average() -> np.ndarray:
    """Of the network and a twin, hidden order (2, 0, 4, 1, 3), weights 3 and 1."""
    net = jax.tree.map(jnp.asarray, network())
    twin = reorder(net, LAYER, jnp.array([2, 0, 4, 1, 3]))
    both = jax.tree.map(lambda *leaves: jnp.stack(leaves), net, twin)
    found = matched_average(both, weights=jnp.array([3.0, 1.0]), layers=[LAYER])
    return np.r_[np.ravel(found["w"]), np.ravel(found["v"])]


def union() -> Any:
    """Atoms of three networks that share units."""
    parts = np.stack([UNITS[[0, 1, 2]], UNITS[[3, 1, 4]], UNITS[[5, 0, 3]]])
    return pfnm_atoms(parts, sigma=0.1).values[:6]


def checks() -> list[Check]:
    """The known network, a known assignment, and a network of all units."""
    net = network()
    return [
        Check("the cheapest assignment", [1, 0, 2], lambda: assignment(COSTS)),
        Check("a network and its twin", np.r_[net["w"].ravel(), net["v"].ravel()], average),
        Check("PFNM: the units of three networks, each once", UNITS, union),
    ]
