"""When a gradient is complete: while the backward pass still goes on.

Theory of operation. A backward pass visits operations from the newest to the oldest. The gradient of a variable is
complete once the oldest operation that took its value has been visited; with several layers in one operation, and
nothing else that took the value, as soon as the layer has made it. Whoever wants to know sets ``state.listener``, which
is asked at every gradient call and may return a function to be told. Where nobody asks, nothing is looked for.

Gating, as ``compat.v1`` has it, decides how soon: with GATE_NONE each gradient by itself, with GATE_OP those of one
operation together, with GATE_GRAPH nothing is told before all are there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

from distopt.autodiff.nodes import Node, Recording, state

GATE_NONE: Final = 0
GATE_OP: Final = 1
GATE_GRAPH: Final = 2


@contextmanager
def gated(gate: int) -> Iterator[None]:
    """Let gradients that are computed inside be told as ``gate`` allows."""
    before = state.gate
    state.gate = gate
    try:
        yield
    finally:
        state.gate = before


class Completions:
    """Of one backward pass over ``recording``: ``complete(position, gradient)`` is called once for each source.

    ``orders`` are those of the sources' roots, by position; None for one that was not read.
    """

    def __init__(
        self, recording: Recording, orders: Sequence[int | None], complete: Callable[[int, Any], object]
    ) -> None:
        self._recording = recording
        self._complete = complete
        self._within_operations = state.gate == GATE_NONE
        self._waiting = {order: position for position, order in enumerate(orders) if order is not None}
        self._num_readers = dict.fromkeys(self._waiting, 0)
        """By order of a root, how often operations took its value."""
        self._last: dict[int, list[int]] = {}
        """By order of an operation, the roots that it is the oldest to have taken."""
        for node in recording.operations:
            for parent in node.parents:
                order = parent.order
                if order in self._waiting:
                    if not self._num_readers[order]:
                        self._last.setdefault(node.order, []).append(order)
                    self._num_readers[order] += 1

    def walk(self, operations: Iterable[Node], totals: Sequence[Any]) -> Iterator[Node]:
        """Return ``operations``, newest first, and tell what is complete whenever the next one is asked for."""
        for order in self._waiting:
            if totals[order] is not None:
                self._num_readers[order] += 1  # it is a target as well
        try:
            for node in operations:
                yield node
                for order in self._last.get(node.order, ()):
                    self._tell(order, totals[order])
        finally:
            self._recording.completions = None

    def made(self, node: Node, argnum: int, gradient: Any) -> None:
        """Take in what ``node``, which is being visited, has made for its argument ``argnum``."""
        if self._within_operations and argnum in node.argnums:
            order = node.parents[node.argnums.index(argnum)].order
            if self._num_readers.get(order) == 1:
                self._tell(order, gradient)

    def _tell(self, order: int, gradient: Any) -> None:
        if gradient is not None and order in self._waiting:
            self._complete(self._waiting.pop(order), gradient)
