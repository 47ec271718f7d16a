"""The TensorFlow 1 face: what users of ``tf.compat.v1.train.Optimizer`` call, eagerly and in a graph.

Both modes share one path: eagerly ``apply_gradients`` runs it at once, in a graph it becomes an operation
(:mod:`distopt.optimizers.recorded`).

Source: TensorFlow 2.21 ``tensorflow/python/training/optimizer.py``, whose semantics this follows.
"""

# ruff: noqa: ARG002  (TensorFlow's arguments, in its order, some of which have no meaning here)
from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from distopt import deferral, replica_context
from distopt.aggregation import Aggregator, Sum
from distopt.autodiff import completions
from distopt.autodiff.tape import GradientTape
from distopt.graph import GraphKeys, Operation, get_default_graph
from distopt.graph import gradients as deferred_gradients
from distopt.nest import flatten
from distopt.optimizers.given_pairs import wrong_pair
from distopt.optimizers.pipeline import GradientPath, Pair, check_gradients
from distopt.optimizers.recorded import check_initialized
from distopt.optimizers.v1.own_methods import OwnMethods
from distopt.optimizers.v1.slots_and_variables import SlotsAndVariables
from distopt.optimizers.v1.steps import count_step
from distopt.tensor import Operand
from distopt.variable import Variable


class AggregationMethod:
    """How the terms of a gradient may be added up; here always one after another. Source: ``tf.AggregationMethod``."""

    ADD_N = 0
    DEFAULT = 0
    EXPERIMENTAL_TREE = 1
    EXPERIMENTAL_ACCUMULATE_N = 2


_FLOATS = "dtypes of losses and variables are float16, bfloat16, float32 and float64"


class Optimizer(OwnMethods, SlotsAndVariables):
    """Base of the TensorFlow 1 optimizers.

    ``name`` is in the names of slots and operations. ``use_locking`` is kept, and has no effect: an update is never
    seen half done. Gradients are summed over the replicas of a strategy, never averaged.

    Hyperparameters may be numbers, tensors, variables, deferred tensors and functions without arguments; they are
    looked at once a step. Numbers reach float64 variables by way of float32, epsilon and penalties too.

    An optimizer of one's own defines ``_resource_apply_dense(grad, handle)`` and ``_resource_apply_sparse(grad, handle,
    indices)`` (or ``_apply_dense`` and ``_apply_sparse``), and ``_create_slots``, ``_prepare`` and ``_finish`` as far
    as it needs them. They run eagerly, in a graph whenever the operation runs.

    Raises: ValueError for a name that is empty or None.
    """

    GATE_NONE = completions.GATE_NONE
    GATE_OP = completions.GATE_OP
    GATE_GRAPH = completions.GATE_GRAPH

    def __init__(self, use_locking: bool, name: str, use_own_namescope_for_non_slot_vars: bool = False) -> None:
        if not name:
            raise ValueError(f"an optimizer needs a name, which becomes part of those of its slots; {name!r} is none")
        super().__init__(str(name))
        self._use_locking = use_locking
        self._own_scope = f"{name}/" if use_own_namescope_for_non_slot_vars else ""
        self.gradient_aggregator: Aggregator = Sum()
        self.gradient_transformers: Sequence[Any] = ()

    def get_name(self) -> str:
        """Return the name that was given to the constructor."""
        return self._name

    # Gradients.

    def minimize(
        self,
        loss: Any,
        global_step: Any = None,
        var_list: Any = None,
        gate_gradients: int = GATE_OP,
        aggregation_method: int | None = None,
        colocate_gradients_with_ops: bool = False,
        name: str | None = None,
        grad_loss: Any = None,
    ) -> Any:
        """Take one step down the gradient of ``loss``: :meth:`compute_gradients`, then :meth:`apply_gradients`.

        Raises: as both; ValueError if no variable has a gradient.
        """
        pairs = self.compute_gradients(
            loss,
            var_list,
            gate_gradients=gate_gradients,
            aggregation_method=aggregation_method,
            colocate_gradients_with_ops=colocate_gradients_with_ops,
            grad_loss=grad_loss,
        )
        if all(gradient is None for gradient, _ in pairs):
            names = [getattr(variable, "name", repr(variable)) for _, variable in pairs]
            raise ValueError(f"no gradient to apply: {loss!r} depends on none of the variables {names}")
        return self.apply_gradients(pairs, global_step=global_step, name=name)

    def compute_gradients(
        self,
        loss: Any,
        var_list: Any = None,
        gate_gradients: int = GATE_OP,
        aggregation_method: int | None = None,
        colocate_gradients_with_ops: bool = False,
        grad_loss: Any = None,
    ) -> list[tuple[Any, Any]]:
        """Return ``[(gradient, variable)]`` in the order of ``var_list``; a gradient may be None.

        ``loss`` is a function without arguments, called once, or in a graph a deferred tensor. ``var_list`` None stands
        for the trainable variables that the function reads, or for those of the graph. What is listed gets a gradient
        even if it is not trainable. ``grad_loss`` weighs the elements of the loss. In a graph, ``gate_gradients`` says
        what is computed before a gradient may be used: that gradient alone (GATE_NONE), those of all inputs of the
        operations that its variable goes into (GATE_OP), or all (GATE_GRAPH); a gradient that is used may be exchanged
        with other replicas. ``aggregation_method`` is checked, and changes nothing.

        Raises: RuntimeError for a loss that is no function where things run eagerly; in a graph ValueError for an
            unknown ``gate_gradients`` or ``aggregation_method``, for a loss, weights or variable of a dtype that has no
            gradients, and if there are no variables; TypeError for an entry of ``var_list`` that is no variable.
        """
        if callable(loss) and deferral.building() is None:
            with completions.gated(gate_gradients):
                return self._eager_gradients(loss, var_list, grad_loss)
        if callable(loss):
            loss = loss()
        if deferral.building() is None and not hasattr(loss, "graph"):
            raise RuntimeError(
                "where things run eagerly, the loss is a function without arguments that computes it, not "
                f"{loss!r}; a deferred loss is computed in `with tf.Graph().as_default():`"
            )
        if gate_gradients not in (self.GATE_NONE, self.GATE_OP, self.GATE_GRAPH):
            raise ValueError(f"gate_gradients is GATE_NONE (0), GATE_OP (1) or GATE_GRAPH (2), not {gate_gradients!r}")
        for what, tensors in (("the loss", [loss]), ("grad_loss", [grad_loss] if grad_loss is not None else [])):
            self._check_dtypes(what, tensors)
        graph = getattr(loss, "graph", None) or get_default_graph()
        variables = graph.get_collection(GraphKeys.TRAINABLE_VARIABLES) if var_list is None else flatten(var_list)
        for variable in variables:
            if not isinstance(variable, Operand):
                raise TypeError(f"var_list holds variables, not {variable!r}")
        if not variables:
            raise ValueError("there are no variables to optimize")
        if aggregation_method not in (None, 0, 1, 2):
            raise ValueError(f"aggregation_method is one of AggregationMethod (0, 1, 2), not {aggregation_method!r}")
        found = deferred_gradients(loss, variables, grad_loss, gate_gradients=gate_gradients)
        pairs = list(zip(found, variables, strict=True))
        self._check_dtypes("a variable", [variable for gradient, variable in pairs if gradient is not None])
        return pairs

    def _eager_gradients(self, loss: Any, var_list: Any, grad_loss: Any) -> list[tuple[Any, Any]]:
        tape = GradientTape()
        with tape:
            if var_list is not None:
                tape.watch(var_list)
            value = loss()
        variables = list(tape.watched_variables()) if var_list is None else flatten(var_list)
        return list(zip(tape.gradient(value, variables, grad_loss), variables, strict=True))

    def _check_dtypes(self, what: str, tensors: Sequence[Any]) -> None:
        for tensor in tensors:
            dtype = getattr(tensor, "dtype", None)
            if dtype is None:
                dtype = np.asarray(tensor).dtype
            if np.dtype(dtype) not in self._valid_dtypes():
                raise ValueError(f"{what} has dtype {dtype}, which has no gradients: {_FLOATS}")

    def apply_gradients(
        self,
        grads_and_vars: Iterable[tuple[Any, Any]],
        global_step: Any = None,
        name: str | None = None,
        skip_gradients_aggregation: bool = False,
    ) -> Operation | None:
        """Apply gradients to variables; then count one step in ``global_step``, if it is given.

        Where things run eagerly it is done now, and None is returned; in a graph an operation that does it, which
        joins the collection TRAIN_OP. Called in a replica context; gradients are summed over the replicas, unless
        ``skip_gradients_aggregation``: then each replica updates its own copies. Pairs without a gradient are left out.

        Raises: TypeError if ``grads_and_vars`` cannot be iterated over; ValueError if it is empty, no variable has a
            gradient, or a gradient does not fit; NotImplementedError for something other than a variable, or a missing
            method of an optimizer of one's own; RuntimeError in a cross-replica context, and for a row-sparse gradient
            of a variable with a constraint. Nothing has changed then.
        """
        given = tuple(grads_and_vars)
        try:
            pairs = [(gradient, variable) for gradient, variable in given]
        except (TypeError, ValueError) as error:
            raise wrong_pair(given) or error from None
        if not pairs:
            raise ValueError("there are no variables to apply gradients to")
        present = [(gradient, variable) for gradient, variable in pairs if gradient is not None]
        if not present:
            names = [getattr(variable, "name", repr(variable)) for _, variable in pairs]
            raise ValueError(f"no variable has a gradient: {names}")
        if deferral.evaluation() is None and (
            deferral.building() is not None or any(hasattr(operand, "graph") for pair in present for operand in pair)
        ):
            return self._record_step(present, global_step, name, skip_gradients_aggregation)
        self._apply(present, skip_gradients_aggregation)
        if global_step is not None:
            count_step(global_step)
        return None

    def _apply(self, pairs: Sequence[tuple[Any, Any]], skip_aggregation: bool = False) -> None:
        checked = check_gradients(pairs)
        path = GradientPath(self, not skip_aggregation)
        context = replica_context.current()
        if context.replica is None and not skip_aggregation:
            replica_context.current_replica("apply_gradients")  # raises
        self.build(checked.variables)
        with self._held():
            if context.replica is not None:
                path.run(context.replica, checked)
            else:
                context.strategy.extended.check(path)
                context.strategy.extended.update_copies(path, checked)

    def _record_step(
        self, pairs: Sequence[Any], global_step: Any, name: str | None, skip_aggregation: bool
    ) -> Operation:
        title = name or self._name
        update = self._record(pairs, lambda values: self._apply(values, skip_aggregation), f"{title}/update")

        def count(scope: Any) -> None:
            check_initialized([global_step], scope)
            count_step(global_step)

        kind, compute = ("NoOp", _nothing) if global_step is None else ("AssignAddVariableOp", count)
        operation = Operation(update.graph, kind, compute, name=title, control_inputs=[update], writes=True)
        if not any(member is operation for member in update.graph.get_collection(GraphKeys.TRAIN_OP)):
            update.graph.add_to_collection(GraphKeys.TRAIN_OP, operation)
        return operation

    def _kept_in_graph(self) -> Sequence[Variable]:
        return self.variables()

    def _aggregate_gradients(self, grads_and_vars: Iterable[Pair]) -> Iterable[Pair]:
        return self.gradient_aggregator(list(grads_and_vars))

    def _transform_unaggregated_gradients(self, grads_and_vars: Iterable[Pair]) -> Iterable[Pair]:
        return grads_and_vars

    def _transform_gradients(self, grads_and_vars: Iterable[Pair]) -> Iterable[Pair]:
        return grads_and_vars

    # Hyperparameters.

    def _set_hyper(self, name: str, value: Any) -> None:
        self._hypers.set(name, value)

    @property
    def iterations(self) -> Variable:
        """The number of steps that this optimizer has made. It is not among :meth:`variables`, nor in any graph."""
        with deferral.build(None):
            return super().iterations


def _nothing(_scope: Any) -> None:
    return None
