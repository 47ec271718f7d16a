"""A training state as safetensors bytes, for a file or for a process that does not see our files.

Tensors are called ``<position>.value.<copy>``, ``<position>.slot.<slot>.<copy>`` and ``extra.<name>.0``; what ties them
together (order, names, dtypes) is a JSON text in the header's metadata, under ``distopt``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import msgspec
import numpy as np
from safetensors import SafetensorError
from safetensors import numpy as safetensors

from distopt.checkpoint.state import Copies, DataPosition, TrainingState, VariableState, collapse, little_endian_bytes
from distopt.errors import CheckpointError
from distopt.types import Array

FORMAT = 1
_NATIVE = frozenset(
    ("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float16", "float32", "float64")
)
"""dtypes that safetensors stores as they are; others are stored as bytes of shape ``[number of bytes]``."""


class _ArrayEntry(msgspec.Struct, forbid_unknown_fields=True):
    dtype: str
    shape: tuple[int, ...]
    copies: int = 1


class _VariableEntry(msgspec.Struct, forbid_unknown_fields=True):
    position: int
    name: str
    value: _ArrayEntry
    slots: dict[str, _ArrayEntry]


class _Index(msgspec.Struct, forbid_unknown_fields=True):
    format: int
    iterations: int
    epoch: int
    step: int
    job_digest: str
    variables: list[_VariableEntry]
    extras: dict[str, _ArrayEntry]


def to_bytes(state: TrainingState) -> bytes:
    """Return ``state`` in the safetensors format."""
    tensors: dict[str, Array] = {}

    def store(name: str, copies: Copies) -> _ArrayEntry:
        distinct = collapse(copies)
        for index, copy in enumerate(distinct):
            tensors[f"{name}.{index}"] = _storable(copy)
        # The number of replicas' copies is kept even where they are equal: a split variable is split again on loading.
        return _ArrayEntry(dtype=copies[0].dtype.name, shape=copies[0].shape, copies=len(copies))

    index = _Index(
        format=FORMAT,
        iterations=state.iterations,
        epoch=state.position.epoch,
        step=state.position.step,
        job_digest=state.job_digest,
        variables=[
            _VariableEntry(
                position=variable.position,
                name=variable.name,
                value=store(f"{variable.position}.value", variable.value),
                slots={
                    slot: store(f"{variable.position}.slot.{slot}", copies) for slot, copies in variable.slots.items()
                },
            )
            for variable in state.variables
        ],
        extras={name: store(f"extra.{name}", (array,)) for name, array in state.extras.items()},
    )
    encoded: bytes = safetensors.save(tensors, metadata={"distopt": msgspec.json.encode(index).decode()})
    return encoded


def from_bytes(data: bytes, what: str = "the checkpoint") -> TrainingState:
    """Return the state that :func:`to_bytes` wrote; ``what`` is what errors call it.

    Raises: CheckpointError, naming what is wrong, if ``data`` is not whole or not ours.
    """
    index = _read_index(data, what)
    try:
        tensors: dict[str, Array] = safetensors.load(data)
    except (SafetensorError, ValueError, KeyError) as error:
        raise CheckpointError(f"{what} is damaged: {error}") from error

    def fetch(name: str, entry: _ArrayEntry) -> Copies:
        present = [tensors[f"{name}.{i}"] for i in range(entry.copies) if f"{name}.{i}" in tensors]
        if len(present) not in (1, entry.copies):
            raise CheckpointError(f"{what} is damaged: {len(present)} of {entry.copies} copies of {name} are there")
        arrays = [_restored(array, entry, name, what) for array in present]
        return tuple(arrays) if len(arrays) == entry.copies else tuple(arrays[0].copy() for _ in range(entry.copies))

    return TrainingState(
        iterations=index.iterations,
        variables=tuple(
            VariableState(
                position=variable.position,
                name=variable.name,
                value=fetch(f"{variable.position}.value", variable.value),
                slots={
                    slot: fetch(f"{variable.position}.slot.{slot}", entry) for slot, entry in variable.slots.items()
                },
            )
            for variable in index.variables
        ),
        extras={name: fetch(f"extra.{name}", entry)[0] for name, entry in index.extras.items()},
        position=DataPosition(epoch=index.epoch, step=index.step),
        job_digest=index.job_digest,
    )


def _read_index(data: bytes, what: str) -> _Index:
    length = int.from_bytes(data[:8], "little")
    if len(data) < 8 or length > len(data) - 8:
        raise CheckpointError(f"{what} is damaged: its {len(data)} bytes end before its header does")
    try:
        header: Mapping[str, Any] = json.loads(data[8 : 8 + length])
        index = msgspec.json.decode(header["__metadata__"]["distopt"], type=_Index)
    except (ValueError, TypeError, KeyError) as error:
        raise CheckpointError(f"{what} is damaged: its header cannot be read: {error}") from error
    if index.format != FORMAT:
        raise CheckpointError(f"{what} has format {index.format}; this version reads format {FORMAT}")
    return index


def _storable(array: Array) -> Array:
    if array.dtype.name in _NATIVE:
        # safetensors writes the buffer as it lies, so the order must be C and the bytes little-endian.
        return np.frombuffer(little_endian_bytes(array), array.dtype.newbyteorder("<")).reshape(array.shape)
    return np.frombuffer(little_endian_bytes(array), np.uint8)


def _restored(array: Array, entry: _ArrayEntry, name: str, what: str) -> Array:
    try:
        dtype = np.dtype(getattr(ml_dtypes, entry.dtype, entry.dtype))
        restored: Array = array if entry.dtype in _NATIVE else array.view(dtype).reshape(entry.shape)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{what} is damaged: {name} is not a {entry.dtype} array: {error}") from error
    if restored.dtype != dtype or restored.shape != entry.shape:
        raise CheckpointError(
            f"{what} is damaged: {name} is {restored.dtype.name} {restored.shape}, "
            f"its index says {entry.dtype} {entry.shape}"
        )
    return restored
