"""What is saved of an optimizer, and how another one goes on from it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from distopt.aggregation.memory import PREFIX, Memory
from distopt.optimizers.hypers import HyperTable
from distopt.optimizers.slots import SlotStore
from distopt.types import Array
from distopt.variable import Variable


@dataclass(frozen=True)
class OptimizerState:
    """All that decides an optimizer's next steps.

    ``slots`` has one mapping for each variable, in the order in which the optimizer first saw them: from slot name, in
    creation order, to its array, or to one array a copy where the variable is split. ``extras`` are other numbers: the
    hypers that may have been overwritten.
    """

    iterations: int
    slots: tuple[Mapping[str, tuple[Array, ...]], ...]
    extras: Mapping[str, Array] = field(default_factory=dict)


class SavedState:
    """The part of an optimizer that gives its state and takes one."""

    slots: SlotStore
    _variables: list[Variable]
    _hypers: HyperTable
    _own_weights: dict[str, Variable]

    @property
    def iterations(self) -> Variable:
        """The number of steps taken."""
        raise NotImplementedError

    def split_slots(self, variables: Iterable[Variable]) -> None:
        """Give the slots of each split variable one copy for each of its copies."""
        raise NotImplementedError

    def state(self) -> OptimizerState:
        """Return copies of everything that decides the next steps."""
        slots = tuple(
            {name: _copies(slot) for name, slot in self.slots.variables_of(variable).items()}
            for variable in self._variables
        )
        extras = {name: np.array(value) for name, value in self._hypers.numbers().items()}
        extras |= {name: variable.numpy() for name, variable in self._own_weights.items()}
        extras |= self.aggregator_state()
        return OptimizerState(int(self.iterations.storage), slots, extras)

    def load_state(self, state: OptimizerState) -> None:
        """Go on from ``state``; the variables must have been built, in the order of the optimizer that it is from.

        Raises: ValueError, before anything changes, if variables, slots or shapes differ.
        """
        mine = [self.slots.variables_of(variable) for variable in self._variables]
        if len(mine) != len(state.slots):
            raise ValueError(f"the state is of {len(state.slots)} variables, this optimizer has {len(mine)}")
        for variable, own, given in zip(self._variables, mine, state.slots, strict=True):
            if list(own) != list(given):
                raise ValueError(f"variable {variable.name!r} has the slots {list(own)}, the state {list(given)}")
            for name, copies in given.items():
                _check_copies(variable, name, own[name], copies)
        for variable, own, given in zip(self._variables, mine, state.slots, strict=True):
            if any(len(copies) > 1 for copies in given.values()):
                self.split_slots([variable])
            for name, copies in given.items():
                _restore(own[name], copies)
        self.iterations.storage[...] = state.iterations
        memory = self._aggregator_memory
        if memory is not None:
            memory.clear()
        self.load_extras(state.extras)

    def load_extras(self, extras: Mapping[str, Array]) -> set[str]:
        """Go on with numbers that :meth:`state` gave beside the slots, as far as there are such; return their names."""
        loaded = set()
        for name, value in extras.items():
            if name in self._hypers and name in self._hypers.numbers():
                self._hypers.set(name, float(value))
            elif name in self._own_weights:
                self._own_weights[name].write_all("assign", value)
            elif not self._load_aggregator(name, value):
                continue
            loaded.add(name)
        return loaded

    def aggregator_state(self) -> dict[str, Array]:
        """Return what the aggregator remembers here, by names that begin with ``aggregator.``."""
        memory = self._aggregator_memory
        return {} if memory is None else memory.named(self._variables)

    def _load_aggregator(self, name: str, value: Array) -> bool:
        memory = self._aggregator_memory
        if memory is None or not name.startswith(PREFIX):
            return False
        memory.load(name, value, self._variables)
        return True

    @property
    def _aggregator_memory(self) -> Memory | None:
        return getattr(getattr(self, "gradient_aggregator", None), "memory", None)


def _copies(slot: Variable) -> tuple[Array, ...]:
    if not slot.is_split:
        return (slot.local_array().copy(),)
    return tuple(slot.copy_of(replica_id).copy() for replica_id in slot.replica_ids)


def _check_copies(variable: Variable, name: str, slot: Variable, copies: Sequence[Array]) -> None:
    allowed = {1, len(variable.replica_ids) if variable.is_split else 1}
    if len(copies) not in allowed:
        raise ValueError(f"slot {name!r} of variable {variable.name!r} comes in {len(copies)} copies")
    for copy in copies:
        if copy.shape != slot.storage.shape or copy.dtype != slot.storage.dtype:
            raise ValueError(
                f"slot {name!r} of variable {variable.name!r} is {copy.dtype}{list(copy.shape)} in the state, "
                f"not {slot.storage.dtype}{list(slot.storage.shape)}"
            )


def _restore(slot: Variable, copies: Sequence[Array]) -> None:
    if not slot.is_split:
        slot.write_all("assign", copies[0])
        return
    for position, replica_id in enumerate(slot.replica_ids):
        slot.copy_of(replica_id)[...] = copies[position if len(copies) > 1 else 0]
