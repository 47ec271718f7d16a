"""Muon with the Keras face."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from distopt.optimizers import rules
from distopt.optimizers.keras3 import Keras3Optimizer
from distopt.optimizers.rule import Rule
from distopt.variable import Variable

NORM_EPSILON = 1e-7
"""Added to the norm that a matrix is divided by; the reference has it as a constant."""


class Muon(Keras3Optimizer):
    """Orthogonalized momentum for matrices, Adam for every other variable.

    Adam, with ``adam_beta_1``, ``adam_beta_2``, ``epsilon``, ``adam_weight_decay`` and the learning rate times
    ``adam_lr_ratio``, also updates the matrices whose name contains "embedding", unless ``exclude_embeddings`` is
    false, or matches one of the regular expressions ``exclude_layers``. Further arguments: see
    :class:`Keras3Optimizer`.

    Source: Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks"; Liu et al. 2025 for
    ``rms_rate``; Keras 3 ``Muon``.

    >>> import distopt as tf
    >>> variable = tf.Variable([[2.0, 0.0], [0.0, 2.0]])
    >>> optimizer = Muon(1.0, weight_decay=None, rms_rate=None)
    >>> count = optimizer.apply_gradients([(np.array([[5.0, 0.0], [0.0, 5.0]], np.float32), variable)])
    >>> variable.numpy().round(1)  # both singular values of the step are near one
    array([[0.9, 0. ],
           [0. , 0.9]], dtype=float32)
    """

    def __init__(
        self,
        learning_rate: Any = 0.001,
        adam_beta_1: float = 0.9,
        adam_beta_2: float = 0.999,
        adam_weight_decay: float | None = 0.004,
        epsilon: float = 1e-7,
        weight_decay: float | None = 0.004,
        *,
        exclude_layers: Sequence[str] | None = None,
        exclude_embeddings: bool = True,
        muon_a: float = 3.4445,
        muon_b: float = -4.7750,
        muon_c: float = 2.0315,
        adam_lr_ratio: float = 1,
        momentum: float = 0.95,
        ns_steps: int = 5,
        nesterov: bool = True,
        rms_rate: float | None = 0.2,
        **kwargs: Any,
    ) -> None:
        super().__init__(learning_rate, weight_decay=weight_decay, **kwargs)
        self.adam_beta_1 = adam_beta_1
        self.adam_beta_2 = adam_beta_2
        self.adam_weight_decay = adam_weight_decay
        self.epsilon = epsilon
        self.exclude_layers = list(exclude_layers or [])
        self.exclude_embeddings = exclude_embeddings
        self.muon_a = muon_a
        self.muon_b = muon_b
        self.muon_c = muon_c
        self.adam_lr_ratio = adam_lr_ratio
        self.momentum = momentum
        self.ns_steps = ns_steps
        self.nesterov = nesterov
        self.rms_rate = rms_rate

    @property
    def rule(self) -> Rule:
        """The update rule of the matrices."""
        if self.rms_rate is None:
            return rules.MUON_NESTEROV if self.nesterov else rules.MUON
        return rules.MUON_NESTEROV_RMS if self.nesterov else rules.MUON_RMS

    def rule_of(self, variable: Variable) -> Rule:
        """Return the update rule of one variable."""
        return rules.ADAM_KERAS3 if self._is_for_adam(variable) else self.rule

    def weight_decay_of(self, variable: Variable) -> float | None:
        """Return the weight decay of one variable; None if its weights are not decayed."""
        if self._is_for_adam(variable) and not self._is_undecayed(variable):
            return self.adam_weight_decay
        return super().weight_decay_of(variable)

    def _is_for_adam(self, variable: Variable) -> bool:
        if len(variable.shape) != 2 or (self.exclude_embeddings and "embedding" in variable.name.lower()):
            return True
        return any(re.search(keyword, variable.name) for keyword in self.exclude_layers)

    def scalars_of(self, rule: Rule, hypers: Mapping[str, float], dtype: np.dtype[Any]) -> tuple[Any, ...]:
        """Return the scalars of Muon's rule or of Adam's."""
        learning_rate = hypers["learning_rate"]
        if rule is rules.ADAM_KERAS3:
            betas = self.adam_beta_1, self.adam_beta_2
            return self.adam_scalars(learning_rate * self.adam_lr_ratio, betas, self.epsilon, dtype)
        scalars = [
            *(learning_rate, self.momentum, self.momentum - 1, self.ns_steps),
            *(self.muon_a, self.muon_b, self.muon_c, NORM_EPSILON),
        ]
        return tuple(map(dtype.type, scalars if self.rms_rate is None else [*scalars, self.rms_rate]))

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments, but for functions."""
        names = (
            *("adam_beta_1", "adam_beta_2", "adam_weight_decay", "epsilon", "exclude_layers", "exclude_embeddings"),
            *("muon_a", "muon_b", "muon_c", "adam_lr_ratio", "momentum", "ns_steps", "nesterov", "rms_rate"),
        )
        return {**super().get_config(), **{name: getattr(self, name) for name in names}}
