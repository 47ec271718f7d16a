"""Arrays for rows that the other processes of a host read where they lie."""

from __future__ import annotations

import gc

import numpy as np
import pytest

import distopt as tf
from distopt.comm.communicator import Communicator
from distopt.distribute.row_memory import RowArrays, Shape
from distopt.errors import RemoteProtocolError
from distopt.testing import run_replicas

SHAPE = Shape(90, 3, np.dtype(np.float32))


def test_values_are_found_by_where_they_lie_and_read_by_the_others() -> None:
    def body(comm: Communicator) -> list[float]:
        arrays = RowArrays(comm.host_group)
        variable = tf.Variable(np.zeros((90, 3), np.float32))
        own = arrays.make(variable, 5 + comm.rank)
        assert (own.shape, own.dtype) == ((5 + comm.rank, 3), np.float32)
        assert arrays.find(own) == (1, 0)
        assert arrays.find(own[2:4]) == (1, 2)
        for elsewhere in (own.copy(), own[:0], own.reshape(-1)[1:4].reshape(1, 3)):
            assert arrays.find(elsewhere) == (0, 0)
        own[2] = comm.rank + 1.0
        comm.host_group.exchange("written")
        seen = [float(arrays.table(1, place, SHAPE)[2, 0]) for place in range(comm.size)]
        comm.host_group.exchange("read")
        newer = arrays.make(variable, 7)
        assert arrays.find(own) == (0, 0)
        assert arrays.find(newer) == (2, 0)
        with pytest.raises(RemoteProtocolError, match="rank 1 has its rows in array 1, which is not known here"):
            arrays.table(1, 1, SHAPE)
        del variable
        gc.collect()
        assert arrays.find(newer) == (0, 0)
        return seen

    for seen in run_replicas(body, 2):
        assert seen == [1.0, 2.0]


def test_a_negative_number_of_rows_is_refused() -> None:
    strategy = tf.distribute.MirroredStrategy(1)
    with pytest.raises(ValueError, match="0 or more, not -1"):
        strategy.extended.gradient_rows(tf.Variable(np.zeros((2, 3), np.float32)), -1)
