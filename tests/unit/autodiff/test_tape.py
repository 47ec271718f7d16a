"""What a gradient tape returns, and when it refuses."""

from __future__ import annotations

import gc
from typing import Any

import numpy as np
import pytest

from distopt import ops
from distopt.autodiff.tape import GradientTape
from distopt.errors import TapeError
from distopt.indexed_slices import IndexedSlices
from distopt.tensor import Tensor
from distopt.variable import Variable


def test_gradient_of_a_cube_is_closed_form() -> None:
    x = Variable(3.0)
    with GradientTape() as tape:
        y = x * x * x
    assert float(tape.gradient(y, x)) == 27.0


def test_second_derivative_by_nested_tapes_is_closed_form() -> None:
    x = Variable(3.0)
    with GradientTape() as outer:
        with GradientTape() as inner:
            y = x**3
        first = inner.gradient(y, x)
    assert float(first) == 27.0
    assert float(outer.gradient(first, x)) == 18.0


def test_third_derivative_by_three_tapes_is_closed_form() -> None:
    x = Variable(2.0)
    with GradientTape() as a:
        with GradientTape() as b:
            with GradientTape() as c:
                y = x * x * x * x
            first = c.gradient(y, x)
        second = b.gradient(first, x)
    assert [float(first), float(second), float(a.gradient(second, x))] == [32.0, 48.0, 48.0]


def test_persistent_tape_asked_inside_its_block_records_its_own_gradients() -> None:
    x = Variable(3.0)
    with GradientTape(persistent=True) as tape:
        y = x * x * x
        first = tape.gradient(y, x)
        second = tape.gradient(first, x)
    assert float(second) == 18.0
    assert float(tape.gradient(second, x)) == 6.0
    assert float(tape.gradient(y, x)) == 27.0


def test_gradient_of_a_vector_and_of_several_targets_is_their_sum() -> None:
    x = Variable(3.0)
    with GradientTape(persistent=True) as tape:
        vector = ops.stack([x, 2 * x])
        square, triple = x * x, 3 * x
    assert float(tape.gradient(vector, x)) == 3.0
    assert float(tape.gradient([square, {"a": triple}], x)) == 9.0


def test_output_gradients_weigh_the_targets() -> None:
    x = Variable([1.0, 2.0])
    with GradientTape() as tape:
        y, z = x * x, 3.0 * x
    gradient = tape.gradient([y, z], x, output_gradients=[Tensor([1.0, 10.0]), None])
    np.testing.assert_array_equal(gradient.numpy(), [2 * 1 + 3, 2 * 2 * 10 + 3])


def test_output_gradients_of_another_shape_or_number_are_refused() -> None:
    x = Variable([1.0, 2.0])
    with GradientTape(persistent=True) as tape:
        y = x * x
    with pytest.raises(ValueError, match="shape"):
        tape.gradient(y, x, output_gradients=np.ones(3, np.float32))
    with pytest.raises(ValueError, match="2 targets need as many"):
        tape.gradient([y, y], x, output_gradients=[None])


def test_output_gradients_followed_by_an_outer_tape_are_differentiated() -> None:
    x, w = Variable([1.0, 2.0]), Variable([5.0, 7.0])
    with GradientTape() as outer:
        with GradientTape() as inner:
            y = x * x
        gradient = inner.gradient(y, x, output_gradients=w * 1.0)
    np.testing.assert_array_equal(outer.gradient(gradient, w).numpy(), [2.0, 4.0])


def test_structure_of_sources_is_kept() -> None:
    a, b, c = Variable(1.0), Variable(2.0), Variable(3.0)
    with GradientTape() as tape:
        y = a * b
    gradients = tape.gradient(y, {"z": [a, (b,)], "c": c, "empty": []})
    assert float(gradients["z"][0]) == 2.0
    assert float(gradients["z"][1][0]) == 1.0
    assert isinstance(gradients["z"][1], tuple)
    assert gradients["c"] is None
    assert gradients["empty"] == []


def test_unconnected_source_is_none_or_zeros() -> None:
    x, other = Variable(3.0), Variable([1.0, 2.0], dtype=np.float64)
    with GradientTape(persistent=True) as tape:
        y = x * x
    assert tape.gradient(y, other) is None
    zeros = tape.gradient(y, other, unconnected_gradients="zero")
    np.testing.assert_array_equal(zeros.numpy(), [0.0, 0.0])
    assert zeros.dtype == np.float64
    with pytest.raises(ValueError, match="'none' or 'zero'"):
        tape.gradient(y, other, unconnected_gradients="ones")


def test_integer_source_has_no_gradient() -> None:
    count, x = Variable(3), Variable(2.0)
    with GradientTape() as tape:
        y = x * count
    assert tape.gradient(y, [x, count])[1] is None


def test_ordinary_tape_asked_twice_is_refused() -> None:
    x = Variable(3.0)
    with GradientTape() as tape:
        y = x * x
    tape.gradient(y, x)
    with pytest.raises(RuntimeError, match="only once"):
        tape.gradient(y, x)


def test_tape_that_was_never_entered_is_refused() -> None:
    with pytest.raises(RuntimeError, match="recorded nothing"):
        GradientTape().gradient(Tensor(1.0), Variable(1.0))


def test_entering_a_recording_tape_is_refused_and_it_still_records() -> None:
    x = Variable(3.0)
    with GradientTape() as tape:
        with pytest.raises(ValueError, match="already recording"):
            tape.__enter__()
        y = x * x
    assert float(tape.gradient(y, x)) == 6.0


def test_entering_again_continues_the_recording() -> None:
    x = Variable(3.0)
    tape = GradientTape()
    with tape:
        y = x * x
    outside = y * 5.0
    with tape:
        z = y * 2.0
    assert float(tape.gradient([z, outside], x)) == 12.0


def test_target_none_and_foreign_sources_are_refused() -> None:
    x = Variable(3.0)
    with GradientTape(persistent=True) as tape:
        y = x * x
    with pytest.raises(TypeError, match="not None"):
        tape.gradient(None, x)
    with pytest.raises(TypeError, match="str"):
        tape.gradient(y, "x")


def test_operation_after_the_block_is_not_recorded() -> None:
    x = Variable(3.0)
    with GradientTape() as tape:
        y = x * x
    z = y * 2.0
    assert tape.gradient(z, x) is None


def test_gradient_inside_the_block_ends_an_ordinary_recording() -> None:
    x = Variable(3.0)
    with GradientTape() as tape:
        y = x * x
        assert float(tape.gradient(y, x)) == 6.0
        x.assign(5.0)
    assert float(x.numpy()) == 5.0


def test_stop_recording_leaves_out_what_happens_meanwhile() -> None:
    x = Variable(3.0)
    with GradientTape(persistent=True) as tape:
        y = x * x
        with tape.stop_recording():
            z = y * 10.0
        total = y + z
    assert float(tape.gradient(total, x)) == 6.0
    with pytest.raises(ValueError, match="not recording"), tape.stop_recording():
        pass


def test_stop_recording_of_the_inner_tape_leaves_the_outer_one_recording() -> None:
    x = Variable(3.0)
    with GradientTape() as outer, GradientTape() as inner:
        with inner.stop_recording():
            y = x * x
        z = y * 1.0
    assert inner.gradient(z, x) is None
    assert float(outer.gradient(z, x)) == 6.0


def test_reset_forgets_what_was_recorded_before() -> None:
    x, v = Variable(3.0), Variable(4.0)
    with GradientTape() as tape:
        before = x * x
        tape.reset()
        after = v * v
    assert [variable is v for variable in tape.watched_variables()] == [True]
    gradients = tape.gradient([before, after], [x, v])
    assert gradients[0] is None
    assert float(gradients[1]) == 8.0


def test_watched_tensor_has_a_gradient_and_an_unwatched_one_has_none() -> None:
    x, constant = Tensor([1.0, 2.0]), Tensor([3.0, 4.0])
    with GradientTape() as tape:
        tape.watch([x])
        y = x * x * constant
    gradients = tape.gradient(y, [x, constant])
    np.testing.assert_array_equal(gradients[0].numpy(), [6.0, 16.0])
    assert gradients[1] is None


def test_intermediate_tensor_is_a_source() -> None:
    x = Variable(3.0)
    with GradientTape() as tape:
        y = x * x
        z = y * y
    gradients = tape.gradient(z, [y, x])
    assert [float(g) for g in gradients] == [18.0, 108.0]


def test_tensor_watched_by_one_tape_after_another_holds_one_box() -> None:
    x = Tensor([1.0, 2.0])
    for _ in range(3):
        with GradientTape() as tape:
            tape.watch(x)
            y = x * x
        np.testing.assert_array_equal(tape.gradient(y, x).numpy(), [2.0, 4.0])
    assert isinstance(x._value._value, np.ndarray)


def test_tensor_watched_by_the_inner_tape_first_has_both_gradients() -> None:
    x = Tensor(3.0)
    with GradientTape() as outer, GradientTape() as inner:
        inner.watch(x)
        outer.watch(x)
        first = inner.gradient(x * x * x, x)
        assert float(outer.gradient(first, x)) == 18.0


def test_watch_of_something_else_is_refused() -> None:
    with GradientTape() as tape, pytest.raises(ValueError, match="ndarray"):
        tape.watch(np.ones(2))


def test_watch_of_integers_warns_and_gives_none(caplog: pytest.LogCaptureFixture) -> None:
    x = Tensor([1, 2])
    with GradientTape() as tape:
        tape.watch(x)
        y = x * 2.0
    assert "int32" in caplog.text
    assert tape.gradient(y, x) is None


def test_untrainable_variable_has_a_gradient_only_if_watched() -> None:
    x = Variable(3.0, trainable=False)
    with GradientTape() as tape:
        y = x * x
    assert tape.gradient(y, x) is None
    with GradientTape() as tape:
        tape.watch(x)
        y = x * x
    assert float(tape.gradient(y, x)) == 6.0


def test_tape_that_does_not_watch_by_itself_follows_only_what_it_is_told() -> None:
    x, y = Variable(3.0), Variable(4.0)
    with GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(x)
        z = x * y
    gradients = tape.gradient(z, [x, y])
    assert float(gradients[0]) == 4.0
    assert gradients[1] is None


def test_watched_variables_come_in_order_of_access() -> None:
    a, b, c = (Variable(float(n)) for n in range(3))
    with GradientTape() as tape:
        _ = b * a + b + c
    assert [v is w for v, w in zip(tape.watched_variables(), (b, a, c), strict=True)] == [True] * 3


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "bfloat16"])
def test_gradient_has_the_dtype_of_its_variable(dtype: str) -> None:
    import ml_dtypes

    wanted = np.dtype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    w = Variable(np.ones((3, 2), wanted))
    with GradientTape() as tape:
        loss = ops.reduce_sum(ops.cast(ops.tanh(w * 0.5), np.float64) ** 2) / np.float64(3.0)
    gradient = tape.gradient(loss, w)
    assert gradient.dtype == wanted
    expected = 2 * np.tanh(0.5) * (1 - np.tanh(0.5) ** 2) * 0.5 / 3
    np.testing.assert_allclose(gradient.numpy().astype(np.float64), expected, rtol=2e-2)


def test_gradients_of_one_tape_do_not_share_memory_with_later_writes() -> None:
    x = Variable([1.0, 2.0])
    with GradientTape() as tape:
        y = ops.reduce_sum(x * x)
    gradient = tape.gradient(y, x)
    x.assign([100.0, 200.0])
    np.testing.assert_array_equal(gradient.numpy(), [2.0, 4.0])


def test_function_without_a_derivative_is_refused_by_name() -> None:
    from autograd.extend import primitive

    halve = primitive(lambda x: x / 2)
    halve.__name__ = "halve"
    x = Variable(3.0)
    with GradientTape() as tape:
        y = ops.call(halve, x)
    with pytest.raises(NotImplementedError, match="halve"):
        tape.gradient(y, x)


# Views and writes.


def test_write_after_an_ordinary_tape_has_read_raises_and_names_both() -> None:
    x = Variable([1.0, 2.0], name="kernel")
    with GradientTape() as tape:
        _ = x * x
        with pytest.raises(TapeError, match=r"kernel:0 .* GradientTape number \d+"):
            x.assign([3.0, 4.0])
    with pytest.raises(TapeError, match="kernel:0"):
        x.check_writable()
    np.testing.assert_array_equal(x.numpy(), [1.0, 2.0])
    assert "ordinary GradientTape, number" in repr(tape)


def test_write_after_gradient_was_called_is_fine() -> None:
    x = Variable([1.0, 2.0])
    with GradientTape() as tape:
        y = x * x
    tape.gradient(y, x)
    x.assign_add([1.0, 1.0])
    np.testing.assert_array_equal(x.numpy(), [2.0, 3.0])


def test_write_after_the_tape_was_dropped_is_fine() -> None:
    x = Variable([1.0, 2.0])
    with GradientTape() as tape:
        y = x * x
    del tape
    x.assign([3.0, 4.0])
    np.testing.assert_array_equal(y.numpy(), [1.0, 4.0])


def test_dropped_tape_frees_its_nodes_without_the_garbage_collector() -> None:
    gc.disable()
    try:
        x = Variable([1.0, 2.0])
        with GradientTape() as tape:
            _ = x * x
        recording = tape._recording
        assert recording is not None
        del tape
        assert recording.operations == []
    finally:
        gc.enable()


def test_persistent_tape_keeps_the_values_of_record_time() -> None:
    x = Variable(3.0)
    with GradientTape(persistent=True) as tape:
        y = x * x
        x.assign(5.0)
        z = x * x
    assert float(tape.gradient(y, x)) == 6.0
    assert float(tape.gradient(z, x)) == 10.0
    assert float(tape.gradient([y, z], x)) == 16.0


def test_nested_tapes_let_variables_be_written() -> None:
    x = Variable(3.0)
    with GradientTape() as outer, GradientTape() as inner:
        y = x * x
        x.assign(7.0)
    assert float(inner.gradient(y, x)) == 6.0
    assert float(outer.gradient(y, x)) == 6.0


def test_untrainable_variable_may_be_written_under_a_tape_that_used_it() -> None:
    mean, x = Variable(2.0, trainable=False), Variable(3.0)
    with GradientTape() as tape:
        y = x * mean
        mean.assign(100.0)
    assert float(tape.gradient(y, x)) == 2.0


def test_value_read_under_a_tape_survives_later_writes() -> None:
    x = Variable([1.0, 2.0])
    with GradientTape() as tape:
        value, part, row = x.value(), x[0:1], ops.reshape(x, (1, 2))
        y = ops.reduce_sum(value * 2.0) + ops.reduce_sum(part) + ops.reduce_sum(row)
    np.testing.assert_array_equal(tape.gradient(y, x).numpy(), [4.0, 3.0])
    x.assign([9.0, 9.0])
    np.testing.assert_array_equal(value.numpy(), [1.0, 2.0])
    np.testing.assert_array_equal(part.numpy(), [1.0])
    np.testing.assert_array_equal(row.numpy(), [[1.0, 2.0]])


def test_readers_of_abandoned_tapes_do_not_pile_up() -> None:
    x = Variable(1.0)
    for _ in range(200):
        with GradientTape():
            _ = x * x
    assert not x.readers


# Row-sparse gradients.


def test_gradient_of_a_gather_is_indexed_slices_in_lookup_order() -> None:
    table = Variable(np.arange(6.0, dtype=np.float32).reshape(3, 2))
    with GradientTape() as tape:
        total = ops.reduce_sum(ops.gather(table, [[0, 2], [0, 1]]))
    gradient = tape.gradient(total, table)
    assert isinstance(gradient, IndexedSlices)
    np.testing.assert_array_equal(gradient.values.numpy(), np.ones((4, 2)))
    np.testing.assert_array_equal(gradient.indices, [0, 2, 0, 1])
    assert gradient.dense_shape == (3, 2)
    assert gradient.dtype == np.float32


def _two_gathers(table: Any) -> Tensor:
    return 2.0 * ops.reduce_sum(ops.gather(table, [0])) + ops.reduce_sum(ops.gather(table, [1, 0]))


def test_gradient_of_several_gathers_is_concatenated_in_their_order() -> None:
    table = Variable(np.ones((3, 1), np.float32))
    with GradientTape() as tape:
        total = _two_gathers(table)
    gradient = tape.gradient(total, table)
    assert isinstance(gradient, IndexedSlices)
    np.testing.assert_array_equal(gradient.indices, [0, 1, 0])
    np.testing.assert_array_equal(gradient.values.numpy(), [[2.0], [1.0], [1.0]])


def test_gradient_of_a_gather_and_a_dense_use_is_dense() -> None:
    table = Variable(np.ones((3, 1), np.float32))
    with GradientTape() as tape:
        total = _two_gathers(table) + ops.reduce_sum(table * 10.0)
    gradient = tape.gradient(total, table)
    assert isinstance(gradient, Tensor)
    np.testing.assert_array_equal(gradient.numpy(), [[13.0], [11.0], [10.0]])


@pytest.mark.parametrize("persistent", [False, True])
def test_gradient_of_a_gather_from_a_derived_tensor_or_another_axis_is_dense(persistent: bool) -> None:
    table = Variable(np.ones((3, 2), np.float32))
    with GradientTape(persistent=persistent) as tape:
        total = ops.reduce_sum(ops.gather(table * 2.0, [0, 0])) + ops.reduce_sum(ops.gather(table, [1], axis=1))
        total = total + ops.reduce_sum(table[2:3])
    gradient = tape.gradient(total, table)
    assert isinstance(gradient, Tensor)
    np.testing.assert_array_equal(gradient.numpy(), [[4.0, 5.0], [0.0, 1.0], [1.0, 2.0]])


def test_second_derivative_through_a_gather_is_closed_form() -> None:
    table = Variable(np.array([[1.0], [2.0], [3.0]]))
    with GradientTape() as outer:
        with GradientTape() as inner:
            total = ops.reduce_sum(ops.gather(table, [0, 2, 0]) ** 3)
        gradient = inner.gradient(total, table)
        assert isinstance(gradient, IndexedSlices)
        size = ops.reduce_sum(gradient.values * gradient.values)
    # size = 2 (3 a^2)^2 + (3 c^2)^2, so its derivative is 72 a^3 and 36 c^3.
    second = outer.gradient(size, table)
    np.testing.assert_allclose(np.asarray(second), [[72.0], [0.0], [36.0 * 27]])
