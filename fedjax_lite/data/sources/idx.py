"""MNIST and Fashion-MNIST from idx files, plain or gzipped, with MNIST's writers where they exist.

LeCun, Cortes and Burges, "The MNIST database of handwritten digits", 1998. Xiao, Rasul and
Vollgraf, "Fashion-MNIST", 2017, arXiv:1708.07747. Writers: Yadav and Bottou, "Cold Case: The Lost
MNIST Digits", 2019, arXiv:1905.10498.
"""

from __future__ import annotations

import gzip
import logging
import math
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

from fedjax_lite.data.formats.compressed import read_gzip
from fedjax_lite.data.formats.errors import DatasetFormatError
from fedjax_lite.data.formats.npy_file import open_npy
from fedjax_lite.data.sources import tfds as tfds_source
from fedjax_lite.data.sources.cache import Arrays, Splits
from fedjax_lite.data.sources.download import Remote
from fedjax_lite.data.sources.source import Candidate, Source

_LOG = logging.getLogger("fedjax_lite")
_MAX_GZIPPED = 1 << 28
"""Bytes; MNIST has 47 million, and a gzip file of zeros is a thousandth of what it holds."""
_PARTS = (("train", 60_000), ("t10k", 10_000))


def read_idx(path: Path, *, num_dims: int) -> np.ndarray:
    """Reads an idx file of unsigned bytes: a magic number, the sizes, the values.

    Args:
      path: the file, gzipped if its name ends in ``.gz``.
      num_dims: 3 for images (magic number 2051), 1 for labels (2049).

    Returns:
      uint8, of `num_dims` dimensions.

    Raises:
      DatasetFormatError: if it is corrupt, cut short, too long or another kind of file.

    Example:
      >>> import pathlib, tempfile
      >>> path = pathlib.Path(tempfile.mkdtemp()) / "labels"
      >>> _ = path.write_bytes(bytes([0, 0, 8, 1, 0, 0, 0, 2, 7, 9]))
      >>> read_idx(path, num_dims=1).tolist()
      [7, 9]
    """
    try:
        shape, start = _read_head(path, num_dims)
        size = math.prod(shape)
        if path.suffix == ".gz":
            if size > _MAX_GZIPPED:
                raise DatasetFormatError(
                    path,
                    expected=f"at most {_MAX_GZIPPED:,} values in a gzip file",
                    found=f"{size:,}, as its head {list(shape)} says",
                    remedy="get the official file; a larger one can be unpacked and read plain",
                )
            content = memoryview(read_gzip(path, limit=start + size))[start:]
            there = len(content)
        else:
            there = path.stat().st_size - start
            with path.open("rb") as file:
                file.seek(start)
                content = file.read(size) if there == size else b""
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DatasetFormatError(
            path, expected="a whole gzip file", found=f"a corrupt or truncated one ({error})"
        ) from error
    if there != size:
        raise DatasetFormatError(
            path,
            expected=f"{size:,} bytes, as its head {list(shape)} says",
            found="more" if there > size else f"{there:,} bytes",
        )
    return np.frombuffer(content, np.uint8).reshape(shape)


def _read_head(path: Path, num_dims: int) -> tuple[tuple[int, ...], int]:
    """The sizes that the head says, and where the values begin."""
    magic, length = 0x800 + num_dims, 4 * (1 + num_dims)
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
        head = file.read(length)
    if len(head) < 4 or int.from_bytes(head[:4], "big") != magic:
        raise DatasetFormatError(
            path,
            expected=f"an idx file that begins with the magic number {magic}",
            found=f"the bytes {head[:4].hex(' ')}" if head else "an empty file",
        )
    if len(head) < length:
        raise DatasetFormatError(
            path, expected=f"{num_dims} sizes", found=f"a head of {len(head)} bytes"
        )
    shape = struct.unpack(f">{num_dims}I", head[4:])
    if math.prod(size or 1 for size in shape) >= 2**62:
        raise DatasetFormatError(
            path, expected="sizes of a real file", found=f"the head {list(shape)}"
        )
    return shape, length


def _names(part: str, kind: str, num_dims: int) -> list[str]:
    stems = (f"{part}-{kind}-idx{num_dims}-ubyte", f"{part}-{kind}.idx{num_dims}-ubyte")
    return [f"{stem}{suffix}" for stem in stems for suffix in (".gz", "")]


def _find(subfolders: tuple[str, ...]) -> Callable[[Path], list[Candidate]]:
    def find(folder: Path) -> list[Candidate]:
        candidates = []
        for place in (*(folder / name for name in subfolders), folder):
            files, missing = [], []
            for part, _ in _PARTS:
                for kind, num_dims in (("images", 3), ("labels", 1)):
                    names = _names(part, kind, num_dims)
                    there = [place / name for name in names if (place / name).is_file()]
                    files += there[:1]
                    missing += [] if there else [names[0]]
            if files:
                writers = [place / f"{part}-writers.npy" for part, _ in _PARTS]
                # The writers count only as a pair: one split without its clients is of no use.
                files += writers if all(path.is_file() for path in writers) else []
                candidates.append(Candidate("idx", tuple(files), tuple(missing)))
        return candidates

    return find


def _read(name: str) -> Callable[..., Splits]:
    def read(candidate: Candidate) -> Splits:
        if candidate.layout == "tfds":
            return tfds_source.read(candidate)
        images, labels = candidate.files[0:4:2], candidate.files[1:4:2]
        writers = candidate.files[4:] or (None, None)
        train, test = (_read_part(*paths) for paths in zip(images, labels, writers, strict=True))
        _check_identity(name, labels[0], train["y"])
        counts = (len(train["y"]), len(test["y"]))
        if counts != (60_000, 10_000):
            _LOG.warning(
                "%s holds %d + %d images, the official data 60,000 + 10,000: not the whole set",
                images[0].parent,
                *counts,
            )
        return train, test

    return read


def _read_part(images: Path, labels: Path, writers: Path | None) -> Arrays:
    x, y = read_idx(images, num_dims=3), read_idx(labels, num_dims=1)
    if x.shape[1:] != (28, 28) or not len(x):
        raise DatasetFormatError(
            images, expected="images [E, 28, 28]", found=f"the sizes {list(x.shape)}"
        )
    if len(x) != len(y):
        raise DatasetFormatError(
            labels,
            expected=f"{len(x)} labels, one for each image of {images.name}",
            found=f"{len(y)}",
            remedy="the two files do not belong together; get both from one source",
        )
    if y.max() > 9:
        raise DatasetFormatError(labels, expected="labels in 0..9", found=f"{y.max()}")
    arrays = {"x": x[..., None], "y": y.astype(np.int32)}
    if writers is not None:
        arrays["writer"] = _read_writers(writers, len(x))
    return arrays


def _read_writers(path: Path, num_examples: int) -> np.ndarray:
    remedy = "delete it and its twin to load the images without writers, or get it anew"
    expected = f"an .npy file of {num_examples} integers"
    writers = open_npy(path, kinds="iubfc", expected=expected, remedy=remedy)
    # Like labels they lie in int32.
    fit = writers.dtype.kind in "iu" and writers.shape == (num_examples,)
    if not fit or not ((writers >= -(2**31)) & (writers < 2**31)).all():
        found = f"{writers.dtype} {list(writers.shape)}"
        raise DatasetFormatError(
            path, expected=expected, found=found + " beyond 32 bits" * fit, remedy=remedy
        )
    return writers.astype(np.int32)


def _check_identity(name: str, path: Path, labels: np.ndarray) -> None:
    """Tells the two apart, whose files bear the same names: only Fashion-MNIST is balanced."""
    if len(labels) != 60_000:
        return
    balanced = bool((np.bincount(labels, minlength=10) == 6_000).all())
    if balanced != (name == "fashion_mnist"):
        other = "Fashion-MNIST" if balanced else "MNIST"
        raise DatasetFormatError(
            path,
            expected=f"the labels of {name}",
            found=f"those of {other} (training classes {'' if balanced else 'not '}of equal size)",
            remedy="put each data set into its own folder, mnist/ or fashion-mnist/",
        )


def _remotes(mirrors: tuple[str, ...], files: dict[str, tuple[str, int]]) -> tuple[Remote, ...]:
    return tuple(
        Remote(filename, tuple(mirror + filename for mirror in mirrors), sha256, size)
        for filename, (sha256, size) in files.items()
    )


def _source(
    name: str,
    title: str,
    subfolders: tuple[str, ...],
    *,
    remotes: tuple[Remote, ...],
    folders: tuple[Path, ...] = (),
) -> Source:
    return Source(
        name=name,
        find=_find(subfolders),
        read=_read(name),
        remedies=(
            f"put its four idx files (train-images-idx3-ubyte.gz and so on) into a folder "
            f"{subfolders[0]}/ and name the folder above it as data_dir",
            *(
                ("on Debian and Ubuntu: apt install dataset-fashion-mnist",)
                if name == "fashion_mnist"
                else ()
            ),
        ),
        tfds=name,
        description=title,
        remotes=remotes,
        folders=folders,
    )


SOURCES = (
    _source(
        "mnist",
        'MNIST: 60,000 + 10,000 digits 28x28x1, "writer" where known; download of 12 MB',
        ("mnist", "MNIST/raw"),
        remotes=_remotes(
            (
                "https://storage.googleapis.com/cvdf-datasets/mnist/",
                "https://ossci-datasets.s3.amazonaws.com/mnist/",
            ),
            {
                "train-images-idx3-ubyte.gz": (
                    "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
                    9_912_422,
                ),
                "train-labels-idx1-ubyte.gz": (
                    "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
                    28_881,
                ),
                "t10k-images-idx3-ubyte.gz": (
                    "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
                    1_648_877,
                ),
                "t10k-labels-idx1-ubyte.gz": (
                    "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
                    4_542,
                ),
            },
        ),
    ),
    _source(
        "fashion_mnist",
        "Fashion-MNIST: 60,000 + 10,000 images 28x28x1, 10 classes; download of 31 MB",
        ("fashion-mnist", "fashion_mnist", "FashionMNIST/raw"),
        folders=(Path("/usr/share/datasets/fashion-mnist"),),
        remotes=_remotes(
            ("http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",),
            {
                "train-images-idx3-ubyte.gz": (
                    "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
                    26_421_880,
                ),
                "train-labels-idx1-ubyte.gz": (
                    "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
                    29_515,
                ),
                "t10k-images-idx3-ubyte.gz": (
                    "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
                    4_422_102,
                ),
                "t10k-labels-idx1-ubyte.gz": (
                    "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
                    5_148,
                ),
            },
        ),
    ),
)
