"""Optimizers: rules, the engine that runs them, slots, hypers, and the path of a gradient."""

from __future__ import annotations

from distopt.optimizers.adadelta import Adadelta
from distopt.optimizers.adafactor import Adafactor
from distopt.optimizers.adagrad import Adagrad
from distopt.optimizers.adam import Adam
from distopt.optimizers.adamax import Adamax
from distopt.optimizers.adamw import AdamW
from distopt.optimizers.choose import maximum, minimum, select
from distopt.optimizers.engine import Engine, get_engine, set_default_engine
from distopt.optimizers.ftrl import Ftrl
from distopt.optimizers.keras_legacy import Optimizer
from distopt.optimizers.lamb import Lamb
from distopt.optimizers.lion import Lion
from distopt.optimizers.loss_scale import LossScaleOptimizer, LossScaleOptimizerV3
from distopt.optimizers.muon import Muon
from distopt.optimizers.nadam import Nadam
from distopt.optimizers.rmsprop import RMSprop
from distopt.optimizers.rule import Rows, Rule, SparseUse
from distopt.optimizers.rule_optimizer import RuleOptimizer, rule_of
from distopt.optimizers.sgd import SGD

__all__ = [
    "SGD",
    "Adadelta",
    "Adafactor",
    "Adagrad",
    "Adam",
    "AdamW",
    "Adamax",
    "Engine",
    "Ftrl",
    "Lamb",
    "Lion",
    "LossScaleOptimizer",
    "LossScaleOptimizerV3",
    "Muon",
    "Nadam",
    "Optimizer",
    "RMSprop",
    "Rows",
    "Rule",
    "RuleOptimizer",
    "SparseUse",
    "get_engine",
    "maximum",
    "minimum",
    "rule_of",
    "select",
    "set_default_engine",
]
