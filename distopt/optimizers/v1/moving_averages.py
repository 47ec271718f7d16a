"""Moving averages of variables and deferred tensors, and an optimizer that keeps them."""

# ruff: noqa: ARG002  (TensorFlow's arguments, in its order, some of which have no meaning here)
from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from distopt import deferral, replica_context
from distopt.graph import Deferred, GraphKeys, GraphVariable, Operation, functions, get_default_graph
from distopt.optimizers.rules.moving_average_v1 import moving_average_step_v1
from distopt.optimizers.v1.optimizer import Optimizer
from distopt.tensor import Operand
from distopt.types import Array, ReduceOp
from distopt.variable import Variable


class _Average(NamedTuple):
    """The average of ``source``; ``biased`` and ``updates`` are there if the start at zero is divided out."""

    shadow: Variable
    source: Any
    biased: Variable | None = None
    updates: Variable | None = None


class ExponentialMovingAverage:
    """Averages in which the past fades by ``decay`` at each :meth:`apply`.

        average' = average - (1 - d) (average - value)

    ``d`` is ``decay``, or with ``num_updates`` n the smaller of ``decay`` and ``(1 + n) / (10 + n)``. The average of a
    variable starts at the variable's value; that of a deferred tensor at 0, which ``zero_debias`` divides out.

    Source: ``tf.train.ExponentialMovingAverage``.
    """

    def __init__(
        self,
        decay: Any,
        num_updates: Any = None,
        zero_debias: bool = False,
        name: str = "ExponentialMovingAverage",
    ) -> None:
        self._decay = decay
        self._num_updates = num_updates
        self._zero_debias = zero_debias
        self._name = name
        self._averages: dict[int, _Average] = {}

    @property
    def name(self) -> str:
        """The name, which stands at the end of those of the averages."""
        return self._name

    def apply(self, var_list: Sequence[Any] | None = None) -> Operation | None:
        """Let the averages of ``var_list`` see the present values; None: the trainable variables of the graph.

        Where things run eagerly it is done now; in a graph an operation is returned that does it.

        Raises: TypeError for a value that is no float, and, where things run eagerly, for a tensor; ValueError for an
        empty list where there is no graph whose variables could be meant.
        """
        members = functions.trainable_variables() if var_list is None else list(var_list)
        in_graph = deferral.evaluation() is None and any(hasattr(member, "graph") for member in members)
        if not members:
            raise ValueError("there is nothing to average: give the variables as var_list")
        for member in members:
            if not isinstance(member, Variable) and not (in_graph and isinstance(member, Deferred)):
                raise TypeError(
                    f"averages are kept of variables, and in a graph of deferred tensors, not of {member!r}"
                )
            if member.dtype.kind in "biu":
                raise TypeError(f"{member.name} has dtype {member.dtype}; only floats are averaged")
        self.create(members)
        if not in_graph:
            self.update(members)
            return None
        graph = next(member.graph for member in members if hasattr(member, "graph"))
        for member in members:
            kept = graph.get_collection_ref(GraphKeys.MOVING_AVERAGE_VARIABLES)
            if isinstance(member, Variable) and not any(member is other for other in kept):
                kept.append(member)
        inputs = [operand for operand in (*members, self._num_updates) if isinstance(operand, Deferred)]

        def update(scope: Any) -> None:
            for member in members:
                scope.value_of(member)
            values = [scope.look_up(member).numpy() if isinstance(member, Deferred) else None for member in members]
            self._update(members, values, self._one_minus_decay(scope))

        return Operation(graph, "NoOp", update, inputs, name=self._name, writes=True)

    def create(self, var_list: Sequence[Any]) -> None:
        """Create the averages of ``var_list`` that do not exist."""
        for member in var_list:
            if id(member) not in self._averages:
                self._averages[id(member)] = self._create(member)

    def update(self, var_list: Sequence[Variable]) -> None:
        """Let the averages of variables see their present values, now, in whatever mode; they must exist."""
        self._update(var_list, [None] * len(var_list), self._one_minus_decay(deferral.evaluation()))

    def average(self, var: Any) -> Variable | None:
        """Return the variable that holds the average of ``var``; None if there is none."""
        found = self._averages.get(id(var))
        return None if found is None else found.shadow

    def average_name(self, var: Any) -> str:
        """Return the name that the average of ``var`` has or would have, without ``:0``."""
        return f"{var.name.partition(':')[0]}/{self._name}"

    def variables_to_restore(self, moving_avg_variables: Iterable[Any] | None = None) -> dict[str, Any]:
        """Return variables by the names under which a checkpoint is to be read: those averaged by their averages'."""
        averaged = list(moving_avg_variables) if moving_avg_variables is not None else functions.trainable_variables()
        found = {self.average_name(variable): variable for variable in averaged}
        chosen = {id(variable) for variable in averaged}
        others = [variable for variable in functions.global_variables() if id(variable) not in chosen]
        return found | {variable.name.partition(":")[0]: variable for variable in others}

    def _create(self, member: Any) -> _Average:
        name = self.average_name(member)
        if not isinstance(member, Deferred):
            with deferral.build(member.graph if isinstance(member, GraphVariable) else None):
                start = member.initial_value if isinstance(member, GraphVariable) else member.storage
                return _Average(Variable(start, trainable=False, dtype=member.dtype, name=name), member)
        with deferral.build(member.graph):
            zeros = np.zeros(member.shape, member.dtype)
            shadow = Variable(zeros, trainable=False, name=name)
            if not self._zero_debias:
                return _Average(shadow, member)
            biased = Variable(zeros, trainable=False, name=f"{name}/biased")
            return _Average(shadow, member, biased, Variable(0, trainable=False, name=f"{name}/local_step"))

    def _one_minus_decay(self, scope: Any) -> Any:
        """Return ``1 - d`` as float32, through which it reaches variables of any dtype."""
        if self._num_updates is None:
            return np.float32(1.0 - self._decay)
        updates = self._num_updates
        if isinstance(updates, Operand):
            updates = (scope.plain(updates) if scope is not None else updates).numpy()
        updates, one, ten = np.float32(updates), np.float32(1), np.float32(10)
        return one - np.minimum(np.float32(self._decay), (one + updates) / (ten + updates))

    def _update(self, members: Sequence[Any], values: Sequence[Array | None], one_minus_decay: Any) -> None:
        """Update the averages, once for all replicas; ``values`` are those of deferred tensors among ``members``."""
        context = replica_context.current()
        averages = _Averages([self._averages[id(member)] for member in members])
        if context.replica is None:
            _update_averages(context.strategy, averages, values, one_minus_decay)
        else:
            context.replica.merge_call(_update_averages, (averages, list(values), one_minus_decay))


class _Averages:
    """Averages as one leaf, which a strategy does not look into."""

    def __init__(self, averages: list[_Average]) -> None:
        self.averages = averages


def _update_averages(strategy: Any, averages: Any, values: Any, one_minus_decay: Any) -> None:
    averages = getattr(averages, "values", (averages,))[0]
    one_minus_decay = getattr(one_minus_decay, "values", (one_minus_decay,))[0]
    for (shadow, source, biased, updates), value in zip(averages.averages, values, strict=True):
        factor = shadow.dtype.type(one_minus_decay)
        if value is None:
            _follow(shadow, source, factor)
            continue
        mean = strategy.extended.all_reduce_arrays(ReduceOp.MEAN, value)
        target = shadow if biased is None else biased
        target.write_all("assign", moving_average_step_v1(target.storage, mean, factor))
        if biased is not None and updates is not None:
            updates.write_all("assign_add", np.asarray(1, updates.dtype))
            one = shadow.dtype.type(1)
            seen = one - np.power(one - factor, shadow.dtype.type(updates.storage))
            shadow.write_all("assign", biased.storage / seen)


def _follow(shadow: Variable, source: Variable, factor: Any) -> None:
    """Update the average of a variable, of each copy by itself where the variable is split."""
    if source.is_split:
        shadow.split(source.replica_ids)
    for replica in source.replica_ids or (None,):
        if replica is None:
            shadow.write_all("assign", moving_average_step_v1(shadow.storage, source.storage, factor))
        else:
            step = moving_average_step_v1(shadow.copy_of(replica), source.copy_of(replica), factor)
            shadow.write_copy(replica, "assign", step)


class MovingAverageOptimizer(Optimizer):
    """``opt``, and after each of its steps an average of the variables that had gradients.

    ``average_decay`` and ``num_updates`` are those of :class:`ExponentialMovingAverage`. ``sequential_update``: in a
    graph, the averaging waits for the update; otherwise it may see the values from before it.

    Source: ``tf.contrib.opt.MovingAverageOptimizer`` of TensorFlow 1.15.
    """

    def __init__(
        self, opt: Optimizer, average_decay: Any = 0.9999, num_updates: Any = None, sequential_update: bool = True
    ) -> None:
        super().__init__(opt._use_locking, f"{opt.get_name()}MovingAverage")
        self._opt = opt
        self._sequential_update = sequential_update
        self._ema = ExponentialMovingAverage(average_decay, num_updates=num_updates)
        self._averaged: list[Variable] = []

    def compute_gradients(self, *args: Any, **kwargs: Any) -> list[tuple[Any, Any]]:
        """Return what ``compute_gradients`` of the wrapped optimizer does."""
        return self._opt.compute_gradients(*args, **kwargs)

    def apply_gradients(
        self,
        grads_and_vars: Iterable[tuple[Any, Any]],
        global_step: Any = None,
        name: str | None = None,
        skip_gradients_aggregation: bool = False,
    ) -> Operation | None:
        """Apply gradients as the wrapped optimizer does, then average the variables that had one."""
        pairs = list(grads_and_vars)
        variables = [variable for gradient, variable in pairs if gradient is not None]
        self._ema.create(variables)  # before the update: an average starts at the value that a variable has now
        update = self._opt.apply_gradients(pairs, global_step, name, skip_gradients_aggregation)
        self._averaged += [v for v in variables if not any(v is known for known in self._averaged)]
        graph = get_default_graph() if update is None else update.graph
        with graph.control_dependencies([update] if update is not None and self._sequential_update else []):
            average = self._ema.apply(variables)
        return None if update is None else functions.group(update, average, name=name or self._name)

    def averages(self) -> dict[str, Variable]:
        """Return the averages by the names of the variables that they are of."""
        found = {variable.name.partition(":")[0]: self._ema.average(variable) for variable in self._averaged}
        return {name: average for name, average in found.items() if average is not None}

    def swapping_saver(self, *args: Any, **kwargs: Any) -> Any:
        """Refuse: there is no ``Saver`` here.

        Raises: ValueError before gradients were applied; NotImplementedError that says what to use.
        """
        if not self._averaged:
            raise ValueError("swapping_saver needs the averages, which apply_gradients or minimize creates")
        raise NotImplementedError("tf.train.Saver is not offered; save the variables that averages() returns by name")

    def get_slot(self, var: Any, name: str) -> Variable | None:
        """Return a slot of the wrapped optimizer."""
        return self._opt.get_slot(var, name)

    def get_slot_names(self) -> list[str]:
        """Return the names of the slots of the wrapped optimizer."""
        return self._opt.get_slot_names()

    def variables(self) -> list[Variable]:
        """Return the variables of the wrapped optimizer."""
        return self._opt.variables()
