"""Rows on their way to owners of parts of a table: what is cut, what comes back, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import distopt as tf
from distopt.aggregation import Sum
from distopt.arena import BLOCK, Span
from distopt.canonical_sum import Node
from distopt.comm.communicator import Communicator, Hosting
from distopt.distribute.row_exchange import gather_rows
from distopt.distribute.served_rows import Contributed, ServedRows
from distopt.distribute.variable_parts import NodeRows, VariablePart, packed, parts_of, unpacked, write_answer
from distopt.errors import RemoteProtocolError
from distopt.testing import run_replicas
from distopt.types import Array

FLOAT32 = np.dtype(np.float32)
WIDTH = 10
CUT = VariablePart(0, 13, 37, (5, WIDTH), FLOAT32)
"""Rows 1, 2 and 3, of which the first and the last are cut."""


def ints(*values: int) -> Array:
    return np.array(values, np.int64)


def rows(*indices: int) -> Array:
    return np.array([[100 * i + j for j in range(WIDTH)] for i in indices], np.float32)


def test_parts_cover_each_variable_once_in_the_order_of_the_spans() -> None:
    variables = [tf.Variable(np.zeros(shape, np.float32)) for shape in ((500, WIDTH), (7,), (0, 3), ())]
    layout = tf.keras.optimizers.SGD(0.1).layout(variables)
    (run,) = layout.runs
    spans = [Span(run.segment.index, 0, BLOCK), Span(run.segment.index, BLOCK, run.stop)]
    found = [[(part.variable, part.start, part.stop) for part in parts_of(layout, [span])] for span in spans]
    assert found == [[(0, 0, BLOCK)], [(0, BLOCK, 5000), (1, 0, 7), (3, 0, 1)]]


def test_rows_that_lie_partly_in_a_part_go_to_it_whole_with_their_replicas() -> None:
    given = NodeRows(ints(4, 1, 0, 3, 2), rows(4, 1, 0, 3, 2), ints(2, 0, 3))
    inside = given.within(CUT)
    assert inside.indices.tolist() == [1, 3, 2]
    assert inside.counts.tolist() == [1, 0, 2]
    np.testing.assert_array_equal(inside.values, rows(1, 3, 2))


def test_an_answer_writes_its_own_elements_of_rows_and_no_others() -> None:
    flat = np.zeros(50, np.float32)
    write_answer([CUT], [0], [ints(1, 2, 3), rows(1, 2, 3).reshape(-1)], [flat])
    expected = rows(0, 1, 2, 3, 4).reshape(-1)
    np.testing.assert_array_equal(flat[13:37], expected[13:37])
    assert not flat[:13].any()
    assert not flat[37:].any()


def test_rows_made_dense_are_those_of_the_part() -> None:
    dense = np.zeros((5, WIDTH), np.float32)
    dense[[3, 1]] = rows(3, 1)
    np.testing.assert_array_equal(CUT.densified(ints(3, 1), rows(3, 1)), dense.reshape(-1)[13:37])


def test_what_is_packed_is_taken_apart_again() -> None:
    dense = VariablePart(1, 2, 5, (9,), FLOAT32)
    given = NodeRows(ints(2, 1), rows(2, 1), ints(1, 1))
    buffers = packed([CUT, dense], {0: given}, {1: np.arange(9, dtype=np.float32)})
    (found, array), rest = unpacked([CUT, dense], [0], buffers, num_counts=2)
    assert isinstance(found, NodeRows)
    assert isinstance(array, np.ndarray)
    assert [found.indices.tolist(), found.counts.tolist(), array.tolist()] == [[2, 1], [1, 1], [2.0, 3.0, 4.0]]
    np.testing.assert_array_equal(found.values, given.values)
    assert rest == ()


@pytest.mark.parametrize(
    ("buffers", "message"),
    [
        ([ints(4), ints(1), rows(4).reshape(-1)], "row 4"),
        ([ints(0), ints(1), rows(0).reshape(-1)], "row 0"),
        ([ints(1), ints(2), rows(1).reshape(-1)], "1 rows"),
        ([ints(1, 2), ints(3, -1), rows(1, 2).reshape(-1)], r"int64\[2\]"),
        ([ints(1), ints(1), rows(1)], "float32"),
        ([ints(1), ints(1), rows(1, 2).reshape(-1)], r"float32\[20\]"),
        ([ints(1), ints(1), rows(1).astype(np.float64).reshape(-1)], "float64"),
        ([ints(1).astype(np.int32), ints(1), rows(1).reshape(-1)], "int32"),
        ([ints(1), ints(1)], "missing"),
    ],
)
def test_rows_that_do_not_fit_are_refused(buffers: list[Array], message: str) -> None:
    with pytest.raises(RemoteProtocolError, match=message):
        unpacked([CUT], [0], buffers, num_counts=1)


@pytest.mark.parametrize(
    ("with_rows", "buffers", "message"),
    [
        ((1,), [], "variables"),
        ((0, 0), [], "variables"),
        ((0,), [ints(1), ints(), rows(1).reshape(-1), np.zeros(1)], "ends with"),
    ],
)
def test_a_push_that_does_not_fit_the_layout_is_refused(with_rows: Any, buffers: list[Array], message: str) -> None:
    optimizer = tf.keras.optimizers.SGD(0.1, 0.9)
    layout = optimizer.layout([tf.Variable(np.zeros((5, WIDTH), np.float32))])
    served = ServedRows(optimizer, layout, layout.spans, Sum())
    with pytest.raises(RemoteProtocolError, match=message):
        served.take_apart(Node(0, 2), Contributed(with_rows, tuple(buffers)))


def test_an_answer_with_too_much_is_refused() -> None:
    with pytest.raises(RemoteProtocolError, match="too many"):
        write_answer([CUT], [0], [ints(1), rows(1).reshape(-1), ints()], [np.zeros(50, np.float32)])


def test_ranks_whose_rows_are_of_different_tables_are_told_apart() -> None:
    def body(comm: Communicator) -> str:
        gradient = tf.IndexedSlices(np.ones((2, 3 + comm.rank), np.float32), [0, 1])
        with pytest.raises(RemoteProtocolError, match="bytes of rows") as caught:
            gather_rows(Hosting.contiguous(2, 2), comm.rank, comm, [[gradient]])
        return str(caught.value)

    assert run_replicas(body, 2)[0].startswith("rank 1 sent")
