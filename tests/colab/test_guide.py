"""The guide: every snippet runs, every command is there, every public name has its entry."""

from __future__ import annotations

import argparse
import ast
import functools
import importlib.util
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
from examples_names import missing_names

ROOT = Path(__file__).resolve().parents[2]
GUIDE = ROOT / "colab" / "guide"
FENCE = re.compile(r"^(?P<mark>```+)(?P<info>[^\n`]*)\n(?P<code>.*?)^(?P=mark)[ ]*$", re.M | re.S)
NO_RUN = re.compile(r'no-run="(?P<reason>[^"]*)"')
KNOWN = {"python", "bash", "text", "json", "bibtex"}
FLOWER = {"flower-superlink", "flower-supernode", "flwr"}
ELSEWHERE = {"git", "cd", "python3", ".venv/bin/pip", *FLOWER}
"""Commands of the installation, and Flower's, which tests/deploy runs; the README's own are run as
printed by CI."""


class Snippet(NamedTuple):
    """A fenced block of a page."""

    page: str
    line: int
    language: str
    no_run: str | None
    code: str


def snippets(language: str | None = None) -> list[Snippet]:
    """All fenced blocks of the guide, page by page and in order."""
    found = []
    for path in sorted(GUIDE.rglob("*.md")):
        text, page = path.read_text(), path.relative_to(GUIDE).as_posix()
        for fence in FENCE.finditer(text):
            name, _, rest = fence["info"].strip().partition(" ")
            reason = NO_RUN.search(rest)
            line = text.count("\n", 0, fence.start()) + 2
            found.append(Snippet(page, line, name, reason and reason["reason"], fence["code"]))
    return [one for one in found if language in (None, one.language)]


PAGES = sorted({one.page for one in snippets("python")})
SLOW = {"how-to/privacy.md"}
"""Pages whose snippets take longer: privacy loss distributions are convolved."""


def test_fences_say_what_they_are():
    assert len(PAGES) >= 10
    for one in snippets():
        where = f"{one.page}:{one.line}"
        assert one.language in KNOWN, f"{where}: fence of language {one.language!r}"
        assert one.no_run is None or len(one.no_run) > 8, f"{where}: no-run needs its reason"
        assert all(len(line) <= 88 for line in one.code.split("\n")), f"{where}: line too long"


@pytest.mark.sample(4)
@pytest.mark.parametrize(
    "page", [pytest.param(p, marks=pytest.mark.slow) if p in SLOW else p for p in PAGES]
)
def test_snippets_of_a_page_run_in_order(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": "__main__"}
    for one in snippets("python"):
        if one.page == page and one.no_run is None:
            # Lines are those of the page, so that an error is found there.
            code = "\n" * (one.line - 1) + one.code
            exec(compile(code, str(GUIDE / page), "exec"), namespace)


@pytest.mark.parametrize("page", PAGES)
def test_names_in_snippets_are_there(page):
    """Of all pages, whichever of them run."""
    runs = [one.code for one in snippets("python") if one.page == page and one.no_run is None]
    assert not missing_names("\n".join(runs), {"__name__": "__main__"})


# -- commands -----------------------------------------------------------------------------------


def commands() -> list[tuple[str, list[str]]]:
    """Commands in bash fences, and in inline code that begins with python: (where, words)."""
    found = []
    for one in snippets("bash"):
        for offset, line in enumerate(one.code.replace("\\\n", " ").splitlines()):
            for part in line.split("#")[0].split("&&"):
                if words := shlex.split(part):
                    found.append((f"{one.page}:{one.line + offset}", words))
    for path in sorted(GUIDE.rglob("*.md")):
        page = path.relative_to(GUIDE).as_posix()
        for code in re.findall(r"`(python (?:-m |experiments/)[^`]*)`", path.read_text()):
            found.append((page, shlex.split(code)))
    return found


@functools.cache
def flags_of(*command: str) -> frozenset[str]:
    """The flags that a script or module declares: strings of argparse, fields of tyro's classes.

    Read from the sources: asking eight scripts for --help would import JAX eight times.
    """
    if command[0] == "-m":
        module = ROOT.joinpath(*command[1].split("."))
        sources = sorted(module.glob("*.py")) if module.is_dir() else [module.with_suffix(".py")]
    else:
        script = ROOT / command[0]
        own = sorted(script.glob("*.py")) if script.is_dir() else [script]
        settings = script.with_name(f"{script.stem}_settings.py")
        sources = [*own, *filter(Path.exists, [settings]), ROOT / "experiments/shared/flags.py"]
    found = {"--help"}
    for node in (node for path in sources for node in ast.walk(ast.parse(path.read_text()))):
        if isinstance(node, ast.ClassDef):
            fields = [one.target for one in node.body if isinstance(one, ast.AnnAssign)]
            names = [field.id for field in fields if isinstance(field, ast.Name)]
            found |= {"--" + name.replace("_", "-") for name in names}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found |= {node.value} if re.fullmatch(r"--[a-z-]+", node.value) else set()
    return frozenset(found)


def python_commands() -> list[tuple[str, list[str], list[str]]]:
    """(where, script or module, its arguments) of every command that runs Python."""
    found = []
    for where, words in commands():
        if "python" not in words:
            assert words[0] in ELSEWHERE, f"{where}: unknown command {words}"
            continue
        words = words[words.index("python") + 1 :]
        length = 2 if words[0] == "-m" else 1
        target, rest = words[:length], words[length:]
        if target == ["-m", "fedjax_lite.hosts.launch"]:  # a script of its own follows the options
            place = next(i for i, word in enumerate(rest) if word.endswith(".py"))
            found.append((where, rest[place : place + 1], rest[place + 1 :]))
            rest = rest[:place]
        found.append((where, target, rest))
    return found


def test_scripts_and_modules_of_commands_are_there():
    assert len(python_commands()) >= 15
    for where, target, _ in python_commands():
        if target[0] == "-m":
            assert importlib.util.find_spec(target[1]), f"{where}: no module {target[1]}"
        else:
            script = ROOT / target[0]
            there = script.is_file() or (script / "__main__.py").is_file()
            assert there, f"{where}: no script {target[0]}"


def test_flags_of_commands_are_known():
    checked = 0
    for where, target, arguments in python_commands():
        flags = {word.split("=")[0] for word in arguments if word.startswith("--")}
        unknown = flags - flags_of(*target)
        assert not unknown, f"{where}: {' '.join(target)} has no {sorted(unknown)}"
        checked += len(flags)
    assert checked >= 8
    assert "--num-processes" in flags_of("-m", "fedjax_lite.hosts.launch")
    assert "--learning-rate" in flags_of("experiments/fedavg_cifar.py")
    assert "--lr" not in flags_of("experiments/fedavg_cifar.py")


def test_a_command_that_does_not_exist_is_found(monkeypatch):
    line = "python experiments/nowhere.py --seed 1 && srun python -m fedjax_lite.nothing\n"
    planted = [Snippet("p.md", 1, "bash", None, line)]
    monkeypatch.setattr(f"{__name__}.snippets", lambda language=None: planted)
    monkeypatch.setattr(f"{__name__}.GUIDE", ROOT / "nowhere")
    assert [target for _, target, _ in python_commands()] == [
        ["experiments/nowhere.py"],
        ["-m", "fedjax_lite.nothing"],
    ]


# -- the built guide ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def hooks():
    """The guide's hooks as a module."""
    pytest.importorskip("mkdocs", reason="the guide is built with the extra `docs`")
    spec = importlib.util.spec_from_file_location("guide_hooks", ROOT / "colab/guide_hooks.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The guide as a strict build leaves it."""
    pytest.importorskip("mkdocs", reason="the guide is built with the extra `docs`")
    folder = tmp_path_factory.mktemp("site")
    # Without search, colours of code and signatures laid out, which change no entry and no link.
    dressed = "true" if os.environ.get("FEDJAX_LITE_TESTS") == "all" else "false"
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict"]
        + ["-f", str(ROOT / "colab/mkdocs.yml"), "-d", str(folder)],
        capture_output=True,
        text=True,
        env=dict(os.environ, NO_MKDOCS_2_WARNING="1", NO_COLOR="1", GUIDE_DRESSED=dressed),
        timeout=300,
    )
    assert built.returncode == 0, built.stdout + built.stderr
    assert "WARNING" not in built.stderr, built.stderr
    return folder


def live_names() -> dict[str, list[str]]:
    """What the live package says is public, by module; the reference is made from the sources."""
    import fedjax_lite
    import fedjax_lite.report
    import fedjax_lite.testing

    found: dict[str, list[str]] = {}
    first = (fedjax_lite, fedjax_lite.report, fedjax_lite.testing)
    unvisited = [(module.__name__, module) for module in first]
    while unvisited:
        path, module = unvisited.pop()
        if path in found or not hasattr(module, "__all__"):
            continue
        found[path] = list(module.__all__)
        values = [(f"{path}.{name}", getattr(module, name)) for name in module.__all__]
        unvisited += [(name, value) for name, value in values if isinstance(value, type(sys))]
    return found


def test_every_public_name_is_in_the_reference(hooks):
    modules = live_names()
    assert len(modules) >= 14
    for module, names in modules.items():
        for name in names:
            assert f"{module}.{name}" in hooks.links(), f"{module}.{name} is not in the reference"


def test_equations_become_mathml(hooks):
    text = "A line.\n\n.. math::\n    a &= b \\\\\n    c &= d\n\nwith :math:`x_i`.\n"
    markdown = hooks.in_markdown(text)
    assert "`\\[a &= b \\\\ c &= d\\]`" in markdown
    assert "`\\(x_i\\)`" in markdown
    inline = hooks.on_page_content("<code>\\(x_i\\)</code>", None, None, None)
    assert inline.startswith("<math")
    assert "\\" not in inline
    block = hooks.on_page_content("<code>\\[a &amp;= b \\\\ c &amp;= d\\]</code>", None, None, None)
    assert block.count("<mtr>") == 2


def test_a_name_in_the_prose_that_does_not_exist_is_an_error(hooks):
    from mkdocs.exceptions import PluginError

    page = argparse.Namespace(file=argparse.Namespace(src_uri="page.md"))
    good = hooks.on_page_markdown("see `fl.krum(2)`\n```python\nfl.nothing\n```", page, None, None)
    assert "[`fl.krum(2)`][fedjax_lite.aggregation.krum.krum]" in good
    with pytest.raises(PluginError, match=r"fl\.nothing"):
        hooks.on_page_markdown("see `fl.nothing`", page, None, None)


def test_the_hooks_import_nothing_heavy():
    tree = ast.parse((ROOT / "colab/guide_hooks.py").read_text())
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    modules = {getattr(node, "module", None) or node.names[0].name for node in imports}
    assert not {m for m in modules if m.split(".")[0] in ("jax", "fedjax_lite", "flax")}


@pytest.mark.slow
def test_every_public_name_has_an_anchor_in_the_built_guide(site, hooks):
    anchors = set()
    for page in (site / "api").glob("*.html"):
        anchors |= set(re.findall(r'id="([^"]+)"', page.read_text()))
    for module, names in live_names().items():
        for name in names:
            target = hooks.links()[f"{module}.{name}"]
            if target in hooks.reference():  # a module has a page
                assert (site / hooks.page_of(target)).with_suffix(".html").exists(), target
            else:
                assert target in anchors, f"{module}.{name} has no entry {target}"


@pytest.mark.slow
def test_the_built_guide_fetches_nothing(site):
    fetched = re.compile(
        r'(?:\b(?:src|srcset|poster|data)="|@import |url\('
        r'|<link(?![^>]*rel="canonical")[^>]*href=")'
        r"""["']?((?:https?:)?//[^"')]*)"""
    )
    # Scripts of the theme ask GitHub for a repository's stars, and fetch Mermaid where it is used.
    asking = re.compile(r'data-md-component="source"|class="mermaid"')
    for style in site.rglob("*.css"):
        assert not fetched.findall(style.read_text()), style
    pages = list(site.rglob("*.html"))
    assert len(pages) > 30
    for page in pages:
        text = page.read_text()
        assert not fetched.findall(text), page
        assert not asking.findall(text), page
        assert ".. math::" not in re.sub(r"<pre.*?</pre>", "", text, flags=re.S), page
    concepts = (site / "concepts.html").read_text()
    assert "<svg" in concepts
    assert "Aggregator.finish" in concepts
