"""``--smoke``: a script in seconds, whatever else it was given."""

from __future__ import annotations

import dataclasses
from typing import Any, TypeVar

Flags = TypeVar("Flags")


def shrunk(flags: Flags, **small: Any) -> Flags:
    """The flags with small values where none were given, so that no given flag is dropped.

    Args:
      flags: a dataclass of flags whose defaults are the whole thing.
      **small: values for a smoke run, by the flag's name.

    Returns:
      The flags; what was given stays.
    """
    kind: Any = type(flags)
    given: Any = flags
    whole = {f.name: getattr(kind(), f.name) for f in dataclasses.fields(kind)}
    free = {name: v for name, v in small.items() if getattr(flags, name) == whole[name]}
    return dataclasses.replace(given, **free)


def chosen_preset(flags: Any) -> str:
    """The preset that ``--preset`` and ``--smoke`` name together.

    Args:
      flags: with the fields `preset` and `smoke`.

    Raises:
      ValueError: where they name two.
    """
    whole = type(flags)().preset
    if flags.smoke and flags.preset not in (whole, "smoke"):
        raise ValueError(
            f"--smoke is --preset smoke, got --preset {flags.preset} beside it; give one of the two"
        )
    return "smoke" if flags.smoke else flags.preset
