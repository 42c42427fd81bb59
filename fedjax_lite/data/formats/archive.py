"""Reading members of a tar archive into memory: nothing is ever unpacked to disk."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from fedjax_lite.data.formats.compressed import BROKEN, ForwardReader, TooLarge
from fedjax_lite.data.formats.errors import DatasetFormatError

_MAX_TOTAL_BYTES = 1 << 29
_MAX_MEMBERS = 10_000
_MAX_NAME = 512
_MAX_HEADER_BYTES = 1 << 16
"""Of one member: its header, and longer names and attributes before it."""
_MAX_SHARED_BYTES = 1 << 10
"""Of attributes of all members, which tarfile keeps, and copies for each: git writes 52."""
_PIECE = 1 << 18


def read_members(path: Path, names: Sequence[str]) -> dict[str, bytes]:
    """Reads the named regular files of a tar archive.

    Since nothing is written, a hostile archive can reach no path outside; one that tries to
    (absolute names, ``..``, links, devices) is refused as a whole all the same. So is one that is
    larger than any data set: everything is counted while it is read, so that the memory is that of
    the wanted members and 20 MB at most. An archive has at most 10,000 members, names of 512
    characters, headers of 64 KiB, attributes of all members of 1 KiB, and 512 MiB of content.

    Args:
      path: the archive, plain or compressed by gzip, bzip2 or xz.
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
    try:
        with path.open("rb") as file:
            if file.read(4) in (b"PK\x03\x04", b"PK\x05\x06"):
                raise DatasetFormatError(
                    path,
                    expected="a tar archive",
                    found="a zip archive",
                    remedy="unpack it yourself and name the folder, or get the official archive",
                )
            file.seek(0)
            reader = ForwardReader(file, limit=_MAX_TOTAL_BYTES)
            found = _read(path, reader, names)
            # A tar ends before its compressed stream does, whose checksum stands at the very end.
            while reader.read(_PIECE):
                pass
    except DatasetFormatError:
        raise
    except TooLarge as error:
        raise _refused(path, str(error)) from None
    # RecursionError: headers that stand before headers.
    except (tarfile.TarError, RecursionError, *BROKEN) as error:
        raise DatasetFormatError(
            path,
            expected="a whole tar archive",
            found=f"a corrupt or truncated one ({str(error)[:200] or type(error).__name__})",
        ) from None
    missing = [name for name in names if name not in found]
    if missing:
        raise DatasetFormatError(
            path, expected=f"the members {', '.join(missing)}", found="an archive without them"
        )
    return found


def _read(path: Path, reader: ForwardReader, names: Sequence[str]) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    seen: set[str] = set()
    reader.allowance = 2 * _MAX_HEADER_BYTES
    with tarfile.open(str(path), "r:", fileobj=reader) as tar:  # type: ignore[call-overload]
        count, place = 0, -1
        while (member := tar.next()) is not None:
            tar.members = []  # which would grow
            if sum(map(len, (*tar.pax_headers, *tar.pax_headers.values()))) > _MAX_SHARED_BYTES:
                raise _refused(path, "attributes for all its members that grow without end")
            count += 1
            if count > _MAX_MEMBERS:
                raise _refused(path, f"more than {_MAX_MEMBERS:,} members")
            _check_member(path, member)
            if member.offset_data <= place:
                raise _refused(path, f"{member.name!r:.80}, which lies within another member")
            place = member.offset_data
            name = str(PurePosixPath(member.name))
            if member.isfile():
                if name in seen:
                    raise _refused(path, f"{name!r:.80} twice")
                seen.add(name)
            if name in names and member.isfile():
                reader.allowance = None
                found[name] = _content(reader, member)
            reader.allowance = _MAX_HEADER_BYTES
        reader.allowance = None
    return found


def _content(reader: ForwardReader, member: tarfile.TarInfo) -> bytes:
    """Piece by piece: the size is only what the header says."""
    reader.seek(member.offset_data)
    content, left = io.BytesIO(), member.size
    while left and (piece := reader.read(min(left, _PIECE))):
        left -= content.write(piece)
    if left:
        raise EOFError(f"{member.name:.80} ends early")
    return content.getvalue()


def _check_member(path: Path, member: tarfile.TarInfo) -> None:
    """Refuses what the official archives never hold."""
    name = member.name.replace("\\", "/")
    if len(name) > _MAX_NAME:
        raise _refused(path, f"a name of {len(name):,} characters")
    if name.startswith("/") or ".." in name.split("/") or name[1:2] == ":" or "\0" in name:
        raise _refused(path, f"the path {member.name!r}, which leads out of the archive")
    if not (member.isfile() or member.isdir()) or member.issparse():
        raise _refused(path, f"{member.name!r}, a link or a device")
    if not 0 <= member.size <= _MAX_TOTAL_BYTES:
        raise _refused(path, f"{member.name!r} of {member.size:,} bytes")


def _refused(path: Path, fault: str) -> DatasetFormatError:
    return DatasetFormatError(
        path,
        expected="plain files and folders inside the archive",
        found=fault,
        remedy="do not use this archive; get the official one",
    )
