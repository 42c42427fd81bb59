"""Processes for tests to kill, forked from one that has imported jax and started nothing of it.

The imports cost more than all that such a process does before it is killed.
"""

import multiprocessing
import time
from collections.abc import Callable
from multiprocessing.context import ForkServerProcess
from typing import Any

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["fedjax_lite", "orbax.checkpoint", "pytest"])

FOREVER = 10**9


def start(function: Callable[..., Any], *arguments: Any) -> ForkServerProcess:
    """Calls a function of a test's module in a process of its own."""
    process = CONTEXT.Process(target=function, args=arguments, daemon=True)
    process.start()
    return process


def hold(round: int, last: int) -> None:
    """Waits to be killed from round `last` on, so that no child ends by itself before."""
    if round >= last:
        time.sleep(600)
