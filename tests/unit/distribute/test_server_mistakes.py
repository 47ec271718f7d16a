"""Workers of real servers that do not mean the same step: all end with an error that says so; nothing is applied."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import distopt as tf
from distopt.comm.zmq import ServerCommunicator
from distopt.distribute import SyncParameterServerStrategy
from distopt.distribute.served import relative_division, served
from distopt.errors import (
    DistoptError,
    JobAbortedError,
    PlacementError,
    UnequalHypersError,
    UnequalStepsError,
    VariableOrderError,
)
from tests.unit.comm.zmq.cluster import Cluster

pytestmark = pytest.mark.timeout(60)

Change = Callable[[Any, list[Any]], None]


def variables() -> list[Any]:
    return [tf.Variable(np.zeros(40, np.float32), name=name, trainable=False) for name in ("w", "b")]


def optimizer() -> Any:
    return tf.keras.optimizers.Adam(0.25, epsilon=0.5)


@pytest.fixture(autouse=True, scope="module")
def _compiled_kernels() -> None:
    optimizer().apply_gradients([(np.full(40, 1.0, np.float32), v) for v in variables()])


def run(change: Change, at: int, on: tuple[int, ...], servers: int = 2) -> tuple[list[DistoptError], list[Any]]:
    """Make steps until ``change`` was made on the workers ``on`` before step ``at``.

    Returns the errors of both workers, and what the servers hold, as bytes, at the end and as it should be.
    """
    expected: list[Any] = []

    def worker(comm: ServerCommunicator) -> None:
        strategy = SyncParameterServerStrategy(comm, replicas=2)
        with strategy.scope():
            own = variables()
        adam = optimizer()

        def step() -> None:
            adam.apply_gradients([(np.full(40, 1.0, np.float32), v) for v in own])

        for number in range(4):
            comm.step = number
            if number == at:
                expected.append([v.numpy() for v in own])
                if comm.rank in on:
                    change(adam, own)
            strategy.run(step)

    def owner(spans: Any) -> Any:
        adam = optimizer()
        return served(adam, adam.layout(variables()), spans, 2)

    spans = relative_division(optimizer().layout(variables()), servers)
    cluster = Cluster(2, servers, worker, num_replicas=2, owner=owner, spans=spans)
    errors = [task.error() for task in cluster.workers]
    assert cluster.ending().status == 1
    held = [np.concatenate([array.copy() for array in cluster.owners[s].variables() or [np.empty(0, np.float32)]])
            for s in sorted(cluster.owners)]  # fmt: skip
    assert all(isinstance(error, DistoptError) for error in errors), errors
    # A span ends with padding, which stays zero; every element of a variable is alike here.
    want = {0.0, *(float(x) for arrays in expected for array in arrays for x in array)}
    assert {float(x) for array in held for x in array} <= want
    return errors, held  # type: ignore[return-value]  # asserted above


def assign_steps(adam: Any, own: list[Any]) -> None:
    adam.iterations.write_all("assign", np.int64(7))


def turn_round(adam: Any, own: list[Any]) -> None:
    own.reverse()


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        (lambda adam, _: setattr(adam, "learning_rate", 0.75), UnequalHypersError, "different hypers at step 2"),
        (assign_steps, UnequalStepsError, "is at step"),
    ],
    ids=["learning rate", "iterations"],
)
def test_step_that_workers_label_differently_is_refused_and_nothing_is_applied(
    change: Change, error: type[DistoptError], text: str
) -> None:
    errors, _ = run(change, at=2, on=(1,))
    assert any(type(each) is error for each in errors)  # of two servers each may refuse another worker
    for each in errors:
        assert isinstance(each, error | JobAbortedError)
        assert text in str(each)
        assert error.__name__ in f"{type(each).__name__}: {each}"


@pytest.mark.parametrize("change", [turn_round], ids=["order"])
def test_lists_that_differ_at_the_first_step_are_named_by_all_workers(change: Change) -> None:
    errors, held = run(change, at=0, on=(1,))
    for error in errors:
        assert isinstance(error, VariableOrderError | JobAbortedError)
        assert "VariableOrderError" in f"{type(error).__name__}: {error}"
    assert not any(array.any() for array in held)


@pytest.mark.parametrize(
    ("setting", "value", "text"),
    [
        ("epsilon", 0.125, "epsilon was 0.5 and is 0.125 now"),
        ("clipvalue", 1.0, "clipvalue was (absent) and is 1.0 now"),
        ("amsgrad", True, "amsgrad was False and is True now"),
    ],
)
@pytest.mark.parametrize("on", [(0, 1), (1,)], ids=["on all", "on one"])
def test_setting_that_workers_change_after_the_first_step_is_refused_by_name(
    setting: str, value: Any, text: str, on: tuple[int, ...]
) -> None:
    errors, _ = run(lambda adam, _: setattr(adam, setting, value), at=1, on=on, servers=1)
    assert any(isinstance(error, PlacementError) for error in errors)
    assert all(text in str(error) for error in errors)
