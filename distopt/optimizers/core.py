"""The core that every optimizer shares, whatever face it shows: layouts, owners, slots, steps and state.

A face (the Keras one, the v1 one) decides what users call and which arguments it takes; everything that touches a
variable is here. A concrete optimizer gives :attr:`rule`, the hypers, and :meth:`scalars` where the rule's scalars are
not simply hypers.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from typing import Any, NamedTuple, Self

import ml_dtypes
import numpy as np

from distopt import replica_context
from distopt.arena import Span, place
from distopt.clipping import clip_by_global_norm, clip_by_norm, clip_by_value
from distopt.errors import ForeignVariableError
from distopt.indexed_slices import IndexedSlices, scatter_rows
from distopt.norms import add_sums
from distopt.optimizers import hypers as hyper_arithmetic
from distopt.optimizers.batches import Batches
from distopt.optimizers.clips import NO_CLIPS, Clips
from distopt.optimizers.engine import Engine, Kernel, get_engine
from distopt.optimizers.features import (
    ACCUMULATED_CALLS,
    ACCUMULATOR,
    AVERAGE,
    Features,
    Step,
    Treatment,
    calls_of_mean,
    makes_step,
)
from distopt.optimizers.hypers import HyperTable
from distopt.optimizers.layout import Layout
from distopt.optimizers.owner import SpanOwner, apply_constraint
from distopt.optimizers.piece import Part, Piece, accumulate, take_average
from distopt.optimizers.pipeline import Fit, Pair, Pairs, check_gradients
from distopt.optimizers.rule import Kind, Rows, Rule
from distopt.optimizers.saved_state import SavedState
from distopt.optimizers.slots import SlotStore
from distopt.optimizers.sparse import update_rows
from distopt.optimizers.terms import PLAIN, Gradient, Gradients, Terms
from distopt.tensor import Tensor
from distopt.types import Array
from distopt.variable import Variable

ITERATIONS = "iterations"
"""What the number of steps is called among hypers."""

VALID_DTYPES = frozenset(np.dtype(t) for t in (np.float16, ml_dtypes.bfloat16, np.float32, np.float64))


class _Bound(NamedTuple):
    """What updates one variable: a kernel and its arrays; ``flat`` are views of ``storage`` and ``slots``.

    ``piece`` is None where the optimizer's one element-wise rule is all there is to do.
    """

    kernel: Kernel
    flat: tuple[Array, ...]
    storage: Array
    slots: list[Array]
    slot_dtype: np.dtype[Any]
    piece: Piece | None


class OptimizerCore(SavedState):
    """Layouts, owners, slots and hypers; ``name`` is unique enough to be in the names of variables."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._hypers = HyperTable(name)
        self._iterations: Variable | None = None
        self._weights: list[Variable] = []
        self._own_weights: dict[str, Variable] = {}
        self._initial_decay = 0.0
        self._variables: list[Variable] = []
        self._known: set[int] = set()
        self._layouts: dict[tuple[int, ...], Layout] = {}
        self._owners: dict[int, SpanOwner] = {}
        self._building = threading.RLock()
        self.fits: dict[tuple[int, ...], Fit] = {}
        """Of variables that have been built, for :func:`~distopt.optimizers.pipeline.known_pairs`."""
        self._bound: dict[int, _Bound] = {}
        self.used_by: weakref.ref[Any] | None = None
        """The strategy under which the first step was made; None before, and outside of all of them."""
        self._batches: dict[tuple[int, ...], Batches] = {}
        self._bound_engine: Engine | None = None
        self._accumulated: Variable | None = None
        self._completes_accumulation = False
        self._has_rules_after_norms = False
        self.tells_iterations = False
        """Whether the hypers of a step say how many came before it, for servers that have not counted all of them."""
        self.num_bindings = 0
        """How often bindings were forgotten; for those who keep some themselves."""
        self.keeps_slots = True
        """Whether this process holds the slots; false once servers have made an update."""
        self.slots = SlotStore(name, self._weights)
        self.clips = Clips()
        self.features = Features()

    @property
    def rule(self) -> Rule:
        """The update rule; it does not change after the first step."""
        raise NotImplementedError(f"{type(self).__name__} has no update rule")

    def rule_of(self, variable: Variable) -> Rule:  # noqa: ARG002 - for optimizers that look at it
        """Return the update rule of one variable."""
        return self.rule

    def weight_decay_of(self, variable: Variable) -> float | None:  # noqa: ARG002 - for optimizers that look at it
        """Return the weight decay of one variable; None if its weights are not decayed."""
        return self.features.weight_decay

    def treatment(self, variable: Variable) -> Treatment:
        """Return how a variable is updated."""
        return Treatment(self.rule_of(variable), self.weight_decay_of(variable))

    @property
    def takes_occurrences(self) -> bool:
        """Whether the update sees each occurrence of a row of a row-sparse gradient, not their sum."""
        return self.rule.sparse.variable is Rows.OCCURRENCES

    @property
    def iterations(self) -> Variable:
        """The number of steps taken: an int64 variable, created on first use."""
        if self._iterations is None:
            with self._building:
                if self._iterations is None:
                    self._adopt_iterations(
                        Variable(0, trainable=False, dtype=np.dtype(np.int64), name=f"{self._name}/iter")
                    )
                    assert self._iterations is not None
        return self._iterations

    @property
    def has_iterations(self) -> bool:
        """Whether the variable :attr:`iterations` exists by now."""
        return self._iterations is not None

    def _adopt_iterations(self, variable: Variable) -> None:
        self._iterations = variable
        self._weights.append(variable)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Return an optimizer in the same state, for the same variables; strategy and variables are shared."""
        twin = object.__new__(type(self))
        memo[id(self)] = twin
        shared = {id(variable): variable for variable in self._variables}
        fresh: dict[int, Any] = {id(self._building): threading.RLock()}
        fresh |= {id(kept): {} for kept in (self._layouts, self._owners, self._bound, self._batches)}
        own_memo = {**memo, **shared, **fresh}
        for name, value in self.__dict__.items():
            twin.__dict__[name] = deepcopy(value, own_memo)
        for variable in self._variables:
            assert variable.placement is not None, "it was built"
            variable.placement[0].users.add(twin)
        return twin

    def scalars(self, hypers: Mapping[str, float], dtype: np.dtype[Any]) -> tuple[Any, ...]:
        """Return the rule's scalars, in its order, in ``dtype``; by default the hypers of the same names."""
        scalar = dtype.type
        return tuple([scalar(hypers[name]) for name in self.rule.scalars])

    def scalars_of(self, rule: Rule, hypers: Mapping[str, float], dtype: np.dtype[Any]) -> tuple[Any, ...]:  # noqa: ARG002
        """Return the scalars of ``rule``, one of those that :meth:`rule_of` returns or the second pass of one."""
        return self.scalars(hypers, dtype)

    def steps_taken(self) -> int:
        """Return ``iterations`` as a number."""
        return int(self.iterations.storage)

    def build(self, var_list: Iterable[Variable]) -> None:
        """Create whatever applying gradients to ``var_list`` needs; what exists is left alone.

        Raises: ValueError for a variable whose dtype no optimizer updates; ForeignVariableError for one that was
            created under another strategy than the current one.
        """
        variables = list(var_list)
        if self._known.issuperset(map(id, variables)):
            return
        with self._building:
            new = [variable for variable in variables if id(variable) not in self._known]
            for variable in new:
                if variable.dtype not in VALID_DTYPES:
                    raise ValueError(f"variable {variable.name!r} has dtype {variable.dtype}; optimizers update floats")
                _check_strategy(variable)
                self._check_slot_dtype(variable)
            _ = self.iterations
            place(new)
            for variable in new:
                assert variable.placement is not None, "just placed"
                variable.placement[0].users.add(self)
            self._create_slots(new)
            self._create_feature_slots(new)
            self._has_rules_after_norms |= any(self.rule_of(v).kind is Kind.AFTER_NORMS for v in new)
            self._variables += new
            self._known.update(map(id, new))
            if (memory := self._aggregator_memory) is not None:
                memory.place(self._variables)

    def _check_slot_dtype(self, variable: Variable) -> None:
        rule = self.rule_of(variable)
        if rule.kind is not Kind.ELEMENT_WISE and self.features.dtype_of_slots(rule, variable.dtype) != variable.dtype:
            raise ValueError(
                f"variable {variable.name!r} of dtype {variable.dtype} cannot have slots of "
                f"{self.features.slot_dtype}: that is for element-wise rules, and {rule.name} is {rule.kind.value}"
            )

    def _create_slots(self, var_list: Sequence[Variable]) -> None:
        rules = [self.rule_of(variable) for variable in var_list]
        for name in dict.fromkeys(name for rule in rules for name in rule.slots):
            for rule, variable in zip(rules, var_list, strict=True):
                if name in rule.slots:
                    shape = rule.shapes_of_slots(variable.storage.shape)[rule.slots.index(name)]
                    dtype = self.features.dtype_of_slots(rule, variable.dtype)
                    self.slots.add(variable, name, self.initial_slot(name), shape, dtype)

    def _create_feature_slots(self, var_list: Sequence[Variable]) -> None:
        """Create accumulators, at zero, and averages, at the variables' values, if the optimizer has them."""
        for name in self.features.slots:
            for variable in var_list:
                value, dtype = variable.storage if name == AVERAGE else "zeros", self.features.wider(variable.dtype)
                self.slots.add(variable, name, value, dtype=dtype)
        if self.features.accumulation_steps > 1 and self._accumulated is None:
            name = f"{self._name}/gradients_accumulated"
            self._accumulated = Variable(0, trainable=False, dtype=np.dtype(np.int64), name=name)
            self._own_weights["gradients_accumulated"] = self._accumulated
            self._weights.append(self._accumulated)

    def complete_accumulation(self) -> None:
        """Let the next apply call make a step, with the mean of what was accumulated and its own gradients.

        For the last batch of a training whose number of batches ``gradient_accumulation_steps`` does not divide. To be
        called on every replica, or once outside of them; without accumulation nothing happens.
        """
        self._completes_accumulation = True

    def _accumulated_calls(self) -> int:
        """Return of how many calls the next one makes a step; 0 if it only accumulates."""
        calls = 1 if self._accumulated is None else self._accumulated.storage.item() + 1
        return calls if self._completes_accumulation or calls >= self.features.accumulation_steps else 0

    def initial_slot(self, name: str) -> Any:  # noqa: ARG002 - for those that do not start at zero
        """Return the initializer of the slot ``name``, as ``SlotStore.add`` takes it."""
        return "zeros"

    def step_hypers(self) -> dict[str, float]:
        """Return the hypers of the next step as plain numbers; callables and schedules are called, once each.

        ``learning_rate`` is the one after schedule and decay. Numbers are rounded as the reference rounds them, not yet
        cast to a variable's dtype.
        """
        iterations = self.iterations.storage.item()
        values = self._hypers.evaluate_all(iterations)
        values.pop("decay", None)
        if "learning_rate" in values:
            values["learning_rate"] = self._decayed(values["learning_rate"], iterations)
        if self.tells_iterations:
            values[ITERATIONS] = float(iterations)
        if self.features.accumulation_steps > 1:
            values[ACCUMULATED_CALLS] = float(self._accumulated_calls())
        return values

    def follow(self, hypers: Mapping[str, float]) -> None:
        """Be where the process is that these hypers come from, if they say so."""
        if ITERATIONS in hypers:
            self.iterations.storage[()] = hypers[ITERATIONS]

    def _decayed(self, learning_rate: float, iterations: int) -> float:
        if self._initial_decay > 0:
            return hyper_arithmetic.decayed(learning_rate, self._initial_decay, iterations)
        return learning_rate

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
            whole = [v for v in variables if self.rule_of(v).kind is Kind.WHOLE_VARIABLE]
            found = self._layouts[key] = Layout(variables, whole)
        return found

    @property
    def needs_whole_gradients(self) -> bool:
        """Whether an update needs one exchange of norms after another, for which owners of parts have no words."""
        return self.clips.active and (self.clips.chained or (self.clips.needs_norms and self._has_rules_after_norms))

    def span_owner(self, layout: Layout, spans: Sequence[Span]) -> SpanOwner:
        """Return the owner of ``spans``, which must be cut at ``layout.cut_points()``."""
        return SpanOwner(self, layout, spans)

    def takes_terms(self, layout: Layout) -> bool:
        """Return whether :meth:`finish` takes :class:`Terms` for the variables of ``layout`` now, not arrays alone."""
        return not (self.needs_whole_gradients or layout.has_split())

    def finish(self, layout: Layout, flat: Gradients, hypers: Mapping[str, float]) -> None:
        """Clip aggregated gradients, update all variables of ``layout``, apply constraints, count the step.

        ``flat`` has one array for each run, as ``layout.pack`` returns them, or :class:`Terms` of such where
        :meth:`takes_terms`; it is not written to. A variable that is split gets the same update on each of its copies.
        Where gradients are accumulated, most calls only do that.

        Raises: ValueError or TapeError before anything changes, as :meth:`SpanOwner.apply` does.
        """
        if not self.takes_terms(layout):
            assert not isinstance(flat, Terms), "asked by the caller"
            self.finish_aggregated(zip(layout.unpack(flat), layout.variables, strict=True), hypers)
            return
        owner = self._owners.get(id(layout))
        if owner is None:
            owner = self._owners[id(layout)] = SpanOwner(self, layout, layout.spans)
        owner.apply(flat, hypers, owner.partials(flat, hypers))
        self.advance(hypers, layout.variables)

    def finish_aggregated(self, pairs: Iterable[Pair], hypers: Mapping[str, float]) -> None:
        """Do what :meth:`finish` does, with gradients that may be row-sparse.

        Raises: as :meth:`finish_pairs`.
        """
        variables: list[Variable] | None = None
        if self.features.accumulation_steps > 1:
            pairs = check_gradients(pairs)
            variables = [variable for _, variable in pairs]
            pairs = self._accumulated_means(pairs, calls_of_mean(hypers))
            if not pairs:
                self.advance(hypers, variables)
                return
        elif self.features.ema_momentum is not None:
            pairs = check_gradients(pairs)
            variables = [variable for _, variable in pairs]
        (self._clip_and_finish if self.clips.active else self.finish_pairs)(pairs, hypers)
        self.advance(hypers, variables)

    def _clip_and_finish(self, pairs: Iterable[Pair], hypers: Mapping[str, float]) -> None:
        if self.clips.in_passing:
            pairs = check_gradients(pairs)
            if self._finish_in_batches(pairs, hypers, self.clips):
                return
        self.finish_pairs(self.clip(pairs), hypers)

    def _accumulated_means(self, pairs: Pairs, last_of: int | None) -> Pairs:
        """Add gradients to the accumulators; return what a step is made with, nothing if it is not yet made.

        ``last_of`` is what :func:`~distopt.optimizers.features.calls_of_mean` returned.

        Raises: ValueError for a variable listed twice.
        """
        if len(set(pairs.key)) < len(pairs.key):
            raise ValueError("gradients are accumulated by variable, so none may be listed twice")
        for _, variable in pairs:
            variable.check_writable()
        engine = get_engine()
        means: list[Pair] = []
        for gradient, variable in pairs:
            self.build([variable])
            flat = dense_gradient(gradient, variable).reshape(-1)
            for replica_id in variable.replica_ids or (0,):
                accumulator = self.slots.copy_of(variable, replica_id)[ACCUMULATOR]
                mean = accumulate(engine, accumulator.reshape(-1), flat, last_of)
            means.append((Tensor(mean.reshape(variable.storage.shape)), variable))
        return check_gradients([] if last_of is None else means)

    def finish_pairs(self, pairs: Iterable[Pair], hypers: Mapping[str, float], replica_id: int | None = None) -> None:
        """Update the variables of ``pairs`` one after another with gradients that are aggregated and clipped.

        Gradients may be row-sparse, and a variable may be listed more than once. With ``replica_id``, split variables
        and their slots are updated in that replica's copies. Does not count a step: :meth:`advance` does.

        Raises: as :func:`~distopt.optimizers.pipeline.check_gradients`, and TapeError, before anything changes.
        """
        checked = pairs if type(pairs) is Pairs else check_gradients(pairs)
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
        step: Step | None = None
        for (gradient, variable), array, (kernel, flat, storage, slots, slot_dtype, piece) in zip(
            checked, checked.arrays, bounds, strict=True
        ):
            if piece is not None:
                step = step or Step(self, hypers)
                self._update_piece(piece, step, gradient, variable, storage, slots)
                continue
            own = scalars.get(slot_dtype)
            if own is None:
                own = scalars[slot_dtype] = self.scalars(hypers, slot_dtype)
            if array is None:
                update_rows(engine, self.rule, storage, slots, gradient, own)
                continue
            if array.base is not None and not array.flags.aligned:
                array = np.require(array, requirements=["A"])
            kernel(*flat, array.reshape(-1), *own)  # a copy in C order, if it is not in that order
            if variable.constraint is not None:
                apply_constraint(variable, storage)

    def _finish_in_batches(self, pairs: Pairs, hypers: Mapping[str, float], clips: Clips = NO_CLIPS) -> bool:
        """Clip, and make all updates at once, as far as :class:`Batches` can, and return whether it could."""
        key, engine = pairs.key, get_engine()
        batches = self._batches.pop(key, None)  # so that no other thread uses it meanwhile
        if batches is None or batches.engine is not engine:
            variables = [variable for _, variable in pairs]
            can_batch = all(self.rule_of(v).is_element_wise and v.constraint is None for v in variables)
            if not can_batch or len(set(key)) < len(key):
                return False
            self.build(variables)
            batches = Batches(self, engine, variables)
        done = batches.can_update(pairs.arrays)
        if done:
            batches.update(pairs.arrays, hypers, clips)
        self._batches[key] = batches
        return done

    def _update_piece(
        self, piece: Piece, step: Step, gradient: Any, variable: Variable, storage: Array, slots: Sequence[Array]
    ) -> None:
        """Update one variable by what is more than one element-wise rule."""
        rule = piece.treatment.rule
        if isinstance(gradient, IndexedSlices) and rule.kind is Kind.ELEMENT_WISE:
            piece.decay(step)
            update_rows(piece.engine, rule, storage, slots, gradient, step.scalars(rule, piece.slot_dtype))
        else:
            flat = np.require(dense_gradient(gradient, variable), requirements=["C", "A"]).reshape(-1)
            if rule.kind is Kind.AFTER_NORMS:
                piece.move_alone(flat, step)
            else:
                piece.update(Gradient(PLAIN, (flat,)), step)
        piece.take_average(step)
        if variable.constraint is not None:
            apply_constraint(variable, storage)

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
        storage, by_name = self._arrays(variable, replica_id)
        treatment = self.treatment(variable)
        rule = treatment.rule
        slots = [by_name[name] for name in rule.slots]
        flat = tuple(array.reshape(-1) for array in (storage, *slots))
        if self._is_plain(variable):
            slot_dtype = self.features.dtype_of_slots(rule, storage.dtype)
            bound = _Bound(engine.kernel(rule, storage.dtype, slot_dtype), flat, storage, slots, slot_dtype, None)
        else:
            shaped = (storage, *slots) if rule.kind is Kind.WHOLE_VARIABLE else ()
            average = by_name[AVERAGE].reshape(-1) if AVERAGE in by_name else None
            parts = (Part(0, 0, storage.size),)
            piece = Piece(engine, treatment, flat[:1] if shaped else flat, parts, shaped, average=average)
            bound = _Bound(piece.kernel, flat, storage, slots, piece.slot_dtype, piece)
        if not variable.is_split:
            self._bound[id(variable)] = bound
        return bound

    def _is_plain(self, variable: Variable) -> bool:
        """Return whether the optimizer's one element-wise rule is all that updates a variable."""
        treatment = self.treatment(variable)
        return treatment.is_plain and treatment.rule is self.rule and not self.features.slots

    def _arrays(self, variable: Variable, replica_id: int | None) -> tuple[Array, dict[str, Array]]:
        if replica_id is None or not variable.is_split:
            return variable.storage, self.slots.of(variable)
        return variable.copy_of(replica_id), self.slots.copy_of(variable, replica_id)

    def forget_bindings(self) -> None:
        """Forget how variables are treated and where they lie; for an optimizer in which that has changed."""
        self._owners, self._bound, self._batches = {}, {}, {}
        self.num_bindings += 1

    def split_slots(self, variables: Iterable[Variable]) -> None:
        """Give the slots of each split variable one copy for each of its copies."""
        for variable in variables:
            if variable.is_split:
                self.slots.split(variable, variable.replica_ids)

    def advance(self, hypers: Mapping[str, float], updated: Iterable[Variable] | None = None) -> None:
        """Count one apply call, and one step, which was made with ``hypers``, unless it only accumulated gradients.

        ``updated`` are the variables that had gradients, if the caller's process keeps their averages: the averages of
        the others go on as well.
        """
        if self._accumulated is not None:
            count = self._accumulated.storage
            if not makes_step(hypers):
                count[()] = count.item() + 1
                return
            count[()] = 0
            self._completes_accumulation = False
            self.slots.clear(ACCUMULATOR)
        if updated is not None and self.features.ema_momentum is not None and self.slots.is_writer:
            self._average_others({id(variable) for variable in updated}, Step(self, hypers))
        iterations = self.iterations
        iterations.check_writable()
        steps = iterations.storage
        steps[()] = steps.item() + 1

    def _average_others(self, updated: set[int], step: Step) -> None:
        engine = get_engine()
        for variable in self._variables:
            if id(variable) not in updated:
                for replica_id in variable.replica_ids or (None,):
                    storage, slots = self._arrays(variable, replica_id)
                    take_average(engine, slots[AVERAGE].reshape(-1), storage.reshape(-1), step)

    def prepare(self, pairs: Pairs) -> Pairs:
        """Return one replica's pairs as they go to be aggregated."""
        return pairs

    def clip(self, pairs: Iterable[Pair]) -> Iterable[Pair]:
        """Return the pairs clipped by value, then by norm, then by global norm, as far as each is set.

        The bits are those that :meth:`finish` computes on flat arrays.
        """
        return clip_pairs(pairs, self.clips)


def dense_gradient(gradient: Any, variable: Variable) -> Array:
    """Return a gradient as an array of the variable's shape; duplicate rows are added as a sparse update adds them."""
    if isinstance(gradient, IndexedSlices):
        merged = gradient.merged()
        return scatter_rows(merged.values.numpy(), merged.indices, variable.storage.shape)
    return np.asarray(gradient)


def _check_strategy(variable: Variable) -> None:
    context = replica_context.current()
    if context.is_default and variable.shared is not None:
        raise ForeignVariableError(
            f"variable {variable.name!r} lies in memory that several processes share, under {variable.strategy}; "
            "update it in that strategy's `run`, where all of them take part"
        )
    if variable.strategy is None or context.is_default or variable.strategy is context.strategy:
        return
    creator = variable.strategy
    raise ForeignVariableError(
        f"variable {variable.name!r} was created under {creator}, and is to be updated under "
        f"{context.strategy!r}; create it under the strategy that trains it"
    )


def clip_pairs(pairs: Iterable[Pair], clips: Clips) -> Iterable[Pair]:
    """Return the pairs clipped by value, then by norm, then by global norm, as far as ``clips`` has each."""
    if not clips.active:
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


def _sum_of_squares(values: Array) -> Any:
    flat = np.require(values, requirements=["C", "A"]).reshape(-1)
    return add_sums(get_engine().block_sums(flat))
