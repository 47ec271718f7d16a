"""Yogi, as a user would write it: the example of docs/optimizers.md, measured by ``python -m benchmarks.update``."""

import numpy as np

from distopt.optimizers import RuleOptimizer, rule_of


def yogi_step(variable, m, v, gradient, learning_rate, beta_1, one_minus_beta_1, one_minus_beta_2, epsilon):
    square = gradient * gradient
    m = beta_1 * m + one_minus_beta_1 * gradient
    v = v - one_minus_beta_2 * np.sign(v - square) * square
    return variable - learning_rate * m / (np.sqrt(v) + epsilon), m, v


class Yogi(RuleOptimizer):
    """Adam whose second moment grows and shrinks by single squares. Source: Zaheer et al. 2018, algorithm 2."""

    rule = rule_of(yogi_step)
    defaults = {"learning_rate": 0.01, "beta_1": 0.9, "beta_2": 0.999, "epsilon": 1e-3}
    initial_slots = {"v": 1e-6}
