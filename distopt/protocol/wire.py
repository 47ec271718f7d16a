"""Messages as frames of bytes, and back.

A message is one frame of header and body, then one frame for each buffer::

    magic "dopt" | version u16 | type u16 | msgpack [message, [[dtype, shape, nbytes], ...]]      little-endian
    raw bytes of buffer 0
    ...

Rules of this file: whatever the bytes, :func:`decode` returns a whole message or raises RemoteProtocolError; every
declared size is compared with the frames before anything is made of it; nothing executable crosses; buffers are not
copied in either direction.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Annotated, Any, Generic, NamedTuple, TypeAlias, TypeVar

import ml_dtypes
import msgspec
import numpy as np

from distopt.errors import LocalProtocolError, RemoteProtocolError
from distopt.protocol.messages import MESSAGE_TYPES, Message
from distopt.types import Array

MAGIC = b"dopt"
VERSION = 1
Buffer: TypeAlias = bytes | memoryview
"""A frame as it comes or goes."""

_HEADER = struct.Struct("<4sHH")
_DTYPES: dict[str, np.dtype[Any]] = {
    **{
        np.dtype(name).name: np.dtype(name)
        for name in ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "?")
    },
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_MOST_DIMENSIONS = 32


class WireLimits(msgspec.Struct, frozen=True, kw_only=True):
    """What a message may hold at most; a receiver refuses more before it uses any of it."""

    max_buffers: Annotated[int, msgspec.Meta(ge=1)] = 4096
    max_body_bytes: Annotated[int, msgspec.Meta(ge=1024)] = 1 << 26
    max_message_bytes: Annotated[int, msgspec.Meta(ge=1024)] = 1 << 31


class _Declaration(NamedTuple):
    dtype: str
    shape: tuple[int, ...]
    nbytes: int


M = TypeVar("M", bound=Message)


class _Envelope(msgspec.Struct, Generic[M], frozen=True, array_like=True, forbid_unknown_fields=True):
    message: M
    buffers: tuple[_Declaration, ...] = ()


class Received(NamedTuple):
    """A message and its buffers, which are read-only views of the frames."""

    message: Message
    buffers: tuple[Array, ...]


def _tag(kind: type[Message]) -> int:
    tag = kind.__struct_config__.tag
    assert isinstance(tag, int)
    return tag


_encoder = msgspec.msgpack.Encoder()
_tags: dict[type[Message], int] = {kind: _tag(kind) for kind in MESSAGE_TYPES}
_envelope: Any = _Envelope  # indexed by types that are only known at run time
_decoders: dict[int, msgspec.msgpack.Decoder[Any]] = {
    tag: msgspec.msgpack.Decoder(_envelope[kind]) for kind, tag in _tags.items()
}
_DEFAULT_LIMITS = WireLimits()


def encode(message: Message, buffers: Sequence[Array] = (), limits: WireLimits = _DEFAULT_LIMITS) -> list[Buffer]:
    """Return the frames of ``message``; those of ``buffers`` are views, so leave the arrays alone until they are sent.

    ``buffers`` are C-contiguous.

    Raises: LocalProtocolError for what a receiver with the same ``limits`` would refuse.
    """
    declarations = []
    frames: list[Buffer] = [b""]
    total = 0
    for array in buffers:
        name = _NAMES.get(array.dtype)
        if name is None:
            raise LocalProtocolError(f"arrays of dtype {array.dtype} do not travel; allowed are {', '.join(_DTYPES)}")
        if not array.flags.c_contiguous:
            raise LocalProtocolError(f"a buffer of shape {array.shape} is not contiguous")
        declarations.append(_Declaration(name, array.shape, array.nbytes))
        frames.append(array.reshape(-1).view(np.uint8).data)
        total += array.nbytes
    body = _encoder.encode(_Envelope(message, tuple(declarations)))
    if len(declarations) > limits.max_buffers or len(body) > limits.max_body_bytes or total > limits.max_message_bytes:
        raise LocalProtocolError(
            f"a {type(message).__name__} of {len(declarations)} buffers, {total} bytes and a body of {len(body)} "
            f"bytes is above the limits ({limits.max_buffers} buffers, {limits.max_message_bytes} bytes, "
            f"body {limits.max_body_bytes} bytes)"
        )
    frames[0] = _HEADER.pack(MAGIC, VERSION, _tags[type(message)]) + body
    return frames


def decode(frames: Sequence[Buffer], limits: WireLimits = _DEFAULT_LIMITS) -> Received:
    """Return the message in ``frames``; its arrays are read-only and share the frames' memory.

    Raises: RemoteProtocolError if the frames are anything else than one message of this version within ``limits``.
    """
    if not frames or len(frames[0]) < _HEADER.size:
        raise RemoteProtocolError("a message without a header")
    head = memoryview(frames[0])
    magic, version, tag = _HEADER.unpack_from(head)
    if magic != MAGIC:
        raise RemoteProtocolError(f"a message that starts with {bytes(magic)!r} is not of this protocol")
    if version != VERSION:
        raise RemoteProtocolError(f"a message of protocol version {version}; this process speaks version {VERSION}")
    decoder = _decoders.get(tag)
    if decoder is None:
        raise RemoteProtocolError(f"a message of unknown type {tag}")
    if len(head) > limits.max_body_bytes:
        raise RemoteProtocolError(f"a body of {len(head)} bytes; the limit is {limits.max_body_bytes}")
    if len(frames) - 1 > limits.max_buffers:
        raise RemoteProtocolError(f"{len(frames) - 1} buffers in a message; the limit is {limits.max_buffers}")
    try:
        envelope = decoder.decode(head[_HEADER.size :])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, ValueError) as error:
        raise RemoteProtocolError(f"a malformed message of type {tag}: {error}") from error
    declarations: tuple[_Declaration, ...] = envelope.buffers
    payload = frames[1:]
    if len(declarations) != len(payload):
        raise RemoteProtocolError(f"{len(declarations)} buffers declared, {len(payload)} came")
    if sum(map(len, payload)) > limits.max_message_bytes:
        raise RemoteProtocolError(
            f"a message of {sum(map(len, payload))} bytes; the limit is {limits.max_message_bytes}"
        )
    return Received(envelope.message, tuple(map(_array, declarations, payload)))


def _array(declaration: _Declaration, frame: Buffer) -> Array:
    dtype = _DTYPES.get(declaration.dtype)
    if dtype is None:
        raise RemoteProtocolError(f"a buffer of dtype {declaration.dtype!r}; allowed are {', '.join(_DTYPES)}")
    shape = declaration.shape
    if len(shape) > _MOST_DIMENSIONS:
        raise RemoteProtocolError(f"a buffer of {len(shape)} dimensions")
    size = dtype.itemsize
    for length in shape:
        if not 0 <= length < 2**62:
            raise RemoteProtocolError(f"a buffer of shape {shape}")
        size *= length
    if not size == declaration.nbytes == len(frame):
        raise RemoteProtocolError(
            f"a buffer of {declaration.dtype}{list(shape)} has {size} bytes; "
            f"{declaration.nbytes} declared, {len(frame)} came"
        )
    try:
        array: Array = np.frombuffer(frame, dtype) if size else np.empty(0, dtype)
        if len(shape) != 1:
            array = array.reshape(shape)
    except ValueError as error:  # an empty array whose other dimensions are beyond what NumPy can count
        raise RemoteProtocolError(f"a buffer of shape {shape}: {error}") from error
    array.flags.writeable = False
    return array
