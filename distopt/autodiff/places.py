"""Where gradients of some variables are best written: into memory that others read them from.

Theory of operation. Whoever reads the gradients of a variable where they lie makes a :class:`GradientPlace` for it and
keeps that; an operation whose backward pass makes a gradient of the variable may write it there (:func:`place_for`),
and the array that comes out goes its way as any other. Where that array arrives, :meth:`GradientPlace.holds` says that
nothing has to be copied. A place is handed out again only when nobody holds the array, or a view of it, any more: a
second gradient of the same variable goes elsewhere. If that is the one that is to be read here, it is copied here, and
before that the tensor that is kept gets an array of its own (:meth:`GradientPlace.vacate`): so tensors do not change.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterable
from typing import Any

import numpy as np

from distopt.types import Array

_places: weakref.WeakValueDictionary[int, GradientPlace] = weakref.WeakValueDictionary()
"""By the identity of the storage whose gradients they are for."""


class _Taken(threading.local):
    """The places that this thread has handed out, of whose arrays nobody has said what tensors they are in."""

    def __init__(self) -> None:
        self.places: list[GradientPlace] = []


_taken = _Taken()


class GradientPlace:
    """Memory for the gradient of the variable that is stored in ``storage``: that of ``array``, which is like it.

    Made known to operations as long as it lives.

    >>> storage = np.zeros(2)
    >>> place = GradientPlace(storage, np.empty(2))
    >>> first = place_for(storage)
    >>> place.holds(first), place_for(storage) is None
    (True, True)
    >>> del first
    >>> place_for(storage) is None
    False
    """

    __slots__ = ("__weakref__", "_buffer", "_dtype", "_handed", "_root", "_shape", "_storage", "_tensor")

    def __init__(self, storage: Array, array: Array) -> None:
        self._shape, self._dtype = array.shape, array.dtype
        self._buffer: Any = memoryview(array.reshape(-1).view(np.uint8))  # type: ignore[arg-type]  # NumPy's stubs
        self._storage = weakref.ref(storage)
        self._root: Any = _nothing
        self._handed: Any = _nothing
        self._tensor: Any = _nothing
        if array.size:
            _places[id(storage)] = self

    def holds(self, array: Array) -> bool:
        """Return whether ``array`` is the one that was handed out last."""
        return self._handed() is array

    @property
    def is_free(self) -> bool:
        """Whether nobody holds an array here."""
        return self._root() is None

    def vacate(self) -> None:
        """Let the memory be written to: a tensor that has it gets a copy, an array taken out of that does not."""
        tensor, array = self._tensor(), self._handed()
        if tensor is not None and array is not None and tensor._value is array:
            tensor._value = array.copy()

    def take(self, storage: Array) -> Array | None:
        """Return an array in this place; None if somebody holds one, or ``storage`` is another one by now."""
        if self._storage() is not storage or self._root() is not None:
            return None
        # An array on a buffer is the base of all views of it, of views of those as well, and lives as long as they do.
        root = np.frombuffer(self._buffer, self._dtype)
        array: Array = root.reshape(self._shape)
        self._root = weakref.ref(root)
        self._handed = weakref.ref(array)
        self._tensor = _nothing
        _taken.places.append(self)
        return array


def note_tensors(tensors: Iterable[Any]) -> None:
    """Note which gradients, as a tape returns them, have arrays that this thread has handed out since the last call."""
    places = _taken.places
    if not places:
        return
    by_array = {id(tensor._value): tensor for tensor in tensors if hasattr(tensor, "_value")}
    for place in places:
        tensor = by_array.get(id(place._handed()))
        if tensor is not None:
            place._tensor = weakref.ref(tensor)
    places.clear()


def place_for(storage: Array) -> Array | None:
    """Return where a gradient of the variable in ``storage`` is best written; None if there is no such place now."""
    # Usually there is none at all, which `data`, a dictionary that typeshed does not know, says in no time.
    place = _places.get(id(storage)) if _places.data else None  # type: ignore[attr-defined]
    return None if place is None else place.take(storage)


def _nothing() -> None:
    return None
