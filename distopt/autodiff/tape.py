"""``GradientTape``: records operations and returns gradients."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any

import numpy as np
from autograd.numpy.numpy_boxes import ArrayBox

from distopt.autodiff import nodes
from distopt.autodiff.backward import backward_pass
from distopt.autodiff.completions import GATE_GRAPH, Completions
from distopt.autodiff.nodes import VARIABLE, Node, Recording, next_trace, state
from distopt.autodiff.places import note_tensors
from distopt.autodiff.rows import Rows
from distopt.errors import TapeReusedError
from distopt.indexed_slices import IndexedSlices
from distopt.nest import flatten, is_nested, map_structure
from distopt.tensor import Operand, Tensor, tensor_of, to_array

_log = logging.getLogger(__name__)
_next_number: Callable[[], int] = itertools.count(1).__next__
_ndarray = np.ndarray
_DENSE = {np.ndarray}


class GradientTape:
    """Record operations on what is watched inside a ``with`` block, for :meth:`gradient`.

    Trainable variables are watched when they are read, unless ``watch_accessed_variables`` is False; anything else
    after :meth:`watch`. Operations are recorded in the thread that entered the block. Leaving it ends the recording;
    entering again continues it.

    An ordinary tape gives gradients once. Until then, or until it is dropped, variables that it has read as the only
    recording tape cannot be written to (TapeError), since it holds views of them. A ``persistent`` tape, and tapes
    inside each other, hold copies.

    Source: ``tf.GradientTape``.
    """

    __slots__ = (
        "__weakref__",
        "_is_recording",
        "_persistent",
        "_recording",
        "_roots",
        "_used",
        "_watch_accessed",
        "trace",
    )

    def __init__(self, persistent: bool = False, watch_accessed_variables: bool = True) -> None:
        self.trace = -1
        self._persistent = persistent
        self._watch_accessed = watch_accessed_variables
        self._recording: Recording | None = None
        self._used = False
        self._is_recording = False
        self._roots: dict[int, tuple[Any, Node]] = {}  # by identity of the variable, in order of access

    def __repr__(self) -> str:
        kind = "persistent" if self._persistent else "ordinary"
        recorded = f"number {self._recording.number}" if self._recording else "nothing recorded"
        return f"<{kind} GradientTape, {recorded}>"

    def __del__(self) -> None:
        recording = getattr(self, "_recording", None)
        if recording is not None:
            recording.end()

    def __enter__(self) -> GradientTape:
        if self._is_recording:
            raise ValueError("this tape is already recording")
        if self._recording is None:
            self._begin()
        self._push()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._is_recording:
            self._pop()

    def watch(self, tensor: Any) -> None:
        """Follow a tensor or variable, or each of a nested structure of them, from now on.

        Raises: ValueError for anything else; TapeError is not raised, a used tape raises RuntimeError.
        """
        for leaf in flatten(tensor):
            if not isinstance(leaf, Operand):
                raise ValueError(f"a tape can watch tensors and variables, not {type(leaf).__name__}")
            if leaf.dtype.kind in "biu":
                _log.warning("a watched value has dtype %s; gradients need a floating dtype", leaf.dtype)
                continue
            recording = self._recording or self._begin()
            if not isinstance(leaf, Tensor):
                self._root(leaf)
            elif self._node_of(leaf) is None:
                leaf._value = nodes.insert(leaf._value, self.trace, recording)

    def gradient(
        self,
        target: Any,
        sources: Any,
        output_gradients: Any = None,
        unconnected_gradients: Any = "none",
    ) -> Any:
        """Return d target / d source for each of ``sources``, in their structure.

        Several targets, and targets that are no scalars, are summed, weighted by ``output_gradients`` if given. A
        gradient is a Tensor in the dtype of its source, or IndexedSlices for a variable of which only rows were
        gathered. For a source on which no target depends it is None, or with ``unconnected_gradients="zero"`` zeros.

        Raises: TapeReusedError if the tape is not persistent and was used before; TypeError if ``target`` is None or a
            source is no tensor or variable; ValueError for an unknown ``unconnected_gradients``.
        """
        if self._recording is None:
            if self._used:
                raise TapeReusedError(
                    "a tape that is not persistent gives gradients only once; take them all in one call, make the tape "
                    "persistent, or record anew"
                )
            raise RuntimeError("this tape has recorded nothing; enter it with a `with` block first")
        if unconnected_gradients != "none":
            unconnected_gradients = _checked_option(unconnected_gradients)
        if target is None:
            raise TypeError("the target of a gradient must be a tensor, a variable or a structure of them, not None")
        recording = self._recording
        roots = self._roots
        leaves: list[Any]
        orders: list[int | None]
        try:
            # A list of variables that were read: the usual case, and nothing to look for.
            orders = [roots[id(leaf)][1].order for leaf in sources] if type(sources) is list else []
            leaves, is_flat, are_read = sources, True, bool(orders)
        except KeyError:
            are_read = False
        if not are_read:
            orders = []
            is_flat = type(sources) is list and not any(map(is_nested, sources))
            leaves = sources if is_flat else flatten(sources)
            for leaf in leaves:
                node = self._node_of(leaf)
                orders.append(None if node is None else node.order)
        replay_trace = None
        if self._is_recording:
            if self._persistent:
                replay_trace = self.trace
            else:
                self._pop()
        wanted: set[Any] = set(orders)
        wanted.discard(None)  # of a source on which nothing depends
        seeds = self._seeds(target, output_gradients)
        listener = state.listener
        if listener is not None and state.gate != GATE_GRAPH:
            complete = listener(leaves)
            if complete is not None and wanted:
                recording.completions = Completions(recording, orders, complete)
        totals = backward_pass(
            recording,
            seeds,
            wanted,
            release=not self._persistent,
            replay_trace=replay_trace,
        )
        results: list[Any] = []
        if are_read:
            found = [totals[order] for order in orders if order is not None]
            if set(map(type, found)) == _DENSE:
                results = list(map(tensor_of, found))
        if not results:
            for leaf, order in zip(leaves, orders, strict=True):
                results.append(self._result(leaf, None if order is None else totals[order], unconnected_gradients))
        note_tensors(results)
        if state.watcher is not None and type(target) is Tensor and seeds:
            state.watcher(seeds[0][0], results)
        if not self._persistent:
            self._forget()
        if is_flat:
            return results
        remaining = iter(results)
        return map_structure(lambda _: next(remaining), sources)

    def watched_variables(self) -> tuple[Any, ...]:
        """Return the variables that the tape follows, in order of first access."""
        return tuple(variable for variable, _ in self._roots.values())

    def reset(self) -> None:
        """Forget everything recorded; a tape that is recording goes on from nothing."""
        self._forget()
        self._used = False
        if self._is_recording:
            self._begin(self.trace)

    @contextmanager
    def stop_recording(self) -> Iterator[None]:
        """Record nothing inside a ``with`` block.

        Raises: ValueError if the tape is not recording.
        """
        if not self._is_recording:
            raise ValueError("this tape is not recording")
        self._pop()
        try:
            yield
        finally:
            self._push()

    # What dispatch asks for.

    def read(self, variable: Any) -> Node | None:
        """Return the node of ``variable``, whose value is a view of what is stored; None if the tape follows it not."""
        key = id(variable)
        root = self._roots.get(key)
        if root is None:
            if not (variable.is_followed and self._watch_accessed):
                return None
            recording = self._recording
            assert recording is not None, "the tape is active"
            value = variable.local_array() if variable.is_split else variable.storage
            node = nodes.new_root(value, recording, VARIABLE, True)
            self._roots[key] = (variable, node)
        else:
            node = root[1]
            if node.saved:  # it has been read before
                return node
            recording = node.recording
            node.value = variable.local_array() if variable.is_split else variable.storage
            node.saved = True
        readers = variable.readers
        readers.append(recording)
        recording.entered.append(readers)
        return node

    def read_box(self, variable: Any) -> Any:
        """Return what :meth:`read` finds, in a box if the tape follows the variable, else a copy."""
        node = self.read(variable)
        return variable.local_array().copy() if node is None else ArrayBox(node.value, self.trace, node)

    def box_copy(self, variable: Any, value: Any) -> Any:
        """Return ``value``, a copy of what is stored in ``variable``, in a box if the tape follows the variable."""
        if id(variable) in self._roots or (self._watch_accessed and variable.is_followed):
            return ArrayBox(value, self.trace, self._root(variable))
        return value

    # The rest is private.

    def _begin(self, trace: int | None = None) -> Recording:
        self.trace = next_trace() if trace is None else trace
        self._recording = recording = Recording(_next_number())
        return recording

    def _forget(self) -> None:
        if self._recording is not None:
            self._recording.end()
        self._recording = None
        self._used = True
        self._roots.clear()

    def _push(self) -> None:
        active = state.active
        if not active:
            state.active = (self,)
            state.sole = None if self._persistent else self
        else:
            # By trace, so that the box of the tape entered first is the innermost also after a tape was re-entered.
            _activate(tuple(sorted((*active, self), key=lambda tape: tape.trace)))
        self._is_recording = True

    def _pop(self) -> None:
        if state.sole is self:
            state.active = ()
            state.sole = None
        else:
            _activate(tuple(tape for tape in state.active if tape is not self))
        self._is_recording = False

    def _root(self, variable: Any) -> Node:
        key = id(variable)
        known = self._roots.get(key)
        if known is not None:
            return known[1]
        recording = self._recording
        assert recording is not None, "only what records or watches makes roots"
        node = nodes.new_root(variable.local_array() if variable.is_split else variable.storage, recording, VARIABLE)
        self._roots[key] = (variable, node)
        return node

    def _node_of(self, leaf: Any) -> Node | None:
        if isinstance(leaf, Tensor):
            value = leaf._value
            while type(value) is ArrayBox:
                node = value._node
                if type(node) is Node and node.recording is self._recording:
                    return node
                value = value._value
            return None
        known = self._roots.get(id(leaf))
        if known is not None:
            return known[1]
        if not isinstance(leaf, Operand):
            raise TypeError(f"a gradient needs tensors or variables, not {type(leaf).__name__}")
        if leaf.defers:
            raise RuntimeError(
                f"{leaf!r} is deferred, and a tape records what runs: use tf.compat.v1.gradients in a graph"
            )
        return None

    def _seeds(self, target: Any, output_gradients: Any) -> list[tuple[Node, Any]]:
        if output_gradients is None and type(target) is Tensor:
            value = target._value
            node = value._node if type(value) is ArrayBox else None
            if type(node) is not Node or node.recording is not self._recording:
                node = self._node_of(target)
            if node is None:
                return []
            value = node.value
            if type(value) is ArrayBox:
                value = nodes.strip_all(value)
            return [(node, np.ones_like(value) if type(value) is _ndarray else type(value)(1))]
        targets = flatten(target)
        weights: Sequence[Any] = [None] * len(targets) if output_gradients is None else flatten(output_gradients)
        if len(weights) != len(targets):
            raise ValueError(f"{len(targets)} targets need as many output_gradients, not {len(weights)}")
        seeds: list[tuple[Node, Any]] = []
        others = [tape for tape in state.active if tape is not self]
        for leaf, weight in zip(targets, weights, strict=True):
            node = self._node_of(leaf)
            if node is None:
                continue
            value = _ones(leaf) if weight is None else nodes.strip(_weight(weight, leaf), others)
            seeds.append((node, value))
        return seeds

    def _result(self, source: Operand, gradient: Any, unconnected_gradients: str) -> Any:
        if type(gradient) is _ndarray:
            return tensor_of(gradient)
        if gradient is None:
            return Tensor(np.zeros(source.shape, source.dtype)) if unconnected_gradients == "zero" else None
        active = state.active
        if type(gradient) is Rows:
            values = Tensor(nodes.strip(gradient.values, active))
            return IndexedSlices(values, gradient.indices, gradient.shape)
        return Tensor(nodes.strip(gradient, active))


def _checked_option(unconnected_gradients: Any) -> str:
    option: str = getattr(unconnected_gradients, "value", unconnected_gradients)
    if option not in ("none", "zero"):
        raise ValueError(f"unconnected_gradients must be 'none' or 'zero', not {unconnected_gradients!r}")
    return option


def _ones(target: Operand) -> Any:
    shape = target.shape
    return np.ones(shape, target.dtype) if shape else target.dtype.type(1)


def _weight(weight: Any, target: Operand) -> Any:
    value = weight._value if isinstance(weight, Tensor) else to_array(weight, target.dtype)
    if value.shape != target.shape:
        raise ValueError(f"an output gradient of shape {value.shape} was given for a target of shape {target.shape}")
    return value


def _activate(tapes: tuple[Any, ...]) -> None:
    state.active = tapes
    state.sole = tapes[0] if len(tapes) == 1 and not tapes[0]._persistent else None
