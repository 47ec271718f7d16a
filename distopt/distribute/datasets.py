"""Splitting batches over replicas.

``experimental_distribute_dataset`` cuts *global* batches, by the ``AutoShardPolicy`` of the dataset's options:

- DATA, and AUTO, since there are no datasets of files here: every global batch of b rows is cut into chunks of
  ``ceil(b / R)`` rows, in order; chunk j belongs to replica j. So what a replica computes depends on neither the number
  of processes nor on which of them hosts it.
- OFF, HINT, and FILE in one process: every process cuts *its own* stream of rows by sizes made of the nominal batch
  size (:func:`distopt.sampling.batch_sizes_for_worker`) and takes one chunk for each replica that it hosts. What
  replicas get then depends on the number of processes, each of which feeds its own.

``distribute_datasets_from_function`` cuts nothing: the function's batches go to the replicas one after another.

A replica without rows gets zero-row arrays of the right shape and dtype, also where its process has no data at all. A
process that hosts no replica reads as its one stand-in does, which gets none.

Source: the behaviour of TensorFlow 2.21, measured; its DATA policy gives chunk j to worker ``j mod W``, here the
chunk's number is the replica's.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import msgspec
import numpy as np

from distopt import replica_context
from distopt.distribute import gathering, values
from distopt.distribute.inputs import AutoShardPolicy, InputContext, InputOptions, InputReplicationMode
from distopt.nest import flatten, map_structure, pack_sequence_as
from distopt.sampling import batch_length, batch_sizes_for_worker, replica_chunk
from distopt.tensor import to_array

_INFINITE = -1
_NEXT = "the next batch of a dataset"


class Optional:
    """An element of an iterator, or the news that there is none."""

    def __init__(self, *element: Any) -> None:
        self._element = element

    def has_value(self) -> bool:
        """Return whether there is an element."""
        return bool(self._element)

    def get_value(self) -> Any:
        """Return the element.

        Raises: ValueError if there is none.
        """
        if not self._element:
            raise ValueError("the iterator was at its end, so there is no element")
        return self._element[0]


class DistributedIterator:
    """One reading of a distributed dataset."""

    def __init__(self, elements: Iterator[Any]) -> None:
        self._elements = elements

    def __iter__(self) -> DistributedIterator:
        return self

    def __next__(self) -> Any:
        """Return the next element: plain where this process hosts one replica, else ``PerReplica``.

        Raises: ValueError inside a replica, which gets its part as an argument of the function that runs.
        """
        current = replica_context.current()
        if current.replica is not None and not current.is_default:
            raise ValueError(
                "the iterator of a distributed dataset was advanced inside a replica; do it outside, and pass the "
                "element on: strategy.run(step, args=(next(iterator),))"
            )
        return next(self._elements)

    def get_next(self) -> Any:
        """Return ``next(self)``."""
        return next(self)

    def get_next_as_optional(self) -> Optional:
        """Return the next element, or an :class:`Optional` without one at the end."""
        for element in self:
            return Optional(element)
        return Optional()


class DistributedDataset:
    """An iterable of what the replicas of this process get, step by step; made by a strategy."""

    def __init__(self, elements: Callable[[], Iterator[Any]]) -> None:
        self._elements = elements

    def __iter__(self) -> DistributedIterator:
        return DistributedIterator(self._elements())


def distribute_dataset(
    dataset: Iterable[Any], strategy: Any, options: InputOptions | None = None
) -> DistributedDataset:
    """Return ``dataset``, of global batches, divided over the replicas of ``strategy``.

    Raises: NotImplementedError for a dataset a replica; FileNotFoundError for policy FILE over several processes.
    """
    if options is not None and options.experimental_replication_mode is InputReplicationMode.PER_REPLICA:
        raise NotImplementedError(
            "a dataset of global batches is read once a process; use distribute_datasets_from_function for one "
            "a replica"
        )
    extended = strategy.extended
    policy = policy_of(dataset)
    if policy in (AutoShardPolicy.AUTO, AutoShardPolicy.DATA):
        return DistributedDataset(lambda: (split_batch(batch, extended) for batch in dataset))
    if policy is AutoShardPolicy.FILE and sum(map(bool, extended.hosting.hosted)) > 1:
        raise FileNotFoundError(
            "AutoShardPolicy.FILE divides files over processes, and this dataset has none; use DATA, AUTO or OFF"
        )
    return DistributedDataset(lambda: _in_step(_cut(dataset, extended), dataset, extended))


def distribute_from_function(
    dataset_fn: Callable[[InputContext], Iterable[Any]], strategy: Any, options: InputOptions | None = None
) -> DistributedDataset:
    """Return the batches of the datasets that ``dataset_fn`` makes, for the replicas of this process in turn."""
    extended = strategy.extended
    hosting = extended.hosting
    if options is not None and options.experimental_replication_mode is InputReplicationMode.PER_REPLICA:
        replicas = hosting.num_replicas
        datasets = [dataset_fn(InputContext(replicas, replica, replicas)) for replica in extended.hosted or (0,)]
    else:
        feeding = [rank for rank, hosted in enumerate(hosting.hosted) if hosted]
        pipeline = feeding.index(extended.rank) if extended.hosted else 0
        datasets = [dataset_fn(InputContext(len(feeding), pipeline, hosting.num_replicas))]
    return DistributedDataset(lambda: _in_step(_in_turn(datasets), datasets[0], extended))


def policy_of(dataset: Any) -> AutoShardPolicy:
    """Return how ``dataset`` wants to be divided; AUTO for an iterable without options."""
    options = getattr(dataset, "options", None)
    return options().experimental_distribute.auto_shard_policy if callable(options) else AutoShardPolicy.AUTO


def hosted_rows(length: int, extended: Any) -> list[slice]:
    """Return the rows of a global batch that each replica context of this process gets; none for a stand-in."""
    replicas = extended.hosting.num_replicas
    return [replica_chunk(length, replicas, r) for r in extended.hosted] or [slice(length, length)]


def split_batch(batch: Any, extended: Any) -> Any:
    """Return the part of a global ``batch`` that belongs to the replicas of this process."""
    return values.regroup([_rows(batch, rows) for rows in hosted_rows(batch_length(batch), extended)])


def _rows(batch: Any, rows: slice) -> Any:
    return map_structure(lambda leaf: leaf[rows], batch)


def _cut(dataset: Iterable[Any], extended: Any) -> Iterator[Any]:
    """Yield this process's stream of rows in chunks, one after another for the replicas that it hosts."""
    sizes: list[int] = []
    position = 0
    rest: Any = None
    for batch in dataset:
        if not sizes:
            sizes = _sizes(getattr(dataset, "batch_size", None) or batch_length(batch), extended)
        pending = batch if rest is None else _joined(rest, batch)
        while batch_length(pending) >= (size := sizes[position % len(sizes)]) and batch_length(pending):
            yield _rows(pending, slice(0, size))
            pending = _rows(pending, slice(size, None))
            position += 1
        rest = pending if batch_length(pending) else None
    if rest is not None:
        yield rest


def _sizes(batch_size: int, extended: Any) -> list[int]:
    """Return the sizes of this process's chunks, over and over."""
    hosted = extended.hosted or (0,)
    sizes = batch_sizes_for_worker(batch_size, extended.hosting.num_replicas, 1, 0)
    return sizes[hosted[0] :] + sizes[: hosted[0]]


def _joined(first: Any, second: Any) -> Any:
    return map_structure(lambda a, b: np.concatenate([a, b]), first, second)


def _in_turn(datasets: list[Iterable[Any]]) -> Iterator[Any]:
    """Yield the elements of the datasets in turn, one for each hosted replica; of one dataset, its elements."""
    if len(datasets) == 1:
        yield from datasets[0]
        return
    for elements in _together([iter(dataset) for dataset in datasets]):
        yield from elements


def _together(iterators: list[Iterator[Any]]) -> Iterator[list[Any]]:
    """Yield one element of each, zero-row ones of those that have ended, until all have."""
    ended = object()
    last: list[Any] = [ended] * len(iterators)
    while True:
        found = [next(iterator, ended) for iterator in iterators]
        if all(element is ended for element in found):
            return
        known = next(element for element in found if element is not ended)
        last = [before if e is ended else e for e, before in zip(found, last, strict=True)]
        yield [_no_rows(known if b is ended else b) if e is ended else e for e, b in zip(found, last, strict=True)]


def _in_step(chunks: Iterator[Any], dataset: Any, extended: Any) -> Iterator[Any]:
    """Yield one chunk for each replica context of this process, until every process is out of data.

    A process whose dataset has no element at all learns from the others what one would be like.

    Raises: ValueError in such a process where no other has an element either, and all say that theirs never end.
    """
    chunks = _as_arrays(chunks)
    count = extended.num_hosted
    like: Any = None
    if not extended.hosted:
        like, chunks = next(chunks, None), iter(())
    endless = all(_of_all(extended, not extended.hosted or _is_endless(dataset)))
    for step in itertools.count():
        parts = list(itertools.islice(chunks, count))
        have_parts = [True] if endless else _of_all(extended, bool(parts))
        if not any(have_parts):
            return
        if parts:
            like = parts[-1]
        if step == 0 and not all(have_parts):
            like = _known_to_all(like, extended)
        if like is None:
            raise ValueError(f"the dataset of rank {extended.rank} has no element, and says that it never ends")
        parts += [_no_rows(like)] * (count - len(parts))
        yield values.regroup(parts, always_wrap=count > 1)


def _as_arrays(chunks: Iterator[Any]) -> Iterator[Any]:
    for chunk in chunks:
        yield map_structure(to_array, chunk)


def _is_endless(dataset: Any) -> bool:
    cardinality = getattr(dataset, "cardinality", None)
    return callable(cardinality) and cardinality() == _INFINITE


def _of_all(extended: Any, flag: bool) -> list[bool]:
    """Return ``flag`` of every process."""
    if extended.communicator is None:
        return [flag]
    return [payload == b"1" for payload in extended.communicator.all_gather_bytes(b"1" if flag else b"0", what=_NEXT)]


def _known_to_all(like: Any, extended: Any) -> Any:
    """Return ``like``, an element, or where this process has none, one without rows as another process has them."""
    if extended.communicator is None:
        return like
    payload = b""
    if like is not None:
        leaves = gathering.encode(dict(enumerate(flatten(_no_rows(like)))))
        payload = msgspec.msgpack.encode((map_structure(lambda _: 0, like), leaves))
    told = [payload for payload in extended.communicator.all_gather_bytes(payload, what=_NEXT) if payload]
    if like is not None or not told:
        return like
    structure, leaves = msgspec.msgpack.decode(told[0], type=tuple[Any, bytes])
    return pack_sequence_as(_with_tuples(structure), gathering.decode(leaves).values())


def _with_tuples(structure: Any) -> Any:
    """Return what was a structure of dictionaries and tuples before it was sent; elements of datasets hold no lists."""
    if isinstance(structure, dict):
        return {key: _with_tuples(part) for key, part in structure.items()}
    return tuple(map(_with_tuples, structure)) if isinstance(structure, list) else structure


def _no_rows(element: Any) -> Any:
    if any(leaf.ndim == 0 for leaf in flatten(element)):
        raise ValueError("a dataset holds a scalar: batch it first, by the size of a replica's batch")
    return map_structure(lambda leaf: leaf[:0], element)
