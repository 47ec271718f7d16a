"""What every optimizer holds, whatever face it shows: hypers, the number of steps, layouts, and slots.

A concrete optimizer gives :attr:`OptimizerBase.rule`, the hypers, and :meth:`OptimizerBase.scalars` where the rule's
scalars are not simply hypers. How a step is made of all that is in :mod:`distopt.optimizers.core`.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np

from distopt import replica_context
from distopt.arena import place
from distopt.errors import ForeignVariableError
from distopt.optimizers import hypers as hyper_arithmetic
from distopt.optimizers.changes import Changing
from distopt.optimizers.clips import Clips
from distopt.optimizers.features import ACCUMULATED_CALLS, AVERAGE, Features, Treatment
from distopt.optimizers.hypers import HyperTable
from distopt.optimizers.layout import Layout
from distopt.optimizers.rule import Kind, Rows, Rule
from distopt.optimizers.saved_state import SavedState
from distopt.optimizers.slots import SlotStore
from distopt.variable import Variable

ITERATIONS = "iterations"
"""What the number of steps is called among hypers."""

VALID_DTYPES = frozenset(np.dtype(t) for t in (np.float16, ml_dtypes.bfloat16, np.float32, np.float64))


class OptimizerBase(Changing, SavedState):
    """Layouts, slots and hypers; ``name`` is unique enough to be in the names of variables."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._hypers = HyperTable(name)
        self._iterations: Variable | None = None
        self._weights: list[Variable] = []
        self._own_weights: dict[str, Variable] = {}
        self._scalars: tuple[Any, Any, Any, tuple[Any, ...]] = (None, None, None, ())
        """Rule, hypers and dtype of the latest call of :meth:`scalars`, and what it returned."""
        self._initial_decay = 0.0
        self._variables: list[Variable] = []
        self._known: set[int] = set()
        self._layouts: dict[tuple[int, ...], Layout] = {}
        self._latest_layout: tuple[Any, Layout] | None = None
        """The latest argument of :meth:`layout`, and what was returned."""
        self._building = threading.RLock()
        self.used_by: weakref.ref[Any] | None = None
        """The strategy under which the first step was made; None before, and outside of all of them."""
        self._accumulated: Variable | None = None
        self._completes_accumulation = False
        self._has_rules_after_norms = False
        self.tells_iterations = False
        """Whether the hypers of a step say how many came before it, for servers that have not counted all of them."""
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

    def scalars(self, hypers: Mapping[str, float], dtype: np.dtype[Any]) -> tuple[Any, ...]:
        """Return the rule's scalars, in its order, in ``dtype``; by default the hypers of the same names."""
        rule = self.rule
        kept_rule, kept_hypers, kept_dtype, kept = self._scalars
        if rule is kept_rule and dtype is kept_dtype and hypers == kept_hypers:
            return kept
        scalar = dtype.type
        kept = tuple([scalar(hypers[name]) for name in rule.scalars])
        self._scalars = rule, dict(hypers), dtype, kept
        return kept

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
        """Create accumulators, at zero, and averages, at the values of the variables, if the optimizer has them."""
        for name in self.features.slots:
            for variable in var_list:
                is_new = name not in self.slots.variables_of(variable)
                value, dtype = variable.storage if name == AVERAGE else "zeros", self.features.wider(variable.dtype)
                self.slots.add(variable, name, value, dtype=dtype)
                if is_new and name == AVERAGE and variable.is_split:
                    self.split_slots([variable])
                    for replica_id in variable.replica_ids:
                        self.slots.copy_of(variable, replica_id)[name][...] = variable.copy_of(replica_id)
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
        if self._initial_decay > 0 and "learning_rate" in values:
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
        return hyper_arithmetic.decayed(learning_rate, self._initial_decay, iterations)

    @property
    def has_callable_hypers(self) -> bool:
        """Whether a hyper is a function, whose value another process may see differently."""
        return self._hypers.has_callables()

    def layout(self, variables: Sequence[Variable]) -> Layout:
        """Return the layout of the gradients of ``variables``; the same object for the same variables.

        Raises: ValueError for a variable listed twice, or not built.
        """
        latest = self._latest_layout
        if latest is not None and variables is latest[0]:
            return latest[1]
        key = tuple(map(id, variables))
        found = self._layouts.get(key)
        if found is None:
            self.build(variables)
            whole = [v for v in variables if self.rule_of(v).kind is Kind.WHOLE_VARIABLE]
            found = self._layouts[key] = Layout(variables, whole)
        if type(variables) is tuple:  # which nobody can change
            self._latest_layout = variables, found
        return found

    def split_slots(self, variables: Iterable[Variable]) -> None:
        """Give the slots of each split variable one copy for each of its copies."""
        for variable in variables:
            if variable.is_split:
                self.slots.split(variable, variable.replica_ids)


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
