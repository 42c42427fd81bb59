"""Every flag of every script is explained, names its unit, and is found under the same name."""

import ast
import dataclasses
import importlib.util
import inspect
import io
import itertools
import re
import sys
import textwrap
from contextlib import redirect_stdout
from pathlib import Path

import pytest
from test_experiments import run_script

ROOT = Path(__file__).parent.parent.parent
FOLDERS = ("experiments", "experiments/benchmarks", "experiments/scenes")
SCRIPTS = sorted(
    path
    for folder in FOLDERS
    for path in (ROOT / folder).glob("*.py")
    if re.search(r"script\(main, Flags|parse\(Flags", path.read_text())
)
UNITS = {
    r"(num_rounds|max_rounds|every|rounds_per_turn)$": r"round",
    r"(num_clients|cohort_size|clients_per_device|num_writers)$": r"client|writer",
    r"(batch_size|mean_size|min_size|train_size|test_size)$": r"example|image",
    r".*(seconds|latency)$": r"second",
    r"bandwidth$": r"bytes a second",
    r"(dropout_rate|sampling_rates?|delta)$": r"probability",
    r"alphas?$": r"concentration",
    r".*learning_rates?$": r"rate",
    r"epochs$": r"pass|epoch",
    r".*momentum$": r"[\[(]0, 1\)",
    r"targets?$": r"accurac",
    r"bits$": r"bits",
    r"(num_)?seeds?$": r"seed|runs for each",
}
"""Fields that carry a unit, and what their explanation must hold."""
ALIASES = {"lr", "n_rounds", "rounds", "out", "out_dir", "outdir", "data", "force", "random_seed"}


@pytest.fixture(scope="module", autouse=True)
def paths():
    """Scripts import their neighbours, so their folders are on the path, for this module only."""
    before = list(sys.path)
    sys.path[:0] = [str(ROOT / folder) for folder in FOLDERS]
    yield
    sys.path[:] = before


def module_of(path):
    """Imported under a name of its own, because compression is a module of newer Pythons."""
    name = f"help_of_{path.stem}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None
        assert spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


def leaves(flags):
    """All dataclasses of plain flags below `flags`."""
    from shared.script import groups_of

    return list(groups_of(flags).values()) or [flags]


def explanations(flags):
    """What is written under each field of a dataclass, by the field's name."""
    found = {}
    for kind in filter(dataclasses.is_dataclass, flags.__mro__):
        body = ast.parse(textwrap.dedent(inspect.getsource(kind))).body[0].body
        found |= {
            field.target.id: " ".join(below.value.value.split())
            for field, below in itertools.pairwise(body)
            if isinstance(field, ast.AnnAssign) and isinstance(below, ast.Expr)
        }
    return found


def test_all_scripts_are_found():
    assert len(SCRIPTS) >= 20
    assert {"fedavg_cifar", "byzantine", "round", "peers"} <= {path.stem for path in SCRIPTS}


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_flags_are_explained(path):
    assert ast.get_docstring(ast.parse(path.read_text())), "a description with examples"
    for kind in leaves(module_of(path).Flags):
        made_by_dataclass = f"{kind.__name__}("
        assert not (kind.__doc__ or made_by_dataclass).startswith(made_by_dataclass), kind
        texts = explanations(kind)
        for field in dataclasses.fields(kind):
            text = texts.get(field.name, "")
            assert len(text.split()) >= 3, f"--{field.name} is not explained: {text!r}"
            assert field.name not in ALIASES
            for pattern, unit in UNITS.items():
                if re.match(pattern, field.name):
                    assert re.search(unit, text, re.I), f"--{field.name} names no {unit}: {text!r}"


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_help_groups_flags_and_shows_defaults_and_examples(path, monkeypatch):
    from shared.script import parse

    monkeypatch.setenv("COLUMNS", "100")
    module, shown = module_of(path), io.StringIO()
    with redirect_stdout(shown), pytest.raises(SystemExit) as stop:
        parse(module.Flags, module.__doc__, ["--help"])
    assert stop.value.code in (0, None)
    text = shown.getvalue()
    if path.parent.name != "scenes":  # whose five flags want no groups
        assert "run options" in text
    assert f"python experiments/{path.relative_to(ROOT / 'experiments')}" in text
    lines = text.splitlines()
    assert max(map(len, lines[1:])) <= 100  # the first holds the path of pytest
    for kind in leaves(module.Flags):
        for field in dataclasses.fields(kind):
            assert f"{field.name.replace('_', '-')}" in text
        assert text.count("(default:") >= len(explanations(kind))


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_every_script_has_a_try_in_seconds(path):
    module = module_of(path)
    names = {f.name for kind in leaves(module.Flags) for f in dataclasses.fields(kind)}
    assert "smoke" in names or re.search(r"no --smoke: \w+", module.__doc__)


def test_smoke_drops_nothing_that_was_given():
    from shared.smoke import chosen_preset, shrunk

    module = module_of(next(p for p in SCRIPTS if p.stem == "scaffold_quadratics"))
    assert shrunk(module.Flags(), num_rounds=2, steps=1).num_rounds == 2
    given = shrunk(module.Flags(num_rounds=7), num_rounds=2, steps=1)
    assert (given.num_rounds, given.steps) == (7, 1)
    module = module_of(next(p for p in SCRIPTS if p.stem == "byzantine"))
    assert chosen_preset(module.Flags(smoke=True)) == "smoke"
    assert chosen_preset(module.Flags(preset="published")) == "published"
    with pytest.raises(ValueError, match="--smoke is --preset smoke, got --preset published"):
        chosen_preset(module.Flags(smoke=True, preset="published"))


def test_errors_speak_of_flags():
    from shared.script import in_flags

    flags = module_of(next(p for p in SCRIPTS if p.stem == "fedavg_cifar")).Flags
    said = in_flags("num_clients=3 and alpha must be positive; mean of alpha, f.num_clients", flags)
    assert said == "--num-clients=3 and --alpha must be positive; mean of alpha, f.num_clients"
    assert in_flags("outputs/num_clients and 'num_clients'", flags) == (
        "outputs/num_clients and 'num_clients'"
    )
    assert in_flags("batch_size must be at least 1", flags) == "--batch-size must be at least 1"


def test_parsing_gives_the_same_flags_as_the_dataclass():
    from shared.script import parse

    named = {path.stem: path for path in SCRIPTS}
    byzantine, fedavg = (module_of(named[name]) for name in ("byzantine", "fedavg_cifar"))
    assert parse(byzantine.Flags, "", []) == byzantine.Flags()
    assert parse(fedavg.Flags, "", []) == fedavg.Flags()
    given = parse(byzantine.Flags, "", ["--rules", "mean", "krum", "--iid", "--num-rounds", "3"])
    assert given == byzantine.Flags(rules=("mean", "krum"), iid=True, num_rounds=3)
    given = parse(fedavg.Flags, "", ["--alpha", "0.1", "--smoke"])
    assert (given.data.alpha, given.run.smoke) == (0.1, True)


def test_help_of_a_script_as_its_user_sees_it():
    done = run_script("byzantine.py", "--help", COLUMNS="100")
    assert done.returncode == 0, done.stderr
    assert "comparison options" in done.stdout
    assert "Examples and notes" in done.stdout
