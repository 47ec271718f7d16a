"""What processes tell each other once about a list of variables, before its first reduction.

Every process comes to its first apply call with a list of variables at the same point of its program; so there is one
small exchange a list, and none in later steps, in which a label travels with the numbers (:mod:`distopt.agreement`).
"""

from __future__ import annotations

import struct
import weakref
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec
import numpy as np

from distopt.aggregation import GradientAggregator
from distopt.agreement import (
    Described,
    describe_names,
    digest_of,
    disagreement,
    find_odd,
    pack_label,
)
from distopt.comm.communicator import Communicator
from distopt.distribute.optimizer_settings import OptimizerSettings, differing
from distopt.errors import (
    MergeOrderError,
    RemoteProtocolError,
    UnequalHypersError,
    UnequalStepsError,
    UnequalValuesError,
)
from distopt.nans import with_one_nan
from distopt.optimizers import changes

SAME_CALLS = "every process must make the same variables, all_reduce and apply_gradients calls in the same order"

_MOST_NAMES = 8
_CALL = pack_label(digest_of("call"), 0, 0)
"""The label of what :func:`exchange_calls` sends, so that one that reduces meanwhile finds out."""


class _Told(msgspec.Struct, frozen=True, array_like=True):
    """One process's list: names, shapes and dtypes, whether it has row-sparse gradients, and the optimizer.

    ``settings``: of the optimizer, and its hypers in this step, as text.
    """

    rows: bool
    variables: tuple[tuple[str, tuple[int, ...], str], ...]
    optimizer: str
    settings: dict[str, str]
    iterations: int
    """How many steps the optimizer has made."""
    values: tuple[int | None, ...]
    """Before the first step a digest of each variable's value; None for one that single replicas have written to."""

    def optimizer_key(self) -> tuple[Any, ...]:
        return self.optimizer, tuple(sorted(self.settings.items()))

    def described(self) -> list[Described]:
        keys = describe_names([name for name, _, _ in self.variables])
        return [Described(key, *variable) for key, variable in zip(keys, self.variables, strict=True)]


class Call(msgspec.Struct, frozen=True, array_like=True):
    """What a process does that all others have to do as well, at the same point of their program."""

    kind: str
    text: str
    """What a message says that it does."""
    body: bytes = b""


def exchange_calls(communicator: Communicator, mine: Call) -> list[Call]:
    """Return what all ranks do, by rank, all of the kind of ``mine``; a collective.

    Raises: MergeOrderError, the same on all ranks that call this, that names the one that does something else.
    """
    try:
        payloads = communicator.all_gather_bytes(msgspec.msgpack.encode(mine), _CALL, f"it {mine.text}")
    except RemoteProtocolError as error:
        raise MergeOrderError(
            f"rank {communicator.rank} {mine.text}, and another process does something else; {SAME_CALLS}"
        ) from error
    calls = [_call_of(payload) for payload in payloads]
    if odd := find_odd({rank: call.kind for rank, call in enumerate(calls)}):
        raise MergeOrderError(
            f"{odd.most} {calls[odd.reference].text} where {odd.name} {calls[odd.rank].text}; {SAME_CALLS}"
        )
    return calls


def _call_of(payload: bytes) -> Call:
    try:
        return msgspec.msgpack.decode(payload, type=Call)
    except msgspec.DecodeError:
        return Call("", "does something else")


class Known:
    """What is known of a list of variables of an optimizer once it was introduced.

    ``digest``: of what was told, equal on all processes.
    """

    def __init__(
        self,
        rows: bool,
        variables: Sequence[Any],
        digest: int,
        settings: OptimizerSettings,
        iterations: Any,
        communicator: Communicator | None,
    ) -> None:
        self.rows = rows
        """Whether a replica of any process has had row-sparse gradients."""
        self.repeats = len(set(map(id, variables))) < len(variables)
        """Whether a variable is listed twice."""
        self.readers: list[list[Any]] = [variable.readers for variable in variables]
        """Of each variable, the very list of what has read it and is still live."""
        self.settings = settings
        """Those of the optimizer, which may change."""
        self._digest = digest
        self._iterations = iterations
        self._counts_steps_of = None if communicator is None or communicator.step_is_told else communicator
        self._state: Any = None
        """All that decides the numbers below."""
        self._what = self._numbers = 0

    def label(self, operation: GradientAggregator | str, hypers: Mapping[str, float]) -> bytes:
        """Return the label of the reduction of one step's gradients; of the step that the optimizer is at."""
        state = operation, hypers, changes.latest
        if state != self._state:
            if self._state is None or self._state[0] != operation:
                self._what = self._digest ^ digest_of(operation if isinstance(operation, str) else operation.full_name)
            self._state = state
            numbers = zlib.crc32(struct.pack(f"<{len(hypers)}d", *hypers.values()))
            self._numbers = numbers | self.settings.digest() << 32
        step = self._iterations.storage.item()
        if self._counts_steps_of is not None:
            self._counts_steps_of.step = step
        return pack_label(self._what, self._numbers, step)


class Introductions:
    """The lists of variables that the processes of ``communicator`` have told each other; ``num_replicas`` in all.

    ``holds_values``: each process goes on with the values that it has itself, so they have to be equal.
    """

    def __init__(self, communicator: Communicator | None, num_replicas: int, *, holds_values: bool = True) -> None:
        self._communicator = communicator
        self._num_replicas = num_replicas
        self._holds_values = holds_values
        self._known: weakref.WeakKeyDictionary[Any, dict[tuple[int, ...], Known]] = weakref.WeakKeyDictionary()
        self._latest: tuple[Callable[[], Any], tuple[int, ...] | None, Any] = _nobody, None, None

    def of(self, optimizer: Any, pairs_of: Sequence[Any], hypers: Mapping[str, float]) -> Known:
        """Return what is known of the variables of ``pairs_of``, asking the other processes at the first time.

        ``hypers``: those of this step.

        Raises: the MistakeError that says how the processes differ; MergeOrderError if the others do something else;
            ValueError, on all of them, for an aggregator that cannot combine so many replicas.
        """
        key = pairs_of[0].key
        of_optimizer, latest_key, latest = self._latest
        if latest_key is key and of_optimizer() is optimizer:
            introduced: Known = latest
            return introduced
        known = self._known.setdefault(optimizer, {})
        found = known.get(key)
        if found is None:
            found = known[key] = self._introduce(optimizer, pairs_of, hypers)
        self._latest = weakref.ref(optimizer), key, found
        return found

    def begin_rows(self, optimizer: Any, pairs_of: Sequence[Any]) -> None:
        """Note that a process has row-sparse gradients of the variables of ``pairs_of`` from now on; they are known."""
        self._known[optimizer][pairs_of[0].key].rows = True

    def _introduce(self, optimizer: Any, pairs_of: Sequence[Any], hypers: Mapping[str, float]) -> Known:
        settings = OptimizerSettings(optimizer)
        rows = any(pairs.has_rows for pairs in pairs_of)
        variables = tuple((v.name, tuple(v.shape), v.dtype.name) for _, v in pairs_of[0])
        told_settings = {**settings.current, **{name: repr(float(value)) for name, value in hypers.items()}}
        iterations = int(optimizer.iterations.storage)
        mine = _Told(rows, variables, type(optimizer).__name__, told_settings, iterations, ())
        communicator = self._communicator
        everyone = [mine]
        if communicator is not None and communicator.size > 1:
            if self._holds_values and iterations == 0:
                mine = msgspec.structs.replace(mine, values=tuple(map(_digest_of_value, pairs_of[0].variables)))
            names = ", ".join(name for name, _, _ in variables[:_MOST_NAMES])
            call = Call("apply", f"makes its first apply call for {names}", msgspec.msgpack.encode(mine))
            calls = exchange_calls(communicator, call)
            everyone = [msgspec.msgpack.decode(told.body, type=_Told) for told in calls]
        lists = [told.described() for told in everyone]
        if odd := find_odd({rank: tuple(_comparable(of_rank)) for rank, of_rank in enumerate(lists)}):
            raise disagreement(odd.most, lists[odd.reference], odd.name, lists[odd.rank])
        _refuse_other_steps(everyone)
        _refuse_other_optimizers(everyone)
        _refuse_other_values(everyone)
        if isinstance(optimizer.gradient_aggregator, GradientAggregator):
            optimizer.gradient_aggregator.check_replicas(self._num_replicas)
        digest = digest_of("gradients", _comparable(lists[0]))
        rows = any(told.rows for told in everyone)
        return Known(rows, pairs_of[0].variables, digest, settings, optimizer.iterations, communicator)


def with_own_values(
    error: UnequalHypersError, rank: int, optimizer: Any, hypers: Mapping[str, float]
) -> UnequalHypersError:
    """Return ``error`` with what ``rank`` has itself, where only digests were compared."""
    if not error.of_digests:
        return error
    own = hypers if error.of_digests == "hypers" else OptimizerSettings(optimizer).current
    return UnequalHypersError(f"{error}; rank {rank} has {', '.join(f'{name} {own[name]}' for name in own)}")


def _nobody() -> None:
    return None


def _refuse_other_steps(everyone: Sequence[_Told]) -> None:
    if odd := find_odd({rank: told.iterations for rank, told in enumerate(everyone)}):
        raise UnequalStepsError(
            f"{odd.most} is at step {everyone[odd.reference].iterations} where {odd.name} is at step "
            f"{everyone[odd.rank].iterations}: the optimizer's iterations differ; restore or assign them on every "
            "process alike"
        )


def _refuse_other_optimizers(everyone: Sequence[_Told]) -> None:
    odd = find_odd({rank: told.optimizer_key() for rank, told in enumerate(everyone)})
    if odd is None:
        return
    most, other = everyone[odd.reference], everyone[odd.rank]
    found = [("class", most.optimizer, other.optimizer)] if most.optimizer != other.optimizer else []
    lines = odd.describe([*found, *differing(most.settings, other.settings)])
    raise UnequalHypersError(f"the optimizers of the processes differ: {lines}; make them alike on every process")


def _digest_of_value(variable: Any) -> int | None:
    return None if variable.may_differ else zlib.crc32(with_one_nan(variable.storage).reshape(-1).view(np.uint8).data)


def _refuse_other_values(everyone: Sequence[_Told]) -> None:
    names = [name for name, _, _ in everyone[0].variables]
    for name, *digests in zip(names, *[told.values for told in everyone], strict=False):
        odd = None if None in digests else find_odd(dict(enumerate(digests)))
        if odd:
            raise UnequalValuesError(
                f"variable {name!r} has another value on {odd.name} than on {odd.most}; make it under "
                "`strategy.scope()`, which gives all processes that of rank 0, or assign and restore on every process "
                "alike"
            )


def _comparable(described: Sequence[Described]) -> list[tuple[Any, ...]]:
    return [(v.key, v.shape, v.dtype) for v in described]
