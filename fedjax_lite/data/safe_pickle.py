"""A pickle reader that admits arrays, strings, numbers, lists and dicts, and nothing else."""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np

from fedjax_lite.data.errors import DatasetFormatError

# The functions with which numpy pickles arrays and scalars, asked from numpy itself: the modules
# that hold them differ between versions, and their old names warn.
_RECONSTRUCT: Any = np.empty(0).__reduce__()[0]
_SCALAR: Any = np.uint8(0).__reduce__()[0]
_FROM_BUFFER: Any = np.zeros(1, np.uint8).__reduce_ex__(5)[0]  # type: ignore[index]


def _encode(text: str, encoding: str) -> bytes:
    """Python 3 pickles bytes under the old protocols as a call of ``_codecs.encode``."""
    if encoding not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError(f"the encoding {encoding!r} is not allowed")
    return text.encode("latin-1")


def _dtype(name: Any, align: Any = False, copy: Any = False) -> np.dtype:
    """Numeric dtypes only: an object array could hold anything."""
    dtype = np.dtype(name.decode("ascii") if isinstance(name, bytes) else name)
    if dtype.kind not in "biuf":
        raise pickle.UnpicklingError(f"the dtype {dtype} is not allowed")
    # Python 2 wrote 0 and 1 here, which numpy now warns of.
    return np.dtype(dtype, align=bool(align), copy=bool(copy))


_ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): _dtype,
    ("_codecs", "encode"): _encode,
}
for _package in ("numpy.core", "numpy._core"):
    _ALLOWED[f"{_package}.multiarray", "_reconstruct"] = _RECONSTRUCT
    _ALLOWED[f"{_package}.multiarray", "scalar"] = _SCALAR
    _ALLOWED[f"{_package}.numeric", "_frombuffer"] = _FROM_BUFFER


class _Unpickler(pickle.Unpickler):
    def find_class(self, module_name: str, global_name: str, /) -> Any:
        try:
            return _ALLOWED[module_name, global_name]
        except KeyError:
            raise pickle.UnpicklingError(
                f"it asks for {module_name}.{global_name}, which no such data set needs"
            ) from None


def load_plain(content: bytes, *, path: Path | str) -> Any:
    """Reads a pickle of plain data; names of functions and classes in it are refused, never called.

    Strings of Python 2 come back as bytes.

    Args:
      content: the pickle.
      path: the file's name, for the error.

    Returns:
      The object.

    Raises:
      DatasetFormatError: if it is no pickle, is cut short, or needs anything but plain data.

    Example:
      >>> import pickle
      >>> load_plain(pickle.dumps({"data": [1, 2]}), path="batch")
      {'data': [1, 2]}
    """
    try:
        return _Unpickler(io.BytesIO(content), encoding="bytes").load()
    # A pickle is a program: a broken one can raise nearly anything.
    except Exception as error:
        raise DatasetFormatError(
            path,
            expected="a pickle of arrays, lists, dicts and strings",
            found=f"one that was refused or is corrupt ({error or type(error).__name__})",
            remedy="do not open it by other means unless you trust it; get the official file",
        ) from error
