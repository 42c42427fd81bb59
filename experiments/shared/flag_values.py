"""What every flag refuses: NaN, infinity, negative numbers, sizes beyond 32 bits, empty words."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

INFINITE = ("clip", "clip_radius", "client_clip", "epsilons", "max_seconds", "bandwidth")
"""Flags that may be infinite: no bound, no limit."""

LARGEST = 2**32
"""Numbers of things have 32 bits on the device."""


def check_value(name: str, value: Any, default: Any) -> None:
    """Raises ValueError where a flag's value can mean nothing in any script.

    Args:
      name: of the field.
      value: what was given; sequences are looked at one by one.
      default: of the field; it passes always, and numbers may be as small as a negative one.

    Example:
      >>> check_value("num_rounds", -1, 200)
      Traceback (most recent call last):
      ...
      ValueError: --num-rounds must not be negative, got -1; give 0 or more
    """
    if value == default or isinstance(value, bool):
        return
    if isinstance(value, tuple | list):
        for item in value:
            check_value(name, item, None)
        return
    flag = f"--{name.replace('_', '-')}"
    if isinstance(value, str) and not value.strip():
        raise ValueError(
            f"{flag} must be a word, got {value!r}; leave the flag out for its default"
        )
    if not isinstance(value, int | float):
        return
    if math.isnan(value):
        raise ValueError(f"{flag} must be a number, got {value}; give one such as 0.1")
    least = min(default, 0) if isinstance(default, int | float) else 0
    if value < least:
        raise ValueError(f"{flag} must not be negative, got {value}; give {least:g} or more")
    if math.isinf(value) and name.split(".")[-1] not in INFINITE:
        raise ValueError(f"{flag} must be finite, got {value}; give a finite number")
    if isinstance(value, int) and value > LARGEST and "seed" not in name:
        raise ValueError(f"{flag} must be at most 2**32, got {value}; it has 32 bits on the device")


def check_words(words: Sequence[str]) -> None:
    """Raises ValueError for an empty word on the command line: a path would mean the folder here.

    Args:
      words: as the shell gave them.

    Example:
      >>> check_words(["--output-dir", ""])
      Traceback (most recent call last):
      ...
      ValueError: --output-dir must not be empty, got ''; leave the flag out for its default
    """
    for before, word in zip(["the first word", *words], words):
        if not word.strip() or (word.startswith("--") and word.endswith("=")):
            flag = word.rstrip("=") or (before if before[:2] == "--" else f"what follows {before}")
            remedy = "leave the flag out for its default"
            raise ValueError(f"{flag} must not be empty, got ''; {remedy}")


def check_choices(name: str, given: Sequence[str], choices: Sequence[str]) -> None:
    """Raises ValueError for a word that a script's table lacks.

    Args:
      name: of the field.
      given: the words.
      choices: the table's.

    Example:
      >>> check_choices("programs", ["abc"], ["mlp", "cnn"])
      Traceback (most recent call last):
      ...
      ValueError: --programs must be among cnn, mlp, got 'abc'
    """
    for word in given:
        if word not in choices:
            flag = f"--{name.replace('_', '-')}"
            raise ValueError(f"{flag} must be among {', '.join(sorted(choices))}, got {word!r}")
