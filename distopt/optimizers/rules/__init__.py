"""Update rules: the arithmetic of each optimizer as a pure function, one algorithm a file.

``ALL`` lists every rule, so that tests run each through both engines.
"""

from __future__ import annotations

from distopt.optimizers.rule import Rule
from distopt.optimizers.rules.adam import ADAM
from distopt.optimizers.rules.adam_amsgrad import ADAM_AMSGRAD
from distopt.optimizers.rules.momentum_keras import MOMENTUM_KERAS
from distopt.optimizers.rules.nesterov_keras import NESTEROV_KERAS
from distopt.optimizers.rules.sgd import SGD

ALL: tuple[Rule, ...] = (SGD, MOMENTUM_KERAS, NESTEROV_KERAS, ADAM, ADAM_AMSGRAD)

__all__ = ["ADAM", "ADAM_AMSGRAD", "ALL", "MOMENTUM_KERAS", "NESTEROV_KERAS", "SGD"]
