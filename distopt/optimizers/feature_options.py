"""What Keras 3 added to every optimizer, as arguments and attributes; :mod:`distopt.optimizers.features` does it.

Source: Keras 3, ``keras.optimizers.Optimizer``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

from distopt.clipping import values_of, with_values
from distopt.errors import PlacementError
from distopt.indexed_slices import IndexedSlices
from distopt.optimizers.core import OptimizerCore, dense_gradient
from distopt.optimizers.features import AVERAGE, Features
from distopt.optimizers.pipeline import Pairs, check_gradients
from distopt.tensor import Tensor
from distopt.variable import Variable

FEATURE_OPTIONS: dict[str, Any] = {
    "weight_decay": None,
    "use_ema": False,
    "ema_momentum": 0.99,
    "ema_overwrite_frequency": None,
    "loss_scale_factor": None,
    "gradient_accumulation_steps": None,
}
"""Keyword arguments and what they are if not given."""


class FeatureOptions(OptimizerCore):
    """An optimizer that may decay weights, average variables, accumulate gradients and unscale them."""

    is_wrapped = False
    """Whether a loss scale optimizer decides on its steps."""

    def _set_features(self, options: dict[str, Any]) -> None:
        """Take the arguments of ``FEATURE_OPTIONS``, all off where not given.

        Raises: ValueError for a value outside of its range.
        """
        chosen = {**FEATURE_OPTIONS, **options}
        steps = chosen["gradient_accumulation_steps"]
        if steps and (not isinstance(steps, int) or steps < 2):
            raise ValueError(f"gradient_accumulation_steps must be an integer from 2, or None, but is {steps!r}")
        self._ema_momentum = chosen["ema_momentum"]
        self.features = Features(accumulation_steps=steps or 1)
        if chosen["use_ema"]:
            self.features.ema_momentum = checked_ema_momentum(self._ema_momentum)
            self.ema_overwrite_frequency = chosen["ema_overwrite_frequency"]
        self.loss_scale_factor = chosen["loss_scale_factor"]
        self.weight_decay = chosen["weight_decay"]

    @property
    def weight_decay(self) -> float | None:
        """Before each update ``w -= w * weight_decay * learning_rate``; None: no decay. May be changed at any time."""
        return self.features.weight_decay

    @weight_decay.setter
    def weight_decay(self, value: float | None) -> None:
        if value is not None and value < 0:
            raise ValueError(f"weight_decay must not be negative, but is {value}")
        self.features.weight_decay = value
        self.forget_bindings()

    @property
    def use_ema(self) -> bool:
        """Whether a moving average of every variable is kept, in the slot ``average``."""
        return self.features.ema_momentum is not None

    @property
    def ema_momentum(self) -> float:
        """How much of an average stays at each step: ``average = m * average + (1 - m) * w``."""
        return float(self._ema_momentum if self.features.ema_momentum is None else self.features.ema_momentum)

    @property
    def ema_overwrite_frequency(self) -> int | None:
        """After every so many steps the variables are set to their averages; None: never by themselves."""
        return self.features.ema_overwrite_frequency

    @ema_overwrite_frequency.setter
    def ema_overwrite_frequency(self, value: int | None) -> None:
        if value and (not isinstance(value, int) or value < 1):
            raise ValueError(f"ema_overwrite_frequency must be an integer from 1, or None, but is {value!r}")
        self.features.ema_overwrite_frequency = value or None

    @property
    def loss_scale_factor(self) -> float | None:
        """Gradients are those of a loss times this, and are divided by it first; see :meth:`scale_loss`."""
        return self.features.loss_scale_factor

    @loss_scale_factor.setter
    def loss_scale_factor(self, value: float | None) -> None:
        if value is not None and not value > 0:
            raise ValueError(f"loss_scale_factor must be above zero, but is {value}")
        self.features.loss_scale_factor = value

    @property
    def gradient_accumulation_steps(self) -> int | None:
        """How many apply calls make one step, with the mean of their gradients; None: each does."""
        steps = self.features.accumulation_steps
        return steps if steps > 1 else None

    def exclude_from_weight_decay(
        self, var_list: Iterable[Variable] | None = None, var_names: Sequence[str] | None = None
    ) -> None:
        """Do not decay the variables of ``var_list``, nor those whose name contains one of ``var_names``.

        Each of ``var_names`` is a regular expression. A later call replaces an earlier one.

        Raises: ValueError once the optimizer has been built.
        """
        if self._known:
            raise ValueError(f"{self._name} is built; exclude variables from weight decay before the first step")
        self._undecayed = frozenset(map(id, var_list or ()))
        self._undecayed_names = re.compile("|".join(var_names)) if var_names else None

    _undecayed: frozenset[int] = frozenset()
    _undecayed_names: re.Pattern[str] | None = None

    def weight_decay_of(self, variable: Variable) -> float | None:
        """Return the weight decay of one variable; None if its weights are not decayed."""
        return None if self._is_undecayed(variable) else self.features.weight_decay

    def _is_undecayed(self, variable: Variable) -> bool:
        if id(variable) in self._undecayed:
            return True
        return self._undecayed_names is not None and self._undecayed_names.search(variable.name) is not None

    def finalize_variable_values(self, var_list: Iterable[Variable]) -> None:
        """Set each variable to its moving average; nothing happens without ``use_ema``.

        For the end of a training, before the model is evaluated or saved.

        Raises: PlacementError where the averages are on parameter servers.
        """
        if not self.use_ema:
            return
        if not self.keeps_slots:
            raise PlacementError(
                "the moving averages are kept by the parameter servers; use placement 'replica', or "
                "ema_overwrite_frequency, which sets the variables where the averages are"
            )
        for variable in var_list:
            average = self.slots.get(variable, AVERAGE)
            if not variable.is_split:
                variable.write_all("assign", average.local_array().astype(variable.dtype, copy=False))
                continue
            for replica_id in variable.replica_ids:
                value = average.copy_of(replica_id).astype(variable.dtype, copy=False)
                variable.write_copy(replica_id, "assign", value)

    def scale_loss(self, loss: Any) -> Any:
        """Return the loss times ``loss_scale_factor``: what gradients are taken of."""
        factor = self.features.loss_scale_factor
        return loss if factor is None else loss * factor

    @property
    def changes_own_gradients(self) -> bool:
        """Whether each replica's gradients are changed before they are aggregated."""
        return self.features.loss_scale_factor is not None

    def prepare(self, pairs: Pairs) -> Pairs:
        """Return one replica's pairs as they go to be aggregated: divided by ``loss_scale_factor``.

        Gradients that are accumulated are made dense: their sum has the rows of all.
        """
        factor = self.features.loss_scale_factor
        if factor is not None:
            unscaled = []
            for gradient, variable in pairs:
                values = values_of(gradient)
                unscaled.append((with_values(gradient, values / values.dtype.type(factor)), variable))
            pairs = check_gradients(unscaled)
        return pairs if self.features.accumulation_steps == 1 else dense_pairs(pairs)

    def _feature_config(self) -> dict[str, Any]:
        """Return the arguments of ``FEATURE_OPTIONS`` as they are now."""
        return {option: getattr(self, option) for option in FEATURE_OPTIONS}


def dense_pairs(pairs: Pairs) -> Pairs:
    """Return the pairs with row-sparse gradients made dense."""
    if all(array is not None for array in pairs.arrays):
        return pairs
    dense = [(Tensor(dense_gradient(g, v)) if isinstance(g, IndexedSlices) else g, v) for g, v in pairs]
    return check_gradients(dense)


def checked_ema_momentum(momentum: Any) -> float:
    """Return ``momentum``.

    Raises: ValueError outside of 0..1.
    """
    if not 0 <= momentum <= 1:
        raise ValueError(f"ema_momentum must lie in 0..1, but is {momentum}")
    return float(momentum)
