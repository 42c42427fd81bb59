"""What the README promises: it is short, its links lead somewhere, its first program runs."""

import re
from pathlib import Path

import jax
import pytest

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")


def test_it_is_short():
    assert len(TEXT.splitlines()) <= 200


def test_links_lead_somewhere():
    links = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", TEXT)
    local = [link for link in links if not link.startswith("http")]
    assert local
    assert [link for link in local if not (ROOT / link).exists()] == []


def test_scripts_that_it_names_exist():
    scripts = set(re.findall(r"python (experiments/\S+\.py)", TEXT))
    assert scripts
    assert [script for script in scripts if not (ROOT / script).exists()] == []


@pytest.mark.slow
def test_the_first_program_runs_as_printed(capsys, monkeypatch, tmp_path):
    program = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)[0]
    statements = [line for line in program.splitlines() if line.strip()]
    assert len(statements) <= 15
    monkeypatch.chdir(tmp_path)
    found: dict = {}
    exec(compile(program, "README.md", "exec"), found)
    printed = capsys.readouterr().out.splitlines()
    assert float(printed[-1]) == found["history"][-1]["test_accuracy"] > 0.85
    assert "10 clients, uniformly without replacement" in "\n".join(printed)
    assert list(tmp_path.iterdir()) == []  # nothing is written unasked
    assert jax.dtypes.issubdtype(found["key"].dtype, jax.dtypes.prng_key)
