"""The core that every optimizer shares, whatever face it shows: layouts, owners, slots, steps and state.

A face (the Keras one, the v1 one) decides what users call and which arguments it takes; everything that touches a
variable is here. A concrete optimizer gives :attr:`rule`, the hypers, and :meth:`scalars` where the rule's scalars are
not simply hypers.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from distopt.arena import Span, place
from distopt.clipping import clip_by_global_norm, clip_by_norm, clip_by_value
from distopt.norms import add_sums
from distopt.optimizers import hypers as hyper_arithmetic
from distopt.optimizers.batches import Batches
from distopt.optimizers.engine import Engine, Kernel, get_engine
from distopt.optimizers.hypers import HyperTable
from distopt.optimizers.layout import Layout
from distopt.optimizers.owner import Clips, SpanOwner, apply_constraint
from distopt.optimizers.pipeline import Pair, Pairs, check_gradients
from distopt.optimizers.rule import Kind, Rule
from distopt.optimizers.slots import SlotStore
from distopt.optimizers.sparse import update_rows
from distopt.types import Array
from distopt.variable import Variable

VALID_DTYPES = frozenset(np.dtype(t) for t in (np.float16, ml_dtypes.bfloat16, np.float32, np.float64))


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


class _Bound(NamedTuple):
    """The kernel and the arrays of one variable: ``flat`` are views of ``storage`` and ``slots``."""

    kernel: Kernel
    flat: tuple[Array, ...]
    storage: Array
    slots: list[Array]
    dtype: np.dtype[Any]


class OptimizerCore:
    """Layouts, owners, slots and hypers; ``name`` is unique enough to be in the names of variables."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._hypers = HyperTable(name)
        self._iterations: Variable | None = None
        self._initial_decay = 0.0
        self._variables: list[Variable] = []
        self._known: set[int] = set()
        self._layouts: dict[tuple[int, ...], Layout] = {}
        self._owners: dict[int, SpanOwner] = {}
        self._building = threading.RLock()
        self._bound: dict[int, _Bound] = {}
        self._batches: dict[tuple[int, ...], Batches] = {}
        self._bound_engine: Engine | None = None
        self.slots = SlotStore(name)
        self.clips = Clips()

    @property
    def rule(self) -> Rule:
        """The update rule; it does not change after the first step."""
        raise NotImplementedError(f"{type(self).__name__} has no update rule")

    @property
    def iterations(self) -> Variable:
        """The number of steps taken: an int64 variable, created on first use."""
        if self._iterations is None:
            with self._building:
                if self._iterations is None:
                    self._iterations = Variable(0, trainable=False, dtype=np.dtype(np.int64), name=f"{self._name}/iter")
        return self._iterations

    def scalars(self, hypers: Mapping[str, float], dtype: np.dtype[Any]) -> tuple[Any, ...]:
        """Return the rule's scalars, in its order, in ``dtype``; by default the hypers of the same names."""
        return tuple(dtype.type(hypers[name]) for name in self.rule.scalars)

    def build(self, var_list: Iterable[Variable]) -> None:
        """Create whatever applying gradients to ``var_list`` needs; what exists is left alone.

        Raises: ValueError for a variable whose dtype no optimizer updates.
        """
        variables = list(var_list)
        if self._known.issuperset(map(id, variables)):
            return
        with self._building:
            new = [variable for variable in variables if id(variable) not in self._known]
            for variable in new:
                if variable.dtype not in VALID_DTYPES:
                    raise ValueError(f"variable {variable.name!r} has dtype {variable.dtype}; optimizers update floats")
            _ = self.iterations
            place(new)
            self._create_slots(new)
            self._variables += new
            self._known.update(map(id, new))

    def _create_slots(self, var_list: Sequence[Variable]) -> None:
        for name in self.rule.slots:
            for variable in var_list:
                self.slots.add(variable, name)

    def step_hypers(self) -> dict[str, float]:
        """Return the hypers of the next step as plain numbers; callables and schedules are called, once each.

        ``learning_rate`` is the one after schedule and decay. Numbers are rounded as the reference rounds them, not yet
        cast to a variable's dtype.
        """
        iterations = int(self.iterations.storage)
        values = {name: self._hypers.evaluate(name, iterations) for name in self._hypers if name != "decay"}
        if self._initial_decay > 0 and "learning_rate" in values:
            values["learning_rate"] = hyper_arithmetic.decayed(values["learning_rate"], self._initial_decay, iterations)
        return values

    @property
    def has_callable_hypers(self) -> bool:
        """Whether a hyper is a function, whose value another process may see differently."""
        return self._hypers.has_callables()

    def layout(self, variables: Sequence[Variable]) -> Layout:
        """Return the layout of the gradients of ``variables``; the same object for the same variables.

        Raises: ValueError for a variable listed twice, or not built.
        """
        key = tuple(map(id, variables))
        found = self._layouts.get(key)
        if found is None:
            self.build(variables)
            found = self._layouts[key] = Layout(variables)
        return found

    def span_owner(self, layout: Layout, spans: Sequence[Span]) -> SpanOwner:
        """Return the owner of ``spans``, which must be cut at ``layout.cut_points()``."""
        return SpanOwner(self, layout, spans)

    def finish(self, layout: Layout, flat: Sequence[Array], hypers: Mapping[str, float]) -> None:
        """Clip aggregated gradients, update all variables of ``layout``, apply constraints, count the step.

        ``flat`` has one array for each run, as ``layout.pack`` returns them; it is not written to. A variable that is
        split gets the same update on each of its copies.

        Raises: ValueError or TapeError before anything changes, as :meth:`SpanOwner.apply` does.
        """
        if self.clips.chained or layout.has_split():
            self._finish_by_variable(layout, flat, hypers)
            return
        owner = self._owners.get(id(layout))
        if owner is None:
            owner = self._owners[id(layout)] = SpanOwner(self, layout, layout.spans)
        owner.apply(flat, hypers, owner.partials(flat))
        self.advance()

    def _finish_by_variable(self, layout: Layout, flat: Sequence[Array], hypers: Mapping[str, float]) -> None:
        self.finish_pairs(self.clip(zip(layout.unpack(flat), layout.variables, strict=True)), hypers)
        self.advance()

    def finish_pairs(self, pairs: Iterable[Pair], hypers: Mapping[str, float], replica_id: int | None = None) -> None:
        """Update the variables of ``pairs`` one after another with gradients that are aggregated and clipped.

        Gradients may be row-sparse, and a variable may be listed more than once. With ``replica_id``, split variables
        and their slots are updated in that replica's copies. Does not count a step: :meth:`advance` does.

        Raises: as :func:`~distopt.optimizers.pipeline.check_gradients`, and TapeError, before anything changes.
        """
        checked = check_gradients(pairs)
        if replica_id is None and self._finish_in_batches(checked, hypers):
            return
        if replica_id is None and any(variable.is_split for _, variable in checked):
            self._finish_copies(checked, hypers)
            return
        engine = get_engine()
        if engine is not self._bound_engine:
            self._bound, self._bound_engine = {}, engine
        bounds = []
        for _, variable in checked:
            bound = self._bound.get(id(variable))
            if bound is None or variable.is_split:
                self.build([variable])
                bound = self._bind(engine, variable, replica_id)
            bounds.append(bound)
            variable.check_writable()
        scalars: dict[np.dtype[Any], tuple[Any, ...]] = {}
        for (gradient, variable), array, (kernel, flat, storage, slots, dtype) in zip(
            checked, checked.arrays, bounds, strict=True
        ):
            own = scalars.get(dtype)
            if own is None:
                own = scalars[dtype] = self.scalars(hypers, dtype)
            if array is None:
                update_rows(engine, self.rule, storage, slots, gradient, own)
                continue
            if array.base is not None and not array.flags.aligned:
                array = np.require(array, requirements=["A"])
            kernel(*flat, array.reshape(-1), *own)  # a copy in C order, if it is not in that order
            if variable.constraint is not None:
                apply_constraint(variable, storage)

    def _finish_in_batches(self, pairs: Pairs, hypers: Mapping[str, float]) -> bool:
        """Make all updates at once, as far as :class:`Batches` can, and return whether it could."""
        key, engine = pairs.key, get_engine()
        batches = self._batches.pop(key, None)  # so that no other thread uses it meanwhile
        if batches is None or batches.engine is not engine:
            variables = [variable for _, variable in pairs]
            is_plain = self.rule.kind is Kind.ELEMENT_WISE and all(
                variable.constraint is None for variable in variables
            )
            if not is_plain or len(set(key)) < len(key):
                return False
            self.build(variables)
            batches = Batches(self, engine, variables)
        done = batches.can_update(pairs.arrays)
        if done:
            batches.update(pairs.arrays, hypers)
        self._batches[key] = batches
        return done

    def _finish_copies(self, pairs: Iterable[Pair], hypers: Mapping[str, float]) -> None:
        """Make the same update on every copy of the variables that are split."""
        for pair in pairs:
            variable = pair[1]
            if not variable.is_split:
                self.finish_pairs([pair], hypers)
                continue
            self.build([variable])
            self.split_slots([variable])
            for replica_id in variable.replica_ids:
                self.finish_pairs([pair], hypers, replica_id)

    def _bind(self, engine: Engine, variable: Variable, replica_id: int | None) -> _Bound:
        """Return what updates one variable, or one replica's copy of it; kept where there is one value."""
        storage, slots = self._arrays(variable, replica_id)
        flat = tuple(array.reshape(-1) for array in (storage, *slots))
        bound = _Bound(engine.kernel(self.rule, storage.dtype), flat, storage, slots, storage.dtype)
        if not variable.is_split:
            self._bound[id(variable)] = bound
        return bound

    def _arrays(self, variable: Variable, replica_id: int | None) -> tuple[Array, list[Array]]:
        if replica_id is None or not variable.is_split:
            slots = self.slots.of(variable)
            return variable.storage, [slots[name] for name in self.rule.slots]
        slots = self.slots.copy_of(variable, replica_id)
        return variable.copy_of(replica_id), [slots[name] for name in self.rule.slots]

    def split_slots(self, variables: Iterable[Variable]) -> None:
        """Give the slots of each split variable one copy for each of its copies."""
        for variable in variables:
            if variable.is_split:
                self.slots.split(variable, variable.replica_ids)

    def advance(self) -> None:
        """Count one step."""
        iterations = self.iterations
        iterations.check_writable()
        count = iterations.storage
        count[()] = count.item() + 1

    def clip(self, pairs: Iterable[Pair]) -> Iterable[Pair]:
        """Return the pairs clipped by value, then by norm, then by global norm, as far as each is set.

        The bits are those that :meth:`finish` computes on flat arrays.
        """
        clips = self.clips
        if not clips.active and type(pairs) is Pairs:
            return pairs
        clipped = list(pairs)
        if clips.value is not None:
            clipped = [(clip_by_value(gradient, -clips.value, clips.value), v) for gradient, v in clipped]
        if clips.norm is not None:
            clipped = [(clip_by_norm(gradient, clips.norm, _sum_of_squares), v) for gradient, v in clipped]
        if clips.global_norm is not None:
            gradients, _ = clip_by_global_norm([g for g, _ in clipped], clips.global_norm, _sum_of_squares)
            clipped = [(gradient, v) for gradient, (_, v) in zip(gradients, clipped, strict=True)]
        return clipped

    def state(self) -> OptimizerState:
        """Return copies of everything that decides the next steps."""
        slots = tuple(
            {name: _copies(slot) for name, slot in self.slots.variables_of(variable).items()}
            for variable in self._variables
        )
        extras = {name: np.array(value) for name, value in self._hypers.numbers().items()}
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
                _check_copies(variable, name, copies)
        for variable, own, given in zip(self._variables, mine, state.slots, strict=True):
            if any(len(copies) > 1 for copies in given.values()):
                self.split_slots([variable])
            for name, copies in given.items():
                _restore(own[name], copies)
        self.iterations.storage[...] = state.iterations
        for name, value in state.extras.items():
            if name in self._hypers and name in self._hypers.numbers():
                self._hypers.set(name, float(value))


def _sum_of_squares(values: Array) -> Any:
    flat = np.require(values, requirements=["C", "A"]).reshape(-1)
    return add_sums(get_engine().block_sums(flat))


def _copies(slot: Variable) -> tuple[Array, ...]:
    if not slot.is_split:
        return (slot.storage.copy(),)
    return tuple(slot.copy_of(replica_id).copy() for replica_id in slot.replica_ids)


def _check_copies(variable: Variable, name: str, copies: Sequence[Array]) -> None:
    allowed = {1, len(variable.replica_ids) if variable.is_split else 1}
    if len(copies) not in allowed:
        raise ValueError(f"slot {name!r} of variable {variable.name!r} comes in {len(copies)} copies")
    for copy in copies:
        if copy.shape != variable.storage.shape or copy.dtype != variable.storage.dtype:
            raise ValueError(
                f"slot {name!r} of variable {variable.name!r} is {copy.dtype}{list(copy.shape)} in the state, "
                f"not {variable.storage.dtype}{list(variable.storage.shape)}"
            )


def _restore(slot: Variable, copies: Sequence[Array]) -> None:
    if not slot.is_split:
        slot.storage[...] = copies[0]
        return
    for position, replica_id in enumerate(slot.replica_ids):
        slot.copy_of(replica_id)[...] = copies[position if len(copies) > 1 else 0]
