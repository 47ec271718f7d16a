"""What an optimizer of one's own may define, as TensorFlow 1 calls it.

Source: TensorFlow 2.21 ``tensorflow/python/training/optimizer.py``, its notes for implementors.
"""

# ruff: noqa: ARG002  (TensorFlow's arguments, in its order, some of which have no meaning here)
from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from distopt import deferral
from distopt.indexed_slices import IndexedSlices
from distopt.optimizers.owner import apply_constraint
from distopt.optimizers.pipeline import Pair, Pairs
from distopt.optimizers.recorded import RecordedUpdates
from distopt.variable import Variable

_DENSE_METHODS = ("_resource_apply_dense", "_apply_dense")
_SPARSE_METHODS = ("_resource_apply_sparse", "_resource_apply_sparse_duplicate_indices", "_apply_sparse")


class OwnMethods(RecordedUpdates):
    """An optimizer that calls ``_prepare``, the method that updates each variable, and ``_finish``.

    Where a class has a rule and defines none of them, the rule runs instead.
    """

    def _prepare(self) -> Any:  # type: ignore[override]  # without arguments, as TensorFlow 1 calls it
        """Do what one update of all variables needs before it."""

    def _finish(self, update_ops: Sequence[Any], name_scope: str) -> Any:
        """Do what follows the update of all variables; ``update_ops`` is what their updates returned."""

    def _apply_dense(self, grad: Any, var: Variable) -> Any:
        """Update ``var`` with a dense gradient; for classes that do not define ``_resource_apply_dense``."""
        raise NotImplementedError(f"{type(self).__name__} defines neither _resource_apply_dense nor _apply_dense")

    def _apply_sparse(self, grad: IndexedSlices, var: Variable) -> Any:
        """Update ``var`` with rows at distinct indices; for classes that do not define ``_resource_apply_sparse``."""
        raise NotImplementedError(f"{type(self).__name__} defines neither _resource_apply_sparse nor _apply_sparse")

    def _resource_apply_dense(self, grad: Any, var: Variable, apply_state: Any = None) -> Any:
        """Update ``var`` with a dense gradient; by default with the rule, or with :meth:`_apply_dense`."""
        return super()._resource_apply_dense(grad, var) if self._has_rule else self._apply_dense(grad, var)

    def _resource_apply_sparse(self, grad: Any, var: Variable, indices: Any, apply_state: Any = None) -> Any:
        """Update ``var`` with the rows ``grad`` at distinct ``indices``; by default as a dense gradient is taken."""
        if self._has_rule:
            return super()._resource_apply_sparse(grad, var, indices)
        return self._apply_sparse(IndexedSlices(grad, indices, var.shape), var)

    def _update_variable(self, gradient: Any, variable: Variable, apply_state: Any) -> Any:
        if isinstance(gradient, IndexedSlices):
            return self._resource_apply_sparse_duplicate_indices(gradient.values, variable, gradient.indices)
        result = self._resource_apply_dense(gradient, variable)
        if variable.constraint is not None:
            apply_constraint(variable, variable.local_array())
        return result

    def _check_methods(self, pairs: Iterable[Pair]) -> None:
        if self._has_rule:
            return
        for is_sparse in {isinstance(gradient, IndexedSlices) for gradient, _ in pairs}:
            methods = _SPARSE_METHODS if is_sparse else _DENSE_METHODS
            if all(getattr(type(self), method) is getattr(OwnMethods, method) for method in methods):
                kind = "row-sparse" if is_sparse else "dense"
                raise NotImplementedError(
                    f"{type(self).__name__} cannot take a {kind} gradient: define one of {', '.join(methods)}"
                )

    def _run_methods(self, pairs: Pairs) -> None:
        with deferral.evaluate(self._run):
            self._prepare()
            updates = [self._update_variable(gradient, variable, {}) for gradient, variable in pairs]
            self._finish(updates, self._name)
