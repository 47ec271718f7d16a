"""Update rules: the arithmetic of each optimizer as a pure function, one algorithm a file.

``ALL`` lists every rule, so that tests run each through both engines.
"""

from __future__ import annotations

from distopt.optimizers.rule import Rule
from distopt.optimizers.rules.accumulation import ACCUMULATE, ACCUMULATED_MEAN
from distopt.optimizers.rules.adadelta import ADADELTA
from distopt.optimizers.rules.adafactor import ADAFACTOR, ADAFACTOR_FACTORED
from distopt.optimizers.rules.adagrad_da import ADAGRAD_DA
from distopt.optimizers.rules.adagrad_keras import ADAGRAD_KERAS
from distopt.optimizers.rules.adagrad_v1 import ADAGRAD_V1
from distopt.optimizers.rules.adam import ADAM
from distopt.optimizers.rules.adam_amsgrad import ADAM_AMSGRAD
from distopt.optimizers.rules.adam_keras3 import ADAM_KERAS3, ADAM_KERAS3_AMSGRAD
from distopt.optimizers.rules.adamax import ADAMAX
from distopt.optimizers.rules.ftrl import FTRL
from distopt.optimizers.rules.ftrl_power import FTRL_POWER
from distopt.optimizers.rules.lamb import LAMB
from distopt.optimizers.rules.lion import LION
from distopt.optimizers.rules.momentum_keras import MOMENTUM_KERAS
from distopt.optimizers.rules.momentum_v1 import MOMENTUM_V1
from distopt.optimizers.rules.moving_average import MOVING_AVERAGE
from distopt.optimizers.rules.muon import MUON, MUON_NESTEROV, MUON_NESTEROV_RMS, MUON_RMS
from distopt.optimizers.rules.nadam import NADAM
from distopt.optimizers.rules.nesterov_keras import NESTEROV_KERAS
from distopt.optimizers.rules.nesterov_v1 import NESTEROV_V1
from distopt.optimizers.rules.proximal_adagrad import PROXIMAL_ADAGRAD
from distopt.optimizers.rules.proximal_gradient_descent import PROXIMAL_GRADIENT_DESCENT
from distopt.optimizers.rules.rmsprop_centered_keras import RMSPROP_CENTERED_KERAS
from distopt.optimizers.rules.rmsprop_keras import RMSPROP_KERAS
from distopt.optimizers.rules.rmsprop_momentum import RMSPROP_MOMENTUM
from distopt.optimizers.rules.rmsprop_momentum_centered import RMSPROP_MOMENTUM_CENTERED
from distopt.optimizers.rules.sgd import SGD
from distopt.optimizers.rules.weight_decay import WEIGHT_DECAY

ALL: tuple[Rule, ...] = (
    SGD,
    MOMENTUM_KERAS,
    NESTEROV_KERAS,
    ADAM,
    ADAM_AMSGRAD,
    ADAMAX,
    NADAM,
    ADAGRAD_KERAS,
    ADADELTA,
    RMSPROP_KERAS,
    RMSPROP_CENTERED_KERAS,
    RMSPROP_MOMENTUM,
    RMSPROP_MOMENTUM_CENTERED,
    FTRL,
    FTRL_POWER,
    ADAM_KERAS3,
    ADAM_KERAS3_AMSGRAD,
    LION,
    LAMB,
    ADAFACTOR,
    ADAFACTOR_FACTORED,
    MUON,
    MUON_NESTEROV,
    MUON_RMS,
    MUON_NESTEROV_RMS,
    WEIGHT_DECAY,
    ACCUMULATE,
    ACCUMULATED_MEAN,
    MOVING_AVERAGE,
    MOMENTUM_V1,
    NESTEROV_V1,
    ADAGRAD_V1,
    ADAGRAD_DA,
    PROXIMAL_GRADIENT_DESCENT,
    PROXIMAL_ADAGRAD,
)

__all__ = [
    "ACCUMULATE",
    "ACCUMULATED_MEAN",
    "ADADELTA",
    "ADAFACTOR",
    "ADAFACTOR_FACTORED",
    "ADAGRAD_DA",
    "ADAGRAD_KERAS",
    "ADAGRAD_V1",
    "ADAM",
    "ADAMAX",
    "ADAM_AMSGRAD",
    "ADAM_KERAS3",
    "ADAM_KERAS3_AMSGRAD",
    "ALL",
    "FTRL",
    "FTRL_POWER",
    "LAMB",
    "LION",
    "MOMENTUM_KERAS",
    "MOMENTUM_V1",
    "MOVING_AVERAGE",
    "MUON",
    "MUON_NESTEROV",
    "MUON_NESTEROV_RMS",
    "MUON_RMS",
    "NADAM",
    "NESTEROV_KERAS",
    "NESTEROV_V1",
    "PROXIMAL_ADAGRAD",
    "PROXIMAL_GRADIENT_DESCENT",
    "RMSPROP_CENTERED_KERAS",
    "RMSPROP_KERAS",
    "RMSPROP_MOMENTUM",
    "RMSPROP_MOMENTUM_CENTERED",
    "SGD",
    "WEIGHT_DECAY",
]
