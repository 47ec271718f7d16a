"""Partial sums that leave for other hosts while backward goes on: as soon as their part of the gradients exists.

How a step goes, where every rank of a host has a row of numbers in memory that its host maps, one for each variable::

    gradient   when the gradient of a variable is complete, it is put where this host reads it, if the operation has not
               written it there, and the own row says for which step it is there. A rank that is the partner of an owner
               on another host looks at the rows of all, and begins to send each chunk that is there on all ranks, in
               the canonical order of additions; it lets the transport work between operations
    apply      every rank finds out whether what it applies has, bit for bit, been put there. What it has not, it puts
    ready      the ranks of a host meet, and tell each other so
    agree      partners send what is left; all hosts tell each other whether theirs was right. If any was not, all sums
               are sent again, as if nothing had left

Rules of this file:

- What left early is judged by its bits. Gradients that were scaled, clipped, replaced or taken anew are other ones, or
  the same, wherever they come from. The very arrays that were put need no look: they are read-only until the step ends.
- What left is not overwritten before the step ends: sums have memory of their own. An array that an operation wrote
  where this host reads it is kept, so that nothing else is written there; where something else was put, no operation
  may write.
- Every step ends every message of its own: one that did not leave early leaves in ``agree``, or is withheld where the
  gradients are sent again. So a gradient that is never applied, or a step that is given up, leaves nothing behind.
- Which lists of variables are watched, and for how long, follows from the apply calls, which are the same on all ranks.
"""

from __future__ import annotations

import logging
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np

from distopt import replica_context
from distopt.arena import Span, aligned_zeros
from distopt.canonical_sum import Node
from distopt.comm.between_hosts import BetweenHosts, Chunk
from distopt.comm.communicator import Communicator
from distopt.comm.early import Batch, Channel
from distopt.distribute.shared_gradients import SharedGradients
from distopt.types import Array

logger = logging.getLogger(__name__)

_MOST_REFUSALS: Final = 3
"""So often in a row what left early may be wrong before nothing leaves early any more."""

_MOST_LATE: Final = 4
"""So many chunks that are not there on other ranks are looked at before the rest is left for later."""

_PROGRESS_EVERY_S: Final = 1e-3
"""So often the transport is let work: where there are more ranks than cores, MPI may give away the core each time."""

SumInto = Callable[[Chunk, Node, Array], object]
"""Writes what this host contributes of a node to a chunk."""


class Overlap:
    """What one process of a strategy sends early: for each list of variables, an :class:`EarlySums`.

    ``contexts``: of the replicas that it hosts, or of its stand-in.
    """

    least_bytes = 1 << 16
    """Of a gradient, on average: looking after each of many small ones takes longer than sending them."""

    def __init__(self, communicator: Communicator, contexts: Sequence[Any]) -> None:
        self._communicator = communicator
        self._channel: Channel = communicator.channel()
        self._place_of = {id(context): place for place, context in enumerate(contexts)}
        self._known: list[weakref.ref[EarlySums]] = []

    def watch(
        self,
        gradients: SharedGradients,
        between: BetweenHosts,
        received: dict[Node, tuple[Array, ...]],
        span_of: Callable[[Chunk], Span],
        add: SumInto,
    ) -> EarlySums | None:
        """Return what sends the sums of ``gradients`` early; None if they are too small or too many; a collective."""
        layout = gradients.layout
        if layout.num_bytes < self.least_bytes * len(layout.variables):
            return None
        num_tags, expected = between.early_messages(received)
        batch = self._channel.batch(num_tags, expected)
        if batch is None:
            logger.warning(
                "%d more tags for early messages cannot be had; these gradients leave when applied", num_tags
            )
            return None
        made = EarlySums(self._communicator, gradients, between, batch, span_of, add)
        self._known = [known for known in self._known if known() is not None]
        self._known.append(weakref.ref(made))
        return made

    def listener(self, sources: Sequence[Any]) -> Callable[[int, Any], None] | None:
        """Return what is to be told of the gradients of ``sources`` when each is complete; see ``state.listener``."""
        place = self._place_of.get(id(replica_context.current().replica))
        if place is None or self._communicator.has_failed:
            return None
        position_of = {id(source): position for position, source in enumerate(sources)}
        told: list[tuple[EarlySums, dict[int, int]]] = []
        for known in self._known:
            early = known()
            if early is not None and early.begins(place, position_of):
                variables = early.gradients.layout.variables
                told.append((early, {position_of[id(v)]: index for index, v in enumerate(variables)}))
        if not told:
            return None

        def complete(position: int, gradient: Any) -> None:
            for early, index_of in told:
                index = index_of.get(position)
                if index is not None:
                    early.complete(place, index, gradient)

        return complete


class _Sum:
    """A partial sum that this rank sends: of a chunk, which the variables at ``first <= i < stop`` of all lie in."""

    def __init__(self, chunk: Chunk, node: Node, tag: int, memory: Array, first: int, stop: int) -> None:
        self.chunk, self.node, self.tag = chunk, node, tag
        self.memory = memory
        self.first, self.stop = first, stop
        self.missing = stop - first
        """How many of these variables are not complete on this rank."""
        self.has_left = False


class EarlySums:
    """For the gradients of one layout. Making it is a collective."""

    def __init__(
        self,
        communicator: Communicator,
        gradients: SharedGradients,
        between: BetweenHosts,
        batch: Batch,
        span_of: Callable[[Chunk], Span],
        add: SumInto,
    ) -> None:
        self.gradients = gradients
        self._communicator = communicator
        self._between = between
        self._batch = batch
        self._add = add
        self._parts = gradients.layout.parts
        """Of the variables, in the order in which they lie."""
        self._place_of = {part.variable: place for place, part in enumerate(self._parts)}
        self._ids = frozenset(map(id, gradients.layout.variables))
        group = gradients.group
        memories = group.share(8 * len(self._parts), f"the progress of {len(self._parts)} gradients")
        rows = [memory.view(np.int64) for memory in memories]
        self._own_row = rows[group.index]
        self._rows_of_others = [
            rows[place]
            for place, rank in enumerate(group.ranks)
            if place != group.index and gradients.nodes_of_ranks[rank]
        ]
        self._contributes = bool(gradients.own_nodes)
        self._fence = threading.Lock()
        self._fence.acquire()
        self._sums: list[_Sum] = []
        self._sums_of: list[list[_Sum]] = [[] for _ in self._parts]
        """By place of a variable, those that it is in."""
        self._serial = 1
        """The number of the step, which rows say of what is there."""
        self._progress_s = 0.0
        """When the transport was last let work."""
        self._refusals = 0
        self.is_given_up = False
        self._divide(span_of)
        self._read_only: list[Array] = []
        """Gradients that nobody may write to for the time being."""
        self._begin_step()

    def _divide(self, span_of: Callable[[Chunk], Span]) -> None:
        """Find out what this rank sends."""
        layout = self.gradients.layout
        for chunk, node, tag in self._between.early_sends():
            span = span_of(chunk)
            run = layout.run_of(span)
            begin = layout.runs[run].start
            inside = [
                place
                for place, part in enumerate(self._parts)
                if part.run == run and part.start + begin < span.stop and part.stop + begin > span.start
            ]
            first, stop = (inside[0], inside[-1] + 1) if inside else (0, 0)
            memory = aligned_zeros(span.stop - span.start, layout.segment_of(span).dtype)
            made = _Sum(chunk, node, tag, memory, first, stop)
            self._sums.append(made)
            for place in range(first, stop):
                self._sums_of[place].append(made)

    def _begin_step(self) -> None:
        """Forget the last step."""
        self._begun: set[int] = set()
        """The places of the hosted replicas that have begun to give gradients."""
        self._arrays: dict[int, dict[int, Array]] = {}
        """By place of a variable, then by place of the replica, the gradients that are complete."""
        for array in self._read_only:
            array.flags.writeable = True
        self._read_only.clear()
        self._held: list[Array | None] = []
        """What keeps operations from writing where gradients were put."""
        self._is_there = np.zeros(len(self._parts), bool)
        """Of which variables the own part is there."""
        self._waiting: list[_Sum] = []
        """What is there on this rank, and has not left."""
        for each in self._sums:
            each.missing, each.has_left = each.stop - each.first, False

    def begins(self, place: int, sources: dict[int, int]) -> bool:
        """Return whether the gradients that the hosted replica at ``place`` takes now are its first ones of a step."""
        if self.is_given_up or place in self._begun or not self._ids <= sources.keys():
            return False
        self._begun.add(place)
        self._batch.open()
        return True

    def complete(self, replica: int, variable: int, gradient: Any) -> None:
        """Take in the gradient of a variable of one hosted replica; send what is there on all ranks of this host."""
        place = self._place_of[variable]
        part = self._parts[place]
        if self._contributes:
            if not isinstance(gradient, np.ndarray | np.generic) or gradient.shape != part.shape:
                return
            arrays = self._arrays.setdefault(place, {})
            arrays[replica] = np.asarray(gradient)
            if len(arrays) < self.gradients.num_hosted:
                return
            own = [arrays[i] for i in sorted(arrays)]
            is_in_place = self.gradients.are_in_place(part, own)
            if not is_in_place and self.gradients.may_put(part):
                self._held.append(self.gradients.hold(part))
                self.gradients.put(part, own)
            elif not is_in_place:
                return  # it goes with the rest, once the user has seen what is to be applied
            if is_in_place or all(array.base is None for array in own):
                self._make_read_only(own)
            else:
                del self._arrays[place]  # others may write to them: their bits will be compared
            self._is_there[place] = True
            self._order_memory()
            self._own_row[place] = self._serial
        for each in self._sums_of[place]:
            each.missing -= 1
            if not each.missing:
                self._waiting.append(each)
        if self._waiting:
            self._send_what_is_there()
        now_s = time.monotonic()
        if now_s - self._progress_s > _PROGRESS_EVERY_S:
            self._progress_s = now_s
            self._batch.progress()

    def _make_read_only(self, arrays: Sequence[Array]) -> None:
        """Let nobody write to arrays before the step ends."""
        for array in arrays:
            if array.flags.writeable:
                array.flags.writeable = False
                self._read_only.append(array)

    def _send_what_is_there(self) -> None:
        late: list[_Sum] = []
        for position, each in enumerate(self._waiting):
            if len(late) == _MOST_LATE:
                late += self._waiting[position:]
                break
            if all((row[each.first : each.stop] == self._serial).all() for row in self._rows_of_others):
                self._order_memory()
                self._send(each)
                self._communicator.traffic.early_bytes += each.memory.nbytes
            else:
                late.append(each)
        self._waiting = late

    def _order_memory(self) -> None:
        """Let nothing that is read or written before this come after it, nor the other way round, as a lock does."""
        self._fence.release()
        self._fence.acquire()

    def _send(self, each: _Sum) -> None:
        each.has_left = True
        self._add(each.chunk, each.node, each.memory)
        self._batch.send(each.chunk.owner, each.tag, each.memory)

    def write(self, pairs_of: Sequence[Any]) -> bool:
        """Write what this process contributes; return whether something that may have left was other than that."""
        if not self._is_there.any():
            self.gradients.write(pairs_of)
            return False
        differs = False
        for place, (part, is_there) in enumerate(zip(self._parts, self._is_there.tolist(), strict=True)):
            arrays = [pairs.arrays[part.variable] for pairs in pairs_of]
            if not is_there or differs or not (self._are_known(place, arrays) or self.gradients.holds(part, arrays)):
                differs = differs or is_there
                self.gradients.put(part, arrays)
        return differs

    def _are_known(self, place: int, arrays: Sequence[Array]) -> bool:
        """Return whether the very ``arrays`` were put, and nobody could write to them since."""
        known = self._arrays.get(place)
        return known is not None and all(known.get(i) is array for i, array in enumerate(arrays))

    def agree(self, label: bytes, *, withdraws: bool) -> bool:
        """Bring all sums to their owners; return whether that cannot be, since some process of some host withdraws.

        ``withdraws``: whether one of this host does.
        """

        def send_the_rest() -> None:
            for each in self._sums:
                if not each.has_left and withdraws:
                    self._batch.withhold(each.chunk.owner, each.tag, each.memory)
                elif not each.has_left:
                    self._send(each)
                    self._batch.progress()

        self._batch.open()
        try:
            withdrawn = self._between.agree(send_the_rest, label, withdraws=withdraws, batch=self._batch)
        finally:
            self._serial += 1
            self._begin_step()
        self._refusals = self._refusals + 1 if withdrawn else 0
        if self._refusals == _MOST_REFUSALS and not self.is_given_up:
            logger.warning(
                "%d steps in a row, gradients of %s and %d more variables were other ones when they were applied than "
                "when they were taken; from now on they are sent when they are applied",
                _MOST_REFUSALS, self.gradients.layout.variables[0].name, len(self._parts) - 1,
            )  # fmt: skip
            self.is_given_up = True
        return withdrawn
