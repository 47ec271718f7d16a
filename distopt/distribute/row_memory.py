"""Where rows lie in memory that the processes of a host map.

What a process contributes of a table's rows lies in its segment in one of two forms, indices ascending::

    written    indices, values       the values were copied there, in the order of the indices
    placed     indices, positions    the values lie in an array that was asked for with RowArrays, as they were stored;
                                     where the indices do so, too, only the first position is told
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from distopt.comm.shared_memory.host_group import HostGroup
from distopt.distribute.shared_gradients import padded
from distopt.errors import RemoteProtocolError
from distopt.row_sums import RowSum
from distopt.types import Array


class Shape(NamedTuple):
    """Of the gradient of a variable, as a table: ``num_rows`` rows of ``width`` elements."""

    num_rows: int
    width: int
    dtype: np.dtype[Any]

    @property
    def row_bytes(self) -> int:
        """How many bytes a row takes."""
        return self.width * self.dtype.itemsize

    def num_bytes(self, count: int) -> int:
        """Return the bytes of so many rows, an index with each."""
        return count * (8 + self.row_bytes)


class HostMemory:
    """A segment of each process of ``group``, which grows; ``of`` has them by their place in the group."""

    def __init__(self, group: HostGroup) -> None:
        self.group = group
        self.of: list[Array] = [np.empty(0, np.uint8)] * group.size

    @property
    def own(self) -> Array:
        """That of this process."""
        return self.of[self.group.index]

    def grow(self, sizes: Sequence[int], what: str) -> bool:
        """Have at least so many bytes in each segment; return whether one is new, and empty. A collective.

        Raises: SharedMemoryError if there is not enough memory.
        """
        wanted = [size * 5 // 4 if size > len(memory) else 0 for size, memory in zip(sizes, self.of, strict=True)]
        if not any(wanted):
            return False
        found = self.group.share(wanted[self.group.index], what)
        self.of = [new if asked else old for new, asked, old in zip(found, wanted, self.of, strict=True)]
        return True


class RowArrays:
    """Arrays for the values of row-sparse gradients that the others of a host read where they lie.

    Each array has a number, the same on all processes of ``group``; there is one for a variable at a time.
    """

    def __init__(self, group: HostGroup) -> None:
        self._group = group
        self._of: dict[int, list[Array]] = {}
        """By number, the table in that of each process by its place in the group."""
        self._number_of: dict[int, int] = {}
        """By the identity of the variable."""
        self._own: list[tuple[int, int, int]] = []
        """Of each array of this process: its number, and the addresses where it begins and ends."""
        self._made = 0

    def make(self, variable: Any, num_rows: int) -> Array:
        """Return an array of this process for rows of ``variable``, instead of the one before; a collective.

        Raises: SharedMemoryError if there is not enough memory.
        """
        shape = (num_rows, *variable.shape[1:])
        dtype, size = variable.dtype, int(np.prod(shape))
        memories = self._group.share(size * dtype.itemsize, f"rows of gradients of {variable.name}")
        key = id(variable)
        if key in self._number_of:
            self._drop(key)
        else:
            weakref.finalize(variable, self._drop, key)
        number = self._made = self._made + 1
        self._number_of[key] = number
        form = Shape(num_rows, int(np.prod(shape[1:])), dtype)
        self._of[number] = [_table_in(memory, form) for memory in memories]
        own = memories[self._group.index]
        start = own.__array_interface__["data"][0]
        self._own.append((number, start, start + own.nbytes))
        rows: Array = own[: size * dtype.itemsize].view(dtype).reshape(shape)
        return rows

    def find(self, values: Array) -> tuple[int, int]:
        """Return which array of this process ``values``, contiguous, are part of, and of which row on; else 0, 0."""
        if self._own and len(values):
            at = values.__array_interface__["data"][0]
            for number, start, stop in self._own:
                row_bytes = values.nbytes // len(values)
                if start <= at < stop and row_bytes and not (at - start) % row_bytes:
                    return number, (at - start) // row_bytes
        return 0, 0

    def table(self, number: int, place: int, shape: Shape) -> Array:
        """Return the rows of an array of the process at a place of the group.

        Raises: RemoteProtocolError for an array that is not, or no longer, known here.
        """
        tables = self._of.get(number)
        if tables is None or tables[place].shape[1] != shape.width or tables[place].dtype != shape.dtype:
            raise RemoteProtocolError(
                f"rank {self._group.ranks[place]} has its rows in array {number}, which is not known here: pass the "
                "array to the variable that it was asked for, on all ranks"
            )
        return tables[place]

    def _drop(self, key: int) -> None:
        number = self._number_of.pop(key, 0)
        self._of.pop(number, None)
        self._own = [own for own in self._own if own[0] != number]


def _table_in(memory: Array, form: Shape) -> Array:
    """Return the whole rows in ``memory``, however many these are."""
    count = len(memory) // form.row_bytes if form.row_bytes else 0
    return memory[: count * form.row_bytes].view(form.dtype).reshape(count, form.width)


def num_bytes_of(shape: Shape, count: int) -> int:
    """Return how much memory so many rows take, all parts aligned."""
    return padded(count * 8) + padded(count * shape.row_bytes)


def num_bytes_placed(count: int) -> int:
    """Return how much memory so many rows take whose values lie elsewhere."""
    return 2 * padded(count * 8)


def listed_in(memory: Array, at: int, shape: Shape, count: int) -> RowSum:
    """Return where a list of so many rows lies in memory, from ``at`` on."""
    start = at + padded(count * 8)
    values = memory[start : start + count * shape.row_bytes].view(shape.dtype).reshape(count, shape.width)
    return RowSum(memory[at : at + count * 8].view(np.int64), values)


def numbers_in(memory: Array, at: int, count: int) -> tuple[Array, Array]:
    """Return where indices and positions of so many rows lie in memory, from ``at`` on."""
    start = at + padded(count * 8)
    return memory[at : at + count * 8].view(np.int64), memory[start : start + count * 8].view(np.int64)
