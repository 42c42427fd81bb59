"""Packets: what goes in comes out bit for bit; anything else is refused by name, and cheaply."""

import hashlib
import json
import struct
import tracemalloc
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_lite.deploy import Packet, PacketError, decode, encode, unpack

TREE = {
    "w": jnp.arange(6, dtype=jnp.float32).reshape(2, 3) - np.float32(0.1),
    "half": jnp.array([1.5, -2.0], jnp.bfloat16),
    "count": jnp.int32(-7),
    "flag": jnp.array([True, False]),
    "none": jnp.zeros((0, 4)),
    "word": jnp.array([2**32 - 1], jnp.uint32),
}


def by_hand(header: dict, payload: bytes, version: int = 1) -> bytes:
    """A packet as the format says, written without the module."""
    text = json.dumps(header).encode()
    body = b"FJLP" + struct.pack("<HI", version, len(text)) + text + payload
    return body + hashlib.sha256(body).digest()


def test_round_trip_is_bit_for_bit():
    back = unpack(decode(encode("k", {"a": [1, None, "ü"]}, TREE), "k"), TREE)
    for name, leaf in TREE.items():
        assert back[name].dtype == leaf.dtype
        assert back[name].shape == leaf.shape
        assert np.asarray(back[name]).tobytes() == np.asarray(leaf).tobytes()
    key = jax.random.key(5)
    again = unpack(decode(encode("k", {}, key)), key)
    assert jax.random.uniform(again) == jax.random.uniform(key)


def test_the_format_is_the_documented_one():
    header = {
        "kind": "k",
        "fields": {"round": 1},
        "leaves": [["['w']", "float32", [2]]],
        "deflated": False,
    }
    packet = decode(by_hand(header, struct.pack("<2f", 1.0, 2.0)))
    assert unpack(packet, {"w": jnp.zeros(2)})["w"].tolist() == [1.0, 2.0]


def test_sparse_updates_are_short():
    sparse = jnp.zeros(100_000).at[::1000].set(1.5)
    assert len(encode("k", {}, sparse)) < 0.02 * sparse.nbytes


def test_every_flipped_bit_is_seen():
    data = encode("k", {"round": 3}, {"w": jnp.ones(3)})
    for place in range(8 * len(data)):
        damaged = bytearray(data)
        damaged[place // 8] ^= 1 << place % 8
        with pytest.raises(PacketError):
            decode(bytes(damaged))
    for end in range(len(data)):
        with pytest.raises(PacketError):
            decode(data[:end])


HEADER = {"kind": "k", "fields": {}, "leaves": [["", "float32", [2]]], "deflated": False}


@pytest.mark.parametrize(
    ("header", "payload", "why"),
    [
        ({**HEADER, "leaves": [["", "float32", [3]]]}, b"\0" * 12, "waited for float32"),
        ({**HEADER, "leaves": [["", "float64", [2]]]}, b"\0" * 16, "float64"),
        ({**HEADER, "leaves": [["", "object", [2]]]}, b"\0" * 16, "object"),
        ({**HEADER, "leaves": [["", "float32", [-2]]]}, b"\0" * 8, "waited for"),
        ({**HEADER, "leaves": []}, b"", "lacks"),
        (
            {**HEADER, "leaves": [*HEADER["leaves"], ["['x']", "float32", [1]]]},
            b"\0" * 12,
            "nobody",
        ),
        ({**HEADER, "leaves": [*HEADER["leaves"]] * 2}, b"\0" * 16, "not of the form"),
        ({**HEADER, "leaves": 5}, b"", "cannot be read"),
        ({"kind": "k"}, b"", "cannot be read"),
        (HEADER, b"\0" * 7, "7 bytes"),
        (HEADER, b"\0" * 9, "9 bytes"),
        ({**HEADER, "deflated": True}, b"\0" * 8, "cannot be inflated"),
    ],
)
def test_what_is_not_asked_for_is_refused(header, payload, why):
    with pytest.raises(PacketError, match=why):
        unpack(decode(by_hand(header, payload)), jnp.zeros(2))


def test_a_bomb_is_not_inflated():
    """Two bytes are waited for; 16 MiB of zeros are not made of what claims to be them."""
    bomb = by_hand(
        {**HEADER, "leaves": [["", "bool", [2]]], "deflated": True},
        zlib.compress(b"\0" * 2**24, 9),
    )
    tracemalloc.start()
    with pytest.raises(PacketError, match="bytes of arrays or more"):
        unpack(decode(bomb), jnp.zeros(2, bool))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**20


def test_deep_headers_and_constants_are_refused():
    for text in (b"[" * 100_000, b'{"kind": NaN}', b"\xff"):
        body = b"FJLP" + struct.pack("<HI", 1, len(text)) + text
        with pytest.raises(PacketError, match="cannot be read"):
            decode(body + hashlib.sha256(body).digest())


def test_other_versions_and_kinds_are_named():
    with pytest.raises(PacketError, match="version 2"):
        decode(by_hand(HEADER, b"", version=2))
    with pytest.raises(PacketError, match="waited for a or b"):
        decode(encode("k", {}), "a", "b")
    with pytest.raises(TypeError, match="data must be bytes"):
        decode("text")  # type: ignore[arg-type]


def test_objects_are_not_sent():
    with pytest.raises(TypeError, match="arrays of numbers"):
        encode("k", {}, {"w": "text"})
    with pytest.raises((TypeError, ValueError)):
        encode("k", {"x": float("nan")})
    assert isinstance(decode(encode("k", {})), Packet)
