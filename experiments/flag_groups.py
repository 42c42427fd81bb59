"""Flags on the command line in groups, each with its explanation, and examples at the end."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import sys
import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar, cast, get_args, get_origin, get_type_hints

import tyro
from flag_values import check_value, check_words

from fedjax_lite.checks.arguments import as_path

Flags = TypeVar("Flags")

GROUPS = {
    "data": (
        "The data and how they are dealt to clients.",
        "dataset datasets data_dir partition num_clients num_writers num_members num_byzantine "
        "num_corrupted alpha alphas splits iid train_size test_size mean_size min_size sigma "
        "num_features num_classes drift scales",
    ),
    "training": (
        "Models, local training and rounds.",
        "model algorithm state num_rounds max_rounds cohort_size expected_cohort_size batch_size "
        "epochs steps learning_rate learning_rates decay momentum server_momentum hidden clip mu",
    ),
    "run": (
        "Preset, seeds and length of the run, and where results go.",
        "preset seed seeds num_seeds num_keys num_threads every last repeats calls max_seconds "
        "output_dir output overwrite resume tensorboard smoke check child",
    ),
}
"""Where a flag is listed, by its name, so that it is found in the same place in every script."""
OWN = ("comparison", "What this script compares or measures.")
FEW = 6
"""A script with fewer flags lists them in one group."""


def parse(flags: type[Flags], description: str | None, args: Sequence[str] | None = None) -> Flags:
    """Reads flags from the command line; ``--help`` groups them and ends with the examples.

    Args:
      flags: a dataclass of flags, or of groups of flags; the string under a field explains it.
      description: the script's docstring: one line above the flags, the rest below them.
      args: instead of ``sys.argv[1:]``.

    Returns:
      An instance of `flags`.

    Raises:
      SystemExit: for ``--help`` and for flags that do not parse.
      ValueError: for what no flag can mean (`flag_values`).
    """
    summary, _, rest = inspect.cleandoc(description or "").partition("\n\n")
    grouped, nested = _grouped(flags)
    check_words(sys.argv[1:] if args is None else args)
    try:
        given = tyro.cli(grouped, description=summary, args=args)
    except SystemExit as stop:
        if stop.code in (0, None) and rest:  # asked for help
            print(f"\nExamples and notes:\n\n{rest}")
        raise
    if nested:
        return at_home(
            flags(
                **{
                    name: kind(
                        **{f.name: getattr(getattr(given, name), f.name) for f in _fields(kind)}
                    )
                    for name, kind in nested.items()
                }
            )
        )
    parts = [getattr(given, group.name) for group in _fields(grouped)]
    values = {f.name: getattr(part, f.name) for part in parts for f in _fields(type(part))}
    return at_home(flags(**values))


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
        if not dataclasses.is_dataclass(value):
            default = field.default if made is dataclasses.MISSING else made()
            check_value(f"{group}{field.name}", value, default)
        if isinstance(value, Path):
            changed[field.name] = as_path(value, f"--{group}{field.name.replace('_', '-')}")
        elif dataclasses.is_dataclass(value) and not isinstance(value, type):
            changed[field.name] = at_home(value, _prefix(type(flags), field.name))
    return cast(Flags, dataclasses.replace(cast(Any, flags), **changed)) if changed else flags


def explanations(flags: type) -> dict[str, str]:
    """What is written under each field of a dataclass, by the field's name.

    Args:
      flags: a dataclass whose source can be read.

    Returns:
      One line for each field that has a string below it.
    """
    found: dict[str, str] = {}
    for kind in reversed([k for k in flags.__mro__ if dataclasses.is_dataclass(k)]):
        body = ast.parse(textwrap.dedent(inspect.getsource(kind))).body[0]
        assert isinstance(body, ast.ClassDef)
        for field, below in zip(body.body, body.body[1:]):
            if (
                isinstance(field, ast.AnnAssign)
                and isinstance(field.target, ast.Name)
                and isinstance(below, ast.Expr)
                and isinstance(below.value, ast.Constant)
                and isinstance(below.value.value, str)
            ):
                found[field.target.id] = " ".join(below.value.value.split())
    return found


def groups_of(flags: type) -> dict[str, type]:
    """The dataclasses inside a dataclass of groups; empty where the fields are flags."""
    hints = get_type_hints(flags, include_extras=True)
    kinds = {f.name: _plain(hints[f.name]) for f in _fields(flags)}
    return {
        name: kind
        for name, kind in kinds.items()
        if isinstance(kind, type) and dataclasses.is_dataclass(kind)
    }


def _prefix(flags: type, group: str) -> str:
    """What stands before the names of a group's flags."""
    hint = get_type_hints(flags, include_extras=True)[group]
    omits = get_args(tyro.conf.OmitArgPrefixes[int])[1:]
    return "" if any(extra in omits for extra in get_args(hint)[1:]) else f"{group}."


def _grouped(flags: type) -> tuple[type, dict[str, type]]:
    """A dataclass of groups for tyro, and the groups that `flags` itself has."""
    nested = groups_of(flags)
    hints = get_type_hints(flags, include_extras=True)
    if nested:
        outer = []
        for name, kind in nested.items():
            group = _group(name, kind.__doc__ or "", kind, [f.name for f in _fields(kind)])
            extras = get_args(hints[name])[1:] if get_origin(hints[name]) is Annotated else ()
            hint = Annotated[(group, *extras)] if extras else group
            outer.append((name, hint, dataclasses.field(default_factory=group)))
        return dataclasses.make_dataclass(flags.__name__, outer, frozen=True), nested
    names = [f.name for f in _fields(flags)]
    outer, left = [], list(names)
    where = {name: group for group, (_, listed) in GROUPS.items() for name in listed.split()}
    texts = {OWN[0]: OWN[1], **{group: text for group, (text, _) in GROUPS.items()}}
    if len(names) < FEW:
        where = dict.fromkeys(names, "run")
    for title, text in texts.items():
        mine = [name for name in left if where.get(name, OWN[0]) == title]
        if mine:
            group = _group(title, text, flags, mine)
            hint = tyro.conf.OmitArgPrefixes[group]
            outer.append((title, hint, dataclasses.field(default_factory=group)))
    return dataclasses.make_dataclass(flags.__name__, outer, frozen=True), {}


def _group(title: str, text: str, flags: type, names: Iterable[str]) -> type:
    """Some fields of `flags` as a dataclass of their own, with explanations that tyro shows."""
    hints, help_of = get_type_hints(flags, include_extras=True), explanations(flags)
    by_name = {f.name: f for f in _fields(flags)}
    made = []
    for name in names:
        field = by_name[name]
        metavar = "PATH" if hints[name] == (Path | None) else None
        shown = tyro.conf.arg(help=help_of.get(name), metavar=metavar)
        factory = field.default_factory
        value: Any = field.default if factory is dataclasses.MISSING else factory()
        hint = Annotated[hints[name], shown]
        if value is False:  # without its --no-... twin; one that is on keeps both
            hint = Annotated[hint, tyro.conf.FlagCreatePairsOff]
        made.append((name, hint, dataclasses.field(default=value)))
    group = dataclasses.make_dataclass(title, made, frozen=True)
    group.__doc__ = text
    group.__module__ = flags.__module__
    return group


def _fields(kind: Any) -> tuple[dataclasses.Field[Any], ...]:
    return dataclasses.fields(kind)


def _plain(hint: Any) -> Any:
    return get_args(hint)[0] if get_origin(hint) is Annotated else hint
