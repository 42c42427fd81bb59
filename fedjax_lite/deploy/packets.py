"""Packets: trees of arrays as bytes that say what they are, read without pickle."""

from __future__ import annotations

import hashlib
import json
import math
import struct
import zlib
from collections.abc import Sequence
from typing import Any, NamedTuple, NoReturn

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_lite.checks.arguments import shown
from fedjax_lite.types import PyTree

MAGIC, VERSION = b"FJLP", 1
MAX_HEADER = 2**22
"""Bytes of a header; one with more is refused before it is read."""
_FRAME = struct.Struct("<4sHI")
_DIGEST = 32


class PacketError(ValueError):
    """Bytes that are no packet, or not the one that was waited for."""


class Packet(NamedTuple):
    """A packet whose checksum holds; its arrays are still bytes."""

    kind: str
    fields: dict[str, Any]
    leaves: list[tuple[str, str, tuple[int, ...]]]
    """Path, dtype and shape of each array."""
    deflated: bool
    payload: bytes


def encode(kind: str, fields: dict[str, Any], tree: PyTree = ()) -> bytes:
    r"""A tree of arrays as bytes.

        "FJLP" | version | length | header (JSON) | arrays, little-endian | SHA-256 of all before

    The header names every array with its dtype and shape. Arrays are deflated where that makes
    them shorter, as it does with the zeros of a sparse update.

    Args:
      kind: what the packet is for.
      fields: of strings, integers, booleans, None and lists of them.
      tree: of arrays; typed keys travel as their words.

    Raises:
      TypeError: if a field has no JSON form, or a leaf is no array.

    Example:
      >>> packet = decode(encode("greeting", {"round": 3}, {"w": jnp.ones(2)}), "greeting")
      >>> packet.fields, packet.leaves
      ({'round': 3}, [("['w']", 'float32', (2,))])
    """
    named = jax.tree_util.tree_leaves_with_path(tree)
    arrays = [_words(leaf) for _, leaf in named]
    raw = b"".join(array.tobytes() for array in arrays)
    short = zlib.compress(raw, 1)
    deflated = len(short) < len(raw)
    header = {
        "kind": kind,
        "fields": fields,
        "leaves": [
            [jax.tree_util.keystr(path), array.dtype.name, list(array.shape)]
            for (path, _), array in zip(named, arrays, strict=True)
        ],
        "deflated": deflated,
    }
    text = json.dumps(header, allow_nan=False, separators=(",", ":")).encode()
    if len(text) > MAX_HEADER:
        raise ValueError(
            f"tree must have a header of at most {MAX_HEADER} bytes, got {len(text)} for "
            f"{len(arrays)} arrays; join small leaves into fewer"
        )
    body = _FRAME.pack(MAGIC, VERSION, len(text)) + text + (short if deflated else raw)
    return body + hashlib.sha256(body).digest()


def decode(data: bytes, *kinds: str) -> Packet:
    """Reads a packet's header and checks its sum; arrays are read by `unpack`.

    Args:
      data: as `encode` made it.
      kinds: those that are waited for; none: any.

    Raises:
      PacketError: if it is damaged, of another version or kind.

    Example:
      >>> decode(b"hello")
      Traceback (most recent call last):
      ...
      fedjax_lite.deploy.packets.PacketError: data must be a packet, got 5 bytes, which \
are too few; is it cut short?
    """
    if not isinstance(data, bytes | bytearray | memoryview):
        raise PacketError(f"a packet is bytes, got {type(data).__name__}")
    for kind in kinds:
        if not isinstance(kind, str):
            raise TypeError(f"kinds must be strings, got {shown(kind)}; such as 'train'")
    data = bytes(data)
    if len(data) < _FRAME.size + _DIGEST:
        raise PacketError(
            f"data must be a packet, got {len(data)} bytes, which are too few; is it cut short?"
        )
    magic, version, length = _FRAME.unpack_from(data)
    if magic != MAGIC:
        raise PacketError(f"these {len(data)} bytes are no packet: they begin with {magic!r}")
    if version != VERSION:
        raise PacketError(
            f"the packet has version {version}, this is version {VERSION}; install the same "
            "fedjax_lite on all machines"
        )
    if hashlib.sha256(data[:-_DIGEST]).digest() != data[-_DIGEST:]:
        raise PacketError("the packet is damaged: its checksum does not hold; send it again")
    if length > MAX_HEADER or _FRAME.size + length + _DIGEST > len(data):
        raise PacketError(f"the packet's header claims {length} bytes, which are not there")
    end = _FRAME.size + length
    packet = _header(data[_FRAME.size : end], data[end:-_DIGEST])
    if kinds and packet.kind not in kinds:
        raise PacketError(
            f"the packet is a {packet.kind!r:.80}, waited for {' or '.join(kinds)}; kinds must be "
            f"among those that the other side sends, got {', '.join(map(repr, kinds))}"
        )
    return packet


def unpack(packet: Packet, template: PyTree, *, what: str = "the packet") -> PyTree:
    """The arrays of a packet in the structure of a template.

    Nothing is made before names, dtypes and shapes were compared, and never more bytes than the
    template has.

    Args:
      packet: of `decode`.
      template: a tree of arrays or shapes.
      what: for errors.

    Raises:
      PacketError: if names, dtypes, shapes or lengths differ.

    Example:
      >>> packet = decode(encode("greeting", {}, {"w": jnp.ones(2)}))
      >>> unpack(packet, {"w": jnp.zeros(2)})["w"].tolist()
      [1.0, 1.0]
      >>> unpack(packet, {"w": jnp.zeros(3)})
      Traceback (most recent call last):
      ...
      fedjax_lite.deploy.packets.PacketError: the packet has ['w'] float32[2], \
waited for float32[3], as in the given template; is it of the same algorithm?
    """
    named = jax.tree_util.tree_leaves_with_path(template)
    shapes = [_shape(leaf) for _, leaf in named]
    wanted = {
        jax.tree_util.keystr(path): shape for (path, _), shape in zip(named, shapes, strict=True)
    }
    found = {path: (dtype, shape) for path, dtype, shape in packet.leaves}
    for path in [path for path in wanted if path not in found]:
        raise PacketError(f"{what} lacks {path or 'its value'}; is it of the same algorithm?")
    for path, got in found.items():
        if path not in wanted:
            raise PacketError(
                f"{what} has {path[:200] or 'one value'}, which nobody waits for: it "
                f"is not in the template, got {shown(template)}; is it of the same algorithm?"
            )
        if got != wanted[path]:
            raise PacketError(
                f"{what} has {path or 'a value'} {_word(got)}, waited for {_word(wanted[path])}, "
                "as in the given template; is it of the same algorithm?"
            )
    if list(found) != list(wanted):
        raise PacketError(f"{what} has its arrays in another order")
    sizes = [np.dtype(dtype).itemsize * math.prod(shape) for dtype, shape in shapes]
    raw = _inflated(packet, sum(sizes), what)
    leaves, start = [], 0
    for (_, leaf), (dtype, shape), size in zip(named, shapes, sizes, strict=True):
        array = np.frombuffer(raw, np.dtype(dtype), math.prod(shape), start).reshape(shape)
        if dtype == "bool" and (array.view(np.uint8) > 1).any():
            raise PacketError(f"{what} has booleans that are neither 0 nor 1")
        leaves.append(_like(array, leaf))
        start += size
    return jax.tree.unflatten(jax.tree.structure(template), leaves)


def check_finite_leaves(tree: PyTree, *, what: str) -> None:
    """Raises PacketError where a float of a tree is NaN or infinite, and names the leaf."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if jnp.issubdtype(leaf.dtype, jnp.inexact) and not bool(jnp.isfinite(leaf).all()):
            raise PacketError(
                f"{what} has {jax.tree_util.keystr(path)} that is not finite; the client diverged: "
                "a smaller learning rate, or gradients clipped"
            )


def digest(arrays: Sequence[Any]) -> str:
    """SHA-256 of some arrays, dtypes and shapes included: whether two sides hold the same."""
    return hashlib.sha256(encode("digest", {}, list(arrays))).hexdigest()


def _header(text: bytes, payload: bytes) -> Packet:
    try:
        header = json.loads(text, parse_constant=_no_constant)
        leaves = [(path, dtype, tuple(shape)) for path, dtype, shape in header["leaves"]]
        packet = Packet(header["kind"], header["fields"], leaves, header["deflated"], payload)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise PacketError(f"the packet's header cannot be read: {error!r:.200}") from None
    sane = isinstance(packet.kind, str) and isinstance(packet.fields, dict)
    names = all(isinstance(path, str) and isinstance(dtype, str) for path, dtype, _ in leaves)
    if not sane or not names or len({path for path, _, _ in leaves}) < len(leaves):
        raise PacketError("the packet's header is not of the form that `encode` writes")
    return packet


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")


def _inflated(packet: Packet, size: int, what: str) -> bytes:
    raw = packet.payload
    if packet.deflated:
        stream = zlib.decompressobj()
        try:
            raw = stream.decompress(raw, size + 1)
        except zlib.error as error:
            raise PacketError(f"{what} cannot be inflated: {error}") from None
    if len(raw) != size:
        raise PacketError(f"{what} has {len(raw)} bytes of arrays or more, waited for {size}")
    return raw


def _words(leaf: Any) -> np.ndarray:
    """A leaf as an array of plain little-endian numbers."""
    if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    array = np.asarray(leaf)
    if array.dtype.hasobject or array.dtype.kind in "US":
        raise TypeError(f"tree must hold arrays of numbers, got {type(leaf).__name__} {leaf!r:.60}")
    return array.astype(array.dtype.newbyteorder("<"), copy=False)


def _shape(leaf: Any) -> tuple[str, tuple[int, ...]]:
    """Dtype and shape of what travels of a leaf, an array or its shape."""
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.eval_shape(jax.random.key_data, leaf)
    return np.dtype(leaf.dtype).name, tuple(leaf.shape)


def _like(array: np.ndarray, leaf: Any) -> Any:
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return jax.random.wrap_key_data(jnp.asarray(array), impl=jax.random.key_impl(leaf))
    return jnp.asarray(array)


def _word(of: tuple[str, tuple[int, ...]]) -> str:
    return f"{of[0]}{list(of[1])}"[:200]
