"""Recorded operations, and which tapes record in this thread.

Rules of this file: no tensors, no variables; it knows autograd's boxes and nothing of ours.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import autograd.numpy
import ml_dtypes
from autograd import tracer
from autograd.core import primitive_vjps
from autograd.extend import SparseObject, VJPNode, VSpace
from autograd.numpy.numpy_boxes import ArrayBox
from autograd.numpy.numpy_vspaces import ArrayVSpace

next_trace: Callable[[], int] = itertools.count().__next__


_BOXES = tracer.box_types


class TraceNumbers:
    """Autograd's trace stack, replaced: every trace of the process gets a number of its own, larger than all before."""

    @contextmanager
    def new_trace(self) -> Iterator[int]:
        yield next_trace()


tracer.trace_stack = TraceNumbers()

for _extended in (ml_dtypes.bfloat16,):
    ArrayBox.register(_extended)
    VSpace.register(_extended, ArrayVSpace)


@dataclass(frozen=True, slots=True)
class Fused:
    """How one operation runs under a single ordinary tape, on plain arrays.

    ``backward(node, gradient, owned)`` returns one gradient for each entry of ``node.argnums``, in the dtype of that
    argument; it may write into ``gradient`` if it is ``owned``, and into ``node.saved``. NotImplemented sends the pass
    to autograd's derivative. ``fresh`` promises that the results are arrays that nobody else holds.
    ``forward(needed, *args, **kwargs)`` returns ``(result, saved)``; ``None`` stands for the function itself.
    """

    backward: Callable[[Node, Any, bool], Any]
    fresh: bool
    forward: Callable[..., tuple[Any, Any]] | None = None


FUSED: dict[Any, Fused] = {}
"""By primitive. An entry needs a derivative in ``autograd`` too, for nested and persistent tapes."""

ROW_SPARSE: dict[Any, Callable[[Node, Any], Any]] = {}
"""By primitive: the gradient with respect to argument 0 as :class:`distopt.autodiff.backward.Rows`, or ``None``."""


recordings: set[Recording] = set()
"""Those of all threads that have not ended. Where there is none, no variable has a reader."""


class Recording:
    """One recording of a tape: ``operations`` are its nodes that have parents, oldest first.

    It is in ``readers`` of every variable that it holds a view of; ``entered`` are those lists. Nodes refer back to
    it, so whoever drops a recording ends it. ``count`` is the number of nodes, roots included. ``completions`` is who
    wants to know of gradients before a backward pass has ended, while one goes on.
    """

    __slots__ = ("completions", "count", "entered", "live", "number", "operations")

    def __init__(self, number: int) -> None:
        self.number = number
        self.live = True
        self.completions: Any = None
        self.count = 0
        self.operations: list[Node] = []
        self.entered: list[list[Recording]] = []
        recordings.add(self)

    def end(self) -> None:
        """Forget all nodes; variables that were read may be written to again."""
        self.live = False
        recordings.discard(self)
        for readers in self.entered:
            readers.remove(self)
        self.entered.clear()
        operations = self.operations
        for node in operations:
            node.parents = ()
        operations.clear()


class Node(tracer.Node):  # type: ignore[misc]  # autograd is untyped
    """One operation whose result a tape follows, or (without parents) a value that it watches.

    Autograd creates nodes of the type that it finds in the boxes given to an operation, with these arguments.
    ``order`` is the position in the recording; ``function`` is VARIABLE or WATCHED for a value without parents.
    """

    __slots__ = (
        "argnums",
        "args",
        "function",
        "fused",
        "kwargs",
        "order",
        "parents",
        "recording",
        "saved",
        "value",
    )

    def __init__(
        self,
        value: Any,
        function: Any,
        args: Any,
        kwargs: Any,
        argnums: Sequence[int],
        parents: Sequence[Any],
        fused: Fused | None = None,
        saved: Any = None,
    ) -> None:
        self.value = value
        self.function = function
        self.args = args
        self.kwargs = kwargs
        self.argnums = argnums
        self.parents = parents
        self.fused = fused
        self.saved = saved
        self.recording = recording = parents[0].recording
        self.order = order = recording.count
        recording.count = order + 1
        recording.operations.append(self)


VARIABLE = "variable"
WATCHED = "watched tensor"


def new_root(value: Any, recording: Recording, kind: str, is_read: bool = False) -> Node:
    """Return a node without parents, whose other attributes nobody asks for; ``kind`` is VARIABLE or WATCHED.

    ``is_read``, which ``saved`` tells: an operation has taken its value.
    """
    node: Node = _new_node(Node)
    node.value = value
    node.function = kind
    node.parents = ()
    node.saved = is_read
    node.recording = recording
    node.order = order = recording.count
    recording.count = order + 1
    return node


_new_node: Callable[[type[Node]], Node] = object.__new__


# The very set that autograd fills, so that later registrations count here too.
tracer.notrace_primitives[Node] = NOT_RECORDED = tracer.notrace_primitives[VJPNode]


class ActiveTape(Protocol):
    """What dispatch needs of a tape that records."""

    trace: int

    def read(self, variable: Any) -> Node | None:
        """Return the node of ``variable``, which has its value as this tape sees it; None if it is not followed."""
        ...

    def read_box(self, variable: Any) -> Any:
        """Return the value of ``variable``, in a box if the tape follows it."""
        ...

    def box_copy(self, variable: Any, value: Any) -> Any:
        """Return ``value``, a copy of what is stored in ``variable``, boxed if this tape follows it."""
        ...


class ThreadState(threading.local):
    """The tapes that record in this thread, outermost first.

    ``sole`` is the tape if there is exactly one and it is an ordinary one: the case that must be fast.
    """

    active: tuple[ActiveTape, ...] = ()
    sole: ActiveTape | None = None
    watcher: Callable[[Any, Sequence[Any]], None] | None = None
    """Told the target's node and the gradients whenever a tape was asked for some."""
    listener: Callable[[Sequence[Any]], Callable[[int, Any], object] | None] | None = None
    """Asked what to tell of the gradients of some sources as soon as each is complete."""
    gate: int = 0
    """How soon that is; see :mod:`distopt.autodiff.completions`."""


state = ThreadState()


def is_followed(value: Any) -> bool:
    """Return whether ``value`` is a box, of whatever tape or trace."""
    return type(value) is ArrayBox


def holds_box(value: Any) -> bool:
    """Return whether tuples, lists and dictionaries hold a box somewhere."""
    kind = type(value)
    if kind is tuple or kind is list:
        return any(map(holds_box, value))
    if kind is dict:
        return any(map(holds_box, value.values()))
    return kind is ArrayBox


def strip(value: Any, active: Sequence[ActiveTape]) -> Any:
    """Take the boxes of tapes that are not among ``active`` off ``value``; autograd's own boxes stay."""
    if type(value) is not ArrayBox:
        return value
    inner = strip(value._value, active)
    node = value._node
    if type(node) is Node and not any(tape.trace == value._trace for tape in active):
        return inner
    return value if inner is value._value else ArrayBox(inner, value._trace, node)


def strip_all(value: Any) -> Any:
    """Take every box off ``value``, autograd's own as well."""
    while type(value) is ArrayBox:
        value = value._value
    return value


def insert(value: Any, trace: int, recording: Recording) -> Any:
    """Return ``value`` in a box with a new root of ``recording``, at the level of ``trace``; dead boxes are removed."""
    if type(value) is ArrayBox:
        node = value._node
        if type(node) is Node and not node.recording.live:
            return insert(value._value, trace, recording)
        if value._trace > trace:
            return ArrayBox(insert(value._value, trace, recording), value._trace, node)
    return ArrayBox(value, trace, new_root(value, recording, WATCHED))


def derivative(function: Any) -> Callable[..., Any]:
    """Return autograd's derivative of a primitive.

    Raises: NotImplementedError if there is none.
    """
    maker: Callable[..., Any] | None = primitive_vjps.get(function)
    if maker is None:
        raise NotImplementedError(f"no gradient is defined for {getattr(function, '__name__', function)}")
    return maker


def dtype_of(value: Any) -> Any:
    """Return the dtype of an array, a NumPy or Python number, autograd's sparse objects, or a box around one."""
    while type(value) in _BOXES:
        value = value._value
    dtype = getattr(value, "dtype", None)
    if dtype is None:
        dtype = value.vs.dtype if type(value) is SparseObject else autograd.numpy.result_type(value)
    return dtype
