"""The notebooks: equal to their sources, executed from top to bottom, with figures in them."""

import importlib
import importlib.util
import json
import sys
from pathlib import Path

import pytest
from examples_names import missing_names

from fedjax_lite.run.progress import NotebookBar

FOLDER = Path(__file__).resolve().parents[2] / "colab"
NOTEBOOKS = sorted(path.stem for path in FOLDER.glob("0*.ipynb"))
INSTALL = '%pip install -q --no-deps "fedjax_lite @ git+https://github.com/fedjax-lite/fedjax_lite"'
GUARD = 'if "google.colab" in sys.modules:'


@pytest.fixture(scope="module")
def build():
    spec = importlib.util.spec_from_file_location("colab_build", FOLDER / "build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def cells(name, kind):
    found = json.loads((FOLDER / f"{name}.ipynb").read_text("utf-8"))["cells"]
    return ["".join(cell["source"]) for cell in found if cell["cell_type"] == kind]


SOURCE = """'''Not part of the notebook.'''
# %% [markdown]
# # Title
#
# Text with `# %%` in it.

# %%
# %matplotlib inline
x = 1  # a comment stays
if x:
    # !ls -l
    pass
# # %pip install what_colab_lacks
# 5 % of it is text

# %%

# %%
"""


def test_converter_on_a_tiny_source(build):
    notebook = build.to_notebook(SOURCE)
    kinds = [cell["cell_type"] for cell in notebook["cells"]]
    assert kinds == ["markdown", "code", "code", "code"]
    title, code, *empty = ("".join(cell["source"]) for cell in notebook["cells"])
    assert title == "# Title\n\nText with `# %%` in it."
    assert code == (
        "%matplotlib inline\nx = 1  # a comment stays\nif x:\n    !ls -l\n    pass\n"
        "# %pip install what_colab_lacks\n# 5 % of it is text"
    )
    assert empty == ["", ""]
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    assert notebook["metadata"]["kernelspec"]["name"] == "python3"
    assert notebook["metadata"]["colab"]["toc_visible"] is True


def test_ids_of_cells_differ_and_stay(build):
    ids = [cell["id"] for cell in build.to_notebook(SOURCE)["cells"]]
    assert len(set(ids)) == 4, "equal cells, too, have ids of their own"
    longer = build.to_notebook("# %%\nnew = 1\n" + SOURCE.partition("\n")[2])["cells"]
    assert [cell["id"] for cell in longer[1:]] == ids, "a new cell must not rename the others"


def test_converter_makes_what_nbformat_accepts(build):
    import nbformat

    nbformat.validate(nbformat.reads(build.to_json(build.to_notebook(SOURCE)), as_version=4))


@pytest.mark.parametrize("source", ["x = 1\n", "# %% [markdown]\nforgot the comment sign\n"])
def test_converter_refuses_what_is_no_notebook(build, source):
    with pytest.raises(ValueError, match="cell"):
        build.to_notebook(source)


def test_check_sees_every_difference(build, tmp_path):
    source = tmp_path / "01_first.py"
    source.write_text("# %%\nx = 1\n")
    assert build.check(tmp_path) == ["01_first.ipynb is missing"]
    assert [path.name for path in build.build(tmp_path)] == ["01_first.ipynb"]
    assert build.check(tmp_path) == []
    source.write_text("# %%\nx = 2\n")
    assert build.check(tmp_path) == ["01_first.ipynb differs from 01_first.py"]
    source.unlink()
    assert build.check(tmp_path) == ["01_first.ipynb has no source 01_first.py"]


def test_bar_of_a_notebook():
    picture = NotebookBar.draw(3, 12, "loss <nan>")
    assert picture["text/plain"] == "round 3/12  loss <nan>"
    assert '<progress value="3" max="12"></progress>' in picture["text/html"]
    assert "loss &lt;nan&gt;" in picture["text/html"], "text must not become markup"


def test_bar_draws_seldom_and_the_end_always(monkeypatch):
    shown = []

    class Handle:
        def update(self, picture, *, raw):
            shown.append(picture["text/plain"])

    module = importlib.import_module("IPython.display")  # the package has a function of that name
    monkeypatch.setattr(module, "display", lambda picture, **options: Handle())
    bar = NotebookBar(1000)
    for i in range(1, 1001):
        bar.update(None, completed=i, text="")
    assert len(shown) < 100, "a thousand pictures for a run of milliseconds"
    bar.stop()
    assert shown[-1].startswith("round 1000/1000")


def test_notebooks_equal_their_sources(build):
    assert NOTEBOOKS, "no notebooks found"
    assert build.check() == [], "run: python colab/build.py"


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_first_cells(name):
    """A badge that opens this very notebook; an install of this package alone, only on Colab."""
    badge = cells(name, "markdown")[0].splitlines()[0]
    assert badge.startswith("[![Open In Colab](https://colab.research.google.com/assets/")
    assert badge.endswith(f"/github/fedjax-lite/fedjax_lite/blob/main/colab/{name}.ipynb)")
    first, *others = cells(name, "code")
    lines = [line.strip() for line in first.splitlines()]
    installs = [line for line in lines if "install" in line and not line.startswith("#")]
    assert installs == [INSTALL]
    place = lines.index(INSTALL)
    assert lines[place - 1] == GUARD
    for cell in others:  # what Colab lacks: never with its dependencies, of which jax may be one
        lines = [line.strip() for line in cell.splitlines()]
        for before, line in zip(["", *lines], lines, strict=False):
            assert not line.startswith("!")
            if line.startswith("%pip"):
                assert before == GUARD
                assert line.startswith("%pip install -q --no-deps ")
                assert "jax " not in f"{line} "


FRESH = """import gc
gc.set_threshold(200_000, 50, 1000)
import matplotlib.pyplot as plt
plt.close("all")
plt.rcdefaults()
%reset -f
%cd -q {folder}
"""
"""Run before a notebook: no name, figure or setting is left of the one before; and as in
tests/conftest.py, garbage is looked for seldom."""


@pytest.fixture(scope="module")
def kernel(tmp_path_factory):
    """A kernel of this very interpreter, whatever kernels the machine has; one for all notebooks.

    A process of its own for each would import JAX and draw its first figure five times.
    """
    from jupyter_client.kernelspec import KernelSpecManager
    from jupyter_client.manager import AsyncKernelManager
    from jupyter_core.utils import run_sync

    home = tmp_path_factory.mktemp("jupyter")
    folder = home / "kernels" / "python3"
    folder.mkdir(parents=True)
    command = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    spec = {"argv": command, "display_name": "Python 3", "language": "python"}
    (folder / "kernel.json").write_text(json.dumps(spec))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JUPYTER_PLATFORM_DIRS", "1")  # without it jupyter_core warns
        patch.setenv("JUPYTER_RUNTIME_DIR", str(home / "runtime"))
        patch.setenv("IPYTHONDIR", str(home / "ipython"))  # no settings of the user's
        patch.setenv("FEDJAX_LITE_SMALL", "1")
        patch.setenv("JAX_PLATFORMS", "cpu")
        patch.setenv("PYTHONPATH", str(FOLDER.parent), prepend=":")
        specs = KernelSpecManager(kernel_dirs=[str(folder.parent)], ensure_native_kernel=False)
        manager = AsyncKernelManager(kernel_name="python3", kernel_spec_manager=specs)
        yield manager
        if manager.has_kernel:
            run_sync(manager.shutdown_kernel)(now=True)


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_names_in_cells_are_there(name):
    """Of all notebooks, whichever of them run; magic is a comment in a source."""
    scope = {"__name__": "__main__", "display": None}
    assert not missing_names((FOLDER / f"{name}.py").read_text("utf-8"), scope)


@pytest.mark.sample(1)
@pytest.mark.slow
@pytest.mark.parametrize("name", NOTEBOOKS)
def test_cells_run_in_order(name, kernel, tmp_path):
    import nbclient
    import nbformat

    notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    nbformat.validate(notebook)
    place = {"metadata": {"path": str(tmp_path)}}
    fresh = nbformat.v4.new_code_cell(FRESH.format(folder=str(tmp_path)))
    notebook.cells.insert(0, fresh)
    nbclient.NotebookClient(notebook, km=kernel, timeout=300, resources=place).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    assert not [output for output in outputs if output.output_type == "error"]
    pictures = [output for output in outputs if "image/png" in output.get("data", {})]
    assert pictures, "no figure was shown"
    shown = [output.data for output in outputs if "data" in output]
    texts = [data.get("text/plain", "") for data in shown if "image/png" not in data]
    assert not [text for text in texts if "Figure" in text], "a figure was shown as mere text"
    bars = [text for text in texts if text.startswith("round ")]
    assert not [bar for bar in bars if "compiling" in bar], "a bar stopped before the end"
