"""The comparison with other simulators as modules."""

import importlib
import sys

import numpy as np
import pytest
from benchmark_folder import FOLDER, OWN_MODULES

ALWAYS = ("test_experiments.py", "test_privacy_audit.py")
"""The script of the main job, and the one that must catch planted bugs."""


def pytest_itemcollected(item):
    """What looks at the finished smoke run of a script: of three scripts by default.

    All are imported, their flags, `--help` and refusals tested, and what they compute by parts.
    """
    looks = "finished" in item.fixturenames or item.name.startswith("test_a_smoke_run")
    benchmark = item.path.name.startswith("test_benchmark")  # which have a sample of their own
    if looks and not benchmark and item.path.name not in ALWAYS:
        item.add_marker(pytest.mark.sample(3, of="smoke runs of scripts", by="file"))


@pytest.fixture(scope="module")
def peers():
    """The script as a module; its neighbours are found as when it runs as a script."""
    path = list(sys.path)
    sys.path[:0] = [str(FOLDER), str(FOLDER / "peers_programs")]
    yield importlib.import_module("peers")
    sys.path[:] = path
    for name in list(sys.modules):
        if name.partition(".")[0] in OWN_MODULES:
            del sys.modules[name]


@pytest.fixture
def parts(peers):
    """The modules that the script is made of, by name."""
    names = ("compare", "environments", "exports", "jax_models", "workers")
    found = {name: importlib.import_module(f"peers_programs.{name}") for name in names}
    # Programs in environments of their own find these two beside them.
    return found | {
        name: importlib.import_module(name) for name in ("plain_network", "worker_protocol")
    }


@pytest.fixture(scope="module")
def har_folder(tmp_path_factory):
    """Thirty people with twelve windows an activity, whose number is the size of the signals;
    people come one after the other.
    """
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    labels = np.tile(np.repeat(np.arange(6), 12), 30)
    people = np.repeat(np.arange(1, 31), 6 * 12)
    signal = rng.normal(size=(len(labels), 9, 128)) * (1 + labels)[:, None, None] * 500
    d = np.diff(signal.astype(np.int16), axis=2, prepend=np.int16(0))
    arrays = {"labels": labels.astype(np.uint8), "subject": people.astype(np.uint8)}
    np.savez(folder / "uci_har.npz", d=d, is_test=people > 21, **arrays)
    return folder


def write_idx(path, array):
    head = (0x800 + array.ndim).to_bytes(4, "big")
    sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
    path.write_bytes(head + sizes + array.astype(np.uint8).tobytes())


@pytest.fixture(scope="module")
def fashion_folder(tmp_path_factory):
    """Images whose class is a bright row, in Fashion-MNIST's files: a few rounds learn them."""
    folder = tmp_path_factory.mktemp("data")
    write_rows(folder / "fashion-mnist", 300)
    return folder


@pytest.fixture(scope="module")
def mnist_folder(tmp_path_factory):
    """The same in MNIST's files, and more of them."""
    folder = tmp_path_factory.mktemp("data")
    write_rows(folder / "mnist", 2000)
    return folder


def write_rows(folder, num_images):
    folder.mkdir()
    rng = np.random.default_rng(0)
    for part, count in (("train", num_images), ("t10k", 100)):
        labels = np.arange(count) % 10
        images = rng.integers(0, 60, (count, 28, 28))
        images[np.arange(count), 2 * labels + 3] += 180
        write_idx(folder / f"{part}-images-idx3-ubyte", images)
        write_idx(folder / f"{part}-labels-idx1-ubyte", labels)
