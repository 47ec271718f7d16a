"""Optimizers of scaled losses: gradients of half precision that would vanish are kept by scaling the loss.

An optimizer is wrapped; see :mod:`distopt.optimizers.scaled`. Two generations differ in who unscales, in whether a step
that is left out counts, and in how far the scale may fall; so there are two classes.

Source: tf_keras ``mixed_precision.LossScaleOptimizer``; Keras 3 ``LossScaleOptimizer``.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from distopt.autodiff.tape import GradientTape
from distopt.clipping import values_of, with_values
from distopt.optimizers.names import unique_name
from distopt.optimizers.scaled import ScaledOptimizer, described
from distopt.variable import Variable

logger = logging.getLogger(__name__)

DEFAULT_SCALE = 2.0**15
DEFAULT_GROWTH_STEPS = 2000


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
        forget_this = self._remembered()
        aggregated = self._aggregated(pairs) if experimental_aggregate_gradients else pairs
        if not self._agree_on(context, aggregated, experimental_aggregate_gradients):
            context.merge_call(self._leave_out)
            return inner.iterations
        if takes_aggregated:
            inner.apply_gradients(aggregated, name, experimental_aggregate_gradients=False)
        else:
            forget_this()
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
            "inner_optimizer": described(self.inner_optimizer),
            "dynamic": self.dynamic,
            "initial_scale": self.initial_scale,
            "dynamic_growth_steps": self.dynamic_growth_steps,
        }


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
        forget_this = self._remembered()
        aggregated = self._aggregated(pairs)
        if not self._agree_on(context, aggregated, aggregated=True):
            context.merge_call(self._leave_out)
            return inner.iterations
        if takes_aggregated:
            inner.apply_gradients(aggregated, name, experimental_aggregate_gradients=False)
        else:
            forget_this()
            inner.apply_gradients(pairs, name)
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
            "inner_optimizer": described(self.inner_optimizer),
            "initial_scale": self.initial_scale,
            "dynamic_growth_steps": self.dynamic_growth_steps,
        }
