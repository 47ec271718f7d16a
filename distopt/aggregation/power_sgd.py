"""PowerSGD: the sum of the replicas' gradients as a product of two thin matrices, each of which is itself a sum."""

from __future__ import annotations

import copy
from typing import Any, ClassVar

import numpy as np

from distopt import norms
from distopt.aggregation.base import GradientAggregator
from distopt.aggregation.compression import RESIDUAL
from distopt.aggregation.element_wise import Aggregator, Mean, MeanBySamples, Sum
from distopt.aggregation.memory import SHARED, Memory
from distopt.aggregation.options import whole_number
from distopt.aggregation.whole import JointAggregator, Meeting
from distopt.types import Array

_FACTOR = "factor"


class PowerSGD:
    """Compress the *sum* of the replicas' gradients of each matrix to rank ``rank``, by one step of power iteration.

        M_r = G_r + e_r            each replica's gradient and what it has left over
        P   = orthonormal columns of the sum of M_r Q
        Q'  = the sum of M_r^T P   and the next step's Q
        the sum is taken to be P Q'^T, and each replica keeps e_r = M_r - P Q'^T / R

    The factors are sums over replicas, so they cross a boundary added up, however many replicas a process hosts. That
    is why only a sum or a mean can be compressed so, and why whole gradients are needed. Tensors are seen as matrices
    with their last axis as columns; vectors, and matrices that two factors would not make smaller, are summed as they
    are. ``Q`` begins with normal random numbers, the same in every job.

    Raises: ValueError for a ``rank`` below 1.
    Source: Vogels, Karimireddy and Jaggi 2019, "PowerSGD: Practical Low-Rank Gradient Compression for Distributed
        Optimization", algorithms 1 and 2, with warm start.

    >>> Sum().compressed(PowerSGD(rank=2)).full_name
    'sum of power_sgd'
    """

    name: ClassVar[str] = "power_sgd"

    def __init__(self, rank: int = 2) -> None:
        self.rank = whole_number("rank", rank, least=1)

    def __repr__(self) -> str:
        return f"PowerSGD(rank={self.rank})"

    def applied_to(self, aggregator: GradientAggregator) -> LowRankSum:
        """Return ``aggregator``, which must be a sum or a mean, of low-rank gradients.

        Raises: ValueError.
        """
        if type(aggregator) not in (Sum, Mean, MeanBySamples):
            raise ValueError(
                f"power_sgd compresses the sum of the replicas' gradients, and {aggregator.name} needs each replica's "
                "own; use sum, mean or mean_by_samples, or another compression"
            )
        assert isinstance(aggregator, Aggregator), "it is one of these"
        return LowRankSum(aggregator, self)


class LowRankSum(JointAggregator):
    """What :class:`PowerSGD` makes of the aggregator ``inner``, which sums."""

    def __init__(self, inner: Aggregator, power_sgd: PowerSGD) -> None:
        self.name = inner.name  # type: ignore[misc]  # it takes the place of the other, with all that the class says
        self.of_means = inner.of_means  # type: ignore[misc]  # as above
        self.by_samples = inner.by_samples  # type: ignore[misc]  # as above
        self.memory: Memory = Memory()
        self._inner = copy.copy(inner)
        self._power_sgd = power_sgd

    def __repr__(self) -> str:
        return f"{self._inner!r}.compressed({self._power_sgd!r})"

    @property
    def full_name(self) -> str:
        """See :attr:`GradientAggregator.full_name`."""
        return f"{self.name} of {self._power_sgd.name}"

    def compressed(self, compression: Any) -> GradientAggregator:
        """Refuse: it is compressed.

        Raises: ValueError.
        """
        raise ValueError(f"the {self.full_name} is compressed already, and cannot be by {compression.name}, too")

    def combine_jointly(self, meeting: Meeting) -> list[Array]:
        """See :class:`JointAggregator`."""
        like = meeting.gradients_of[0]
        plain = [i for i, array in enumerate(like) if not self._is_worth_it(array)]
        matrices = [_Matrix(self.memory, meeting, i) for i in range(len(like)) if i not in plain]
        count = meeting.num_replicas
        for matrix in matrices:
            matrix.begin(self._power_sgd.rank)
        with np.errstate(all="ignore"):
            columns = [[gradients[i] for gradients in meeting.gradients_of] for i in plain]
            sums = meeting.total(columns + [matrix.left_products() for matrix in matrices])
            for matrix, product in zip(matrices, sums[len(plain) :], strict=True):
                matrix.basis = orthonormal(product)
            factors = meeting.total([matrix.right_products() for matrix in matrices])
            whole = {matrix.place: matrix.end(factor, count) for matrix, factor in zip(matrices, factors, strict=True)}
        whole |= dict(zip(plain, sums, strict=False))
        return [self._inner.finish(whole[i].reshape(-1), count).reshape(a.shape) for i, a in enumerate(like)]

    def _is_worth_it(self, array: Array) -> bool:
        if array.ndim < 2 or not array.size:
            return False
        columns = array.shape[-1]
        return bool(self._power_sgd.rank * (array.size // columns + columns) < array.size)


class _Matrix:
    """One variable of a step: what its replicas want to say, and its factors."""

    def __init__(self, memory: Memory, meeting: Meeting, place: int) -> None:
        self.place = place
        self._memory = memory
        self._replicas = meeting.replicas
        self._variable = meeting.variables[place]
        self._shape = meeting.gradients_of[0][place].shape
        self._wanted = [gradients[place].reshape(-1, self._shape[-1]) for gradients in meeting.gradients_of]
        self.basis: Array = self._wanted[0]
        self._factor: Array = self._wanted[0]

    def begin(self, rank: int) -> None:
        """Add what was left over, and find the factor of the step before."""
        for i, replica in enumerate(self._replicas):
            residual = self._memory.get(RESIDUAL, replica, self._variable)
            if residual is not None:
                self._wanted[i] = self._wanted[i] + residual.reshape(self._wanted[i].shape)
        factor = self._memory.get(_FACTOR, SHARED, self._variable)
        if factor is None:
            normal = np.random.default_rng([self.place, *self._shape]).standard_normal((self._shape[-1], rank))
            factor = normal.astype(self._wanted[0].dtype)
        self._factor = factor

    def left_products(self) -> list[Array]:
        """Return each hosted replica's ``M Q``."""
        return [wanted @ self._factor for wanted in self._wanted]

    def right_products(self) -> list[Array]:
        """Return each hosted replica's ``M^T P``."""
        return [wanted.T @ self.basis for wanted in self._wanted]

    def end(self, factor: Array, num_replicas: int) -> Array:
        """Return ``P Q^T``, and remember the new factor and what each hosted replica has left over."""
        whole: Array = self.basis @ factor.T
        share = whole / whole.dtype.type(num_replicas)
        for replica, wanted in zip(self._replicas, self._wanted, strict=False):
            left = wanted - share
            left[~np.isfinite(left)] = 0
            self._memory.put(RESIDUAL, replica, self._variable, left.reshape(self._shape))
        self._memory.put(_FACTOR, SHARED, self._variable, np.where(np.isfinite(factor), factor, 0))
        return whole


def orthonormal(columns: Array) -> Array:
    """Return an orthonormal basis of the columns, by Gram and Schmidt, left to right; zero for one that adds nothing.

    >>> orthonormal(np.array([[3.0, 1.0], [4.0, 0.0]]))
    array([[ 0.6,  0.8],
           [ 0.8, -0.6]])
    """
    basis: Array = np.zeros_like(columns)
    for k in range(columns.shape[1]):
        column = columns[:, k].astype(np.float64)
        size = np.sqrt(norms.dot(column, column))
        for j in range(k):
            earlier = basis[:, j].astype(np.float64)
            column -= norms.dot(column, earlier) * earlier
        length = np.sqrt(norms.dot(column, column))
        # What is left of a dependent column is its rounding.
        if length > 1e-6 * size or not np.isfinite(length):
            basis[:, k] = column / length
    return basis
