"""The state of a job between two steps, and the hash that says whether two jobs hold the same bits."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np

from distopt.nans import same_bits, with_one_nan
from distopt.types import Array

Copies: TypeAlias = tuple[Array, ...]
"""One array; or one for each replica, in replica order, where an unaggregated write has split the variable."""


@dataclass(frozen=True, kw_only=True)
class DataPosition:
    """The next step's place in the data: ``step`` steps of ``epoch`` are done. Both count from 0."""

    epoch: int
    step: int


@dataclass(frozen=True, kw_only=True)
class VariableState:
    """A variable and its optimizer slots, slots in creation order; arrays of one variable may differ in shape."""

    position: int
    """Place in the order of creation, from 0."""
    name: str
    value: Copies
    slots: Mapping[str, Copies] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class TrainingState:
    """Everything that decides how a job goes on."""

    iterations: int
    variables: tuple[VariableState, ...]
    """In creation order."""
    extras: Mapping[str, Array] = field(default_factory=dict)
    """All other optimizer and aggregator state, by name; the order does not matter."""
    position: DataPosition
    job_digest: str
    """Of the job that the state belongs to; see ``distopt.runtime.config_file.job_digest``."""


def state_hash(state: TrainingState) -> str:
    """Return the SHA-256, in hexadecimal, of iterations, variables, slots and extras.

    Each array enters as a line of ASCII and its elements, little-endian, in C order::

        iterations 140\\n
        variable 0 float32 [64,256] copies 1\\n <bytes>
        slot 0.0 float32 [64,256] copies 1\\n <bytes>      slot 0 of variable 0, in creation order
        extra seed uint64 [] copies 1\\n <bytes>           sorted by name, names in UTF-8

    A NaN enters as ``np.nan``, whatever its sign and payload: see :mod:`distopt.nans`. Copies that all have the same
    bits count as one, so a split that changed nothing does not change the hash. Names of variables, the data position
    and the job do not enter: they are not bits that a step computes.

    >>> state = TrainingState(iterations=0, variables=(), position=DataPosition(epoch=0, step=0), job_digest="")
    >>> state_hash(state) == hashlib.sha256(b"iterations 0\\n").hexdigest()
    True
    """
    digest = hashlib.sha256()
    for piece in _pieces(state):
        digest.update(piece)
    return digest.hexdigest()


def _pieces(state: TrainingState) -> Iterator[bytes]:
    yield f"iterations {state.iterations}\n".encode()
    for variable in sorted(state.variables, key=lambda v: v.position):
        yield from _framed(f"variable {variable.position}", variable.value)
        for index, copies in enumerate(variable.slots.values()):
            yield from _framed(f"slot {variable.position}.{index}", copies)
    for name in sorted(state.extras):
        yield from _framed(f"extra {name}", (state.extras[name],))


def _framed(label: str, copies: Copies) -> Iterator[bytes]:
    distinct = collapse(copies)
    first = distinct[0]
    shape = ",".join(str(length) for length in first.shape)
    yield f"{label} {first.dtype.name} [{shape}] copies {len(distinct)}\n".encode()
    for copy in distinct:
        yield little_endian_bytes(with_one_nan(copy))


def collapse(copies: Sequence[Array]) -> Copies:
    """Return ``copies``, or the first alone if all have the same bits: ``-0.0`` is not ``0.0``, a NaN is any NaN."""
    if all(same_bits(copies[0], copy) for copy in copies[1:]):
        return (copies[0],)
    return tuple(copies)


def little_endian_bytes(array: Array) -> bytes:
    """Return the elements of ``array`` in C order, little-endian on every machine."""
    big = array.dtype.byteorder == ">" or (array.dtype.byteorder == "=" and sys.byteorder == "big")
    return np.ascontiguousarray(array.byteswap() if big else array).tobytes()
