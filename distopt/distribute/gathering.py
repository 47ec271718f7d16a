"""Arrays of all replicas on every process, whatever their lengths; and arrays as bytes between processes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np

from distopt.comm.communicator import Communicator
from distopt.types import Array, Shape


class _Header(msgspec.Struct):
    """What the bytes that follow are: one entry an array."""

    keys: list[int]
    dtypes: list[str]
    shapes: list[list[int]]


def encode(arrays: Mapping[int, Array]) -> bytes:
    """Return ``arrays`` as bytes that say what they are; numbers are keys.

    >>> decode(encode({3: np.arange(2, dtype=np.int16)}))
    {3: array([0, 1], dtype=int16)}
    """
    header = _Header(
        list(arrays), [array.dtype.name for array in arrays.values()], [list(a.shape) for a in arrays.values()]
    )
    head = msgspec.json.encode(header)
    return b"".join([len(head).to_bytes(8, "little"), head, *(array.tobytes() for array in arrays.values())])


def decode(payload: bytes) -> dict[int, Array]:
    """Return what :func:`encode` was given."""
    start = 8 + int.from_bytes(payload[:8], "little")
    header = msgspec.json.decode(payload[8:start], type=_Header)
    arrays: dict[int, Array] = {}
    for key, name, shape in zip(header.keys, header.dtypes, header.shapes, strict=True):
        dtype = np.dtype(name)
        count = int(np.prod(shape, dtype=np.int64))
        arrays[key] = np.frombuffer(payload, dtype, count, start).reshape(shape).copy()
        start += count * dtype.itemsize
    return arrays


def of_all_replicas(own: Mapping[int, Array], communicator: Communicator | None) -> list[Array]:
    """Return the arrays of all replicas, in replica order; ``own`` has those that this process hosts."""
    everyone = dict(own)
    if communicator is not None and communicator.size > 1:
        for payload in communicator.all_gather_bytes(encode(own), what="a gathering of values"):
            everyone.update(decode(payload))
    return [everyone[replica] for replica in sorted(everyone)]


def concatenated(arrays: Sequence[Array], axis: int) -> Array:
    """Return ``arrays`` one after another along ``axis``.

    Raises: ValueError for scalars, an axis that does not exist, dtypes or other axes that differ.
    """
    first = arrays[0]
    if not all(array.ndim for array in arrays):
        raise ValueError("scalars cannot be gathered along an axis; give each an axis of length 1 first")
    if not -first.ndim <= axis < first.ndim:
        raise ValueError(f"there is no axis {axis} to gather {first.ndim}-dimensional values along")
    axis %= first.ndim

    def others(array: Array) -> tuple[Any, Shape]:
        return array.dtype, (*array.shape[:axis], *array.shape[axis + 1 :])

    if any(array.ndim != first.ndim or others(array) != others(first) for array in arrays):
        held = ", ".join(f"{array.dtype}{list(array.shape)}" for array in arrays)
        raise ValueError(f"values that are gathered may differ along axis {axis} alone, but the replicas hold {held}")
    return np.concatenate(arrays, axis=axis)
