"""Tensors: values, operators, and how NumPy's functions meet them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from distopt import ops
from distopt.autodiff.tape import GradientTape
from distopt.tensor import Tensor, to_array
from distopt.variable import Variable


@pytest.mark.parametrize(
    ("value", "dtype"),
    [
        (1.5, "float32"),
        ([1.0, 2], "float32"),
        (3, "int32"),
        ([[1, 2]], "int32"),
        (2**40, "int64"),
        (True, "bool"),
        (np.float64(1.5), "float64"),
        ([np.float64(1.5)], "float64"),
        (np.ones(2), "float64"),
        ([], "float32"),
    ],
)
def test_tensor_of_a_value_has_tensorflows_default_dtype(value: Any, dtype: str) -> None:
    assert Tensor(value).dtype == dtype
    assert to_array(value, np.float64).dtype == np.float64


def test_tensor_of_a_scalar_gives_an_array_and_converts_to_numbers() -> None:
    x = Tensor(2.5)
    assert isinstance(x.numpy(), np.ndarray)
    assert (float(x), int(x), bool(x), f"{x:.2f}") == (2.5, 2, True, "2.50")
    assert (x.shape, x.ndim, x.size) == ((), 0, 1)
    assert [10, 20, 30][Tensor(1)] == 20
    with pytest.raises(TypeError, match="no length"):
        len(x)


def test_tensor_indexes_and_iterates_over_its_first_axis() -> None:
    x = Tensor(np.arange(6.0).reshape(3, 2))
    assert len(x) == 3
    assert [float(row[1]) for row in x] == [1.0, 3.0, 5.0]
    np.testing.assert_array_equal(x[Tensor([2, 0])].numpy(), [[4.0, 5.0], [0.0, 1.0]])
    np.testing.assert_array_equal(x[1:, Tensor(0)].numpy(), [2.0, 4.0])


@pytest.mark.parametrize("other", [2.0, 2, np.float64(2.0), np.float32(2.0)])
def test_operators_with_numbers_keep_float32(other: Any) -> None:
    x = Tensor([3.0, 5.0])
    for result, expected in [
        (x + other, [5, 7]),
        (other + x, [5, 7]),
        (x - other, [1, 3]),
        (other - x, [-1, -3]),
        (x * other, [6, 10]),
        (other * x, [6, 10]),
        (x / other, [1.5, 2.5]),
        (x // other, [1, 2]),
        (x % other, [1, 1]),
        (x**other, [9, 25]),
    ]:
        assert isinstance(result, Tensor)
        assert result.dtype == np.float32
        np.testing.assert_array_equal(result.numpy(), expected)


def test_comparisons_are_element_wise_and_tensors_are_keys() -> None:
    x, y = Tensor([1.0, 2.0]), Tensor([1.0, 3.0])
    np.testing.assert_array_equal((x == y).numpy(), [True, False])
    np.testing.assert_array_equal((x != y).numpy(), [False, True])
    np.testing.assert_array_equal((x < y).numpy(), [False, True])
    np.testing.assert_array_equal((x >= y).numpy(), [True, False])
    assert {x: 1, y: 2}[x] == 1


def test_operators_with_arrays_give_tensors_on_both_sides() -> None:
    x, array = Tensor([1.0, 2.0]), np.float32([3.0, 4.0])
    for result in (x + array, array + x, array @ x, np.add(array, x), np.sum(x), np.concatenate([x, array])):
        assert isinstance(result, Tensor)
        assert result.dtype == np.float32
    array += x
    np.testing.assert_array_equal(array, [4.0, 6.0])


def test_numpy_runs_any_function_on_a_tensor_that_no_tape_follows() -> None:
    x = Tensor([3.0, 1.0, 2.0])
    np.testing.assert_array_equal(np.sort(x).numpy(), [1.0, 2.0, 3.0])
    np.testing.assert_array_equal(np.add.accumulate(x).numpy(), [3.0, 4.0, 6.0])
    assert [part.tolist() for part in np.histogram(x, 2)] == [[1, 2], [1.0, 2.0, 3.0]]
    np.testing.assert_array_equal(np.asarray(x), x.numpy())
    assert np.array(x, np.float64).dtype == np.float64


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda x: np.sum(np.exp(x)), np.exp([1.0, 2.0])),
        (lambda x: np.mean(np.square(x), axis=0), [1.0, 2.0]),
        (lambda x: np.sum(np.concatenate([x, x * x])), [3.0, 5.0]),
        (lambda x: np.sum(np.stack([x, 3 * x], axis=1)), [4.0, 4.0]),
        (lambda x: np.sum(np.where(np.array([True, False]), x, 0.0)), [1.0, 0.0]),
        (lambda x: np.dot(np.array([5.0, 7.0], np.float32), x), [5.0, 7.0]),
        (lambda x: np.sum(np.array([5.0, 7.0], np.float32) * np.maximum(x, 1.5)), [0.0, 7.0]),
    ],
)
def test_numpy_functions_on_taped_tensors_are_recorded(function: Callable[[Any], Any], expected: Any) -> None:
    x = Variable([1.0, 2.0])
    with GradientTape() as tape:
        loss = function(x)
    assert isinstance(loss, Tensor)
    gradient = tape.gradient(loss, x)
    assert gradient.dtype == np.float32
    np.testing.assert_allclose(gradient.numpy(), expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "function"),
    [
        ("np.histogram", np.histogram),
        ("np.interp", lambda x: np.interp(x, [0.0, 1.0], [0.0, 1.0])),
        ("np.add.reduce", lambda x: np.add.reduce(x)),
        ("np.cbrt", np.cbrt),
        ("np.add", lambda x: np.add(x, x, out=np.empty(2, np.float32))),
    ],
)
def test_numpy_function_that_cannot_be_recorded_is_refused_by_name(name: str, function: Callable[[Any], Any]) -> None:
    x = Variable([1.0, 2.0])
    with GradientTape():
        y = x * 2.0
        with pytest.raises(TypeError, match=rf"{name} cannot be recorded .* distopt\.ops"):
            function(y)


def test_tensor_of_an_array_is_not_a_copy_and_constant_is() -> None:
    array = np.ones(2, np.float32)
    same, copy = Tensor(array), ops.constant(array)
    array[0] = 5.0
    np.testing.assert_array_equal(same.numpy(), [5.0, 1.0])
    np.testing.assert_array_equal(copy.numpy(), [1.0, 1.0])


def test_keyword_argument_followed_by_a_tape_is_refused() -> None:
    import autograd.numpy as anp

    x = Variable(1.0)
    with GradientTape(persistent=True), pytest.raises(TypeError, match="positional"):
        ops.call(anp.full, (2,), fill_value=x * 1.0)


def test_call_of_a_function_with_several_results_gives_a_tuple_of_tensors() -> None:
    import autograd.numpy as anp

    matrix = Variable(np.array([[2.0, 1.0], [1.0, 3.0]]))
    with GradientTape() as tape:
        values, vectors = ops.call(anp.linalg.eigh, matrix)
        total = ops.reduce_sum(values) + 0.0 * ops.reduce_sum(vectors)
    assert vectors.shape == (2, 2)
    np.testing.assert_allclose(tape.gradient(total, matrix).numpy(), np.eye(2), atol=1e-12)
