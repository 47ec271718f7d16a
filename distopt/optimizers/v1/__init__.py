"""Optimizers with the face of TensorFlow 1, over the same core and rules; :mod:`distopt.compat.v1` has the names."""

from distopt.optimizers.v1.adadelta import AdadeltaOptimizer
from distopt.optimizers.v1.adagrad import AdagradOptimizer
from distopt.optimizers.v1.adagrad_da import AdagradDAOptimizer
from distopt.optimizers.v1.adam import AdamOptimizer
from distopt.optimizers.v1.ftrl import FtrlOptimizer
from distopt.optimizers.v1.gradient_descent import GradientDescentOptimizer
from distopt.optimizers.v1.momentum import MomentumOptimizer
from distopt.optimizers.v1.moving_averages import ExponentialMovingAverage, MovingAverageOptimizer
from distopt.optimizers.v1.optimizer import AggregationMethod, Optimizer
from distopt.optimizers.v1.proximal_adagrad import ProximalAdagradOptimizer
from distopt.optimizers.v1.proximal_gradient_descent import ProximalGradientDescentOptimizer
from distopt.optimizers.v1.rmsprop import RMSPropOptimizer
from distopt.optimizers.v1.sync_replicas import AggregatedRound, SyncReplicasOptimizer

__all__ = [
    "AdadeltaOptimizer",
    "AdagradDAOptimizer",
    "AdagradOptimizer",
    "AdamOptimizer",
    "AggregatedRound",
    "AggregationMethod",
    "ExponentialMovingAverage",
    "FtrlOptimizer",
    "GradientDescentOptimizer",
    "MomentumOptimizer",
    "MovingAverageOptimizer",
    "Optimizer",
    "ProximalAdagradOptimizer",
    "ProximalGradientDescentOptimizer",
    "RMSPropOptimizer",
    "SyncReplicasOptimizer",
]
