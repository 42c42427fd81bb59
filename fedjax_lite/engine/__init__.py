"""Execution strategies: how the clients of a round are laid on the hardware."""

from typing import TYPE_CHECKING

from fedjax_lite.checks.later import load_when_asked

if TYPE_CHECKING:
    from fedjax_lite.engine.auto import auto
    from fedjax_lite.engine.batches import Plan
    from fedjax_lite.engine.choose import choose, explain
    from fedjax_lite.engine.differentiable import differentiable
    from fedjax_lite.engine.lanes import chunked, sequential, vmapped
    from fedjax_lite.engine.mesh.owners import imbalance
    from fedjax_lite.engine.mesh.placement import (
        client_mesh,
        init_state,
        place_state,
        replicate,
        shard_population,
    )
    from fedjax_lite.engine.mesh.sharded import sharded
    from fedjax_lite.engine.one_client import Trained, train_clients
    from fedjax_lite.engine.peak_memory import Forecast, forecast
    from fedjax_lite.engine.program import Job, Program, Strategy, Table, Work
    from fedjax_lite.engine.shuffle import shuffle_index

__all__ = [
    "Forecast",
    "Job",
    "Plan",
    "Program",
    "Strategy",
    "Table",
    "Trained",
    "Work",
    "auto",
    "choose",
    "chunked",
    "client_mesh",
    "differentiable",
    "explain",
    "forecast",
    "imbalance",
    "init_state",
    "place_state",
    "replicate",
    "sequential",
    "shard_population",
    "sharded",
    "shuffle_index",
    "train_clients",
    "vmapped",
]

load_when_asked(__name__)
