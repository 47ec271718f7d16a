"""What optimizers of scaled losses share: the inner optimizer, the scale, and how it grows and shrinks.

The scale grows as long as gradients stay finite; a step whose aggregated gradients are not is left out, on all replicas
alike, and the scale shrinks. Where servers make the update, the replicas have the gradients combined a first time to
look at what comes out, and once more for the update: what they see is what is applied, for twice the traffic of
gradients. The generations of such optimizers are in :mod:`distopt.optimizers.loss_scale`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any, Self

import numpy as np

from distopt import deferral, replica_context
from distopt.aggregation import GradientAggregator, LocalSteps
from distopt.clipping import values_of
from distopt.errors import PlacementError
from distopt.optimizers.keras_legacy import Optimizer
from distopt.optimizers.pipeline import GradientPath, Pair
from distopt.optimizers.saved_state import OptimizerState
from distopt.tensor import Operand, Tensor
from distopt.variable import Variable

FACTOR = 2.0
"""By which the scale grows and shrinks."""


class ScaledOptimizer:
    """What both generations share: the inner optimizer, the scale, and the count of finite steps.

    Attributes and methods that are not found here are the inner optimizer's; setting one of its hypers sets it there.
    """

    def __init__(self, inner_optimizer: Any, initial_scale: float, name: str) -> None:
        if isinstance(inner_optimizer, ScaledOptimizer):
            raise TypeError(f"{type(self).__name__} cannot wrap another loss scale optimizer")
        if not isinstance(inner_optimizer, Optimizer):
            raise TypeError(f"inner_optimizer must be an optimizer, not {inner_optimizer!r}")
        if inner_optimizer.is_wrapped:
            raise ValueError(f"{inner_optimizer.get_config()['name']} is wrapped by a loss scale optimizer already")
        inner_optimizer.is_wrapped = True
        self.inner_optimizer = inner_optimizer
        self.initial_scale = float(initial_scale)
        self._scale = Variable(np.float32(initial_scale), trainable=False, name=f"{name}/loss_scale")
        self._counter = Variable(0, trainable=False, dtype=np.dtype(np.int64), name=f"{name}/dynamic_counter")
        self._name = name

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or "inner_optimizer" not in self.__dict__:
            raise AttributeError(name)
        return getattr(self.inner_optimizer, name)

    def __setattr__(self, name: str, value: Any) -> None:
        inner = self.__dict__.get("inner_optimizer")
        is_hyper = inner is not None and ("learning_rate" if name == "lr" else name) in inner._hypers
        if is_hyper:
            setattr(inner, name, value)
        else:
            object.__setattr__(self, name, value)

    @property
    def loss_scale(self) -> Tensor:
        """What the loss is multiplied by now: a float32 scalar."""
        return Tensor(self._scale.numpy())

    def state(self) -> OptimizerState:
        """Return the inner optimizer's state, with scale and counter among its extras."""
        inner = self.inner_optimizer.state()
        own = {"loss_scale": self._scale.numpy(), "dynamic_counter": self._counter.numpy()}
        return OptimizerState(inner.iterations, inner.slots, {**inner.extras, **own})

    def load_state(self, state: OptimizerState) -> None:
        """Go on from ``state``.

        Raises: ValueError, before anything changes, if it is not of such an optimizer, or as the inner optimizer does.
        """
        own = {"loss_scale": self._scale, "dynamic_counter": self._counter}
        if missing := sorted(set(own) - set(state.extras)):
            raise ValueError(f"the state has no {' and no '.join(missing)}")
        others = {name: value for name, value in state.extras.items() if name not in own}
        self.inner_optimizer.load_state(OptimizerState(state.iterations, state.slots, others))
        for name, variable in own.items():
            variable.write_all("assign", state.extras[name])

    @property
    def _looks_at_aggregate(self) -> bool:
        """Whether a step depends on what the gradients come to."""
        return True

    def _refuse_graphs(self) -> None:
        if deferral.building() is not None:
            raise NotImplementedError(
                f"{type(self).__name__} works eagerly: its scale changes with what gradients come to; in a graph give "
                "an optimizer a constant loss_scale_factor"
            )

    def _scaled(self, loss: Any) -> Any:
        self._refuse_graphs()
        if callable(loss) and not isinstance(loss, Operand):
            return lambda: self._scaled(loss())
        scale = float(self._scale.storage)
        return loss * (loss.dtype.type(scale) if isinstance(loss, Operand) else scale)

    def _replica(self, aggregate: bool = True) -> tuple[Any, bool]:
        """Return the current replica, and whether it can apply gradients that were aggregated as they were given.

        Raises: ReplicaContextError outside of one; PlacementError for what servers cannot do.
        """
        self._refuse_graphs()
        context = replica_context.current_replica("apply_gradients")
        check = context.strategy.extended.check
        path = GradientPath(self.inner_optimizer, aggregate)
        check(path)
        try:
            check(GradientPath(self.inner_optimizer, aggregate=False))
        except PlacementError:
            if self._looks_at_aggregate and not path.runs_at_owners:
                raise PlacementError(
                    f"{type(self).__name__} aggregates gradients once to see whether they are finite, and servers once "
                    f"more, so {' and '.join(path.whole_gradient_hooks())} would run twice; use placement 'replica', "
                    "or loss_scale_factor with a constant scale"
                ) from None
            return context, False
        # The average of local steps is taken by an apply call with aggregation; what a replica has is changed before.
        return context, not (path.local_steps or (aggregate and self.inner_optimizer.changes_own_gradients))

    def _remembered(self) -> Callable[[], object]:
        """Return what has the aggregator forget what it remembers from now on, where gradients are combined again."""
        memory = self.inner_optimizer._aggregator_memory
        return (lambda: None) if memory is None else functools.partial(memory.go_back, memory.kept())

    def _aggregated(self, pairs: Iterable[Pair]) -> list[Pair]:
        """Return what one replica's pairs come to over all replicas: the bits that owners would update with."""
        inner = self.inner_optimizer
        if GradientPath(inner, aggregate=True).may_sum_rows:
            return inner.gradient_aggregator.over_replicas(pairs, may_sum_rows=True)
        return list(inner._aggregate_gradients(inner._transform_unaggregated_gradients(list(pairs))))

    def _agree_on(self, context: Any, pairs: Iterable[Pair], aggregated: bool) -> Any:
        """Return whether the gradients are finite on every replica, as a value that all replicas have alike.

        What ``aggregated`` gradients are is the same on all of them, unless a hook of the user's leaves them unequal.
        """
        aggregator = self.inner_optimizer.gradient_aggregator
        aggregated = (
            aggregated and isinstance(aggregator, GradientAggregator) and not isinstance(aggregator, LocalSteps)
        )
        is_bad = np.float32(not all(np.isfinite(values_of(gradient)).all() for gradient, _ in pairs))
        if not aggregated:
            is_bad = context.all_reduce("SUM", Tensor(np.asarray(is_bad)))
        return float(is_bad) == 0.0

    def _shrink(self, least: float) -> None:
        self._scale.storage[...] = max(float(self._scale.storage) / FACTOR, least)
        self._counter.storage[...] = 0

    def _count_finite_step(self, growth_steps: int) -> None:
        count = int(self._counter.storage) + 1
        if count >= growth_steps:
            count = 0
            grown = np.float32(self._scale.storage) * np.float32(FACTOR)
            if np.isfinite(grown):
                self._scale.storage[...] = grown
        self._counter.storage[...] = count

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: dict[str, Any] | None = None) -> Self:
        """Return the optimizer that ``config`` describes."""
        inner = _made(config["inner_optimizer"], custom_objects)
        return cls(inner, **{name: value for name, value in config.items() if name != "inner_optimizer"})


def described(optimizer: Optimizer) -> dict[str, Any]:
    """Return an inner optimizer as class name and configuration, as :meth:`ScaledOptimizer.from_config` takes it."""
    return {"class_name": type(optimizer).__name__, "config": optimizer.get_config()}


def _made(description: dict[str, Any], custom_objects: dict[str, Any] | None) -> Any:
    from distopt import optimizers

    name = description["class_name"]
    made: Callable[..., Any] | None = (custom_objects or {}).get(name) or getattr(optimizers, name, None)
    if made is None:
        raise ValueError(f"unknown optimizer {name!r}; give its class in custom_objects")
    return made.from_config(dict(description["config"]))  # type: ignore[attr-defined]  # an optimizer's class
