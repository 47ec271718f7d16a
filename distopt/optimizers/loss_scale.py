"""Optimizers of scaled losses: gradients of half precision that would vanish are kept by scaling the loss.

An optimizer is wrapped. The scale grows as long as gradients stay finite; a step whose aggregated gradients are not is
left out, on all replicas alike, and the scale shrinks. Where servers make the update, the replicas have the gradients
combined a first time to look at what comes out, and once more for the update: what they see is what is applied, for
twice the traffic of gradients. Two generations differ in who unscales, in whether a step that
is left out counts, and in how far the scale may fall; so there are two classes.

Source: tf_keras ``mixed_precision.LossScaleOptimizer``; Keras 3 ``LossScaleOptimizer``.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Self

import numpy as np

from distopt import deferral, replica_context
from distopt.autodiff.tape import GradientTape
from distopt.clipping import values_of, with_values
from distopt.errors import PlacementError
from distopt.optimizers.keras_legacy import Optimizer
from distopt.optimizers.names import unique_name
from distopt.optimizers.pipeline import GradientPath, Pair
from distopt.optimizers.saved_state import OptimizerState
from distopt.tensor import Operand, Tensor
from distopt.variable import Variable

logger = logging.getLogger(__name__)

DEFAULT_SCALE = 2.0**15
DEFAULT_GROWTH_STEPS = 2000
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
        """Return the current replica, and whether it can apply gradients that are aggregated already.

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
        return context, True

    def _aggregated(self, pairs: Iterable[Pair]) -> list[Pair]:
        inner = self.inner_optimizer
        return list(inner._aggregate_gradients(inner._transform_unaggregated_gradients(list(pairs))))

    def _agree_on(self, context: Any, pairs: Iterable[Pair], aggregated: bool) -> Any:
        """Return whether the gradients are finite on every replica, as a value that all replicas have alike."""
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


class LossScaleOptimizer(ScaledOptimizer):
    """An optimizer of scaled losses, legacy generation.

    ``get_scaled_loss`` before the gradients and ``get_unscaled_gradients`` after them are for the caller, or for
    ``minimize``, to use; ``apply_gradients`` takes unscaled gradients. With ``dynamic`` the scale starts at
    ``initial_scale`` (default 2**15), is doubled after ``dynamic_growth_steps`` (default 2000) finite steps, and
    halved, down to 1, by a step that is not: such a step is left out, but counts in ``iterations``. Otherwise the scale
    is ``initial_scale``, and no step is left out.

    Raises: TypeError if ``inner_optimizer`` is no optimizer or a loss scale optimizer, or ``dynamic`` is no bool;
        ValueError if it is wrapped already, and for ``dynamic=False`` without ``initial_scale`` or with growth steps.

    Source: tf_keras ``mixed_precision.LossScaleOptimizer``.

    >>> import distopt as tf
    >>> variable = tf.Variable(1.0)
    >>> optimizer = LossScaleOptimizer(tf.keras.optimizers.SGD(1.0), initial_scale=8)
    >>> count = optimizer.apply_gradients([(np.float32(np.inf), variable)])
    >>> float(variable.numpy()), float(optimizer.loss_scale.numpy()), int(optimizer.iterations.numpy())
    (1.0, 4.0, 1)
    """

    def __init__(
        self,
        inner_optimizer: Any,
        dynamic: bool = True,
        initial_scale: float | None = None,
        dynamic_growth_steps: int | None = None,
    ) -> None:
        if not isinstance(dynamic, bool):
            raise TypeError(f"dynamic must be True or False, not {dynamic!r}")
        if not dynamic and initial_scale is None:
            raise ValueError("with dynamic=False, initial_scale must be given")
        if not dynamic and dynamic_growth_steps is not None:
            raise ValueError("with dynamic=False the scale does not grow, so dynamic_growth_steps must be None")
        super().__init__(
            inner_optimizer, DEFAULT_SCALE if initial_scale is None else initial_scale, unique_name(type(self).__name__)
        )
        self.dynamic = dynamic
        inner_optimizer.tells_iterations = dynamic  # servers do not hear of the steps that are left out
        self.dynamic_growth_steps = (dynamic_growth_steps or DEFAULT_GROWTH_STEPS) if dynamic else None
        self._used: set[str] = set()

    @property
    def _looks_at_aggregate(self) -> bool:
        return self.dynamic

    @property
    def dynamic_counter(self) -> Variable | None:
        """The number of finite steps since the scale last changed; None if it does not change."""
        return self._counter if self.dynamic else None

    def get_scaled_loss(self, loss: Any) -> Any:
        """Return the loss times the scale; of a function, a function that returns that."""
        self._used.add("get_scaled_loss")
        return self._scaled(loss)

    def get_unscaled_gradients(self, grads: Sequence[Any]) -> list[Any]:
        """Return the gradients divided by the scale; None stays None."""
        self._used.add("get_unscaled_gradients")
        inverse = np.float32(1) / np.float32(self._scale.storage)
        unscaled = []
        for gradient in grads:
            values = None if gradient is None else values_of(gradient)
            unscaled.append(
                None if values is None else with_values(gradient, values * np.asarray(inverse).astype(values.dtype))
            )
        return unscaled

    def minimize(
        self, loss: Any, var_list: Any, grad_loss: Any = None, name: str | None = None, tape: GradientTape | None = None
    ) -> Any:
        """Take one step down the gradient of ``loss``, scaled on the way; as :meth:`Optimizer.minimize`."""
        tape = GradientTape() if tape is None else tape
        with tape:
            loss = self.get_scaled_loss(loss)
        pairs = self.inner_optimizer._compute_gradients(loss, var_list, grad_loss, tape)
        gradients = self.get_unscaled_gradients([gradient for gradient, _ in pairs])
        return self.apply_gradients(zip(gradients, [variable for _, variable in pairs], strict=True), name=name)

    def apply_gradients(
        self,
        grads_and_vars: Iterable[tuple[Any, Any]],
        name: str | None = None,
        experimental_aggregate_gradients: bool = True,
    ) -> Variable | None:
        """Apply unscaled gradients unless one of them, after the sum over replicas, is not finite.

        Raises: as :meth:`Optimizer.apply_gradients`; PlacementError for what servers cannot do.
        """
        inner = self.inner_optimizer
        pairs: Any = inner._checked(grads_and_vars)
        context, takes_aggregated = self._replica(experimental_aggregate_gradients)
        inner.build([variable for _, variable in pairs])
        if not pairs:
            return None
        missing = [helper for helper in ("get_scaled_loss", "get_unscaled_gradients") if helper not in self._used]
        if missing:
            self._used.update(missing)  # said once
            logger.warning("%s was not called before apply_gradients: is the loss scaled?", " nor ".join(missing))
        if not self.dynamic:
            applied: Variable | None = inner.apply_gradients(pairs, name, experimental_aggregate_gradients)
            return applied
        aggregated = self._aggregated(pairs) if experimental_aggregate_gradients else pairs
        if not self._agree_on(context, aggregated, experimental_aggregate_gradients):
            context.merge_call(self._leave_out)
            return inner.iterations
        if takes_aggregated:
            inner.apply_gradients(aggregated, name, experimental_aggregate_gradients=False)
        else:
            inner.apply_gradients(pairs, name)
        context.merge_call(self._count)
        return inner.iterations

    def _leave_out(self, strategy: Any) -> None:  # noqa: ARG002
        self._shrink(1.0)
        iterations = self.inner_optimizer.iterations
        iterations.write_all("assign_add", np.asarray(1, iterations.dtype))

    def _count(self, strategy: Any) -> None:  # noqa: ARG002
        assert self.dynamic_growth_steps is not None
        self._count_finite_step(self.dynamic_growth_steps)

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments, the inner optimizer as class name and configuration."""
        return {
            "inner_optimizer": _described(self.inner_optimizer),
            "dynamic": self.dynamic,
            "initial_scale": self.initial_scale,
            "dynamic_growth_steps": self.dynamic_growth_steps,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: dict[str, Any] | None = None) -> Self:
        """Return the optimizer that ``config`` describes."""
        inner = _made(config["inner_optimizer"], custom_objects)
        return cls(inner, **{name: value for name, value in config.items() if name != "inner_optimizer"})


class LossScaleOptimizerV3(ScaledOptimizer):
    """An optimizer of scaled losses, Keras 3 generation.

    ``scale_loss`` is for the caller, or for ``minimize``, to use; ``apply_gradients`` takes the gradients of the scaled
    loss and unscales them itself. A step whose gradients are not finite is left out, does not count in ``iterations``,
    and halves the scale; ``dynamic_growth_steps`` finite ones double it.

    Raises: TypeError if ``inner_optimizer`` is no optimizer, or a loss scale optimizer; ValueError if it is wrapped
        already, for ``dynamic=False``, and for any other argument.

    Source: Keras 3 ``LossScaleOptimizer``.

    >>> import distopt as tf
    >>> variable = tf.Variable(1.0)
    >>> optimizer = LossScaleOptimizerV3(tf.keras.optimizers.SGD(1.0), initial_scale=8.0)
    >>> count = optimizer.apply_gradients([(np.float32(4.0), variable)])
    >>> float(variable.numpy())
    0.5
    """

    def __init__(
        self,
        inner_optimizer: Any,
        initial_scale: float = DEFAULT_SCALE,
        dynamic_growth_steps: int = DEFAULT_GROWTH_STEPS,
        name: str | None = None,
        **kwargs: Any,
    ) -> None:
        if not kwargs.pop("dynamic", True):
            raise ValueError("the scale is dynamic here; for a constant one give the inner optimizer loss_scale_factor")
        if kwargs:
            raise ValueError(f"{', '.join(kwargs)} belong to the inner optimizer")
        super().__init__(inner_optimizer, initial_scale, name or unique_name("LossScaleOptimizer"))
        inner_optimizer.loss_scale_factor = None
        self.dynamic_growth_steps = dynamic_growth_steps

    @property
    def dynamic_scale(self) -> Variable:
        """The scale: a float32 variable."""
        return self._scale

    @property
    def step_counter(self) -> Variable:
        """The number of finite steps since the scale last changed."""
        return self._counter

    def scale_loss(self, loss: Any) -> Any:
        """Return the loss times the scale; of a function, a function that returns that."""
        return self._scaled(loss)

    def minimize(
        self, loss: Any, var_list: Any, grad_loss: Any = None, name: str | None = None, tape: GradientTape | None = None
    ) -> Any:
        """Take one step down the gradient of ``loss``, scaled on the way; as :meth:`Optimizer.minimize`."""
        tape = GradientTape() if tape is None else tape
        with tape:
            loss = self.scale_loss(loss)
        return self.apply_gradients(self.inner_optimizer._compute_gradients(loss, var_list, grad_loss, tape), name)

    def apply(self, grads: Iterable[Any], trainable_variables: Iterable[Variable] | None = None) -> None:
        """Apply gradients of the scaled loss to variables; by default to those of the first step, in their order."""
        variables = self.inner_optimizer._variables if trainable_variables is None else trainable_variables
        self.apply_gradients(zip(grads, variables, strict=True))

    def apply_gradients(self, grads_and_vars: Iterable[tuple[Any, Any]], name: str | None = None) -> Variable | None:
        """Divide gradients by the scale, and apply them unless one, after the sum over replicas, is not finite.

        Raises: as :meth:`Optimizer.apply_gradients`; PlacementError for what servers cannot do.
        """
        context, takes_aggregated = self._replica()
        inner = self.inner_optimizer
        scale = self._scale.storage
        given = inner._checked(grads_and_vars)
        inner.build([variable for _, variable in given])
        if not given:
            return None
        pairs = []
        for gradient, variable in given:
            values = values_of(gradient)
            pairs.append((with_values(gradient, values / scale.astype(values.dtype)), variable))
        aggregated = self._aggregated(pairs)
        if not self._agree_on(context, aggregated, aggregated=True):
            context.merge_call(self._leave_out)
            return inner.iterations
        if inner.clips_own_gradients or not takes_aggregated:
            inner.apply_gradients(pairs, name)  # clipped before they are summed, or summed by servers
        else:
            inner.apply_gradients(aggregated, name, experimental_aggregate_gradients=False)
        context.merge_call(self._count)
        return inner.iterations

    def _leave_out(self, strategy: Any) -> None:  # noqa: ARG002
        self._shrink(0.0)

    def _count(self, strategy: Any) -> None:  # noqa: ARG002
        self._count_finite_step(self.dynamic_growth_steps)

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments, the inner optimizer as class name and configuration."""
        return {
            "name": self._name,
            "inner_optimizer": _described(self.inner_optimizer),
            "initial_scale": self.initial_scale,
            "dynamic_growth_steps": self.dynamic_growth_steps,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: dict[str, Any] | None = None) -> Self:
        """Return the optimizer that ``config`` describes."""
        inner = _made(config["inner_optimizer"], custom_objects)
        return cls(inner, **{name: value for name, value in config.items() if name != "inner_optimizer"})


def _described(optimizer: Optimizer) -> dict[str, Any]:
    return {"class_name": type(optimizer).__name__, "config": optimizer.get_config()}


def _made(description: dict[str, Any], custom_objects: dict[str, Any] | None) -> Any:
    from distopt import optimizers

    name = description["class_name"]
    made: Callable[..., Any] | None = (custom_objects or {}).get(name) or getattr(optimizers, name, None)
    if made is None:
        raise ValueError(f"unknown optimizer {name!r}; give its class in custom_objects")
    return made.from_config(dict(description["config"]))  # type: ignore[attr-defined]  # an optimizer's class
