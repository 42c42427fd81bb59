"""How clients are laid on the device: by rule, by name, or by timing real rounds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

import fedjax_lite as fl
from fedjax_lite.run.settings import read_settings
from shared.flags import strategy

Make = Callable[[str, fl.engine.Strategy], fl.FederatedAlgorithm]


def lay_out(
    make: Make,
    params: Any,
    data: Any,
    *,
    name: str,
    mesh: Mesh | None,
    forms: tuple[str, ...],
    cohort_size: int,
    recorded: str | None,
) -> tuple[fl.FederatedAlgorithm, str]:
    """The algorithm laid out as `name` says, and what to record of it.

    `fastest`, and `auto` on an accelerator, where no rule of ours was measured, time lanes and
    convolution forms on one device; what was timed earlier for this very program is read from
    the cache. A resumed run keeps the layout that it was begun with: another one would change its
    last bits.

    Args:
      make: ``(form, strategy) -> algorithm``.
      params: to time rounds with.
      data: the population.
      name: the flag --strategy.
      mesh: devices that share the cohorts, or None.
      forms: convolution forms worth timing.
      cohort_size: clients a round.
      recorded: what the run to resume recorded.
    """
    measured = name == "fastest" or (name == "auto" and jax.default_backend() != "cpu")
    if not measured or mesh is not None:
        by_rule = "auto" if name == "fastest" else name
        return make("auto", strategy(by_rule, mesh)), by_rule
    lanes = fl.lane_strategies(cohort_size)
    variants = {f"{form}, {lane}": make(form, s) for form in forms for lane, s in lanes.items()}
    if recorded in variants:
        return variants[recorded], recorded
    key = jax.random.key(0)
    state = next(iter(variants.values())).init(key, params, data)
    found = fl.fastest(variants, key, state, data)
    print(f"layout: {found}")
    return variants[found.name], found.name


def recorded_layout(output_dir: Path, resume: bool) -> str | None:
    """What the run in this folder recorded; None where it is not resumed."""
    path = output_dir / "config.json"
    if not resume or not path.exists():
        return None
    return read_settings(path)["config"].get("layout")
