"""Sums of squares of terms: one order of additions, whether they are squared in registers or stored first."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

from distopt.arena import BLOCK
from distopt.canonical_sum import Node, SumTree, additions
from distopt.norms import block_sums
from distopt.optimizers import get_engine
from distopt.optimizers.engine import Blocks
from distopt.optimizers.norm_kernels import adds_squares
from distopt.optimizers.terms import Gradient, Source
from distopt.sum_loops import MOST_STREAMS

RANGES = [(0, 3 * BLOCK + 5), (3 * BLOCK + 16, 3 * BLOCK + 17), (4 * BLOCK, 4 * BLOCK), (4 * BLOCK, 5 * BLOCK - 1)]


def source_of(terms: int, **steps: bool) -> Source:
    return Source(additions(SumTree(terms), tuple(Node(r, r + 1) for r in range(terms))), **steps)


@pytest.mark.parametrize(
    ("dtype", "source", "scalars"),
    [
        (np.float32, source_of(1), ()),
        (np.float32, source_of(2), ()),
        (np.float64, source_of(3, is_mean=True), (3,)),
        (np.float32, source_of(5, is_mean=True), (5,)),
        (np.float32, source_of(2, is_clipped=True), (-0.5, 0.5)),
        (np.float32, source_of(MOST_STREAMS + 1), ()),
        (ml_dtypes.bfloat16, source_of(1), ()),
    ],
    ids=str,
)
def test_squares_of_terms_have_the_bits_of_those_of_their_stored_sum(
    dtype: Any, source: Source, scalars: tuple[float, ...]
) -> None:
    dtype = np.dtype(dtype)
    rng = np.random.default_rng(source.num_terms)
    terms = tuple(np.asarray(rng.standard_normal(5 * BLOCK), dtype) for _ in range(source.num_terms))
    gradient = Gradient(source, terms, tuple(dtype.type(scalar) for scalar in scalars))
    total = source.evaluate(terms, gradient.scalars)
    want = np.concatenate([block_sums(total[start:stop]) for start, stop in RANGES])
    for name in ("numpy", "compiled"):
        found = get_engine(name).gather(gradient, None, Blocks(RANGES))
        assert np.ascontiguousarray(found).tobytes() == want.tobytes(), name


def test_what_is_squared_in_registers_is_a_sum_or_mean_of_few_terms() -> None:
    assert adds_squares(source_of(1))
    assert adds_squares(source_of(MOST_STREAMS, is_mean=True))
    assert not adds_squares(source_of(MOST_STREAMS + 1))
    assert not adds_squares(source_of(2, is_clipped=True))
