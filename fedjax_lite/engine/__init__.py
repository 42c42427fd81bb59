"""Execution strategies: how the clients of a round are laid on the hardware."""

from fedjax_lite.engine.batches import Plan
from fedjax_lite.engine.choose import auto, choose, explain
from fedjax_lite.engine.lanes import chunked, sequential, vmapped
from fedjax_lite.engine.program import Program, Strategy, Table, Work
from fedjax_lite.engine.sharded import client_mesh, replicate, sharded
from fedjax_lite.engine.shuffle import shuffle_index

__all__ = [
    "Plan",
    "Program",
    "Strategy",
    "Table",
    "Work",
    "auto",
    "choose",
    "chunked",
    "client_mesh",
    "explain",
    "replicate",
    "sequential",
    "sharded",
    "shuffle_index",
    "vmapped",
]
