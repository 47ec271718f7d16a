"""``tf.function``, ``tf.Module``, ``tf.print`` and the dtypes."""

from __future__ import annotations

import io

import ml_dtypes
import numpy as np
import pytest

import distopt as tf


def test_function_is_the_function_itself_in_every_form() -> None:
    def step(x: int) -> int:
        return x + 1

    assert tf.function(step) is step
    assert tf.function()(step) is step
    assert tf.function(input_signature=None, jit_compile=True, reduce_retracing=True)(step) is step
    assert tf.function(step, autograph=False) is step


def test_function_with_an_option_that_does_not_exist_is_refused() -> None:
    with pytest.raises(TypeError, match="no option jit_compiled"):
        tf.function(jit_compiled=True)


def test_module_finds_variables_and_modules_in_attributes_and_structures() -> None:
    class Inner(tf.Module):
        def __init__(self, value: float) -> None:
            super().__init__()
            self.weight = tf.Variable(value)

    class Outer(tf.Module):
        def __init__(self) -> None:
            super().__init__(name="outer")
            self.parts = {"b": Inner(2.0), "a": [Inner(1.0)]}
            self.step = tf.Variable(0, trainable=False)
            self.again = self.parts["b"]
            self.label = "text"

    outer = Outer()
    assert outer.name == "outer"
    assert [float(v) for v in outer.variables] == [2.0, 1.0, 0.0]
    assert [float(v) for v in outer.trainable_variables] == [2.0, 1.0]
    assert [float(v) for v in outer.non_trainable_variables] == [0.0]
    assert len(outer.submodules) == 2


def test_print_writes_values_of_tensors_and_nests() -> None:
    stream = io.StringIO()
    tf.print("w", tf.Variable([1.0, 2.0]), [tf.constant(3)], sep="|", end=".", output_stream=stream)
    assert stream.getvalue() == "w|[1. 2.]|[array(3, dtype=int32)]."


def test_print_of_a_long_axis_shows_its_ends() -> None:
    short, whole = io.StringIO(), io.StringIO()
    tf.print(tf.range(10), summarize=2, output_stream=short)
    tf.print(tf.range(10), summarize=-1, output_stream=whole)
    assert short.getvalue() == "[0 1 ... 8 9]\n"
    assert whole.getvalue() == "[0 1 2 3 4 5 6 7 8 9]\n"


def test_print_writes_to_standard_error_as_the_reference_does(capsys: pytest.CaptureFixture[str]) -> None:
    tf.print("loss", 0.5)
    assert capsys.readouterr() == ("", "loss 0.5\n")


def test_dtypes_are_those_of_numpy() -> None:
    assert tf.float32 == np.float32
    assert tf.bfloat16 == ml_dtypes.bfloat16
    assert tf.zeros([2], tf.int64).dtype == tf.int64
    assert tf.cast([1.5], tf.bool).dtype == tf.bool
    assert np.zeros(1, tf.half).dtype == np.float16


@pytest.mark.parametrize(
    ("value", "expected"),
    [("bfloat16", tf.bfloat16), ("float", tf.float32), ("double", tf.float64), (float, tf.float32), (bool, tf.bool)],
)
def test_as_dtype_takes_names_and_python_types(value: object, expected: object) -> None:
    assert tf.as_dtype(value) == expected


@pytest.mark.parametrize("value", ["string", "complex64", object(), "no such"])
def test_as_dtype_of_what_is_not_offered_is_refused(value: object) -> None:
    with pytest.raises(TypeError, match="known are float16"):
        tf.as_dtype(value)


def test_nest_packs_leaves_and_compares_structures() -> None:
    assert tf.nest.pack_sequence_as((1, {"k": 2}), [5, 6]) == (5, {"k": 6})
    with pytest.raises(ValueError, match="2 leaves cannot hold 1"):
        tf.nest.pack_sequence_as((1, 2), [5])
    tf.nest.assert_same_structure([1, 2], [3, 4])
    with pytest.raises(ValueError, match="structures differ"):
        tf.nest.assert_same_structure([1, 2], [3, [4]])


def test_tensors_are_formatted_and_variables_shown_as_the_reference_does() -> None:
    tensor, variable = tf.constant(0.5), tf.Variable(3, name="step")
    assert f"{tensor} {tensor:.2f} {tf.constant([1, 2])}" == "0.5 0.50 [1 2]"
    assert repr(variable) == "<tf.Variable 'step:0' shape=() dtype=int32, numpy=3>"
    assert repr(tf.Variable([1.0])).endswith("numpy=array([1.], dtype=float32)>")


def test_skipping_aggregation_by_its_later_name_is_the_same() -> None:
    strategy = tf.distribute.MirroredStrategy(2)
    results = []
    for option in ({"experimental_aggregate_gradients": False}, {"skip_gradients_aggregation": True}, {}):
        variable, optimizer = tf.Variable(1.0), tf.keras.optimizers.SGD(1.0)
        strategy.run(lambda o=optimizer, v=variable, k=option: o.apply_gradients([(tf.constant(0.25), v)], **k))
        results.append(float(variable))
    assert results == [0.75, 0.75, 0.5]
