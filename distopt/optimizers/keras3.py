"""The Keras face, Keras 3 generation: the base of the optimizers that the legacy generation does not have.

Source: Keras 3, ``keras.optimizers.Optimizer``.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from distopt.indexed_slices import IndexedSlices
from distopt.optimizers.clip_options import CLIP_OPTIONS, Transformer
from distopt.optimizers.clips import Clips, clip_pairs
from distopt.optimizers.core import dense_gradient
from distopt.optimizers.feature_options import FEATURE_OPTIONS, dense_pairs
from distopt.optimizers.hypers import bias_correction, through_float32
from distopt.optimizers.keras_legacy import NO_EFFECT, Optimizer
from distopt.optimizers.pipeline import Pair, Pairs, check_gradients
from distopt.schedules import LearningRateSchedule
from distopt.tensor import Tensor
from distopt.variable import Variable


class Keras3Optimizer(Optimizer):
    """Base of the optimizers that behave as Keras 3's, where those differ from the legacy classes.

    At most one of ``clipnorm``, ``clipvalue`` and ``global_clipnorm``, each replica's gradient clipped before the sum
    (with ``gradient_accumulation_steps`` it is the mean of the sums that is clipped). A row-sparse gradient counts as a
    dense one, also where there is a constraint. The variables of the first step are all that there will be. Beyond
    Keras 3 there are ``minimize``, slots by name, ``gradient_aggregator`` and ``gradient_transformers``, as in the
    legacy classes.

    Raises: ValueError for an unknown argument, for two clip options, and for a learning rate that is not a float, a
        schedule or a callable.
    """

    def __init__(
        self,
        learning_rate: Any,
        *,
        name: str | None = None,
        gradient_aggregator: Any = None,
        gradient_transformers: Sequence[Transformer] | None = None,
        **kwargs: Any,
    ) -> None:
        if kwargs.pop("decay", None) is not None:
            warnings.warn("the argument `decay` has no effect on this optimizer", UserWarning, stacklevel=3)
        known = (*CLIP_OPTIONS, *FEATURE_OPTIONS)
        unknown = [option for option in kwargs if option not in (*known, *NO_EFFECT)]
        if unknown:
            raise ValueError(
                f"{type(self).__name__} takes no argument {', '.join(map(repr, unknown))}; besides its own: "
                f"{', '.join(known)}"
            )
        if not isinstance(learning_rate, float | LearningRateSchedule) and not callable(learning_rate):
            raise ValueError(f"learning_rate must be a float, a schedule or a callable, not {learning_rate!r}")
        self.local_clips = Clips()
        super().__init__(name, gradient_aggregator, gradient_transformers, **kwargs)
        self._set_hyper("learning_rate", learning_rate)

    @property
    def _limits(self) -> Clips:
        """Where the clip limits are: those of a replica's own gradients, unless gradients are accumulated."""
        return self.local_clips if self.features.accumulation_steps == 1 else self.clips

    def _set_clip(self, option: str, value: float | None) -> None:
        others = [other for other in CLIP_OPTIONS if other != option and getattr(self, other) is not None]
        if value is not None and others:
            raise ValueError(f"only one of clipnorm, clipvalue and global_clipnorm can be set; {others[0]} is")
        super()._set_clip(option, value or None)

    def apply(self, grads: Iterable[Any], trainable_variables: Iterable[Variable] | None = None) -> None:
        """Apply gradients to variables; by default to those of the first step, in their order.

        Raises: ValueError if the optimizer has made no step and is given no variables, if there are not as many of
            them as gradients, and as :meth:`apply_gradients`.
        """
        gradients = list(grads)
        variables = self._variables if trainable_variables is None else list(trainable_variables)
        if len(gradients) != len(variables):
            raise ValueError(f"{len(gradients)} gradients were given for {len(variables)} variables")
        if gradients:
            self.apply_gradients(zip(gradients, variables, strict=True))

    def _fitting(self, pairs: list[Pair]) -> Pairs:
        if not pairs:
            raise ValueError(f"{self._name} was given no gradients and variables")
        unknown = [v.name for _, v in pairs if isinstance(v, Variable) and id(v) not in self._known]
        if self._known and unknown:
            raise ValueError(f"{self._name} was built without {unknown}; make an optimizer for the new variables")
        missing = [variable.name for gradient, variable in pairs if gradient is None]
        if len(missing) == len(pairs):
            raise ValueError(f"no variable has a gradient: {missing}; does the loss depend on them?")
        if missing:
            warnings.warn(f"there are no gradients for {missing}", UserWarning, stacklevel=5)
        kept = [
            (Tensor(dense_gradient(g, v)) if isinstance(g, IndexedSlices) and v.constraint is not None else g, v)
            for g, v in pairs
            if g is not None
        ]
        checked = self.fits.known(kept) or check_gradients(kept)
        if not self._known:
            self.build([variable for _, variable in pairs])
        return checked

    @property
    def changes_own_gradients(self) -> bool:
        return self.local_clips.active or super().changes_own_gradients

    def prepare(self, pairs: Pairs) -> Pairs:
        """Return one replica's pairs as they go to be aggregated: unscaled, clipped, dense."""
        pairs = super().prepare(pairs)
        if self.local_clips.active:
            pairs = check_gradients(clip_pairs(pairs, self.local_clips))
        return dense_pairs(pairs)

    def adam_scalars(
        self, learning_rate: float, betas: tuple[float, float], epsilon: float, dtype: np.dtype[Any]
    ) -> tuple[Any, ...]:
        """Return the scalars of Adam's rules: ``alpha``, ``1 - beta_1``, ``1 - beta_2``, ``epsilon``.

        The powers of the betas are of betas rounded through float32, their complements are not, as in the reference.
        """
        beta_1, beta_2 = (dtype.type(through_float32(beta)) for beta in betas)
        with np.errstate(all="ignore"):
            alpha = dtype.type(learning_rate) * bias_correction(beta_1, beta_2, self.steps_taken() + 1)
        return alpha, *(dtype.type(1 - beta) for beta in betas), dtype.type(epsilon)

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments, but for functions."""
        return {
            "name": self._name,
            "learning_rate": self._serialize_hyperparameter("learning_rate"),
            **{option: getattr(self, option) for option in CLIP_OPTIONS},
            **self._feature_config(),
        }
