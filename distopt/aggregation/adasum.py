"""Adasum: add gradients that point in different directions, average those that agree."""

from __future__ import annotations

from collections.abc import Sequence

from distopt import norms
from distopt.aggregation.whole import Gradients, WholeAggregator
from distopt.canonical_sum import Node, SumTree
from distopt.types import Array


class Adasum(WholeAggregator):
    """The adaptive sum of each variable's gradients, along the canonical tree over the replicas.

        Adasum(a, b) = (1 - a.b / (2 |a|^2)) a  +  (1 - a.b / (2 |b|^2)) b

    Orthogonal gradients are added, equal ones averaged. Products are added up in float64.

    Units: those of one contribution, so give each replica the mean loss of its own samples (a job does).
    Source: Maleki et al. 2021, "Scaling Distributed Training with Adaptive Summation", section 3, applied by
        layers as there.

    >>> import numpy as np
    >>> Adasum().combine([[np.array([1.0, 0.0])], [np.array([0.0, 2.0])]])
    [array([1., 2.])]
    >>> Adasum().combine([[np.array([1.0, 3.0])], [np.array([1.0, 3.0])]])
    [array([1., 3.])]
    """

    name = "adasum"
    of_means = True

    def combine(self, gradients: Sequence[Gradients]) -> list[Array]:
        """See :meth:`WholeAggregator.combine`."""
        tree = SumTree(len(gradients))
        return [_of_node(tree, tree.root, column) for column in zip(*gradients, strict=True)]


def adaptive_sum(a: Array, b: Array) -> Array:
    """Return the adaptive sum of two gradients of any equal shape; a zero gradient changes nothing."""
    product, a_square, b_square = norms.dot(a, b), norms.dot(a, a), norms.dot(b, b)
    a_share = 1.0 - product / (2.0 * a_square) if a_square > 0.0 else 1.0
    b_share = 1.0 - product / (2.0 * b_square) if b_square > 0.0 else 1.0
    total: Array = a.dtype.type(a_share) * a + a.dtype.type(b_share) * b
    return total


def _of_node(tree: SumTree, node: Node, column: Sequence[Array]) -> Array:
    if node.stop - node.start == 1:
        return column[node.start]
    left, right = tree.children(node)
    return adaptive_sum(_of_node(tree, left, column), _of_node(tree, right, column))
