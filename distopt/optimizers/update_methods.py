"""Optimizers whose update is written as methods, as TensorFlow's custom optimizers are, instead of a rule.

A class that defines ``_resource_apply_dense`` (and ``_resource_apply_sparse``, or
``_resource_apply_sparse_duplicate_indices``) updates one variable after another with it, in plain Python: after
aggregation, clipping and transformers, in a context where assignments reach every copy of the variable, and its
constraint follows. It needs whole variables, so it runs with placement ``replica``, or on a single server.

Source: tf_keras ``OptimizerV2``, its section for implementors.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from distopt import replica_context
from distopt.arena import flattened
from distopt.errors import ReplicaContextError
from distopt.indexed_slices import IndexedSlices
from distopt.optimizers.base import VALID_DTYPES
from distopt.optimizers.clips import NO_CLIPS, Clips
from distopt.optimizers.core import OptimizerCore
from distopt.optimizers.engine import get_engine
from distopt.optimizers.owner import apply_constraint
from distopt.optimizers.pipeline import Pair, Pairs, check_gradients, overridden_updates
from distopt.optimizers.rule import ALL_ROWS, Kind, Rule
from distopt.optimizers.sparse import update_rows
from distopt.optimizers.update_steps import UpdateSteps
from distopt.replica_context import Context
from distopt.tensor import Tensor
from distopt.types import Array
from distopt.variable import Variable

ApplyState = dict[tuple[str, np.dtype[Any]], dict[str, Any]]
"""By device and dtype: what ``_prepare_local`` computed once for the update of all variables."""


def _no_step(variable: Any, gradient: Any) -> Any:  # noqa: ARG001
    raise AssertionError("an optimizer without a rule updates by its methods")


_METHODS = Rule("update methods", _no_step, slots=(), scalars=(), sparse=ALL_ROWS, kind=Kind.WHOLE_VARIABLE)


class _Step(NamedTuple):
    """The apply call that is being carried out: its hypers, and whose copies it updates."""

    hypers: Mapping[str, float]
    replica_id: int | None


class UpdateMethods(UpdateSteps, OptimizerCore):
    """An optimizer that runs the update methods of a subclass, where one defines them, and its rule elsewhere."""

    _step: _Step | None = None

    @property
    def updates_by_methods(self) -> bool:
        """Whether methods of a subclass make the update, and not a rule."""
        own_class: Any = type(self)
        return _updates_by_methods(own_class)

    def rule_of(self, variable: Variable) -> Rule:
        """Return the update rule of one variable; without one, what stands for methods that need it whole."""
        return super().rule_of(variable) if self._has_rule else _METHODS

    @property
    def _has_rule(self) -> bool:
        own_class: Any = type(self)
        return _has_rule(own_class)

    def finish_pairs(self, pairs: Iterable[Pair], hypers: Mapping[str, float], replica_id: int | None = None) -> None:
        """Update the variables of ``pairs`` by a subclass's methods if it has any, else by the rule.

        Raises: NotImplementedError, before anything changes, if the method for a kind of gradient is missing.
        """
        if not self.updates_by_methods:
            super().finish_pairs(pairs, hypers, replica_id)
            return
        checked = check_gradients(pairs)
        self._check_methods(checked)
        variables = [variable for _, variable in checked]
        self.build(variables)
        for variable in variables:
            variable.check_writable()
        if replica_id is not None:
            self._update_by_methods(checked, hypers, replica_id)
            return
        copies = {copy for variable in variables for copy in variable.replica_ids}
        if not copies:
            self._update_by_methods(checked, hypers, None)
        self.split_slots(variables)
        for copy in sorted(copies):
            self._update_by_methods(checked, hypers, copy)

    def _finish_in_batches(self, pairs: Pairs, hypers: Mapping[str, float], clips: Clips = NO_CLIPS) -> bool:
        by_methods = clips.active and self.updates_by_methods  # without clips, finish_pairs has asked
        return not by_methods and super()._finish_in_batches(pairs, hypers, clips)

    def _update_by_methods(self, pairs: Pairs, hypers: Mapping[str, float], replica_id: int | None) -> None:
        before, self._step = self._step, _Step(hypers, replica_id)
        current = replica_context.current()
        context = current if replica_id is None else _context_of_copy(current.strategy, replica_id)
        try:
            with replica_context.enter(context):
                self._run_methods(pairs)
        finally:
            self._step = before

    def _run_methods(self, pairs: Pairs) -> None:
        apply_state = self._prepare([variable for _, variable in pairs])
        for gradient, variable in pairs:
            self._update_variable(gradient, variable, apply_state)

    def _update_variable(self, gradient: Any, variable: Variable, apply_state: ApplyState) -> None:
        if isinstance(gradient, IndexedSlices):
            arguments = {"apply_state": apply_state} if _takes_apply_state(type(self)._resource_apply_sparse) else {}
            if not _overrides(type(self), "_resource_apply_sparse_duplicate_indices"):
                gradient = gradient.merged()  # which knows the replicas of the rows
            self._resource_apply_sparse_duplicate_indices(gradient.values, variable, gradient.indices, **arguments)
            return
        arguments = {"apply_state": apply_state} if _takes_apply_state(type(self)._resource_apply_dense) else {}
        self._resource_apply_dense(gradient, variable, **arguments)
        if variable.constraint is not None:
            apply_constraint(variable, variable.local_array())

    def _check_methods(self, pairs: Iterable[Pair]) -> None:
        features = self.features
        if features.weight_decay is not None or features.ema_momentum is not None:
            raise NotImplementedError(
                f"{type(self).__name__} updates by methods, to which weight decay and averages cannot be added"
            )
        if self._has_rule:
            return
        missing = {f"{type(self).__name__}.{name}" for name in self._needed(pairs) if not _overrides(type(self), name)}
        if missing:
            raise NotImplementedError(f"{' and '.join(sorted(missing))} must be defined, or give the class a rule")

    def _needed(self, pairs: Iterable[Pair]) -> Iterable[str]:
        is_sparse = {isinstance(gradient, IndexedSlices) for gradient, _ in pairs}
        if False in is_sparse:
            yield "_resource_apply_dense"
        if True in is_sparse and not _overrides(type(self), "_resource_apply_sparse_duplicate_indices"):
            yield "_resource_apply_sparse"

    # What a subclass may define.

    def _create_slots(self, var_list: Sequence[Variable]) -> None:
        """Create the slots of variables that are seen for the first time; by default those of the rule."""
        if self._has_rule:
            super()._create_slots(var_list)

    def _prepare(self, var_list: Sequence[Variable]) -> ApplyState:
        """Return the apply state: :meth:`_prepare_local` is called once for each device and dtype."""
        state: ApplyState = {}
        for key in dict.fromkeys((variable.device, variable.dtype) for variable in var_list):
            state[key] = {}
            self._prepare_local(*key, state)
        return state

    def _prepare_local(self, var_device: str, var_dtype: np.dtype[Any], apply_state: ApplyState) -> None:
        """Put into ``apply_state[var_device, var_dtype]`` what variables share: ``lr_t``, if there is a rate."""
        if "learning_rate" in self._hypers:
            apply_state[var_device, var_dtype]["lr_t"] = self._decayed_lr(var_dtype)

    def _fallback_apply_state(self, var_device: str, var_dtype: np.dtype[Any]) -> dict[str, Any]:
        """Return the entry of one device and dtype, for an update without an apply state."""
        state: ApplyState = {(var_device, var_dtype): {}}
        self._prepare_local(var_device, var_dtype, state)
        return state[var_device, var_dtype]

    def _resource_apply_dense(self, grad: Any, var: Variable, apply_state: Any = None) -> Any:  # noqa: ARG002
        """Update ``var`` with a dense gradient; by default with the rule."""
        rule, storage, slots, scalars = self._rule_and_arrays(var)
        flat = [array.reshape(-1) for array in (storage, *slots)]
        gradient = flattened(np.asarray(grad, storage.dtype))
        get_engine().update(rule, flat[0], flat[1:], gradient, scalars)

    def _resource_apply_sparse(self, grad: Any, var: Variable, indices: Any, apply_state: Any = None) -> Any:  # noqa: ARG002
        """Update ``var`` with the rows ``grad`` at distinct ``indices``; by default with the rule."""
        rule, storage, slots, scalars = self._rule_and_arrays(var)
        update_rows(get_engine(), rule, storage, slots, IndexedSlices(grad, indices), scalars)

    def _resource_apply_sparse_duplicate_indices(self, grad: Any, var: Variable, indices: Any, **kwargs: Any) -> Any:
        """Update ``var`` with rows whose ``indices`` may repeat; by default they are summed first."""
        merged = IndexedSlices(grad, indices).merged()
        return self._resource_apply_sparse(merged.values, var, merged.indices, **kwargs)

    def _valid_dtypes(self) -> frozenset[np.dtype[Any]]:
        """Return the dtypes of variables that :meth:`minimize` takes gradients for."""
        return VALID_DTYPES

    # What a subclass may call.

    def _decayed_lr(self, var_dtype: Any) -> Tensor:
        """Return the learning rate of this step, after schedule and decay, as a scalar of ``var_dtype``.

        Raises: KeyError if there is no hyper ``learning_rate``.
        """
        hypers = self.step_hypers() if self._step is None else self._step.hypers
        return Tensor(np.asarray(hypers["learning_rate"], var_dtype))

    def _call_if_callable(self, param: Any) -> Any:
        """Return what ``param`` returns, if it is a function, else ``param``."""
        return param() if callable(param) else param

    def _resource_scatter_add(self, x: Variable, i: Any, v: Any) -> Tensor:
        """Add the rows ``v`` to the rows ``i`` of ``x``, repeated ones too, and return the new value."""
        array = x.local_array()
        np.add.at(array, np.asarray(i), np.asarray(v, array.dtype))
        return Tensor(array.copy())

    def _resource_scatter_update(self, x: Variable, i: Any, v: Any) -> Tensor:
        """Replace the rows ``i`` of ``x`` by ``v``, and return the new value."""
        array = x.local_array()
        array[np.asarray(i)] = np.asarray(v, array.dtype)
        return Tensor(array.copy())

    def _rule_and_arrays(self, variable: Variable) -> tuple[Rule, Array, list[Array], tuple[Any, ...]]:
        """Return what updates ``variable`` by the rule in this step: rule, value, slots and scalars."""
        if self._step is None:
            raise RuntimeError(f"an update method of {self._name} was called outside of apply_gradients")
        rule = self.rule_of(variable)
        storage, slots = self._arrays(variable, self._step.replica_id)
        scalars = self.scalars_of(rule, self._step.hypers, storage.dtype)
        return rule, storage, [slots[name] for name in rule.slots], scalars


def _overrides(optimizer_class: type, method: str) -> bool:
    return getattr(optimizer_class, method) is not getattr(UpdateMethods, method)


@functools.cache
def _takes_apply_state(method: Any) -> bool:
    return "apply_state" in inspect.signature(method).parameters


class _CopyAccess:
    """Reads and assignments while one replica's copies are updated: they reach that copy alone, or the one value."""

    def __init__(self, replica_id: int) -> None:
        self._replica_id = replica_id

    def read(self, variable: Any) -> Any:
        """Return the copy."""
        return variable.copy_of(self._replica_id)

    def assign(self, variable: Any, operation: str, value: Any) -> None:
        """Write to the copy."""
        variable.write_copy(self._replica_id, operation, value)

    def made_before(self, initializer: Any, args: Any, kwargs: Any) -> Any:
        """Return None: nobody else makes variables here."""

    def created(self, variable: Any) -> None:
        """Do nothing: variables of an update are an optimizer's own."""


class _UpdatedReplica:
    """Stands for the replica whose copies are being updated: reads find them; there is nobody to meet."""

    def __init__(self, strategy: Any, replica_id: int) -> None:
        self.strategy = strategy
        self.replica_id_in_sync_group = replica_id
        self.num_replicas_in_sync = int(strategy.num_replicas_in_sync)

    def merge_call(self, merge_fn: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:  # noqa: ARG002
        raise ReplicaContextError("an optimizer's update cannot meet other replicas; aggregate gradients before it")

    def all_reduce(self, reduce_op: Any, value: Any, options: Any = None) -> Any:  # noqa: ARG002
        raise ReplicaContextError("an optimizer's update cannot reduce over replicas; aggregate gradients before it")


def _context_of_copy(strategy: Any, replica_id: int) -> Context:
    return Context(strategy, _UpdatedReplica(strategy, replica_id), _CopyAccess(replica_id))


@functools.cache
def _has_rule(optimizer_class: Any) -> bool:
    return optimizer_class.rule is not OptimizerCore.rule or optimizer_class.rule_of is not UpdateMethods.rule_of


@functools.cache
def _updates_by_methods(optimizer_class: Any) -> bool:
    return bool(overridden_updates(optimizer_class)) or not _has_rule(optimizer_class)
