"""Every flag of every script with words that it cannot mean: parsed and looked at, nothing run."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import inspect
import io
import re
import sys
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from fuzz_verdict import Verdict

ROOT = Path(__file__).parent.parent.parent
FOLDERS = (ROOT / "experiments", ROOT / "experiments" / "benchmarks")
SCRIPTS = sorted(
    path
    for folder in FOLDERS
    for path in folder.glob("*.py")
    if re.search(r"script\(main, Flags|(parse|tyro\.cli)\(Flags", path.read_text())
)
WORDS = {"negative": "-1", "nan": "nan", "word": "abc", "empty": "", "huge": "99999999999999"}
"""By kind; what a flag is given."""
LOOKED_UP = {
    "algorithms",
    "cells",
    "child",
    "devices",
    "programs",
    "splits",
    "strategies",
    "strategy",
    "uplinks",
    "workloads",
    "attacks",
    "rules",
    "methods",
    "deals",
    "datasets",
}
"""Words that `main` looks up in its tables, once it has them; it is not called here."""
CHECKS = ("check", "choose", "horizon", "settled")
"""A script's own look at its flags, before anything is loaded or compiled."""


def flag_cases(seed: int = 0, share: float = 1.0) -> Iterator[tuple[Path, str, str]]:
    """(script, flag as its field is named, kind of word), all of them or a share."""
    rng = np.random.default_rng(seed)
    for path in SCRIPTS:
        for name, (_, hint, _) in fields_of(path).items():
            for kind in WORDS:
                if hint is not bool and (share >= 1 or rng.random() < share):
                    yield path, name, kind


def fields_of(path: Path) -> dict[str, tuple[str, Any, Any]]:
    """By name: the flag, its type and its default."""
    flags, found = module_of(path).Flags, {}
    script = sys.modules["shared.script"]
    groups = script.groups_of(flags)
    for group, kind in groups.items() or [("", flags)]:
        prefix = script.prefix_of(flags, group) if group else ""
        types = typing.get_type_hints(kind)
        for field in dataclasses.fields(kind):
            made = field.default_factory
            default = field.default if made is dataclasses.MISSING else made()
            flag = f"--{prefix}{field.name}".replace("_", "-")
            found[field.name] = (flag, types[field.name], default)
    return found


def judge_flag(path: Path, name: str, kind: str) -> Verdict:
    """What a script says to one flag, before it does anything."""
    module, word = module_of(path), WORDS[kind]
    flag, hint, _ = fields_of(path)[name]
    many = typing.get_origin(hint) is tuple
    args = [flag, word] if many or word != "-1" else [f"{flag}={word}"]
    if "overwrite" in fields_of(path) and name != "overwrite":
        args.append("--overwrite")  # results of today's may be there
    told = io.StringIO()
    verdict = (path.stem, flag, repr(word))
    try:
        with contextlib.redirect_stderr(told), contextlib.redirect_stdout(told):
            given = sys.modules["shared.script"].parse(module.Flags, module.__doc__, args)
            for own in filter(None, (getattr(module, check, None) for check in CHECKS)):
                wants = list(inspect.signature(own).parameters)
                if wants in (["flags"], ["flags", "path"]):
                    own(given, *[Path("results.json")] * (len(wants) - 1))
    except SystemExit:
        return Verdict(*verdict, *_heard(told.getvalue(), flag, word))
    except (ValueError, TypeError, OSError) as error:
        message = sys.modules["shared.script"].in_flags(str(error), module.Flags)
        return Verdict(*verdict, *_heard(message, flag, word))
    except Exception as error:
        return Verdict(*verdict, "deep", repr(error)[:200])
    return Verdict(*verdict, "allowed" if _is_meant(name, hint, word) else "accepted", str(hint))


def _heard(message: str, flag: str, word: str) -> tuple[str, str]:
    plain = " ".join(re.sub(r"\x1b\[[0-9;]*m|[│╭╮╰╯─]", " ", message).split())
    if flag not in plain and flag.replace("-", "_").lstrip("_") not in plain:
        return "mute", f"no flag: {plain[:200]}"
    if word not in plain:
        return "mute", f"no value: {plain[:200]}"
    return "good", plain[:200]


def _is_meant(name: str, hint: Any, word: str) -> bool:
    """Words where words are asked (paths), large numbers where one is, any number as a seed."""
    text = str(hint)
    if name == "hidden" and word == "-1":
        return True  # its default
    if "Path" in text or name in LOOKED_UP:
        return bool(word)
    return word == WORDS["huge"] and ("float" in text or "seed" in name)


def module_of(path: Path) -> Any:
    """A script, imported under a name of its own."""
    for folder in FOLDERS:
        if str(folder) not in sys.path:
            sys.path.append(str(folder))
    name = f"flags_of_{path.stem}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None
        assert spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    importlib.import_module("shared.script")
    return sys.modules[name]
