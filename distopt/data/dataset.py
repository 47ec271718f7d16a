"""``Dataset``: a lazy, re-readable pipeline over arrays, with the names of ``tf.data.Dataset``.

A dataset is a stream of items (:mod:`distopt.data.streams`) and a way to make an element, or a batch, of them. As long
as only order was changed, items are row numbers, and a batch is one indexing operation for an array.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from distopt import nest
from distopt.data.options import Options
from distopt.data.streams import INFINITE, Block, Cached, Numbers, Repeated, Shuffled, Sliced, Stream, Strided, rechunk
from distopt.errors import NotOfferedError
from distopt.random import Domain, next_stream
from distopt.sampling import batch_length, num_steps
from distopt.tensor import to_array

AUTOTUNE = -1
INFINITE_CARDINALITY = INFINITE


_ARRANGED = "arrange the arrays with NumPy before from_tensor_slices"
_INSTEAD = {
    "element_spec": "look at an element, next(iter(dataset))",
    "enumerate": "use Python's enumerate",
    "from_generator": "make arrays of what it yields; fit and strategies take any iterable of global batches, too",
    "from_tensors": "use from_tensor_slices, of arrays with a first axis of length 1",
    "reduce": "use Python's functools.reduce",
}


def _refuse(name: str) -> Any:
    if name.startswith("_"):
        raise AttributeError(f"a Dataset has no attribute {name!r}")
    raise NotOfferedError(f"tf.data.Dataset.{name} is not offered by distopt: {_INSTEAD.get(name, _ARRANGED)}")


class _Names(type):
    if not TYPE_CHECKING:

        def __getattr__(cls, name: str) -> Any:
            return _refuse(name)


class Dataset(metaclass=_Names):
    """Elements, nested structures of NumPy arrays, that can be read any number of times.

    Made by the static methods; the others return a new dataset and leave this one alone.
    """

    def __init__(
        self, items: Stream, maker: _Maker, *, options: Options | None = None, batch_size: int | None = None
    ) -> None:
        self._items = items
        self._maker = maker
        self._options = options or Options()
        self.batch_size = batch_size
        """The size of its batches, but for short ones; None if :meth:`batch` did not make them."""

    @staticmethod
    def from_tensor_slices(tensors: Any) -> Dataset:
        """Return a dataset of the rows of an array, or of a nested structure of arrays alike in length.

        Tuples and dictionaries are structure; a list is converted to an array. Python floats become float32 and
        integers int32; arrays keep their dtype. Arrays are not copied.

        Raises: ValueError if the lengths differ, or there is no array, or it has no rows to take.
        """
        arrays = _as_arrays(tensors)
        return Dataset(Numbers(batch_length(arrays)), _Rows(arrays))

    @staticmethod
    def range(*args: int) -> Dataset:
        """Return a dataset of int64 scalars; arguments as for Python's ``range``."""
        return Dataset.from_tensor_slices(np.arange(*args, dtype=np.int64))

    @staticmethod
    def zip(*datasets: Any) -> Dataset:
        """Return a dataset of tuples with an element of each of ``datasets``, as long as the shortest.

        They are arguments, or one tuple, which may hold tuples and dictionaries of datasets.
        """
        structure = datasets[0] if len(datasets) == 1 else datasets
        parts: list[Dataset] = nest.flatten(structure)
        sizes = {part.batch_size for part in parts}
        options = parts[0].options()
        for part in parts[1:]:
            options = options.merge(part.options())
        return Dataset(
            _Zipped(parts, structure), _Elements(), options=options, batch_size=sizes.pop() if len(sizes) == 1 else None
        )

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            return _refuse(name)

    def __iter__(self) -> Iterator[Any]:
        for block in self._items.blocks():
            yield from self._maker.elements(block)

    def as_numpy_iterator(self) -> Iterator[Any]:
        """Return ``iter(self)``: elements are NumPy already."""
        return iter(self)

    def cardinality(self) -> int:
        """Return the number of elements, or ``INFINITE_CARDINALITY``."""
        return self._items.size

    def __len__(self) -> int:
        if self._items.size == INFINITE:
            raise TypeError("an infinite dataset has no length")
        return self._items.size

    def shuffle(self, buffer_size: int, seed: int | None = None, reshuffle_each_iteration: bool = True) -> Dataset:
        """Return the elements in random order: a function of the seed and of how often the result was read before.

        With a buffer for all elements reading k has the order ``epoch_permutation(seed, k, n)``; with a smaller one,
        elements move as through TensorFlow's buffer. Without a seed one is drawn from ``distopt.random.set_seed``'s.
        ``repeat`` after ``shuffle`` counts as a reading for each repetition. Without ``reshuffle_each_iteration`` every
        reading has the order of the first.

        Raises: ValueError if ``buffer_size`` is not positive.
        """
        if buffer_size < 1:
            raise ValueError(f"buffer_size must be at least 1, not {buffer_size}")
        drawn = int(next_stream(Domain.SHUFFLE_SEED).random_raw()) if seed is None else seed
        return self._of(Shuffled(self._items, buffer_size, drawn, reshuffle_each_iteration))

    def repeat(self, count: int | None = None) -> Dataset:
        """Return the elements ``count`` times over; ``None`` or ``-1`` means without end."""
        return self._of(Repeated(self._items, -1 if count is None else count))

    def take(self, count: int) -> Dataset:
        """Return the first ``count`` elements; ``-1`` means all."""
        return self if count < 0 else self._of(Sliced(self._items, 0, count))

    def skip(self, count: int) -> Dataset:
        """Return all but the first ``count`` elements; ``-1`` means none."""
        return self.take(0) if count < 0 else self._of(Sliced(self._items, count, None))

    def shard(self, num_shards: int, index: int) -> Dataset:
        """Return every ``num_shards``-th element, from element ``index`` on.

        Raises: ValueError for fewer shards than one, or an index that is not below them.
        """
        if num_shards < 1 or not 0 <= index < num_shards:
            raise ValueError(f"there is no shard {index} of {num_shards}")
        return self._of(Strided(self._items, index, num_shards))

    def batch(self, batch_size: int, drop_remainder: bool = False) -> Dataset:
        """Return batches of consecutive elements, stacked along a new first axis; the last one may be short.

        Raises: ValueError if ``batch_size`` is not positive.
        """
        num_steps(0, batch_size)
        batches = _Batches(self._items, self._maker, batch_size, drop_remainder)
        return Dataset(batches, _Elements(), options=self._options, batch_size=batch_size)

    def map(self, map_func: Callable[..., Any], num_parallel_calls: int | None = None) -> Dataset:
        """Return ``map_func`` of each element; a tuple is passed as several arguments.

        What it returns is converted to arrays. ``num_parallel_calls`` is accepted and has no effect.
        """
        del num_parallel_calls
        return Dataset(_Mapped(self, map_func), _Elements(), options=self._options, batch_size=self.batch_size)

    def cache(self, filename: str = "") -> Dataset:
        """Return the same elements, which are kept in memory when they have all been read for the first time.

        So a shuffle, or a random ``map``, before it is the same in each reading. The arrays cannot be written to.

        Raises: ValueError for the name of a file.
        """
        if filename:
            raise ValueError(f"elements are kept in memory, not in a file {filename!r}; leave the name out")
        return self if self._items.size == INFINITE else self._of(Cached(self._items))

    def apply(self, transformation_func: Callable[[Dataset], Dataset]) -> Dataset:
        """Return ``transformation_func(self)``."""
        return transformation_func(self)

    def prefetch(self, buffer_size: int) -> Dataset:
        """Return this dataset: its elements cost too little to be made ahead."""
        del buffer_size
        return self

    def with_options(self, options: Options) -> Dataset:
        """Return the same elements with these options: what they leave at its default stays as it was."""
        merged = self._options.merge(options)
        return Dataset(self._items, self._maker, options=merged, batch_size=self.batch_size)

    def options(self) -> Options:
        """Return the options that were set on this dataset and on those that it was made of."""
        return self._options.merge(Options())

    def _of(self, items: Stream) -> Dataset:
        """Return a dataset that differs in which elements there are, and in what order."""
        return Dataset(items, self._maker, options=self._options, batch_size=self.batch_size)


class _Maker(Protocol):
    """What the items of a stream stand for."""

    def elements(self, block: Block) -> Iterator[Any]:
        """Yield the element of each item."""
        ...

    def batch(self, block: Block) -> Any:
        """Return the elements of all items, stacked."""
        ...


class _Rows:
    """Items are row numbers of arrays."""

    def __init__(self, arrays: Any) -> None:
        self._arrays = arrays

    def elements(self, block: Block) -> Iterator[Any]:
        for row in block:
            yield self._at(row)

    def batch(self, block: Block) -> Any:
        return self._at(block)

    def _at(self, index: Any) -> Any:
        arrays = self._arrays
        return arrays[index] if isinstance(arrays, np.ndarray) else nest.map_structure(lambda a: a[index], arrays)


class _Elements:
    """Items are the elements themselves."""

    def elements(self, block: Block) -> Iterator[Any]:
        yield from block

    def batch(self, block: Block) -> Any:
        return nest.map_structure(lambda *rows: np.stack(rows), *block)


class _Batches:
    """A stream of batches."""

    def __init__(self, items: Stream, maker: _Maker, batch_size: int, drop_remainder: bool) -> None:
        self.size = INFINITE if items.size == INFINITE else num_steps(items.size, batch_size, drop_remainder)
        self._items = items
        self._maker = maker
        self._batch_size = batch_size
        self._drop_remainder = drop_remainder

    def blocks(self) -> Iterator[Block]:
        for block in rechunk(self._items.blocks(), self._batch_size, self._drop_remainder):
            yield [self._maker.batch(block)]


class _Mapped:
    """A stream of what a function makes of elements."""

    def __init__(self, dataset: Dataset, function: Callable[..., Any]) -> None:
        self.size = dataset.cardinality()
        self._dataset = dataset
        self._function = function

    def blocks(self) -> Iterator[Block]:
        for element in self._dataset:
            result = self._function(*element) if isinstance(element, tuple) else self._function(element)
            yield [nest.map_structure(np.asarray, result)]


class _Zipped:
    """A stream of structures with an element of each dataset."""

    def __init__(self, datasets: Sequence[Dataset], structure: Any) -> None:
        finite = [dataset.cardinality() for dataset in datasets if dataset.cardinality() != INFINITE]
        self.size = min(finite, default=INFINITE)
        self._datasets = datasets
        self._structure = structure

    def blocks(self) -> Iterator[Block]:
        for elements in zip(*self._datasets, strict=False):
            yield [nest.pack_sequence_as(self._structure, elements)]


def _as_arrays(tensors: Any) -> Any:
    if isinstance(tensors, Mapping):
        return {key: _as_arrays(value) for key, value in tensors.items()}
    if isinstance(tensors, tuple):
        return nest.rebuild(tensors, [_as_arrays(value) for value in tensors])
    return to_array(tensors)
