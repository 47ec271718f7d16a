"""What placement ``server`` refuses, whatever a worker hosts; nothing reaches a server here."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import distopt as tf
from distopt.comm.communicator import Traffic
from distopt.distribute import SyncParameterServerStrategy
from distopt.errors import PlacementError
from tests.hooks import unit_length_before_sum


class OneWorkerOf:
    """Stands for a worker's link to its servers, of which none may be spoken to."""

    rank = 0
    shares_memory = False
    size: int
    num_servers: int

    def __init__(self, size: int, num_servers: int) -> None:
        self.traffic = Traffic()
        self.size = size
        self.num_servers = num_servers


@pytest.fixture(params=[(1, 1), (2, 1), (2, 2)], ids=lambda p: f"{p[0]}-workers-{p[1]}-servers")
def strategy(request: pytest.FixtureRequest) -> SyncParameterServerStrategy:
    return SyncParameterServerStrategy(OneWorkerOf(*request.param), replicas=2)


def apply(strategy: Any, optimizer: Any, **options: Any) -> None:
    variable = tf.Variable(np.zeros(2, np.float32))
    gradient = tf.Tensor(np.ones(2, np.float32))
    strategy.run(lambda: optimizer.apply_gradients([(gradient, variable)], **options))


def test_unaggregated_gradients_are_refused(strategy: SyncParameterServerStrategy) -> None:
    with pytest.raises(PlacementError, match="experimental_aggregate_gradients=False"):
        apply(strategy, tf.keras.optimizers.SGD(), experimental_aggregate_gradients=False)


def test_hook_over_whole_gradients_is_refused_by_name_on_two_servers() -> None:
    strategy = SyncParameterServerStrategy(OneWorkerOf(2, 2), replicas=2)
    with pytest.raises(PlacementError, match="unit_length_before_sum needs whole gradients"):
        apply(strategy, tf.keras.optimizers.SGD(gradient_aggregator=unit_length_before_sum))


def test_unaggregated_assignment_is_refused(strategy: SyncParameterServerStrategy) -> None:
    variable = tf.Variable(np.float32(0))
    with pytest.raises(PlacementError, match="an unaggregated write"):
        strategy.run(lambda: variable.assign(tf.Tensor(np.float32(1))))
    assert float(variable.numpy()) == 0.0
