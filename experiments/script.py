"""What every experiment does as a command: flags in, one clear line where they err."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from typing import Any, TypeVar

from flag_groups import groups_of, parse

from fedjax_lite.hosts import distributed
from fedjax_lite.run.compilation import keep_compiled_programs

Flags = TypeVar("Flags")


def script(main: Callable[[Flags], Any], flags: type[Flags], description: str | None) -> None:
    """Runs an experiment from the command line; compiled programs are kept for the next start."""
    try:
        given = parse(flags, description)
        keep_compiled_programs()
        main(given)
    except (ValueError, TypeError, OSError) as error:
        notes = getattr(error, "__notes__", [])
        distributed.fail("\n".join([f"error: {in_flags(str(error), flags)}", *notes]))


def in_flags(message: str, flags: type) -> str:
    """A message of the library for those who gave flags: `num_clients` is ``--num-clients``.

    Args:
      message: of an error.
      flags: the script's dataclass of flags, or of groups of flags.

    Returns:
      The message, where names of arguments that are flags read as such.
    """
    for kind in groups_of(flags).values() or [flags]:
        for field in dataclasses.fields(kind):
            name = re.escape(field.name)
            # Words of one syllable are words, unless they stand where an argument stands.
            place = "" if "_" in field.name else r"(?==| must\b)"
            message = re.sub(
                rf"(?<![\w.'\"/-]){name}\b(?!['\"/(]){place}",
                f"--{field.name.replace('_', '-')}",
                message,
            )
    return message
