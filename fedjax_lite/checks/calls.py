"""Every exported function looks at the kinds of its arguments before it does anything.

The functions that a package offers (`fedjax_lite.checks.later`) compare what they are given with
their own annotations, so that a string where a bool is asked, a float where a count is asked, NaN
or a traced value where none can be is refused by name, value and remedy.
Ranges are the functions' own affair (`fedjax_lite.checks.arguments`). Traced numbers pass: sweeps
trace hyper-parameters.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import inspect
import re
import traceback
import types
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from fedjax_lite.checks.arguments import check_key, shown
from fedjax_lite.checks.kinds import check_kind, is_told_by_function, may_be_fine

UNPACK = "Unpack["
UNCHECKED = "_unchecked"
PACKAGE = str(Path(__file__).parents[1])
SITE = Path(jax.__file__ or "").parent.parent
NAMES = ("jax", "jaxlib", "numpy", "optax", "flax", "dp_accounting", "jax_privacy", "scipy")
LIBRARIES = (
    *(str(SITE / name) for name in NAMES),
    str(Path(np.__file__ or "").parent),
    "numpy/",
    "<",
)
"""Where an error from below may come from; "<" begins the names of generated code."""
BELOW = (
    ArithmeticError,
    AttributeError,
    LookupError,
    NotImplementedError,
    OverflowError,
    TypeError,
    ValueError,
)
"""What may come from below when an argument is of another kind than was thought of."""


def check_export(value: Any) -> Any:
    """What a package offers, as its users get it: a function whose calls are checked.

    A class with an ``__init__`` of its own is told to check that; anything else stays what it is.

    Example:
      >>> def repeat(word: str, times: int = 2) -> str:
      ...     return word * times
      >>> check_export(repeat)("ho", times=2.5)
      Traceback (most recent call last):
      ...
      TypeError: times must be an int, got 2.5; round it
    """
    if inspect.isfunction(value) and not hasattr(value, UNCHECKED):
        return checked(value)
    if _makes_itself(value) and not hasattr(value.__init__, UNCHECKED):
        value.__init__ = checked(value.__init__)
    return value


def check_calls(namespace: dict[str, Any]) -> None:
    """Has a module that is public itself check calls of its functions; ``check_calls(globals())``.

    Args:
      namespace: the module's; what it imported stays as it is.

    Example:
      >>> def halve(flag: bool) -> bool:
      ...     return not flag
      >>> module = {"__name__": __name__, "halve": halve}
      >>> check_calls(module)
      >>> module["halve"](1)
      Traceback (most recent call last):
      ...
      TypeError: flag must be True or False, got 1; give True
    """
    mine = namespace["__name__"]
    for name, value in list(namespace.items()):
        if name[0] != "_" and getattr(value, "__module__", "") == mine:
            namespace[name] = check_export(value)


def checked(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, which first compares its arguments with its annotations.

    Args:
      function: any function whose annotations can be resolved.

    Returns:
      A function of the same signature.

    Example:
      >>> def halve(flag: bool) -> bool:
      ...     return not flag
      >>> checked(halve)("no")
      Traceback (most recent call last):
      ...
      TypeError: flag must be True or False, got 'no'; a string counts as true: give False
    """
    signature = inspect.signature(function)

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            given = signature.bind(*args, **kwargs).arguments
        except TypeError:
            return function(*args, **kwargs)  # Python says what is missing or unknown
        check_names(function, given)
        hints, complaint = _hints(function), None
        for name, value in given.items():
            hint = hints.get(name, Any)
            if hint is check_key:
                if value is not None or signature.parameters[name].annotation == "Key":
                    check_key(value, name)
            elif hint is not Any:
                try:
                    check_kind(value, name, hint)
                except (TypeError, ValueError) as error:
                    if not is_told_by_function(value, hint) and not may_be_fine(value, hint):
                        raise
                    complaint = complaint or (name, error, may_be_fine(value, hint))
        if complaint is None:
            try:
                return function(*args, **kwargs)
            except BELOW as error:
                told = _told(error, function, given)
                if told is None or told is error:
                    raise
                raise told from error
        name, error, fine = complaint
        try:
            result = function(*args, **kwargs)
        except (TypeError, ValueError) as own:
            if re.search(rf"\b{name}\b", str(own)):
                raise _completed(own, function, {name: given[name]}) or own from None
            raise error from None
        except Exception:
            raise error from None
        if fine:
            return result
        raise error

    call.__dict__[UNCHECKED] = function
    return call


def _told(
    error: Exception, function: Callable[..., Any], given: dict[str, Any]
) -> Exception | None:
    """An error from below that names no argument, with what was given; None: it tells enough.

    What the package raises in its own words is left as it is, and so is what a caller's own
    function (a loss, a model) raises.
    """
    frames = traceback.extract_tb(error.__traceback__)[1:]
    if not frames or any(not f.filename.startswith((PACKAGE, *LIBRARIES)) for f in frames):
        return None
    own_words = frames[-1].filename.startswith(PACKAGE) and (frames[-1].line or "").startswith(
        ("raise", "check", "_check", "checks.")
    )
    names = [n for n in given if n != "self"]
    named = [n for n in names if re.search(rf"\b{n}\b", str(error))]
    if own_words:
        return _completed(error, function, {n: given[n] for n in named}, given)
    values = ", ".join(f"{n}={_short(given[n])}" for n in names)
    kind = ValueError if isinstance(error, ValueError) else TypeError
    return kind(
        f"{function.__qualname__} cannot work with {values}: got {type(error).__name__}: {error}; "
        "give values of the kinds and shapes that its documentation names"
    )


def _completed(
    error: Exception,
    function: Callable[..., Any],
    named: dict[str, Any],
    given: dict[str, Any] | None = None,
) -> Exception | None:
    """A refusal in the package's own words, with names, values and a remedy where it lacks them.

    Args:
      error: the refusal.
      function: what was called.
      named: the arguments that it speaks of.
      given: all arguments; where it speaks of none of them (but, say, of an inner function's), the
        plain ones are added.
    """
    if type(error) not in (TypeError, ValueError) or len(error.args) != 1:
        return None
    text = str(error)
    if not named:
        plain = {n: v for n, v in (given or {}).items() if n != "self" and _is_plain(v)}
        if not plain or "; called as " in text:
            return None
        values = ", ".join(f"{n}={_short(v)}" for n, v in plain.items())
        error.args = (f"{text}; called as {function.__name__}({values})",)
        return error
    name, value = next(iter(named.items()))
    if "got" not in text and "given" not in text:
        text += f", got {name}={_short(value)}"
    unseen = [f"{n}={_short(v)}" for n, v in named.items() if _is_plain(v) and not _seen(v, text)]
    unseen += [  # a word that the message shows, of an argument that it does not name
        f"{n}={v!r}"
        for n, v in (given or {}).items()
        if isinstance(v, str) and n not in named and repr(v) in text
    ]
    if unseen:
        text += f" ({', '.join(unseen)} was given)"
    if not re.search(r"[;:] ", text):
        text += f"; help({function.__name__}) says what {name} may be"
    error.args = (text,)
    return error


def _is_plain(value: Any) -> bool:
    is_list = isinstance(value, list | tuple) and len(value) < 9
    return isinstance(value, str | int | float | complex | np.generic) or is_list


def _seen(value: Any, text: str) -> bool:
    """Whether a message shows a value, however it writes it; sequences are shown by their size."""
    if isinstance(value, list | tuple):
        return True
    written = {str(value), repr(value), f"{value!r:.80}"}
    if isinstance(value, int | float | np.number) and not isinstance(
        value, complex | np.complexfloating
    ):
        written |= {f"{value:g}", f"{float(value):g}", f"{float(value)}"}
    return any(word in text for word in written if word)


def check_names(function: Callable[..., Any], given: dict[str, Any]) -> None:
    """Raises TypeError where a keyword is none of those that a function passes on.

    Its own name is in the error, not that of the function that it calls in the end.
    """
    name, passed_on = _passed_on(function)
    for keyword in given.get(name, ()):
        if keyword not in passed_on:
            known = [*inspect.signature(function).parameters, *passed_on]
            near = difflib.get_close_matches(keyword, known, 1)
            remedy = f"did you mean {near[0]}?" if near else f"it takes {', '.join(passed_on)}"
            raise TypeError(
                f"{function.__name__}() got an unexpected keyword argument {keyword!r}; {remedy}"
            )


@functools.cache
def _passed_on(function: Callable[..., Any]) -> tuple[str, tuple[str, ...]]:
    """The name of ``**keywords`` that are annotated ``Unpack[...]``, and which there are."""
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.kind is parameter.VAR_KEYWORD and str(parameter.annotation).startswith(UNPACK):
            plain = inspect.unwrap(function)
            options = plain.__globals__[str(parameter.annotation).removeprefix(UNPACK).rstrip("]")]
            return name, tuple(typing.get_type_hints(options))
    return "", ()


def _short(value: Any) -> str:
    return f"{value!r:.60}" if isinstance(value, list | tuple | dict | complex) else shown(value)


def _makes_itself(value: Any) -> bool:
    """Classes with an ``__init__`` of their own; records and trees hold whatever JAX puts there."""
    return (
        inspect.isclass(value)
        and not issubclass(value, BaseException)
        and not dataclasses.is_dataclass(value)
        and not getattr(value, "_is_protocol", False)
        and inspect.isfunction(value.__dict__.get("__init__"))
    )


@functools.cache
def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    """What is to be checked, by name: the type, or `check_key` for keys, which are arrays too."""
    plain = inspect.unwrap(function)  # decorated factories are read in their own module
    arguments = types.FunctionType((lambda: None).__code__, plain.__globals__)
    arguments.__annotations__ = {k: v for k, v in function.__annotations__.items() if k != "return"}
    found = typing.get_type_hints(arguments)
    hints: dict[str, Any] = {}
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        if parameter.annotation in ("Key", "Key | None"):
            hints[name] = check_key
        elif name in found:
            hints[name] = found[name]
            if parameter.default is None:  # accepted, annotated or not
                hints[name] = found[name] | None if found[name] is not Any else Any
    return hints
