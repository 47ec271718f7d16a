"""Variables: creation, reading, writing, copies, and moving to another place in memory."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from distopt import ops, replica_context
from distopt.autodiff.tape import GradientTape
from distopt.distribute.variable_access import CrossReplicaAccess, InReplicaAccess
from distopt.errors import TapeError
from distopt.tensor import Tensor
from distopt.variable import Variable, VariableAggregation, VariableSynchronization


@dataclass
class _Replica:
    replica_id_in_sync_group: int
    num_replicas_in_sync: int = 3
    strategy: Any = None

    def merge_call(self, merge_fn: Any, args: Any = (), kwargs: Any = None) -> Any:
        return merge_fn(self.strategy, *args)

    def all_reduce(self, reduce_op: Any, value: Any, options: Any = None) -> Any:
        return value


def _as_replica(replica_id: int | None) -> Any:
    access = CrossReplicaAccess(None) if replica_id is None else InReplicaAccess(None, 0)
    replica = None if replica_id is None else _Replica(replica_id)
    return replica_context.enter(replica_context.Context(None, replica, access))


@pytest.mark.parametrize(
    ("value", "dtype", "expected"),
    [(1.0, None, "float32"), (np.ones(2), None, "float64"), ([1, 2], None, "int32"), ([1, 2], "float64", "float64")],
)
def test_variable_takes_its_dtype_from_the_value_or_as_told(value: Any, dtype: Any, expected: str) -> None:
    assert Variable(value, dtype=dtype).dtype == expected
    assert Variable(lambda: value, dtype=dtype).dtype == expected


def test_variable_copies_its_initial_value() -> None:
    array = np.ones((2, 3), np.float32, order="F")
    variable = Variable(array, name="kernel")
    array[0, 0] = 9.0
    np.testing.assert_array_equal(variable.numpy(), np.ones((2, 3)))
    assert variable.storage.flags.c_contiguous
    assert (variable.name, variable.shape, variable.trainable) == ("kernel:0", (2, 3), True)
    assert Variable(0.0).name == "Variable:0"
    assert "kernel:0" in repr(variable)


def test_variable_read_on_synchronization_is_not_trainable() -> None:
    on_read = VariableSynchronization.ON_READ
    assert not Variable(0.0, synchronization=on_read).trainable
    with pytest.raises(ValueError, match="ON_READ"):
        Variable(0.0, trainable=True, synchronization=on_read)


def test_variable_with_a_wrong_argument_is_refused() -> None:
    with pytest.raises(ValueError, match="MEAN"):
        Variable(1, aggregation=VariableAggregation.MEAN)
    with pytest.raises(ValueError, match="shape"):
        Variable([1.0, 2.0], shape=(3,))
    with pytest.raises(ValueError, match="initial value"):
        Variable()
    with pytest.raises(ValueError, match="constraint"):
        Variable(1.0, constraint=3)  # type: ignore[arg-type]  # the error is what is tested
    assert Variable([1.0, 2.0], shape=(None,)).shape == (2,)


def test_enumerations_have_tensorflows_numbers() -> None:
    assert [(s.name, s.value) for s in VariableSynchronization] == [
        ("AUTO", 0),
        ("NONE", 1),
        ("ON_WRITE", 2),
        ("ON_READ", 3),
    ]
    assert [(a.name, a.value) for a in VariableAggregation] == [
        ("NONE", 0),
        ("SUM", 1),
        ("MEAN", 2),
        ("ONLY_FIRST_REPLICA", 3),
    ]


def test_assignments_write_in_place_and_return_the_variable() -> None:
    x = Variable([1.0, 2.0])
    storage = x.storage
    assert x.assign([3.0, 4.0]).assign_add([1.0, 1.0]).assign_sub(Tensor([0.5, 0.5])) is x
    np.testing.assert_array_equal(storage, [3.5, 4.5])
    assert x.storage is storage


def test_assignment_of_another_shape_or_kind_is_refused_and_changes_nothing() -> None:
    x = Variable([1.0, 2.0], name="x")
    with pytest.raises(ValueError, match="x:0 has shape"):
        x.assign([1.0])
    with pytest.raises(ValueError, match="x:0 has dtype float32"):
        x.assign(Tensor(np.ones(2)))
    with pytest.raises(TypeError):
        Variable([1, 2]).assign([0.5, 0.5])
    np.testing.assert_array_equal(x.numpy(), [1.0, 2.0])
    x.assign(np.array([5.0, 6.0]))
    assert x.dtype == np.float32


def test_values_taken_from_a_variable_do_not_follow_its_writes() -> None:
    x = Variable([[1.0, 2.0]])
    taken = [x.numpy(), x.value(), x.read_value(), np.asarray(x), x[0], ops.reshape(x, (2,)), ops.stop_gradient(x)]
    taken += [ops.transpose(x), ops.convert_to_tensor(x), Tensor(x), np.ravel(x), +x]
    x.assign([[7.0, 8.0]])
    for value in taken:
        np.testing.assert_array_equal(np.asarray(value).reshape(-1), [1.0, 2.0])


def test_operators_and_numpy_take_variables() -> None:
    x = Variable([1.0, 2.0])
    np.testing.assert_array_equal((2.0 * x + 1.0).numpy(), [3.0, 5.0])
    np.testing.assert_array_equal((x == [1.0, 3.0]).numpy(), [True, False])
    np.testing.assert_array_equal((np.float32([1.0, 1.0]) - x).numpy(), [0.0, -1.0])
    assert float(np.sum(x)) == 3.0
    assert {x: "x", Variable(1.0): "y"}[x] == "x"
    assert len(x) == 2
    with pytest.raises(TypeError, match="iterated"):
        iter(x)


def test_deep_copy_is_an_independent_variable_of_the_same_name() -> None:
    x = Variable([1.0, 2.0], name="x", trainable=False)
    twin = copy.deepcopy(x)
    x.assign([5.0, 5.0])
    np.testing.assert_array_equal(twin.numpy(), [1.0, 2.0])
    assert (twin.name, twin.trainable) == ("x:0", False)


def test_rebind_moves_the_value_and_refuses_another_form() -> None:
    x = Variable([1.0, 2.0])
    home = np.zeros(4, np.float32)
    x.rebind(home[1:3])
    x.assign_add([1.0, 1.0])
    np.testing.assert_array_equal(home, [0.0, 2.0, 3.0, 0.0])
    for wrong in (np.zeros(3, np.float32), np.zeros(2), np.zeros(4, np.float32)[::2]):
        with pytest.raises(ValueError, match="cannot live"):
            x.rebind(wrong)


def test_rebind_under_a_live_tape_keeps_its_gradient() -> None:
    x = Variable([1.0, 2.0])
    with GradientTape() as tape:
        y = ops.reduce_sum(x * x)
        x.rebind(np.zeros(2, np.float32))
        y = y + ops.reduce_sum(x)
    np.testing.assert_array_equal(tape.gradient(y, x).numpy(), [3.0, 5.0])


def test_split_variable_is_read_per_replica() -> None:
    x = Variable([1.0, 2.0])
    x.split([1, 2])
    x.write_copy(2, "assign", [5.0, 6.0])
    assert x.is_split
    assert x.copy_of(1) is x.storage
    for replica_id, expected in ((None, [1.0, 2.0]), (1, [1.0, 2.0]), (2, [5.0, 6.0])):
        with _as_replica(replica_id):
            np.testing.assert_array_equal(x.numpy(), expected)
            np.testing.assert_array_equal((x + 0.0).numpy(), expected)
            with GradientTape() as tape:
                y = ops.reduce_sum(x * x)
            np.testing.assert_array_equal(tape.gradient(y, x).numpy(), 2 * np.array(expected))


def test_write_all_reaches_every_copy_and_merge_keeps_the_first() -> None:
    x = Variable([1.0, 2.0])
    x.split([0, 1, 2])
    x.write_copy(1, "assign_add", np.float32([10.0, 10.0]))
    x.write_all("assign_sub", [1.0, 1.0])
    assert [x.copy_of(r).tolist() for r in range(3)] == [[0.0, 1.0], [10.0, 11.0], [0.0, 1.0]]
    x.rebind(np.zeros(2, np.float32))
    assert x.copy_of(0) is x.storage
    x.merge()
    assert not x.is_split
    np.testing.assert_array_equal(x.numpy(), [0.0, 1.0])


def test_split_again_is_nothing_new_and_among_others_is_refused() -> None:
    x = Variable(1.0)
    x.split([0, 1])
    x.split([0, 1])
    with pytest.raises(ValueError, match="split among"):
        x.split([0, 1, 2])


def test_every_write_of_a_variable_that_a_tape_has_read_is_refused() -> None:
    x = Variable([1.0, 2.0])
    x.split([0, 1])
    with GradientTape() as tape:
        _ = x * x
    for write in (
        lambda: x.assign([0.0, 0.0]),
        lambda: x.write_all("assign_add", [1.0, 1.0]),
        lambda: x.write_copy(1, "assign", [1.0, 1.0]),
        x.check_writable,
    ):
        with pytest.raises(TapeError):
            write()
    assert [x.copy_of(r).tolist() for r in range(2)] == [[1.0, 2.0], [1.0, 2.0]]
    tape.reset()
    x.check_writable()


def test_assignment_goes_through_the_access_of_the_context() -> None:
    seen: list[tuple[str, Any]] = []

    class Access:
        def assign(self, variable: Any, operation: str, value: Any) -> None:
            seen.append((operation, value))

    x = Variable(1.0)
    with replica_context.enter(replica_context.Context(None, None, Access())):
        assert x.assign_sub(3.0) is x
    assert seen == [("assign_sub", 3.0)]
    assert float(x.numpy()) == 1.0


def test_ref_is_a_key_that_gives_the_variable_back() -> None:
    first, second = Variable([1.0, 2.0]), Variable([1.0, 2.0])
    kept = {first.ref(): "first", second.ref(): "second"}
    assert kept[second.ref()] == "second"
    for ref, variable in zip(kept, (first, second), strict=True):
        assert ref.deref() is variable
