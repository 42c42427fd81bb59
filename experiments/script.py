"""What every experiment does as a command: flags in, one clear line where they err."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from flag_groups import parse

from fedjax_lite import distributed
from fedjax_lite.compilation import keep_compiled_programs

Flags = TypeVar("Flags")


def script(main: Callable[[Flags], Any], flags: type[Flags], description: str | None) -> None:
    """Runs an experiment from the command line; compiled programs are kept for the next start."""
    try:
        given = parse(flags, description)
        keep_compiled_programs()
        main(given)
    except (ValueError, TypeError, OSError) as error:
        notes = getattr(error, "__notes__", [])
        distributed.fail("\n".join([f"error: {error}", *notes]))
