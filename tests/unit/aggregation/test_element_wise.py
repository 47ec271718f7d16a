from __future__ import annotations

from types import SimpleNamespace
from typing import Any, ClassVar

import ml_dtypes
import numpy as np
import pytest

from distopt import replica_context
from distopt.aggregation import Aggregator, Mean, Sum
from distopt.canonical_sum import add_rows
from distopt.errors import ReplicaContextError
from distopt.types import Array

DTYPES = [np.float16, ml_dtypes.bfloat16, np.float32, np.float64]


class Largest(Aggregator):
    """An aggregator as a user writes one."""

    name: ClassVar[str] = "largest"

    def combine(self, contributions: Array) -> Array:
        return np.asarray(contributions.max(axis=0))


class OneReplica:
    """A replica context that records what is merged."""

    def __init__(self) -> None:
        self.combined: list[Any] = []
        extended = SimpleNamespace(combine=self.combine)
        self.strategy = SimpleNamespace(extended=extended)
        self.replica_id_in_sync_group = 0
        self.num_replicas_in_sync = 1

    def merge_call(self, merge_fn: Any, args: Any = (), kwargs: Any = None) -> Any:
        return merge_fn(self.strategy, *args)

    def combine(
        self, aggregator: Aggregator, gradients: list[Any], variables: list[Any], may_sum_rows: bool
    ) -> list[Any]:
        assert len(variables) == len(gradients)
        assert not may_sum_rows
        self.combined.append(aggregator)
        return [aggregator.combine(np.stack([g, g])) for g in gradients]

    def all_reduce(self, reduce_op: Any, value: Any, options: Any = None) -> Any:
        raise AssertionError("an aggregator does not all-reduce by itself")


def context_of(replica: OneReplica | None) -> replica_context.Context:
    return replica_context.Context(None, replica, SimpleNamespace())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("num_replicas", [1, 2, 3, 5, 8])
def test_sum_of_rank_valued_contributions_is_closed_form(num_replicas: int, dtype: type) -> None:
    contributions: Array = np.repeat(np.arange(1, num_replicas + 1)[:, None], 3, axis=1).astype(dtype)
    total = Sum().combine(contributions)
    assert total.dtype == np.dtype(dtype)
    np.testing.assert_array_equal(total, np.full(3, num_replicas * (num_replicas + 1) // 2, dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("num_replicas", [1, 2, 3, 5, 8])
def test_mean_is_the_canonical_sum_divided_in_the_dtype(num_replicas: int, dtype: type) -> None:
    contributions: Array = np.random.default_rng(num_replicas).standard_normal((num_replicas, 40)).astype(dtype)
    mean = Mean().combine(contributions)
    assert mean.dtype == np.dtype(dtype)
    np.testing.assert_array_equal(mean, add_rows(contributions) / np.asarray(num_replicas, dtype))


@pytest.mark.parametrize("aggregator", [Sum(), Mean()])
def test_aggregator_that_sums_finishes_the_sum_as_it_combines(aggregator: Aggregator) -> None:
    contributions = np.random.default_rng(3).standard_normal((5, 40)).astype(np.float32)
    assert aggregator.sums
    finished = aggregator.finish(add_rows(contributions), 5)
    assert finished.tobytes() == aggregator.combine(contributions).tobytes()


@pytest.mark.parametrize("aggregator", [Sum(), Mean(), Largest()])
def test_combine_does_not_write_to_contributions(aggregator: Aggregator) -> None:
    contributions = np.random.default_rng(4).standard_normal((3, 5))
    before = contributions.copy()
    aggregator.combine(contributions)
    np.testing.assert_array_equal(contributions, before)


def test_aggregator_called_as_a_hook_combines_through_the_strategy_and_keeps_variables() -> None:
    replica, aggregator = OneReplica(), Largest()
    variables = [object(), object()]
    with replica_context.enter(context_of(replica)):
        pairs = aggregator(zip([np.array([1.0, 2.0]), np.array([3.0])], variables, strict=True))
    assert replica.combined == [aggregator]
    assert [variable for _, variable in pairs] == variables
    np.testing.assert_array_equal(pairs[0][0], [1.0, 2.0])


def test_aggregator_called_outside_of_a_replica_is_refused_by_name() -> None:
    with (
        replica_context.enter(context_of(None)),
        pytest.raises(ReplicaContextError, match="the aggregator 'largest' was called in a cross-replica context"),
    ):
        Largest()([])


def test_aggregator_that_does_not_sum_has_no_finish() -> None:
    with pytest.raises(NotImplementedError):
        Largest().finish(np.ones(1), 2)
