"""Frames: what goes in comes out, and whatever else comes in is refused."""

from __future__ import annotations

import struct

import ml_dtypes
import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distopt.canonical_sum import Node
from distopt.errors import LocalProtocolError, RemoteProtocolError
from distopt.protocol.manifest import Manifest, VariableSpec
from distopt.protocol.messages import (
    MESSAGE_TYPES,
    Heartbeat,
    Join,
    Push,
    Ready,
    Report,
    Role,
    RoundHead,
    RoundKind,
)
from distopt.protocol.wire import WireLimits, decode, encode

HEAD = RoundHead(3, RoundKind.UPDATE, 17, 8)
PUSH = Push(head=HEAD, sender=1, node=Node(4, 8), digest=b"x" * 16, hypers={"learning_rate": 0.1})
JOIN = Join(
    role=Role.WORKER,
    pid=1,
    host="h",
    incarnation=2,
    manifest=Manifest(variables=(VariableSpec("w", (2, 3), "float32"),)),
)


def flat(message: object, *arrays: np.ndarray) -> list[bytes]:
    return [bytes(frame) for frame in encode(message, arrays)]  # type: ignore[arg-type]  # any message


@pytest.mark.parametrize(
    "message", [PUSH, JOIN, Ready(), Heartbeat(step=2**40, phase="ä")], ids=lambda m: type(m).__name__
)
def test_message_returns_as_it_was(message: Push) -> None:
    assert decode(flat(message)) == (message, ())


@pytest.mark.parametrize(
    "dtype", ["float16", "float32", "float64", "int8", "int64", "uint8", "uint64", "bool", "bfloat16"]
)
@pytest.mark.parametrize("shape", [(), (5,), (2, 3), (0,), (3, 0)])
def test_buffer_returns_with_its_dtype_shape_and_bytes(dtype: str, shape: tuple[int, ...]) -> None:
    kind = np.dtype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    array = np.arange(np.prod(shape, dtype=int)).reshape(shape).astype(kind)
    _, (copy,) = decode(flat(PUSH, array))
    assert (copy.dtype, copy.shape, copy.tobytes()) == (array.dtype, array.shape, array.tobytes())
    assert not copy.flags.writeable


def test_buffers_are_not_copied() -> None:
    array = np.zeros(8, np.float32)
    frames = encode(PUSH, [array])
    _, (view,) = decode(frames)
    array[3] = 7
    assert view[3] == 7
    assert np.shares_memory(view, array)


def test_types_have_numbers_of_their_own() -> None:
    tags = [kind.__struct_config__.tag for kind in MESSAGE_TYPES]
    assert len(set(tags)) == len(MESSAGE_TYPES)


@pytest.mark.parametrize(
    "array",
    [np.array(["text"]), np.array([None]), np.zeros(2, complex), np.zeros((4, 4))[:, ::2], np.zeros(2, ">f4")],
    ids=str,
)
def test_array_that_may_not_travel_is_our_own_error(array: np.ndarray) -> None:
    with pytest.raises(LocalProtocolError):
        encode(PUSH, [array])


@pytest.mark.parametrize(
    "limits",
    [WireLimits(max_buffers=1), WireLimits(max_message_bytes=1024), WireLimits(max_body_bytes=1024)],
    ids=["buffers", "bytes", "body"],
)
def test_limits_hold_on_both_sides(limits: WireLimits) -> None:
    message = Report(kind="x", body=b"y" * 2000)
    arrays = [np.zeros(200), np.zeros(200)]
    with pytest.raises(LocalProtocolError, match="above the limits"):
        encode(message, arrays, limits)
    with pytest.raises(RemoteProtocolError, match="limit"):
        decode(flat(message, *arrays), limits)


def damaged(position: int, replacement: bytes) -> list[bytes]:
    frames = flat(PUSH, np.arange(3.0))
    frames[0] = frames[0][:position] + replacement + frames[0][position + len(replacement) :]
    return frames


def declared(*declarations: object, payload: tuple[bytes, ...]) -> list[bytes]:
    """Return a message whose buffers are declared by hand."""
    body = msgspec.msgpack.encode([[4], list(declarations)])
    return [struct.pack("<4sHH", b"dopt", 1, 4) + body, *payload]


@pytest.mark.parametrize(
    ("frames", "text"),
    [
        ([], "without a header"),
        ([b"dopt"], "without a header"),
        (damaged(0, b"GET "), "not of this protocol"),
        (damaged(4, b"\x02"), "protocol version 2; this process speaks version 1"),
        (damaged(6, b"\xff"), "unknown type 255"),
        (damaged(6, b"\x15"), "malformed message of type 21"),
        (flat(PUSH, np.arange(3.0))[:1], "1 buffers declared, 0 came"),
        ([*flat(PUSH), b"more"], "0 buffers declared, 1 came"),
        (declared(["float64", [2], 16], payload=(b"12345678",)), "16 declared, 8 came"),
        (declared(["float64", [1], 16], payload=(b"1234567812345678",)), "has 8 bytes"),
        (declared(["object", [1], 8], payload=(b"12345678",)), "dtype 'object'"),
        (declared(["float64", [-1], 8], payload=(b"12345678",)), r"shape (-1,)"),
        (declared(["float64", [0, 2**61], 0], payload=(b"",)), "shape (0, 2305843009213693952)"),
        (declared(["uint8", [1] * 40, 1], payload=(b"1",)), "40 dimensions"),
        (declared(["uint8", [2**40, 2**40], 0], payload=(b"",)), "bytes; 0 declared"),
    ],
)
def test_malformed_message_is_refused_with_the_reason(frames: list[bytes], text: str) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        decode(frames)
    assert text in str(caught.value)


@pytest.mark.parametrize(
    "message",
    [
        Heartbeat(step=-1, phase=""),
        Heartbeat(step=0, phase="x" * 2000),
        msgspec.structs.replace(PUSH, digest=b"short"),
        msgspec.structs.replace(PUSH, head=RoundHead(0, RoundKind.UPDATE, 0, 0)),
    ],
)
def test_field_out_of_range_is_refused(message: Heartbeat) -> None:
    with pytest.raises(RemoteProtocolError, match="malformed"):
        decode(flat(message))


@settings(max_examples=100, deadline=None)
@given(st.lists(st.binary(max_size=60), max_size=4))
def test_any_frames_decode_or_are_refused(frames: list[bytes]) -> None:
    with pytest.raises(RemoteProtocolError):
        decode(frames)


BODIES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=8)
    | st.binary(max_size=16),
    lambda inner: st.lists(inner, max_size=6) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=10,
)
TAGS = st.sampled_from([kind.__struct_config__.tag for kind in MESSAGE_TYPES])


@settings(max_examples=100, deadline=None)
@given(TAGS, BODIES, st.lists(st.binary(max_size=20), max_size=3))
def test_any_body_under_a_good_header_decodes_or_is_refused(tag: int, body: object, payload: list[bytes]) -> None:
    fields = [tag, *body] if isinstance(body, list) else body
    declarations = [["uint8", [len(frame)], len(frame)] for frame in payload]
    frames = [struct.pack("<4sHH", b"dopt", 1, tag) + msgspec.msgpack.encode([fields, declarations]), *payload]
    try:
        received = decode(frames)
    except RemoteProtocolError:
        return
    assert isinstance(received.message, tuple(MESSAGE_TYPES))
    assert [buffer.tobytes() for buffer in received.buffers] == payload


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_any_single_damaged_byte_decodes_or_is_refused(data: st.DataObject) -> None:
    frames = flat(JOIN, np.arange(3, dtype=np.float32))
    position = data.draw(st.integers(0, len(frames[0]) - 1))
    frames[0] = frames[0][:position] + data.draw(st.binary(min_size=1, max_size=1)) + frames[0][position + 1 :]
    try:
        received = decode(frames)
    except RemoteProtocolError:
        return
    assert isinstance(received.message, Join)
