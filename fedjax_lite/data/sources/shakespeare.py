"""Shakespeare by speaking role: next-character prediction, one client a role.

McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized Data", 2017,
arXiv:1602.05629: each role's speeches in the order spoken, the last 20 % for the test.
"""

from __future__ import annotations

import gzip
import json
import string
import zlib
from pathlib import Path

import numpy as np

from fedjax_lite.data.formats.compressed import read_gzip
from fedjax_lite.data.formats.errors import DatasetFormatError
from fedjax_lite.data.sources.cache import Arrays, Splits
from fedjax_lite.data.sources.source import Candidate, Source

PADDING, UNKNOWN, BEGIN, END = range(4)
"""Ids of what is no character: the padding of `x`, an unknown character, the beginning of a role's
text, the end of a speech."""
CHARACTERS = "".join(sorted(string.ascii_letters + string.digits + "\n\r !\"#$%&'()*,-./:;?@[]_"))
"""The 86 known characters in the order of their code points; the first has id 4."""
VOCABULARY_SIZE = 4 + len(CHARACTERS)
"""90."""
IGNORED = -1
"""The target of a padded position; losses ignore it."""

_MAX_GZIPPED = 1 << 26
"""Bytes; all of Shakespeare has 5 million."""
_ROLES = "shakespeare_roles.json.gz"
_TEXTS = ("tinyshakespeare.txt", "tinyshakespeare.txt.gz", "shakespeare.txt", "input.txt")
_IDS = np.full(0x110000, UNKNOWN, np.int32)
_IDS[[ord(character) for character in CHARACTERS]] = np.arange(4, VOCABULARY_SIZE)


def encode(text: str) -> np.ndarray:
    """Turns text into ids; a character outside `CHARACTERS` becomes `UNKNOWN`.

    Args:
      text: of length `n`.

    Returns:
      int32 `[n]`.

    Example:
      >>> decode(encode("To be")), encode("é").tolist() == [UNKNOWN]
      ('To be', True)
    """
    points = np.frombuffer(text.encode("utf-32-le", errors="surrogatepass"), np.uint32)
    return _IDS[points]


def decode(ids: np.ndarray) -> str:
    r"""Turns ids into text: `END` becomes a newline, `UNKNOWN` a replacement mark, others vanish.

    Args:
      ids: integers `[n]`.

    Returns:
      The text.

    Example:
      >>> decode(np.array([BEGIN, 4, END, PADDING]))
      '\n\n'
    """
    special = {UNKNOWN: "\N{REPLACEMENT CHARACTER}", END: "\n"}
    return "".join(
        CHARACTERS[index - 4] if index >= 4 else special.get(index, "")
        for index in np.asarray(ids).tolist()
    )


def windows(speeches: list[str], sequence_length: int) -> tuple[np.ndarray, np.ndarray]:
    """Cuts a role's speeches into windows with the next character as the target.

    The stream is ``BEGIN, speech, END, speech, END ...``; every character and every `END` is the
    target exactly once. Only the last window is padded.

    Args:
      speeches: in the order spoken.
      sequence_length: characters a window, `T`.

    Returns:
      ``(x, y)``, int32 `[W, T]`; `y` is `IGNORED` and `x` is `PADDING` on the padding.

    Example:
      >>> x, y = windows(["ab"], 2)
      >>> x.shape, int((y == IGNORED).sum()), bool(x[0, 1] == y[0, 0])
      ((2, 2), 1, True)
    """
    pieces = [np.array([BEGIN], np.int32)]
    for speech in speeches:
        pieces += [encode(speech), np.array([END], np.int32)]
    stream = np.concatenate(pieces)
    num_targets = len(stream) - 1
    num_windows = max(1, -(-num_targets // sequence_length))
    x = np.full(num_windows * sequence_length, PADDING, np.int32)
    y = np.full(num_windows * sequence_length, IGNORED, np.int32)
    x[:num_targets], y[:num_targets] = stream[:-1], stream[1:]
    return x.reshape(num_windows, -1), y.reshape(num_windows, -1)


def _find(folder: Path) -> list[Candidate]:
    candidates = []
    for place in (folder / "shakespeare", folder):
        if (place / _ROLES).is_file():
            candidates.append(Candidate("roles", (place / _ROLES,)))
    for place in (folder / "shakespeare", folder):
        texts = [place / name for name in _TEXTS if (place / name).is_file()]
        candidates += [Candidate("text", (path,)) for path in texts]
    return candidates


def _read(candidate: Candidate, *, sequence_length: int) -> Splits:
    if isinstance(sequence_length, bool) or not isinstance(sequence_length, int):
        raise TypeError(f"sequence_length must be an int, got {sequence_length!r}")
    if sequence_length < 1:
        raise ValueError(f"sequence_length must be at least 1, got {sequence_length}")
    path = candidate.files[0]
    parse = _parse_roles if candidate.layout == "roles" else _parse_text
    roles = {role: said for role, said in parse(path, _text(path)).items() if len(said) >= 2}
    if not roles:
        raise DatasetFormatError(
            path, expected="roles with two or more speeches", found="not a single one"
        )
    train, test = [], []
    for role in sorted(roles):
        said = roles[role]
        cut = len(said) - max(1, len(said) // 5)
        train.append((role, *windows(said[:cut], sequence_length)))
        test.append((role, *windows(said[cut:], sequence_length)))
    return _join(train), _join(test)


def _join(parts: list[tuple[str, np.ndarray, np.ndarray]]) -> Arrays:
    return {
        "x": np.concatenate([x for _, x, _ in parts]),
        "y": np.concatenate([y for _, _, y in parts]),
        "role": np.repeat([role for role, _, _ in parts], [len(x) for _, x, _ in parts]),
    }


def _text(path: Path) -> str:
    try:
        packed = path.suffix == ".gz"
        content = read_gzip(path, limit=_MAX_GZIPPED) if packed else path.read_bytes()
        if packed and len(content) > _MAX_GZIPPED:
            raise DatasetFormatError(
                path,
                expected=f"at most {_MAX_GZIPPED:,} bytes of text",
                found="more",
                remedy="get the official file; a larger one can be unpacked and read plain",
            )
        text = content.decode("utf-8")
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DatasetFormatError(
            path, expected="a whole gzip file", found=f"a corrupt or truncated one ({error})"
        ) from error
    except UnicodeDecodeError as error:
        raise DatasetFormatError(path, expected="UTF-8 text", found=str(error)) from error
    return text.replace("\r\n", "\n")


def _parse_text(path: Path, text: str) -> dict[str, list[str]]:
    r"""Blocks ``NAME:\ntext``, parted by blank lines; a block without a name goes on the last."""
    roles: dict[str, list[str]] = {}
    speaker = ""
    for block in text.split("\n\n"):
        lines = block.strip("\n").split("\n")
        name = lines[0].strip()
        if name.endswith(":") and len(name) > 1:
            speaker, lines = name[:-1], lines[1:]
            if lines:
                roles.setdefault(speaker, []).append("\n".join(lines))
        elif any(line.strip() for line in lines):
            if not roles.get(speaker):
                raise DatasetFormatError(
                    path,
                    expected='blocks "NAME:" and text below, parted by blank lines',
                    found=f"the line {lines[0][:60]!r}, which belongs to no role",
                )
            roles[speaker][-1] += "\n\n" + "\n".join(lines)
    return roles


def _parse_roles(path: Path, text: str) -> dict[str, list[str]]:
    """``{"speeches": [[play, role, text], ...]}``; the same name in two plays is two clients."""
    expected = '{"speeches": [[play, role, text], ...]} in JSON'
    try:
        speeches = json.loads(text)["speeches"]
        roles: dict[str, list[str]] = {}
        for number, (play, role, said) in enumerate(speeches):
            if not (isinstance(play, str) and isinstance(role, str) and play and role):
                raise TypeError(f"play {play!r} and role {role!r} in speech {number}")
            roles.setdefault(f"{play}/{role}", []).append(said.replace("\r\n", "\n"))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DatasetFormatError(path, expected=expected, found=f"{error!r}") from error
    return roles


SOURCES = (
    Source(
        name="shakespeare",
        find=_find,
        read=_read,
        description=(
            'Shakespeare by "role": windows of `sequence_length` characters, 90 symbols; '
            "a file to be put in place by hand"
        ),
        remedies=(
            f"put {_ROLES} (roles by play) or {_TEXTS[0]} (the input.txt of karpathy/char-rnn: "
            'blocks "NAME:" and text, parted by blank lines; 1.1 MB) into a folder shakespeare/ '
            "and name the folder above it as data_dir",
        ),
        options={"sequence_length": 80},
    ),
)
