"""The search order, downloads without a network, and what an error tells."""

import gzip
import hashlib
import http.client
import io
import struct
import urllib.error

import numpy as np
import pytest

import fedjax_lite.data.sources.download as downloads
from fedjax_lite.data.formats.errors import DatasetFormatError, DatasetNotFoundError
from fedjax_lite.data.sources import load as sources
from fedjax_lite.data.sources.download import DownloadError, Remote, fetch
from fedjax_lite.data.sources.load import load, names, source_of


@pytest.fixture
def opened(tmp_path, monkeypatch):
    """Isolates the test; nothing reaches the network. The addresses that were tried."""
    for name in ("FEDJAX_LITE_DATA", "TFDS_DATA_DIR", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("FEDJAX_LITE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name, source in list(sources.SOURCES.items()):  # Debian's Fashion-MNIST may be installed
        monkeypatch.setitem(sources.SOURCES, name, source._replace(folders=()))
    tried = []

    def refuse(url, timeout):
        tried.append((url, timeout))
        raise urllib.error.URLError("no network here")

    monkeypatch.setattr(downloads, "open_url", refuse)
    return tried


def mnist_files(label):
    """The four files of a data set in which every label is `label`: that tells where it is from."""
    files = {}
    for part, size in (("train", 3), ("t10k", 2)):
        images = struct.pack(">4I", 2051, size, 28, 28) + bytes(size * 784)
        labels = struct.pack(">2I", 2049, size) + bytes([label] * size)
        files[f"{part}-images-idx3-ubyte.gz"] = gzip.compress(images, mtime=0)
        files[f"{part}-labels-idx1-ubyte.gz"] = gzip.compress(labels, mtime=0)
    return files


def put_mnist(folder, label):
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in mnist_files(label).items():
        (folder / name).write_bytes(content)


def serve(monkeypatch, files, *, fail=()):
    """Serves `files` as MNIST's; addresses that contain a word of `fail` do not answer."""
    remotes = tuple(
        Remote(name, (f"https://one/{name}", f"https://two/{name}"), sha, len(content))
        for name, content in files.items()
        for sha in [hashlib.sha256(content).hexdigest()]
    )
    monkeypatch.setitem(
        sources.SOURCES, "mnist", sources.SOURCES["mnist"]._replace(remotes=remotes)
    )
    asked = []

    def answer(url, timeout):
        asked.append(url)
        if any(word in url for word in fail):
            raise urllib.error.HTTPError(url, 503, "busy", http.client.HTTPMessage(), None)
        return io.BytesIO(files[url.rsplit("/", 1)[1]])

    monkeypatch.setattr(downloads, "open_url", answer)
    return asked


def test_the_search_order(tmp_path, monkeypatch, opened):
    served = serve(monkeypatch, mnist_files(5))
    given, env = tmp_path / "given", tmp_path / "env"
    monkeypatch.setenv("FEDJAX_LITE_DATA", str(env))

    def label():
        return int(load("mnist", data_dir=given)[0]["y"][0])

    # From the last place to the first; each new one wins over those before it.
    assert label() == 5
    assert len(served) == 4
    assert label() == 5
    assert len(served) == 4
    put_mnist(env / "mnist", 4)
    assert label() == 4
    put_mnist(given, 3)
    assert label() == 3
    put_mnist(given / "mnist", 2)
    assert label() == 2
    assert len(served) == 4


def test_provenance_names_files_and_addresses(tmp_path, monkeypatch, opened):
    serve(monkeypatch, mnist_files(1))
    with pytest.raises(DatasetNotFoundError):
        source_of("mnist")
    load("mnist")
    got = source_of("mnist")
    folder = tmp_path / "cache" / "downloads" / "mnist"
    assert sorted(got.files) == sorted(str(folder / name) for name in mnist_files(1))
    assert sorted(got.urls) == sorted(f"https://one/{name}" for name in mnist_files(1))
    put_mnist(tmp_path / "mine", 2)
    mine = source_of("mnist", data_dir=tmp_path / "mine")
    assert mine.urls == ()
    assert all(name.startswith(str(tmp_path / "mine")) for name in mine.files)
    assert source_of("synthetic", alpha=0.5).options["alpha"] == 0.5


def test_the_second_mirror_serves_what_the_first_does_not(monkeypatch, opened):
    asked = serve(monkeypatch, mnist_files(6), fail=["//one/"])
    assert load("mnist")[0]["y"].tolist() == [6, 6, 6]
    assert len(asked) == 8


@pytest.mark.parametrize(
    ("name", "host"),
    [
        ("cifar10", "www.cs.toronto.edu"),
        ("cifar100", "www.cs.toronto.edu"),
        ("mnist", "storage.googleapis.com"),
        ("fashion_mnist", "fashion-mnist.s3-website"),
    ],
)
def test_without_a_network_the_error_tells_all(tmp_path, monkeypatch, opened, name, host):
    monkeypatch.setitem(sources.SOURCES, name, sources.SOURCES[name]._replace(folders=()))
    with pytest.raises(DatasetNotFoundError) as caught:
        load(name, data_dir=tmp_path / "nowhere")
    text = str(caught.value)
    assert isinstance(caught.value, FileNotFoundError)
    for part in (
        *(f"{tmp_path / 'nowhere'}: no such folder", host, "no connection (no network here)"),
        *("data_dir", "FEDJAX_LITE_DATA", "TFDS_DATA_DIR", "tfds build", 'load("digits")'),
    ):
        assert part in text
    assert opened
    assert all(timeout == 10.0 for _, timeout in opened)
    assert not list((tmp_path / "cache" / "downloads").rglob("*.part"))


def test_download_false_never_opens_an_address(opened):
    with pytest.raises(DatasetNotFoundError, match="not tried, as download=False"):
        load("cifar10", download=False)
    with pytest.raises(DatasetNotFoundError):
        source_of("cifar10")
    assert opened == []


CONTENT = b"0123456789" * 100
GOOD = Remote("a.bin", ("https://one/a.bin",), hashlib.sha256(CONTENT).hexdigest(), len(CONTENT))


class _Breaks(io.BytesIO):
    def __init__(self, error):
        super().__init__(CONTENT[:10])
        self.error = error

    def read(self, size=-1):
        if got := super().read(size):
            return got
        raise self.error


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda: io.BytesIO(CONTENT[:-1]), "999 of 1,000 bytes came"),
        (lambda: io.BytesIO(CONTENT + b"x"), "more than the expected 1,000 bytes"),
        (lambda: io.BytesIO(CONTENT[::-1]), "sha256 is .* expected"),
        (lambda: _Breaks(TimeoutError()), "timed out"),
        (lambda: _Breaks(ConnectionResetError("reset by peer")), "reset by peer"),
        (lambda: _Breaks(http.client.IncompleteRead(b"")), "IncompleteRead"),
    ],
)
def test_a_broken_download_leaves_nothing(tmp_path, monkeypatch, answer, message):
    monkeypatch.setattr(downloads, "open_url", lambda url, timeout: answer())
    with pytest.raises(DownloadError, match=message):
        fetch(GOOD, tmp_path)
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(downloads, "open_url", lambda url, timeout: io.BytesIO(CONTENT))
    assert fetch(GOOD, tmp_path).read_bytes() == CONTENT
    assert [path.name for path in tmp_path.iterdir()] == ["a.bin"]


def test_a_download_folder_that_cannot_be_made_is_a_reason(tmp_path, monkeypatch, opened):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DatasetNotFoundError, match=r"cannot write to .*file"):
        load("cifar10", cache_dir=tmp_path / "file")


def test_the_progress_bar_on_a_terminal(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(downloads, "open_url", lambda url, timeout: io.BytesIO(CONTENT))
    monkeypatch.setattr(downloads.sys.stderr, "isatty", lambda: True, raising=False)
    assert fetch(GOOD, tmp_path / "a").read_bytes() == CONTENT
    monkeypatch.setattr(downloads.sys.stderr, "isatty", lambda: False, raising=False)
    capsys.readouterr()
    assert fetch(GOOD, tmp_path / "b").read_bytes() == CONTENT
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == ["downloading a.bin (0.0 MB) ...", "downloaded a.bin"]


def test_a_corrupt_file_stops_the_search(tmp_path, monkeypatch, opened):
    # Falling through to the network would hide that the user's own file is broken.
    served = serve(monkeypatch, mnist_files(5))
    put_mnist(tmp_path / "mine", 1)
    (tmp_path / "mine" / "train-labels-idx1-ubyte.gz").write_bytes(b"nonsense")
    with pytest.raises(DatasetFormatError, match="train-labels-idx1-ubyte"):
        load("mnist", data_dir=tmp_path / "mine")
    assert served == []


def test_load_uses_the_cache(tmp_path, monkeypatch, opened):
    put_mnist(tmp_path / "mine", 1)
    first = load("mnist", data_dir=tmp_path / "mine")
    source = sources.SOURCES["mnist"]

    def never(candidate):
        raise AssertionError("parsed although cached")

    monkeypatch.setitem(sources.SOURCES, "mnist", source._replace(read=never))
    second = load("mnist", data_dir=tmp_path / "mine")
    for one, other in zip(first, second):
        for key in one:
            np.testing.assert_array_equal(one[key], other[key])
    with pytest.raises(AssertionError, match="parsed although"):
        load("mnist", data_dir=tmp_path / "mine", cache_dir=tmp_path / "other")


@pytest.mark.parametrize("name", ["cifar-10", "CIFAR10", "cifar_10", "fashion-mnist"])
def test_spellings_of_a_name(opened, name):
    with pytest.raises(DatasetNotFoundError):
        load(name, download=False, data_dir="/nonexistent", cache_dir="/nonexistent")


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (lambda: load("cifar1O"), ValueError, "did you mean 'cifar10'.*known are .*mnist"),
        (lambda: load("zzzz"), ValueError, "unknown data set 'zzzz'; known are cifar10"),
        (
            lambda: load(10),  # type: ignore[arg-type]
            TypeError,
            "name must be a string, got 10",
        ),
        (lambda: load("mnist", sequence_length=3), TypeError, "no option 'sequence_length'"),
        (lambda: load("shakespeare", length=3), TypeError, "options: sequence_length"),
        (lambda: load("tfds:../etc"), ValueError, "form NAME"),
    ],
)
def test_names_and_options_are_checked(opened, call, kind, message):
    with pytest.raises(kind, match=message):
        call()


def test_every_source_says_what_it_is(opened):
    assert list(names()) == [
        *("cifar10", "cifar100", "mnist", "fashion_mnist", "shakespeare"),
        *("heart_disease", "uci_har", "digits", "synthetic"),
    ]
    for name, source in sources.SOURCES.items():
        assert source.name == name
        assert source.description
        assert source.local or source.remedies
        for remote in source.remotes:
            assert len(bytes.fromhex(remote.sha256)) == 32
            assert all(url.endswith(remote.filename) for url in remote.urls)
