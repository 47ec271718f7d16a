"""Base of optimizers that are one rule and its hypers: how users write their own."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import numpy as np

from distopt.optimizers.keras_legacy import Optimizer
from distopt.optimizers.rule import Rows, Rule, SparseUse

_COMPLEMENT = "one_minus_"
_CONSTANTS = {"zero": 0, "one": 1}
LAZY = SparseUse(Rows.TOUCHED, Rows.TOUCHED)


def rule_of(step: Callable[..., Any], sparse: SparseUse = LAZY) -> Rule:
    """Return the rule that ``step(variable, *slots, gradient, *scalars)`` carries out, with its arguments' names.

    ``sparse`` says which rows a row-sparse gradient touches; by default only its own, of the variable and of all slots.

    Raises: ValueError if the arguments are not these.

    >>> def step(variable, momentum, gradient, learning_rate, mu):
    ...     momentum = mu * momentum - learning_rate * gradient
    ...     return variable + momentum, momentum
    >>> rule = rule_of(step)
    >>> rule.slots, rule.scalars
    (('momentum',), ('learning_rate', 'mu'))
    """
    names = list(inspect.signature(step).parameters)
    if names[:1] != ["variable"] or "gradient" not in names:
        raise ValueError(
            f"a rule's arguments are (variable, *slots, gradient, *scalars), by these names; {step.__name__} has "
            f"({', '.join(names)})"
        )
    at = names.index("gradient")
    return Rule(step.__name__, step, tuple(names[1:at]), tuple(names[at + 1 :]), sparse)


class RuleOptimizer(Optimizer):
    """An optimizer whose class says all there is to it: a rule, the hypers' defaults, and the slots' first values.

    The constructor takes the hypers, by position in the order of ``defaults`` or by name; ``name``; and the keyword
    arguments of :class:`Optimizer`. Hypers are numbers, callables or schedules, and may be overwritten as attributes.

    The rule's scalars are found by name: a hyper; ``one_minus_`` and a hyper; ``zero`` and ``one``. For anything else,
    a bias correction say, override :meth:`scalars`.

    Raises: TypeError for an unknown or missing hyper, or one given twice; when the class is made, for a scalar that
        nothing gives.
    """

    rule: ClassVar[Rule]  # an attribute of the class, where others compute it
    defaults: ClassVar[Mapping[str, float]] = {}
    initial_slots: ClassVar[Mapping[str, Any]] = {}
    """By slot: a number, or a function of shape and dtype; zeros for those not listed."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        rule = getattr(cls, "rule", None)
        if not isinstance(rule, Rule):
            raise TypeError(f"{cls.__name__} needs a rule: rule = rule_of(step)")
        if unknown := [name for name in cls.initial_slots if name not in rule.slots]:
            raise TypeError(f"{cls.__name__} gives first values for {unknown}; the rule's slots are {rule.slots}")
        if cls.scalars is not RuleOptimizer.scalars:
            return
        unknown = [name for name in rule.scalars if not cls._is_given(name)]
        if unknown:
            raise TypeError(f"{cls.__name__} has no value for the scalars {unknown}; its hypers are {[*cls.defaults]}")

    def __init__(self, *hypers: Any, name: str | None = None, **kwargs: Any) -> None:
        names = list(self.defaults)
        if len(hypers) > len(names):
            raise TypeError(f"{type(self).__name__} has the hypers {names}; {len(hypers)} values were given")
        given = dict(zip(names, hypers, strict=False))
        for hyper in names:
            if hyper in kwargs:
                if hyper in given:
                    raise TypeError(f"{type(self).__name__} got two values for {hyper!r}")
                given[hyper] = kwargs.pop(hyper)
        super().__init__(name, **kwargs)
        if "lr" in kwargs:
            given["learning_rate"] = kwargs["lr"]
        for hyper, default in self.defaults.items():
            self._set_hyper(hyper, given.get(hyper, default))
        self._set_hyper("decay", self._initial_decay)

    @classmethod
    def _is_given(cls, scalar: str) -> bool:
        return scalar in _CONSTANTS or scalar.removeprefix(_COMPLEMENT) in cls.defaults

    def scalars(self, hypers: Mapping[str, float], dtype: np.dtype[Any]) -> tuple[Any, ...]:
        """Return the rule's scalars, in its order, in ``dtype``.

        To override: ``hypers`` are the values of this step, and ``int(self.iterations.numpy())`` is the number of steps
        made before it. Compute in ``dtype``, as the rule does.
        """
        one = dtype.type(1)
        values = []
        for name in self.rule.scalars:
            if name in hypers:
                values.append(dtype.type(hypers[name]))
            elif name in _CONSTANTS:
                values.append(dtype.type(_CONSTANTS[name]))
            else:
                values.append(one - dtype.type(hypers[name.removeprefix(_COMPLEMENT)]))
        return tuple(values)

    def initial_slot(self, name: str) -> Any:
        """Return the initializer of the slot ``name``: that of ``initial_slots``, else zeros."""
        return self.initial_slots.get(name, "zeros")

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        hypers = {name: self._serialize_hyperparameter(name) for name in self.defaults}
        return {**super().get_config(), **hypers, "decay": self._initial_decay}
