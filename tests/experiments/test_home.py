"""Paths among the flags of scripts know the home folder, also where no shell expanded it."""

import dataclasses
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent


@dataclasses.dataclass
class Run:
    output_dir: Path = Path("outputs/here")
    seed: int = 3


@dataclasses.dataclass
class Flags:
    run: Run
    data_dir: Path | None = None
    name: str = "~"


def test_paths_at_every_depth_are_at_home(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(ROOT / "experiments"))
    monkeypatch.setenv("HOME", str(tmp_path))
    from shared.script import at_home

    given = at_home(Flags(Run(Path("~/runs/a")), Path("~")))
    assert given == Flags(Run(tmp_path / "runs" / "a"), tmp_path)
    assert given.name == "~"  # no path
    assert at_home(Flags(Run())) == Flags(Run())
    with pytest.raises(ValueError, match=r"--run\.output-dir"):
        at_home(Flags(Run(Path("~no-such-user/runs"))))


def test_the_command_line_goes_through_it(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(ROOT / "experiments"))
    monkeypatch.setenv("HOME", str(tmp_path))
    from shared.script import parse

    assert parse(Run, None, ["--output-dir", "~/runs"]) == Run(tmp_path / "runs")
    with pytest.raises(ValueError, match="--output-dir"):
        parse(Run, None, ["--output-dir", "~no-such-user/runs"])
