"""What processes tell each other once about values that they reduce, as ``all_reduce`` does, before the first time.

As with variables (:mod:`distopt.distribute.introduction`) there is one small exchange for each list of values of the
same shapes and dtypes, and none later: a label travels with the numbers. So all know whether anybody has rows, and the
one that reduces something else is named.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import msgspec

from distopt.aggregation import GradientAggregator
from distopt.agreement import Label, digest_of, find_odd
from distopt.comm.communicator import Communicator
from distopt.distribute.introduction import SAME_CALLS, Call, exchange_calls
from distopt.distribute.owners import shape_of
from distopt.errors import MergeOrderError, UnequalDtypesError, UnequalReduceOpsError, UnequalShapesError

_MOST_LISTS = 4096
"""That are remembered: those of a loop whose values have another shape in each step are not kept for ever."""


class _Value(msgspec.Struct, frozen=True, array_like=True):
    """What is reduced, a value or rows of one."""

    shape: tuple[int | None, ...]
    dtype: str


class _ToldValues(msgspec.Struct, frozen=True, array_like=True):
    """What one process reduces in one call, and whether it has rows of any of it."""

    operation: str
    values: tuple[_Value, ...]
    rows: bool


class IntroducedValues:
    """The lists of values, by their labels, that the processes of ``communicator`` have told each other."""

    def __init__(self, communicator: Communicator | None) -> None:
        self._communicator = communicator
        self._may_be_rows: dict[bytes, bool] = {}

    def may_be_rows(
        self, label: bytes, aggregator: GradientAggregator, values: Sequence[Any], *, have_rows: bool
    ) -> bool:
        """Return whether a replica of any process has had rows of ``values``, asking the others at the first time.

        ``have_rows``: whether one of this process has. ``values`` are those of one replica, arrays and IndexedSlices.

        Raises: UnequalReduceOpsError, UnequalShapesError, UnequalDtypesError or MergeOrderError, the same on all
            processes, that names the one that reduces something else than most.
        """
        found = self._may_be_rows.get(label)
        if found is None:
            assert self._communicator is not None, "alone nothing is asked"
            if len(self._may_be_rows) == _MOST_LISTS:
                self._may_be_rows.clear()  # on all processes at the same time
            own = _ToldValues(aggregator.full_name, tuple(_Value(shape_of(v), v.dtype.name) for v in values), have_rows)
            call = Call("values", f"reduces values by {own.operation}", msgspec.msgpack.encode(own))
            told = [
                msgspec.msgpack.decode(of_rank.body, type=_ToldValues)
                for of_rank in exchange_calls(self._communicator, call)
            ]
            _refuse_other_values(told)
            found = self._may_be_rows[label] = any(of_rank.rows for of_rank in told)
        return found

    def begin_rows(self, label: bytes) -> None:
        """Note that a process has rows from now on of values that are known."""
        self._may_be_rows[label] = True


def _refuse_other_values(everyone: Sequence[_ToldValues]) -> None:
    if odd := find_odd({rank: told.operation for rank, told in enumerate(everyone)}):
        raise UnequalReduceOpsError(
            f"{odd.most} reduces values by {everyone[odd.reference].operation} where {odd.name} does by "
            f"{everyone[odd.rank].operation}; every process must name the same operation"
        )
    odd = find_odd({rank: told.values for rank, told in enumerate(everyone)})
    if odd is None:
        return
    most, other = everyone[odd.reference].values, everyone[odd.rank].values
    if len(most) != len(other):
        raise MergeOrderError(
            f"{odd.most} reduces {len(most)} values where {odd.name} reduces {len(other)}; {SAME_CALLS}"
        )
    position, mine, theirs = next(
        (i, *pair) for i, pair in enumerate(zip(most, other, strict=True)) if pair[0] != pair[1]
    )
    what = f"values of different {'shapes' if mine.shape != theirs.shape else 'dtypes'} are reduced with each other"
    which = "" if len(most) == 1 else f", at position {position} of {len(most)}"
    kind = UnequalShapesError if mine.shape != theirs.shape else UnequalDtypesError
    raise kind(
        f"{what}{which}: {mine.dtype}{list(mine.shape)} on {odd.most}, {theirs.dtype}{list(theirs.shape)} on {odd.name}"
    )


def label_of_values(aggregator: GradientAggregator, values: Sequence[Any]) -> bytes:
    """Return the label of a reduction of arrays and IndexedSlices, of which those of one replica are ``values``."""
    return _label_of_kinds(aggregator.full_name, tuple([(shape_of(value), value.dtype) for value in values]))


@functools.lru_cache(maxsize=1024)
def _label_of_kinds(aggregator: str, kinds: tuple[Any, ...]) -> bytes:
    return Label(digest_of("values", aggregator, kinds)).encode()
