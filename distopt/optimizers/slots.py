"""Slots: what a rule remembers of each variable, laid out like the variables themselves.

The slots of one name for all variables of a segment are views of one buffer with the segment's layout. Padding holds
what a constant initializer gives, so that a rule run over it meets no value that it would not meet in a variable.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np

from distopt import initializers
from distopt.arena import Segment, aligned_zeros, place
from distopt.types import Array
from distopt.variable import Variable


class SlotStore:
    """The slots of one optimizer; ``scope`` prefixes the names of the slot variables.

    New slots are also appended to ``weights``, the optimizer's list of all that it keeps, in the order of creation.
    """

    def __init__(self, scope: str, weights: list[Variable] | None = None) -> None:
        self._scope = scope
        self._buffers: dict[int, dict[str, Array]] = {}
        self._filled: dict[tuple[int, str], bytes] = {}
        self._by_variable: dict[int, dict[str, Variable]] = {}
        self._apart: dict[int, dict[str, Variable]] = {}
        self._variables: list[Variable] = []
        self._weights = [] if weights is None else weights
        self.names: list[str] = []
        self.num_added = 0
        self._of_others: set[tuple[int, str]] = set()
        """The buffers, by segment and name, that several processes map, and of which another one is the writer."""

    @property
    def variables(self) -> tuple[Variable, ...]:
        """The variables that have slots, in the order in which they got the first."""
        return tuple(self._variables)

    def add(
        self,
        variable: Variable,
        name: str,
        initializer: Any = "zeros",
        shape: Sequence[int] | None = None,
        dtype: np.dtype[Any] | None = None,
    ) -> Variable:
        """Return the slot ``name`` of ``variable``, creating it if need be; then ``initializer`` gives its value.

        ``initializer`` is a name as :func:`distopt.initializers.get` takes it, a number, an array, or a function
        ``f(shape, dtype)``. The slot has the variable's shape, and a place in the arena, or ``shape``, and an array of
        its own; ``dtype`` is the variable's unless given, and the same for all slots ``name`` of variables of a dtype.

        Raises: ValueError for an unknown initializer name, or a value of another shape.
        """
        present = self._by_variable.get(id(variable), {}).get(name)
        if present is not None:
            return present
        place([variable])
        assert variable.placement is not None, "just placed"
        segment, offset = variable.placement
        storage = variable.storage
        own_shape = storage.shape if shape is None else tuple(shape)
        own_dtype = storage.dtype if dtype is None else dtype
        value = _initial_value(initializer, own_shape, own_dtype)
        slot = Variable(
            np.broadcast_to(value, own_shape).astype(own_dtype, copy=False),
            trainable=False,
            dtype=own_dtype,
            name=f"{self._scope}/{variable.name.partition(':')[0]}/{name}",
        )
        if own_shape == storage.shape:
            constant = own_dtype.type(value).tobytes() if np.ndim(value) == 0 else None
            filled = self._add_buffer(segment, name, own_dtype, 0 if constant is None else value)
            if slot.storage.base is None:  # else it lies in the buffer of another replica's optimizer, and stays there
                self._bind(slot, name, segment, offset, copy=constant != filled)
        else:
            self._apart.setdefault(id(variable), {})[name] = slot
        if id(variable) not in self._by_variable:
            self._variables.append(variable)
        self._by_variable.setdefault(id(variable), {})[name] = slot
        self._weights.append(slot)
        self.num_added += 1
        if name not in self.names:
            self.names.append(name)
        return slot

    def get(self, variable: Variable, name: str) -> Variable:
        """Return the slot ``name`` of ``variable``.

        Raises: KeyError if there is none.
        """
        slots = self._by_variable.get(id(variable))
        if slots is None or name not in slots:
            known = "no slots" if slots is None else f"only the slots {', '.join(slots)}"
            raise KeyError(f"variable {variable.name!r} has {known} in {self._scope}, not {name!r}")
        return slots[name]

    def of(self, variable: Variable) -> dict[str, Array]:
        """Return the live arrays of the slots of ``variable``, in creation order; empty if it has none."""
        return {name: slot.storage for name, slot in self._by_variable.get(id(variable), {}).items()}

    def variables_of(self, variable: Variable) -> dict[str, Variable]:
        """Return the slot variables of ``variable``, in creation order."""
        return dict(self._by_variable.get(id(variable), {}))

    def buffers(self, segment: Segment) -> dict[str, Array]:
        """Return the flat live arrays, one a slot name, that have the layout of ``segment``."""
        return dict(self._buffers.get(id(segment), {}))

    def apart(self, variable: Variable) -> dict[str, Array]:
        """Return the live arrays of those slots of ``variable`` that have shapes, and so arrays, of their own."""
        return {name: slot.storage for name, slot in self._apart.get(id(variable), {}).items()}

    def clear(self, name: str) -> None:
        """Set the slots ``name`` of all variables to zero, every copy; but for those where another process does so."""
        for slots in self._by_variable.values():
            if name in slots and slots[name].is_split:
                for replica_id in slots[name].replica_ids:
                    slots[name].copy_of(replica_id)[...] = 0
        for segment, buffers in self._buffers.items():
            if name in buffers and (segment, name) not in self._of_others:
                buffers[name][...] = 0

    def writes(self, variable: Variable, name: str) -> bool:
        """Return whether this process writes a slot where no owner does; one does, where several map the same array."""
        assert variable.placement is not None, "it has slots"
        return (id(variable.placement[0]), name) not in self._of_others

    def arrays(self, segment: Segment) -> dict[tuple[str, int], Array]:
        """Return all live flat arrays of the variables of ``segment``: what :meth:`move` moves.

        Their keys are the slot's name, and the place of a variable in the segment, or -1 for all of them.
        """
        found = {(name, -1): buffer for name, buffer in self.buffers(segment).items()}
        for place_in_segment, variable in enumerate(segment.variables):
            for name, array in self.apart(variable).items():
                found[name, place_in_segment] = array.reshape(-1)
        return found

    def move(self, segment: Segment, key: tuple[str, int], array: Array, *, is_writer: bool = True) -> list[Variable]:
        """Let ``array``, which holds the values already, be one of :meth:`arrays` now; return its slot variables.

        ``is_writer``: whether this process writes what belongs to no single owner of those that map it.
        """
        name, place_in_segment = key
        (self._of_others.discard if is_writer else self._of_others.add)((id(segment), name))
        if place_in_segment >= 0:
            slot = self._apart[id(segment.variables[place_in_segment])][name]
            slot.rebind(array.reshape(slot.shape), copy=False)
            return [slot]
        self._buffers[id(segment)][name] = array
        moved = []
        for variable, offset in zip(segment.variables, segment.offsets, strict=True):
            slots = self._by_variable.get(id(variable), {})
            if name in slots and name not in self._apart.get(id(variable), {}):
                slot = slots[name]
                slot.rebind(array[offset : offset + slot.storage.size].reshape(slot.shape), copy=False)
                moved.append(slot)
        return moved

    def split(self, variable: Variable, replica_ids: Sequence[int]) -> None:
        """Give each replica its own copy of the slots of ``variable``; those that have copies keep them."""
        for slot in self._by_variable.get(id(variable), {}).values():
            if not slot.is_split:
                slot.split(replica_ids)

    def copy_of(self, variable: Variable, replica_id: int) -> dict[str, Array]:
        """Return the live arrays of one replica's slots of ``variable``, in creation order."""
        slots = self._by_variable.get(id(variable), {})
        return {name: slot.copy_of(replica_id) if slot.is_split else slot.storage for name, slot in slots.items()}

    def __deepcopy__(self, memo: dict[int, Any]) -> SlotStore:
        """Return a store with the same values for the same variables, in buffers of its own."""
        twin = SlotStore(self._scope, copy.deepcopy(self._weights, memo))
        memo[id(self)] = twin
        twin.names = list(self.names)
        twin._variables = list(self._variables)
        twin._filled = dict(self._filled)
        twin._buffers = {
            segment: {name: _aligned_copy(buffer) for name, buffer in buffers.items()}
            for segment, buffers in self._buffers.items()
        }
        twin._by_variable = {
            variable: {name: copy.deepcopy(slot, memo) for name, slot in slots.items()}
            for variable, slots in self._by_variable.items()
        }
        for variable in twin._variables:
            assert variable.placement is not None, "it has slots"
            apart = self._apart.get(id(variable), {})
            for name, slot in twin._by_variable[id(variable)].items():
                if name in apart:
                    twin._apart.setdefault(id(variable), {})[name] = slot
                else:
                    twin._bind(slot, name, *variable.placement)
        return twin

    def _bind(self, slot: Variable, name: str, segment: Segment, offset: int, *, copy: bool = True) -> None:
        place = self._buffers[id(segment)][name][offset : offset + slot.storage.size]
        slot.rebind(place.reshape(slot.shape), copy=copy)

    def _add_buffer(self, segment: Segment, name: str, dtype: np.dtype[Any], padding: Any) -> bytes:
        """Return what the buffer holds wherever no slot lies in it yet, as the bytes of one element."""
        buffers = self._buffers.setdefault(id(segment), {})
        if name not in buffers:
            buffers[name] = aligned_zeros(segment.buffer.size, dtype)
            if padding != 0:  # zeros that are not written take no memory until they are
                buffers[name][:] = padding
            self._filled[id(segment), name] = dtype.type(padding if padding != 0 else 0).tobytes()
        return self._filled[id(segment), name]


def _aligned_copy(array: Array) -> Array:
    twin = aligned_zeros(array.size, array.dtype)
    twin[:] = array
    return twin


def _initial_value(initializer: Any, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Any:
    if isinstance(initializer, str):
        if initializer in _NAMED:
            return dtype.type(_NAMED[initializer])
        initializer = initializers.get(initializer)
    value = initializer(shape, dtype) if callable(initializer) else initializer
    array = np.asarray(value)
    if array.ndim and array.shape != shape:
        raise ValueError(f"the initial value of a slot has shape {array.shape}, the slot {shape}")
    return dtype.type(array) if array.ndim == 0 else array


_NAMED = {"zeros": 0, "ones": 1}
