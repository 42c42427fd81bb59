"""Scripts keep their compiled programs; a second process finds them."""

import os
import subprocess
import sys

import jax
import pytest

from fedjax_lite.run.compilation import keep_compiled_programs

PROGRAM = """
import jax, jax.numpy as jnp
from fedjax_lite.run.compilation import keep_compiled_programs
events = []
jax.monitoring.register_event_listener(lambda name, **_: events.append(name))
print(keep_compiled_programs())
jax.jit(lambda x: jnp.sin(x) @ x)(jnp.ones((3, 3)))
print(sum(name == "/jax/compilation_cache/cache_hits" for name in events))
print(sum(name == "/jax/compilation_cache/cache_misses" for name in events))
"""


@pytest.fixture
def settings():
    names = [
        "jax_compilation_cache_dir",
        "jax_persistent_cache_min_compile_time_secs",
        "jax_persistent_cache_min_entry_size_bytes",
    ]
    before = {name: getattr(jax.config, name) for name in names}
    yield
    for name, value in before.items():
        jax.config.update(name, value)


def start(tmp_path, **environment):
    mine = {name: text for name, text in os.environ.items() if "CACHE" not in name}
    environment = {**mine, "FEDJAX_LITE_CACHE": str(tmp_path), **environment}
    output = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert output.returncode == 0, output.stderr
    folder, hits, misses = output.stdout.split()
    return folder, int(hits), int(misses), output.stderr


def test_a_second_process_finds_every_program_of_the_first(tmp_path):
    folder, hits, misses, _ = start(tmp_path)
    assert (folder, hits) == (str(tmp_path / "xla"), 0)
    assert misses > 0
    again, hits, misses_again, printed = start(tmp_path)
    assert (again, hits, misses_again) == (folder, misses, 0)
    assert printed == ""


def test_jax_own_settings_win(tmp_path, settings, monkeypatch):
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "mine"))
    assert keep_compiled_programs() == tmp_path / "mine"
    jax.config.update("jax_enable_compilation_cache", False)
    try:
        assert keep_compiled_programs(tmp_path) is None
    finally:
        jax.config.update("jax_enable_compilation_cache", True)


def test_a_folder_that_cannot_be_made_costs_the_cache_only(tmp_path, settings):
    (tmp_path / "file").write_text("")
    jax.config.update("jax_compilation_cache_dir", None)
    assert keep_compiled_programs(tmp_path / "file" / "xla") is None
    assert jax.config.jax_compilation_cache_dir is None
