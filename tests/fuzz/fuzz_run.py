"""One call with one argument replaced, and a verdict on what came of it."""

from __future__ import annotations

import contextlib
import inspect
import re
import signal
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from fuzz_allowed import is_allowed
from fuzz_beyond import PAIR, WIDE
from fuzz_calls import argument_names, called, public, valid_arguments
from fuzz_clusters import BOTH, GATED
from fuzz_parties import COLUMNS, CUT, OF_HALVES, ON_COLUMNS
from fuzz_values import VALUES, Traced
from fuzz_verdict import Verdict
from fuzz_world import DATA, EXAMPLES, KEY, LORA, PARAMS, SIGNED

import fedjax_lite as fl
from fedjax_lite.checks.arguments import shown

PACKAGE = str(Path(fl.__file__).parent)
SECONDS = 20
"""No call may take longer, of the processor's time: other programs may make the clock's long."""
PATIENCE = 15
"""Nor as many times longer by the clock, for one that waits."""
REMEDY = re.compile(
    r";|: |e\.g\. |\b(one of|known are|give|use|pass|choose|make|need|lower|raise)\b"
)
"""What says what may be given instead, or what to do."""


PARAMS_OF = {
    "fedbabu": WIDE.init,
    "fedem": lambda key: BOTH,
    "fedgan": PAIR.init,
    "fedlora": LORA.init,
    "fedma": WIDE.init,
    "ifca": lambda key: BOTH,
    "mixture_of_experts": GATED.init,
}
"""Of algorithms whose model is another than `PARAMS`, as ``(key) -> params``."""


def cases(seed: int = 0, share: float = 1.0) -> Iterator[tuple[str, str, str]]:
    """(callable, argument, kind of value), all of them or a share drawn by the seed."""
    rng = np.random.default_rng(seed)
    for full, value in sorted(public().items()):
        for argument in argument_names(value):
            for kind in VALUES:
                if share >= 1 or rng.random() < share:
                    yield full, argument, kind


def judge(full: str, argument: str, kind: str) -> Verdict:
    """Calls with one argument replaced, in a new folder: a word may be taken for a path."""
    with tempfile.TemporaryDirectory(prefix="fuzz") as folder, contextlib.chdir(folder):
        return _judge(full, argument, kind)


def _judge(full: str, argument: str, kind: str) -> Verdict:
    function = public()[full]
    given = valid_arguments(full, function)
    value = VALUES[kind]
    try:
        with warnings.catch_warnings(), _limit(SECONDS):
            warnings.simplefilter("ignore")
            if value is Traced:
                jax.eval_shape(
                    lambda t: use(called(function, {**given, argument: t}), t, full),
                    jnp.float32(0.5),
                )
            else:
                use(called(function, {**given, argument: value}), 0, full)
    except TimeoutError as error:
        return Verdict(full, argument, kind, "hang", str(error))
    except (MemoryError, RecursionError) as error:
        return Verdict(full, argument, kind, "crash", repr(error)[:300])
    except Exception as error:
        return Verdict(full, argument, kind, *_refusal(error, argument, value))
    why = is_allowed(full, argument, kind, _annotation(function, argument))
    return Verdict(full, argument, kind, "allowed" if why else "accepted", why)


def _annotation(function: Callable[..., Any], argument: str) -> str:
    parameters = inspect.signature(function).parameters
    if argument not in parameters:
        return "slot"
    left_out = " = None" * (parameters[argument].default is None)
    return f"{parameters[argument].annotation}{left_out}"


def _refusal(error: Exception, argument: str, value: Any) -> tuple[str, str]:
    """The verdict on a refusal, and its message."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if "/fuzz_" not in f.filename]
    ours = bool(own) and own[-1].filename.startswith(PACKAGE)
    verdict, message = verdict_of(error, argument, value, ours=ours)
    place = f" @ {frames[-1].filename[-40:]}:{frames[-1].lineno}" * (verdict == "deep")
    return verdict, message + place


def verdict_of(error: Exception, argument: str, value: Any, *, ours: bool) -> tuple[str, str]:
    """The verdict on an error, which the package raised or somebody below it."""
    message = f"{type(error).__name__}: {error}"
    if not ours or not isinstance(error, TypeError | ValueError | OSError | ImportError):
        return "deep", message[:200]
    if not _names(message, argument):
        return "mute", f"no name: {message[:260]}"
    if not _shows(message, value):
        return "mute", f"no value: {message[:260]}"
    if not REMEDY.search(message.split(": ", 1)[1]):
        return "mute", f"no remedy: {message[:260]}"
    return "good", message[:200]


def _names(message: str, argument: str) -> bool:
    return re.search(rf"\b{re.escape(argument)}\b", message) is not None


def _shows(message: str, value: Any) -> bool:
    """Numbers and words as they are; of all else the kind, the shape or the part that is wrong."""
    is_plain = isinstance(value, str | int | float | np.generic)
    if not is_plain and re.search(r"got |traced|empty|left out|given", message):
        return True
    if value is Traced:
        return "traced" in message.lower()
    told = {shown(value), str(value), repr(value), f"{value!r:.80}", type(value).__name__}
    shape = getattr(value, "shape", None)
    if shape is not None:
        told |= {str(tuple(shape)), str(list(shape))}
    if isinstance(value, list | dict | np.ndarray | jax.Array) and not hasattr(value, "aval"):
        told |= {"empty"} if len(value) == 0 else {repr(v) for v in value} | {"nan"}
        told |= {repr(str(v)) for v in value if isinstance(v, str)}  # of numpy's words, too
    elif hasattr(value, "aval"):
        told |= {"nan"}
    if isinstance(value, float | int | np.generic):
        told |= {f"{value:g}", f"{float(value)}"} if not isinstance(value, complex) else set()
    return any(t and t in message for t in told) or (
        isinstance(value, str) and repr(value) in message
    )


def use(result: Any, traced: Any, full: str = "") -> Any:
    """A first use of what a factory made, where checks that need its surroundings speak."""
    if isinstance(result, fl.Sampler):
        result.init(6)
    elif isinstance(result, fl.data.Partitioner):
        fl.data.owners(EXAMPLES, result)
    elif isinstance(result, fl.data.FeatureSkew):
        fl.data.partition(SIGNED, fl.data.iid(num_clients=3), result)
    elif isinstance(result, fl.Aggregator):
        result.init_state(PARAMS)
    elif isinstance(result, fl.Transform):
        jax.eval_shape(lambda: result.update(KEY, result.init(PARAMS), PARAMS))
    elif isinstance(result, fl.FederatedAlgorithm) and isinstance(traced, int):
        params, data = (PARAMS_OF[full](KEY) if full in PARAMS_OF else PARAMS), DATA
        if full in ON_COLUMNS:
            params, data = None, COLUMNS
        elif full in OF_HALVES:
            params = CUT.model.init(KEY)
        jax.eval_shape(lambda: result.init(KEY, params, data))
    elif isinstance(result, fl.models.Model):
        jax.eval_shape(result.init, KEY)
    return traced


class _limit:
    """Raises TimeoutError where a block takes longer."""

    def __init__(self, seconds: int):
        self.seconds = seconds

    def __enter__(self) -> None:
        self.began = time.process_time()
        self.turns = 0
        self.before = signal.signal(signal.SIGALRM, self._stop)
        signal.alarm(self.seconds)

    def __exit__(self, *_: object) -> None:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, self.before)

    def _stop(self, *_: object) -> None:
        self.turns += 1
        if time.process_time() - self.began < self.seconds and self.turns < PATIENCE:
            signal.alarm(self.seconds)
            return
        raise TimeoutError(f"more than {self.seconds} seconds")
