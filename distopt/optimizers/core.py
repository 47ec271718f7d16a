"""How an optimizer makes a step, whatever face it shows: updates at once or one by one, and counting.

A face (the Keras one, the v1 one) decides what users call and which arguments it takes; everything that touches a
variable is here and in :mod:`distopt.optimizers.base`.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from typing import Any, NamedTuple, Self

import numpy as np

from distopt.arena import Span, flattened
from distopt.indexed_slices import IndexedSlices, scatter_rows
from distopt.optimizers.base import OptimizerBase
from distopt.optimizers.batches import Batches
from distopt.optimizers.clips import NO_CLIPS, Clips, clip_pairs
from distopt.optimizers.engine import Engine, Kernel, get_engine
from distopt.optimizers.features import ACCUMULATOR, AVERAGE, Step, calls_of_mean, makes_step
from distopt.optimizers.layout import Layout
from distopt.optimizers.owner import SpanOwner, apply_constraint
from distopt.optimizers.piece import Part, Piece, accumulate, take_average
from distopt.optimizers.pipeline import Fits, Pair, Pairs, check_gradients
from distopt.optimizers.rule import Kind
from distopt.optimizers.sparse import update_rows
from distopt.optimizers.terms import PLAIN, Gradient, Gradients, Terms
from distopt.tensor import Tensor
from distopt.types import Array
from distopt.variable import Variable, are_split


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


class OptimizerCore(OptimizerBase):
    """An optimizer that makes steps: what it holds, and the owners and kernels that were made for it."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self._owners: dict[int, SpanOwner] = {}
        self.fits = Fits()
        """Of variables that have been built."""
        self._bound: dict[int, _Bound] = {}
        self._batches: dict[tuple[int, ...], Batches] = {}
        self._bound_engine: Engine | None = None
        self.num_bindings = 0
        """How often bindings were forgotten; for those who keep some themselves."""

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Return an optimizer in the same state, for the same variables; strategy and variables are shared."""
        twin = object.__new__(type(self))
        memo[id(self)] = twin
        shared = {id(variable): variable for variable in self._variables}
        fresh: dict[int, Any] = {id(self._building): threading.RLock()}
        fresh |= {id(kept): {} for kept in (self._layouts, self._owners, self._bound, self._batches)}
        fresh |= {id(self._latest_layout): None, id(self.fits): Fits()}
        own_memo = {**memo, **shared, **fresh}
        for name, value in self.__dict__.items():
            twin.__dict__[name] = deepcopy(value, own_memo)
        for variable in self._variables:
            assert variable.placement is not None, "it was built"
            variable.placement[0].users.add(twin)
        return twin

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
            flat = flattened(dense_gradient(gradient, variable))
            for replica_id in variable.replica_ids or (None,):
                accumulator = self._arrays(variable, replica_id)[1][ACCUMULATOR]
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
        if replica_id is None and are_split(checked.variables):
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
            kernel(*flat, flattened(array), *own)
            if variable.constraint is not None:
                apply_constraint(variable, storage)

    def _finish_in_batches(self, pairs: Pairs, hypers: Mapping[str, float], clips: Clips = NO_CLIPS) -> bool:
        """Clip, and make all updates at once, as far as :class:`Batches` can, and return whether it could."""
        if pairs.has_rows:
            return False
        key, engine = pairs.key, get_engine()
        batches = self._batches.pop(key, None)  # so that no other thread uses it meanwhile
        if batches is None or batches.engine is not engine:
            variables = [variable for _, variable in pairs]
            can_batch = all(self.rule_of(v).is_element_wise and v.constraint is None for v in variables)
            if not can_batch or len(set(key)) < len(key):
                return False
            self.build(variables)
            batches = Batches(self, engine, variables)
        done = batches.can_update()
        if done:
            batches.update(pairs.arrays, hypers, clips)
        self._batches[key] = batches
        return done

    def _update_piece(
        self, piece: Piece, step: Step, gradient: Any, variable: Variable, storage: Array, slots: Sequence[Array]
    ) -> None:
        """Update one variable by what is more than one element-wise rule."""
        if not storage.size:
            return  # a rule over whole variables divides by their lengths
        rule = piece.treatment.rule
        if isinstance(gradient, IndexedSlices) and rule.kind is Kind.ELEMENT_WISE:
            piece.decay(step)
            update_rows(piece.engine, rule, storage, slots, gradient, step.scalars(rule, piece.slot_dtype))
        else:
            flat = flattened(dense_gradient(gradient, variable))
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
        """Return a variable's value and its slots; of a split one those of one replica."""
        if replica_id is None or not variable.is_split:
            return variable.storage, self.slots.of(variable)
        self.split_slots([variable])  # another optimizer's steps may have split the variable
        return variable.copy_of(replica_id), self.slots.copy_of(variable, replica_id)

    def forget_bindings(self) -> None:
        """Forget how variables are treated and where they lie; for an optimizer in which that has changed."""
        self._owners, self._bound, self._batches = {}, {}, {}
        self.num_bindings += 1

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
        if updated is not None and self.features.ema_momentum is not None:
            self._average_others({id(variable) for variable in updated}, Step(self, hypers))
        iterations = self.iterations
        iterations.check_writable()
        steps = iterations.storage
        steps[()] = steps.item() + 1

    def _average_others(self, updated: set[int], step: Step) -> None:
        engine = get_engine()
        for variable in self._variables:
            if id(variable) not in updated and self.slots.writes(variable, AVERAGE):
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
