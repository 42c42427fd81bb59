"""What every experiment does as a command: flags in, in groups; one clear line where they err."""

from __future__ import annotations

import dataclasses
import inspect
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast, get_args, get_type_hints

import tyro

from fedjax_lite.checks.arguments import as_path
from fedjax_lite.hosts import distributed
from fedjax_lite.hosts.cores import use_cores
from fedjax_lite.run.compilation import keep_compiled_programs
from shared.flag_values import check_value, check_words

Flags = TypeVar("Flags")


def script(main: Callable[[Flags], Any], flags: type[Flags], description: str | None) -> None:
    """Runs an experiment from the command line; compiled programs are kept for the next start.

    Each core of a CPU is a device, unless several processes share them.
    """
    try:
        given = parse(flags, description)
        keep_compiled_programs()
        use_cores()
        main(given)
    except (ValueError, TypeError, OSError) as error:
        notes = getattr(error, "__notes__", [])
        distributed.fail("\n".join([f"error: {in_flags(str(error), flags)}", *notes]))


def parse(flags: type[Flags], description: str | None, args: Sequence[str] | None = None) -> Flags:
    """Reads flags from the command line; ``--help`` groups them and ends with the examples.

    Args:
      flags: a dataclass of flags that inherits from its groups, ``class Flags(DataFlags,
        RunFlags)``, or has them as fields; the string under a field explains it.
      description: the script's docstring: one line above the flags, the rest below them.
      args: instead of ``sys.argv[1:]``.

    Returns:
      An instance of `flags`.

    Raises:
      SystemExit: for ``--help`` and for flags that do not parse.
      ValueError: for what no flag can mean (`flag_values`).
    """
    summary, _, rest = inspect.cleandoc(description or "").partition("\n\n")
    check_words(sys.argv[1:] if args is None else args)
    groups = [kind for kind in flags.__bases__ if dataclasses.is_dataclass(kind)]
    # A switch has no --no-... twin, and one that is on has nothing else.
    options: Any = {
        "description": summary, "args": args, "config": (tyro.conf.FlagCreatePairsOff,)
    }  # fmt: skip
    try:
        if not groups:
            return at_home(tyro.cli(flags, **options))
        given = tyro.cli(_side_by_side(flags, groups), **options)
    except SystemExit as stop:
        if stop.code in (0, None) and rest:  # asked for help
            print(f"\nExamples and notes:\n\n{rest}")
        raise
    return at_home(
        flags(**{k: v for group in vars(given).values() for k, v in vars(group).items()})
    )


def _side_by_side(flags: type, groups: Sequence[Any]) -> type:
    """The groups that a dataclass of flags inherits from as its fields: tyro titles them so."""
    fields = [
        (
            kind.__name__.removesuffix("Flags").lower(),
            tyro.conf.OmitArgPrefixes[kind],
            dataclasses.field(default_factory=kind),
        )
        for kind in groups
    ]
    return dataclasses.make_dataclass(flags.__name__, fields, frozen=True)


def at_home(flags: Flags, group: str = "") -> Flags:
    """The flags, looked at, with ``~`` at the beginning of paths expanded (shells leave it quoted).

    Args:
      flags: a dataclass of flags, or of groups of flags.
      group: what stands before the flags' names on the command line, "" for nothing.

    Raises:
      ValueError: if a path cannot be one, or a number or word can mean nothing (`check_value`);
        the message names the flag.
    """
    changed: dict[str, Any] = {}
    for field in dataclasses.fields(cast(Any, flags)):
        value, made = getattr(flags, field.name), field.default_factory
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            changed[field.name] = at_home(value, prefix_of(type(flags), field.name))
            continue
        default = field.default if made is dataclasses.MISSING else made()
        check_value(f"{group}{field.name}", value, default)
        if isinstance(value, Path):
            changed[field.name] = as_path(value, f"--{group}{field.name.replace('_', '-')}")
    return cast(Flags, dataclasses.replace(cast(Any, flags), **changed)) if changed else flags


def groups_of(flags: type) -> dict[str, Any]:
    """The groups that are fields of a dataclass; empty where its fields are flags."""
    made = {f.name: f.default_factory for f in dataclasses.fields(flags)}
    return {name: kind for name, kind in made.items() if dataclasses.is_dataclass(kind)}


def prefix_of(flags: type, group: str) -> str:
    """What stands before the names of a group's flags."""
    hint = get_type_hints(flags, include_extras=True)[group]
    omits = get_args(tyro.conf.OmitArgPrefixes[int])[1:]
    return "" if any(extra in omits for extra in get_args(hint)[1:]) else f"{group}."


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
