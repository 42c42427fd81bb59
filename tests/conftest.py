"""Tests compile thousands of small programs and run each for a moment: compile them quickly.

Without most of XLA's optimizations, and with the older and simpler emitters of its CPU backend,
that takes a third to a half of the time. `FEDJAX_LITE_OPTIMISED=1` compiles as users do: CI's
second stage runs the laws and the engine's tests so, and tests that train for long ask for it.
"""

import collections
import ctypes
import gc
import hashlib
import math
import os
import shutil
import tempfile
from importlib.metadata import version
from pathlib import Path

import chex
import jax
import pytest

# Unknown flags end the process, and newer backends have only the new emitters.
QUICK_EMITTERS = "--xla_cpu_use_fusion_emitters=false"
ONE_THREAD = "--xla_cpu_parallel_codegen_split_count=1"  # the other cores have workers of their own
# What makes loops faster costs a sixth of the time in which rounds, all loops, compile.
SLOW_PASSES = (
    "--xla_disable_hlo_passes=while-loop-invariant-code-motion,small-while-loop-hoisting,"
    "while-loop-constant-sinking,reshape-mover"
)
KNOW_THEM = ((0, 8), (0, 11))


def quick() -> bool:
    """Whether this process shall compile without most optimizations."""
    return os.environ.get("JAX_DISABLE_MOST_OPTIMIZATIONS", "0") == "1"


# Tracing makes many short-lived objects; looking through all that is alive for each of them costs
# an eighth of the time.
gc.set_threshold(200_000, 50, 1000)

if not os.environ.get("FEDJAX_LITE_OPTIMISED"):
    # In the environment, for the processes that tests start; jax itself has read its own already.
    os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
    jax.config.update("jax_disable_most_optimizations", quick())
    jaxlib = tuple(map(int, version("jaxlib").split(".")[:2]))
    flags = os.environ.get("XLA_FLAGS", "")
    if KNOW_THEM[0] <= jaxlib < KNOW_THEM[1] and QUICK_EMITTERS.split("=")[0] not in flags:
        flags = f"{flags} {QUICK_EMITTERS} {ONE_THREAD} {SLOW_PASSES}".strip()
        os.environ["XLA_FLAGS"] = flags  # read by the first backend


# Workers, and the processes that tests start, compile many of the same programs: one of them does.
SHARED = None if "JAX_COMPILATION_CACHE_DIR" in os.environ else tempfile.mkdtemp("-compiled")
if SHARED is not None:
    for name, value in {
        "jax_compilation_cache_dir": SHARED,
        "jax_persistent_cache_min_compile_time_secs": 0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }.items():
        os.environ[name.upper()] = str(value)  # for those processes; jax has read its own already
        jax.config.update(name, value)


def pytest_unconfigure():
    """The programs are gone with the process that made a folder for them."""
    if SHARED is not None:
        shutil.rmtree(SHARED, ignore_errors=True)


@pytest.fixture
def optimised(monkeypatch):
    """For a test that trains for long, or looks at compiled programs: XLA's optimizations."""
    before = quick()
    monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "0")
    flags = os.environ.get("XLA_FLAGS", "").replace(QUICK_EMITTERS, "").replace(SLOW_PASSES, "")
    monkeypatch.setenv("XLA_FLAGS", flags)
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


def room() -> float:
    """Bytes that a worker may grow to: of a small machine's memory a quarter, 7 GB at most.

    Forgetting the programs of 4 GB takes four seconds, beside compiling some of them again.
    """
    try:
        whole = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        whole = 12e9
    return min(whole / 4, 7e9)


ROOM = room()
"""With every program kept for good a worker would need 6e9."""


@pytest.fixture(autouse=True, scope="module")
def _programs_of_a_module():
    """Compiled programs are forgotten where memory asks for it, and else serve other modules."""
    yield
    if resident_bytes() > ROOM:
        jax.clear_caches()
        gc.collect()
        trim()


def trim() -> None:
    """Freed memory goes back to the system, which glibc leaves to whoever asks.

    Else a worker that once grew to `ROOM` would forget its programs after every module.
    """
    release = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None
    if release is not None:
        release(0)


def resident_bytes() -> float:
    """What this process holds in memory; without bound where that is not known."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")
    except (OSError, AttributeError, ValueError, IndexError):
        return math.inf


@pytest.fixture(autouse=True)
def _traces_of_this_test():
    """`chex.assert_max_traces` counts by a function's text, over all the cases of a test."""
    chex.clear_trace_counter()


LONG = 120
"""Seconds of all workers together, from which on it is said where they went."""


@pytest.hookimpl(trylast=True)  # after -k and -m, so that of what they leave n cases run
def pytest_collection_modifyitems(config, items):
    """Of a test marked ``sample(n)`` only n cases run, the same ones each time, chosen by name.

    ``FEDJAX_LITE_TESTS=all`` runs every case. What is left out is another case of a kind of check
    that does run: one more shape, bound or pair of settings. With ``of="kind"`` the cases are those
    of all tests, in any file, that name this kind; with ``by="file"`` too, all of n files. Only
    what was asked for is counted, so a case that is named on the command line runs.
    """
    if os.environ.get("FEDJAX_LITE_TESTS") == "all":
        return
    families = {}
    for item in items:
        if marker := item.get_closest_marker("sample"):
            family = marker.kwargs.get("of") or item.nodeid.split("[")[0]
            case = item.nodeid.split("::")[0] if marker.kwargs.get("by") == "file" else item.nodeid
            families.setdefault(family, (marker.args[0], {}))[1].setdefault(case, []).append(item)
    left_out = set()
    for number, cases in families.values():
        ranked = sorted(cases, key=lambda case: hashlib.sha256(case.encode()).digest())
        left_out |= {item.nodeid for case in ranked[number:] for item in cases[case]}
    if left_out:
        config.hook.pytest_deselected(items=[i for i in items if i.nodeid in left_out])
        items[:] = [item for item in items if item.nodeid not in left_out]


def pytest_terminal_summary(terminalreporter):
    """After a long run: which files took the time, so that nobody's time grows unseen."""
    seconds = collections.Counter()
    for reports in terminalreporter.stats.values():
        for report in reports:
            if isinstance(report, pytest.TestReport):
                seconds[report.nodeid.split("::")[0]] += report.duration
    total = sum(seconds.values())
    if total < LONG:
        return
    terminalreporter.section(f"{total:.0f} s in {len(seconds)} files; the slowest")
    for name, took in seconds.most_common(12):
        terminalreporter.write_line(f"{took:6.0f} s  {took / total:4.0%}  {name}")
