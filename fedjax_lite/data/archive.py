"""Reading members of a tar archive into memory: nothing is ever unpacked to disk."""

from __future__ import annotations

import lzma
import tarfile
import zlib
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from fedjax_lite.data.errors import DatasetFormatError

_MAX_MEMBER_BYTES = 1 << 28
_BROKEN = (tarfile.TarError, EOFError, OSError, zlib.error, lzma.LZMAError)


def read_members(path: Path, names: Sequence[str]) -> dict[str, bytes]:
    """Reads the named regular files of a tar archive.

    Since nothing is written, a hostile archive can reach no path outside; one that tries to
    (absolute names, ``..``, links, devices) is refused as a whole all the same.

    Args:
      path: the archive, plain or compressed.
      names: members wanted, e.g. ``"cifar-10-batches-bin/test_batch.bin"``; a leading ``./`` in
        the archive does not matter.

    Returns:
      The members' bytes by name.

    Raises:
      DatasetFormatError: if the archive is corrupt, hostile or lacks a member.

    Example:
      >>> import io, pathlib, tarfile, tempfile
      >>> path = pathlib.Path(tempfile.mkdtemp()) / "a.tar"
      >>> with tarfile.open(path, "w") as tar:
      ...     info = tarfile.TarInfo("d/a"); info.size = 2
      ...     tar.addfile(info, io.BytesIO(b"hi"))
      >>> read_members(path, ["d/a"])
      {'d/a': b'hi'}
    """
    found: dict[str, bytes] = {}
    try:
        with tarfile.open(path, "r:*") as tar:
            for member in tar:
                _check_member(path, member)
                name = str(PurePosixPath(member.name))
                if name not in names or name in found:
                    continue
                file = tar.extractfile(member) if member.isfile() else None
                content = file.read() if file is not None else b""
                if len(content) != member.size:
                    raise EOFError(f"{name} ends early")
                found[name] = content
            # A tar ends before its compressed stream does, whose checksum stands at the very end.
            while tar.fileobj is not None and tar.fileobj.read(1 << 20):
                pass
    except _BROKEN as error:
        raise DatasetFormatError(
            path,
            expected="a whole tar archive",
            found=f"a corrupt or truncated one ({error or type(error).__name__})",
        ) from error
    missing = [name for name in names if name not in found]
    if missing:
        raise DatasetFormatError(
            path, expected=f"the members {', '.join(missing)}", found="an archive without them"
        )
    return found


def _check_member(path: Path, member: tarfile.TarInfo) -> None:
    """Refuses what the official archives never hold."""
    name = member.name.replace("\\", "/")
    if name.startswith("/") or ".." in name.split("/") or name[1:2] == ":":
        fault = f"the path {member.name!r}, which leads out of the archive"
    elif not (member.isfile() or member.isdir()):
        fault = f"{member.name!r}, a link or a device"
    elif member.size > _MAX_MEMBER_BYTES:
        fault = f"{member.name!r} of {member.size:,} bytes"
    else:
        return
    raise DatasetFormatError(
        path,
        expected="plain files and folders inside the archive",
        found=fault,
        remedy="do not use this archive; get the official one",
    )
