"""Facts of the reference's legacy face; the numbers F... are those of the recorded facts in ``tests/parity``."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from distopt.aggregation import Mean
from distopt.autodiff.tape import GradientTape
from distopt.compat.v1 import train as tensorflow1
from distopt.distribute import MirroredStrategy
from distopt.indexed_slices import IndexedSlices
from distopt.keras.optimizers import SGD, Adam, AdamW, Optimizer, legacy
from distopt.schedules import ExponentialDecay, PiecewiseConstantDecay
from distopt.tensor import Tensor
from distopt.types import Array
from distopt.variable import Variable


def ones(count: int = 1) -> Array:
    return np.ones(count, np.float32)


def values(variable: Variable) -> list[float]:
    return [float(x) for x in variable.numpy()]


def test_f002_minimize_with_a_callable_loss() -> None:
    v0, v1 = Variable([1.0, 2.0]), Variable([3.0, 4.0])
    optimizer = SGD(3.0)
    assert optimizer.minimize(lambda: 5 * v0 + 3 * v1, [v0, v1]) is optimizer.iterations
    assert (values(v0), values(v1)) == ([-14.0, -13.0], [-6.0, -5.0])
    assert int(optimizer.iterations.numpy()) == 1


def test_f004_a_learning_rate_set_by_attribute_counts_from_the_next_step() -> None:
    v1, v2 = Variable(1.0), Variable(1.0)
    optimizer = SGD(0.1)
    optimizer.minimize(lambda: 3 * v1 + 2 * v2, [v1, v2])
    np.testing.assert_allclose([v1.numpy(), v2.numpy()], [0.7, 0.8], rtol=1e-6)
    optimizer.learning_rate = 0.05
    optimizer.minimize(lambda: 3 * v1 + 2 * v2, lambda: [v1, v2])
    np.testing.assert_allclose([v1.numpy(), v2.numpy()], [0.55, 0.7], rtol=1e-6)


def test_f021_the_momentum_slot_contains_the_rate() -> None:
    variable, optimizer = Variable(np.zeros(1, np.float32)), SGD(0.1, momentum=0.9)
    found = []
    for _ in range(3):
        optimizer.apply_gradients([(ones(), variable)])
        found.append([*values(variable), *values(optimizer.get_slot(variable, "momentum"))])
    np.testing.assert_allclose(found, [[-0.1, -0.1], [-0.29, -0.19], [-0.561, -0.271]], rtol=1e-6)


def test_f022_a_lower_rate_does_not_shrink_the_momentum() -> None:
    variable, optimizer = Variable(np.zeros(1, np.float32)), SGD(0.1, momentum=0.9)
    for rate in (0.1, 0.1, 0.01):
        optimizer.lr = rate
        optimizer.apply_gradients([(ones(), variable)])
    np.testing.assert_allclose(values(variable), [-0.471], rtol=1e-6)


def test_f036_amsgrad_keeps_the_largest_second_moment() -> None:
    variable, optimizer = Variable(np.zeros(1, np.float32)), Adam(0.1, beta_1=0.5, beta_2=0.5, amsgrad=True)
    found = []
    for gradient in (10.0, 0.1):
        optimizer.apply_gradients([(np.float32([gradient]), variable)])
        found += values(variable)
    np.testing.assert_allclose(found, [-0.10000001, -0.14164133], rtol=1e-6)
    assert values(optimizer.get_slot(variable, "vhat")) == [50.0]


def test_f037_bias_correction_counts_the_optimizers_steps() -> None:
    a, b = Variable(np.zeros(1, np.float32)), Variable(np.zeros(1, np.float32))
    optimizer = Adam(0.1)
    optimizer.apply_gradients([(ones(), a)])
    optimizer.apply_gradients([(ones(), a), (ones(), b)])
    np.testing.assert_allclose([*values(a), *values(b)], [-0.19999912, -0.074413195], rtol=1e-5)


def test_f048_clips_see_duplicate_rows_by_themselves() -> None:
    found = []
    for clip in ({"clipvalue": 3.5}, {"clipnorm": 1.0}, {"global_clipnorm": 1.0}):
        variable = Variable(np.zeros(2, np.float32))
        gradient = IndexedSlices(np.float32([3, 4]), [0, 0], (2,))
        SGD(1.0, **clip).apply_gradients([(gradient, variable)])
        found.append(values(variable)[0])
    np.testing.assert_allclose(found, [-6.5, -1.4, -1.4], rtol=1e-6)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("row", [3, -1])
def test_f049_a_row_that_does_not_exist_is_refused_before_anything_changes(row: int, momentum: float) -> None:
    first, second = Variable(np.zeros(1, np.float32)), Variable(np.zeros(3, np.float32), name="table")
    optimizer = SGD(1.0, momentum=momentum)
    with pytest.raises(ValueError, match=rf"table.*row {row}"):
        optimizer.apply_gradients([(ones(), first), (IndexedSlices(ones(), [row], (3,)), second)])
    assert values(first) == [0.0]


def test_f050_a_constraint_is_applied_after_the_update_and_refuses_row_sparse_gradients() -> None:
    variable = Variable(np.float32([3, 4]), constraint=lambda value: np.clip(value, 0, 1))
    SGD(0.5).apply_gradients([(ones(2), variable)])
    assert values(variable) == [1.0, 1.0]
    with pytest.raises(RuntimeError, match="constraint"):
        SGD(0.5).apply_gradients([(IndexedSlices(ones(1), [0], (2,)), variable)])


def test_f051_a_constraint_leaves_slots_alone() -> None:
    variable = Variable(np.float32([3, -4]), constraint=lambda value: np.maximum(value, 0))
    optimizer = SGD(1.0, momentum=0.9)
    found = []
    for _ in range(2):
        optimizer.apply_gradients([(np.float32([5, -1]), variable)])
        found.append([values(variable), values(optimizer.get_slot(variable, "momentum"))])
    np.testing.assert_allclose(found, [[[0, 0], [-5, 1]], [[0, 1.9], [-9.5, 1.9]]], rtol=1e-6)


def test_f053_the_value_clip_comes_before_the_global_norm() -> None:
    a, b = Variable(np.zeros(2, np.float32)), Variable(np.zeros(1, np.float32))
    SGD(1.0, clipvalue=2.0, global_clipnorm=1.0).apply_gradients([(np.float32([3, 4]), a), (np.float32([1]), b)])
    np.testing.assert_allclose([*values(a), *values(b)], [-0.6666667, -0.6666667, -0.33333334], rtol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"clipnorm": 1, "global_clipnorm": 1}, ValueError),
        ({"clipnorm": -1}, ValueError),
        ({"lr": -1}, ValueError),
        ({"decay": -1}, ValueError),
        ({"decay": None}, TypeError),
        ({"unknown": 1}, TypeError),
        ({"clipnorm": "one"}, TypeError),
        ({"clipnorm": 1.0, "gradient_transformers": [list]}, ValueError),
        ({"momentum": 1.5}, ValueError),
        ({"momentum": -0.1}, ValueError),
    ],
    ids=str,
)
def test_f056_wrong_constructor_arguments_are_refused(arguments: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        SGD(**arguments)


@pytest.mark.parametrize(
    "arguments",
    [{"clipnorm": 1, "clipvalue": 1}, {"clipvalue": 1, "global_clipnorm": 1}, {"learning_rate": -1}, {"momentum": 1.0}],
    ids=str,
)
def test_f056_unusual_constructor_arguments_are_accepted(arguments: dict[str, Any]) -> None:
    assert isinstance(SGD(**arguments), Optimizer)


def test_a_clip_set_later_beside_transformers_is_refused() -> None:
    optimizer = SGD(gradient_transformers=[lambda pairs: pairs])
    with pytest.raises(ValueError, match="global_clipnorm"):
        optimizer.global_clipnorm = 1.0
    assert optimizer.global_clipnorm is None


@pytest.mark.parametrize(
    ("aggregate", "calls", "final"),
    [
        (True, [("agg", 3.0), ("t1", 6.0), ("t10", 7.0)], -17.0),
        (False, [("t1", 3.0), ("t10", 4.0)], -14.0),
    ],
)
def test_f058_hooks_run_in_order(aggregate: bool, calls: list[tuple[str, float]], final: float) -> None:
    seen: list[tuple[str, float]] = []

    def hook(name: str, change: Callable[[Any], Any]) -> Callable[[Any], Any]:
        def run(pairs: Any) -> Any:
            pairs = list(pairs)
            seen.extend((name, float(gradient[0])) for gradient, _ in pairs)
            return [(change(gradient), variable) for gradient, variable in pairs]

        return run

    variable = Variable(np.zeros(1, np.float32))
    optimizer = SGD(
        1.0,
        gradient_aggregator=hook("agg", lambda g: g * 2),
        gradient_transformers=[hook("t1", lambda g: g + 1), hook("t10", lambda g: g + 10)],
    )
    optimizer.apply_gradients([(np.float32([3]), variable)], experimental_aggregate_gradients=aggregate)
    assert seen == calls
    assert values(variable) == [final]


def test_f059_an_empty_list_is_no_step() -> None:
    optimizer = SGD()
    assert optimizer.apply_gradients([]) is None
    assert int(optimizer.iterations.numpy()) == 0


def test_f060_a_missing_gradient_is_left_out_with_a_logged_warning(caplog: pytest.LogCaptureFixture) -> None:
    a, b = Variable(np.zeros(1, np.float32), name="a"), Variable(np.zeros(1, np.float32), name="b")
    optimizer = SGD(1.0, momentum=0.9)
    with caplog.at_level(logging.WARNING):
        optimizer.apply_gradients([(ones(), a), (None, b)])
    assert "b:0" in caplog.text
    assert "a:0" not in caplog.text
    assert (values(a), values(b)) == ([-1.0], [0.0])
    assert [w.name for w in optimizer.weights] == ["SGD/iter:0", "SGD/a/momentum:0"]


def test_f061_a_variable_listed_twice_is_updated_twice() -> None:
    variable = Variable(np.zeros(1, np.float32))
    optimizer = SGD(1.0, momentum=0.5)
    optimizer.apply_gradients([(ones(), variable), (ones(), variable)])
    assert values(variable) == [-2.5]
    assert int(optimizer.iterations.numpy()) == 1


def test_f062_misuse_is_refused() -> None:
    variable = Variable(ones())
    with pytest.raises(ValueError, match="no variable has a gradient"):
        SGD().apply_gradients([(None, variable)])
    with pytest.raises(ValueError, match="tape"):
        SGD().minimize(Tensor(1.0), [variable])
    with pytest.raises(NotImplementedError):
        SGD().apply_gradients([(ones(), Tensor(ones()))])
    optimizer = SGD(momentum=0.5)
    optimizer.apply_gradients([(ones(), variable)])
    with pytest.raises(RuntimeError, match="iterations"):
        optimizer.iterations = Variable(0)
    with pytest.raises(KeyError, match="unknown"):
        optimizer.get_slot(variable, "unknown")
    with pytest.raises(ValueError, match="2 weights, not 1"):
        optimizer.set_weights([np.array(1)])
    with pytest.raises(ValueError, match="shape"):
        optimizer.set_weights([np.array(1), np.ones(3)])


def test_f063_minimize_with_the_tape_of_a_tensor() -> None:
    x = Variable(3.0)
    with GradientTape() as tape:
        loss = x * x
    SGD(0.1).minimize(loss, [x], tape=tape)
    assert float(x.numpy()) == pytest.approx(2.4)


def test_f064_minimize_weighs_by_grad_loss() -> None:
    x = Variable([1.0])
    SGD(0.1).minimize(lambda: x * x, [x], grad_loss=Tensor([10.0]))
    assert values(x) == [-1.0]


def test_a_tape_that_still_records_is_refused() -> None:
    x = Variable(3.0)
    with GradientTape() as tape, pytest.raises(ValueError, match="recording"):
        SGD(0.1).minimize(x * x, [x], tape=tape)


def test_f065_weights_are_ordered_by_slot_then_variable() -> None:
    a, b = Variable(np.zeros(2, np.float32), name="a"), Variable(np.zeros((1, 1), np.float32), name="b")
    optimizer = Adam(amsgrad=True)
    optimizer.apply_gradients([(ones(2), a), (np.ones((1, 1), np.float32), b)])
    names = ["iter", "a/m", "b/m", "a/v", "b/v", "a/vhat", "b/vhat"]
    assert [w.name for w in optimizer.variables()] == [f"Adam/{name}:0" for name in names]
    assert optimizer.get_slot_names() == ["m", "v", "vhat"]


def test_f067_numbers_are_rounded_through_float32_and_float64_arrays_are_not() -> None:
    found = []
    for rate in (0.1, lambda: 0.1, ExponentialDecay(0.1, 10, 0.5), lambda: Tensor(np.float64(0.1))):
        variable = Variable(np.float64([1.0]))
        SGD(rate).apply_gradients([(np.float64([1.0]), variable)])
        found += values(variable)
    assert found == [0.8999999985098839, 0.8999999985098839, 0.8999999985098839, 0.9]


def test_f068_decay_divides_the_rate_and_cannot_be_changed() -> None:
    variable, optimizer = Variable(ones()), SGD(1.0, decay=1.0)
    found = []
    for step in range(4):
        if step == 3:
            optimizer.decay = 0.0
        optimizer.apply_gradients([(ones(), variable)])
        found += values(variable)
    np.testing.assert_allclose(found, [0, -0.5, -0.8333334, -1.0833334], rtol=1e-6)
    assert optimizer.get_config()["decay"] == 1.0


def test_f069_decay_of_a_float64_variable_is_rounded() -> None:
    variable, optimizer = Variable(np.float64([1.0])), SGD(1.0, decay=0.1)
    for _ in range(2):
        optimizer.apply_gradients([(np.float64([1.0]), variable)])
    assert values(variable) == [-0.9090909078594082]


def test_f070_schedule_and_decay_both_count() -> None:
    variable, optimizer = Variable(np.zeros(1, np.float32)), SGD(ExponentialDecay(1.0, 1, 0.5), decay=1.0)
    found = []
    for _ in range(3):
        optimizer.apply_gradients([(ones(), variable)])
        found += values(variable)
    np.testing.assert_allclose(found, [-1.0, -1.25, -1.3333334], rtol=1e-6)


def test_f071_hypers_are_attributes() -> None:
    optimizer = SGD(0.5)
    assert isinstance(optimizer.lr, Variable)
    assert optimizer.lr.dtype == np.float32
    assert SGD(lambda: 0.3).lr == 0.3
    assert isinstance(SGD(ExponentialDecay(0.1, 1, 0.5)).lr, ExponentialDecay)
    assert {"lr", "learning_rate", "momentum"} <= set(dir(optimizer))
    with pytest.raises(AttributeError, match="unknown"):
        _ = optimizer.unknown


def test_f073_a_configuration_holds_a_number_and_later_a_float32() -> None:
    optimizer = SGD(0.1)
    assert type(optimizer.get_config()["learning_rate"]) is float
    assert optimizer.lr is not None
    assert type(optimizer.get_config()["learning_rate"]) is np.float32


@pytest.mark.parametrize("epsilon", [0, None])
def test_f074_no_epsilon_means_the_default_one(epsilon: float | None) -> None:
    assert Adam(epsilon=epsilon).epsilon == 1e-7


def test_f075_default_configurations() -> None:
    sgd = {"name": "SGD", "learning_rate": 0.01, "decay": 0.0, "momentum": 0.0, "nesterov": False}
    adam = {"learning_rate": 0.001, "decay": 0.0, "beta_1": 0.9, "beta_2": 0.999, "epsilon": 1e-7, "amsgrad": False}
    assert legacy.SGD().get_config() == sgd
    assert legacy.Adam().get_config() == {"name": "Adam", **adam}
    assert SGD(clipnorm=1.0).get_config() == {**sgd, "clipnorm": 1.0}


def test_f077_the_alias_wins_over_learning_rate() -> None:
    with pytest.warns(DeprecationWarning, match="learning_rate"):
        optimizer = SGD(0.3, lr=0.5)
    assert optimizer.get_config()["learning_rate"] == 0.5


def test_f078_from_config_renames_the_alias_and_rebuilds_schedules() -> None:
    config = SGD.from_config({"lr": 0.3, "momentum": 0.5}).get_config()
    assert config == {"name": "SGD", "learning_rate": 0.3, "decay": 0.0, "momentum": 0.5, "nesterov": False}
    again = SGD.from_config(SGD(ExponentialDecay(0.1, 10, 0.5)).get_config())
    assert isinstance(again.learning_rate, ExponentialDecay)


def test_f088_a_schedule_sees_the_count_before_the_step() -> None:
    variable, optimizer = Variable(np.zeros(1, np.float32)), SGD(PiecewiseConstantDecay([0], [1.0, 0.1]))
    for _ in range(2):
        optimizer.apply_gradients([(ones(), variable)])
    np.testing.assert_allclose(values(variable), [-1.1], rtol=1e-6)


def test_a_callable_rate_is_called_once_a_step_for_variables_of_both_dtypes() -> None:
    calls: list[int] = []

    def rate() -> float:
        calls.append(1)
        return 0.5

    single, double = Variable(np.float32([1])), Variable(np.float64([1]))
    SGD(rate).apply_gradients([(np.float32([1]), single), (np.float64([1]), double)])
    assert len(calls) == 1
    assert values(single) == values(double) == [0.5]


def test_iterations_can_be_assigned_and_given_before_the_first_step() -> None:
    own = Variable(np.int64(7), trainable=False)
    optimizer = SGD(PiecewiseConstantDecay([7], [1.0, 0.5]))
    optimizer.iterations = own
    variable = Variable(np.zeros(1, np.float32))
    optimizer.apply_gradients([(ones(), variable)])
    optimizer.apply_gradients([(ones(), variable)])
    assert values(variable) == [-1.5]
    assert int(own.numpy()) == 9


def test_momentum_set_after_construction_makes_no_slot() -> None:
    variable, optimizer = Variable(np.zeros(1, np.float32)), SGD(1.0)
    optimizer.momentum = 0.9
    for _ in range(2):
        optimizer.apply_gradients([(ones(), variable)])
    assert values(variable) == [-2.0]
    assert optimizer.get_slot_names() == []


def test_set_weights_restores_steps_and_slots() -> None:
    variable, optimizer = Variable(np.zeros(2, np.float32)), Adam()
    assert optimizer.get_weights() == []
    optimizer.set_weights([])
    optimizer.apply_gradients([(ones(2), variable)])
    kept = optimizer.get_weights()
    assert [w.shape for w in kept] == [(), (2,), (2,)]
    optimizer.apply_gradients([(ones(2), variable)])
    optimizer.set_weights(kept)
    for old, new in zip(kept, optimizer.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
    optimizer.set_weights([*kept, np.zeros(2)])  # of an Adam with amsgrad


@pytest.mark.parametrize(
    ("gradient", "message"),
    [
        (np.ones(2, np.float64), "dtype float64"),
        (np.ones(3, np.float32), r"shape \[3\]"),
        (IndexedSlices(np.ones((1, 2), np.float32), [0], (2,)), "rows"),
        (IndexedSlices(np.ones(1, np.float32), [0], (3,)), r"of shape \[3\]"),
        (IndexedSlices(np.ones(1, np.float64), [0]), "dtype float64"),
    ],
    ids=["dtype", "shape", "rows", "dense_shape", "dtype of rows"],
)
def test_a_gradient_that_does_not_fit_is_refused_before_anything_changes(gradient: Any, message: str) -> None:
    first, second = Variable(np.zeros(1, np.float32)), Variable(np.zeros(2, np.float32), name="w")
    optimizer = SGD(1.0)
    with pytest.raises(ValueError, match=message):
        optimizer.apply_gradients([(ones(), first), (gradient, second)])
    assert values(first) == [0.0]
    assert int(optimizer.iterations.numpy()) == 0


def test_a_python_number_is_a_gradient_in_the_variables_dtype() -> None:
    variable = Variable(np.float64(1.0))
    SGD(1.0).apply_gradients([(0.5, variable)])
    assert variable.numpy() == 0.5


W, G = Variable(np.zeros(2, np.float32), name="w"), np.ones(2, np.float32)


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ([(W, G)], r"item 0 is \(variable 'w:0', a ndarray\): apply_gradients takes pairs"),
        ([(G, W), (G, G)], r"item 1 is \(a ndarray, a ndarray\)"),
        ([(G, W), (G, Tensor(G))], r"item 1 is \(a ndarray, a Tensor\)"),
        ([(None, G)], r"item 0 is \(a NoneType, a ndarray\)"),
        ([G], "item 0 is a ndarray"),
        ([(G,)], "item 0 is a tuple of 1"),
        ((G, W), "item 0 is a ndarray"),
        ({"w:0": G}, "item 0 is a str"),
    ],
    ids=["swapped", "array", "tensor", "none", "gradients alone", "one", "one pair", "dictionary"],
)
@pytest.mark.parametrize("made_a_step", [False, True])
@pytest.mark.parametrize("optimizer_class", [SGD, AdamW])
def test_what_is_no_list_of_pairs_is_refused_by_its_item(
    optimizer_class: Any, made_a_step: bool, pairs: Any, message: str
) -> None:
    optimizer = optimizer_class(0.5)
    if made_a_step:
        optimizer.apply_gradients([(Tensor(G), W)])
    before = values(W)
    with pytest.raises((ValueError, NotImplementedError), match=message):
        optimizer.apply_gradients(pairs)
    assert values(W) == before
    assert int(optimizer.iterations.numpy()) == made_a_step


@pytest.mark.parametrize("pairs", [[ones(3)], (ones(3), W), {"w:0": G}, [(G,)]])
def test_what_is_no_list_of_pairs_is_refused_by_optimizers_of_tensorflow_1(pairs: Any) -> None:
    with pytest.raises(ValueError, match=r"takes pairs \(gradient, variable\).* but item 0 is a"):
        tensorflow1.GradientDescentOptimizer(0.5).apply_gradients(pairs)


def test_a_first_call_that_was_refused_has_not_built_an_optimizer_of_keras_3() -> None:
    first, second = Variable(np.zeros(1, np.float32)), Variable(np.zeros(1, np.float32))
    optimizer = AdamW(0.5)
    with pytest.raises(ValueError, match="float64"):
        optimizer.apply_gradients([(np.ones(1), first)])
    optimizer.apply_gradients([(ones(), first), (ones(), second)])
    assert values(first) == values(second) != [0.0]


@pytest.mark.parametrize("optimizer_class", [SGD, AdamW])
def test_arguments_of_tensorflow_2_11_that_say_nothing_here_are_taken(optimizer_class: Any) -> None:
    optimizer = optimizer_class(0.5, jit_compile=True, is_legacy_optimizer=False)
    assert "jit_compile" not in optimizer.get_config()
    with pytest.raises((TypeError, ValueError), match=r"takes no argument 'momentun'; besides its own: .*weight_decay"):
        optimizer_class(0.5, momentun=0.5)


@pytest.mark.parametrize("rate", [None, "a", [0.1], np.ones(1), lambda: None, 1 + 2j])
@pytest.mark.parametrize("optimizer_class", [SGD, tensorflow1.GradientDescentOptimizer])
def test_learning_rate_that_is_no_number_is_named(optimizer_class: Any, rate: Any) -> None:
    w = Variable(1.0)
    with pytest.raises(TypeError, match=r"learning_rate must be a number, .*, but is "):
        optimizer_class(rate).apply_gradients([(ones()[0], w)])
    assert float(w) == 1.0


def forgetful(pairs: Any) -> Any:
    list(pairs)


@pytest.mark.parametrize("option", [{"gradient_transformers": [forgetful]}, {"gradient_aggregator": forgetful}])
def test_hook_that_returns_nothing_is_named(option: Any) -> None:
    w, optimizer = Variable(1.0), SGD(1.0, **option)
    with pytest.raises(TypeError, match="forgetful returned None"):
        optimizer.apply_gradients([(ones()[0], w)])
    assert float(w) == 1.0


@pytest.mark.parametrize("transformers", [forgetful, [3], "ab"])
def test_transformers_that_are_no_list_of_functions_are_refused(transformers: Any) -> None:
    with pytest.raises(TypeError, match="list of functions over pairs, not "):
        SGD(gradient_transformers=transformers)
    with pytest.raises(TypeError, match="clipnorm must be a number, not 'a'"):
        SGD(clipnorm="a")


def test_variables_are_an_attribute_that_may_be_called() -> None:
    optimizer = SGD(1.0, momentum=0.5)
    optimizer.build([Variable(1.0, name="w")])
    assert [v.name for v in optimizer.variables] == ["SGD/iter:0", "SGD/w/momentum:0"]
    assert optimizer.variables() == optimizer.weights


def test_gradients_are_computed_aggregated_and_applied_one_after_the_other() -> None:
    strategy, optimizer = MirroredStrategy(2), SGD(1.0)
    with strategy.scope():
        w, unused = Variable(3.0, name="w"), Variable(0.0)

    def step() -> None:
        with GradientTape() as tape:
            loss = w * w
        pairs = optimizer.compute_gradients(loss, [w, unused], tape=tape)
        assert [None if g is None else float(g) for g, _ in pairs] == [6.0, None]
        aggregated = optimizer.aggregate_gradients(pairs)
        assert [(float(g), v) for g, v in aggregated] == [(12.0, w)]
        optimizer.apply_gradients(aggregated, skip_gradients_aggregation=True)

    strategy.run(step)
    assert float(w) == -9.0
    assert [float(g) for g, _ in optimizer.compute_gradients(lambda: w * w, [w])] == [-18.0]
    with strategy.scope(), pytest.raises(RuntimeError, match="aggregate_gradients"):
        optimizer.aggregate_gradients([(ones()[0], w)])


def test_an_integer_variable_cannot_be_minimized() -> None:
    with pytest.raises(ValueError, match="int"):
        SGD().apply_gradients([(np.int32([1]), Variable(np.int32([1])))])


def test_a_variable_created_after_the_first_step_gets_slots_then() -> None:
    a, optimizer = Variable(np.zeros(1, np.float32), name="a"), SGD(1.0, momentum=0.5)
    optimizer.apply_gradients([(ones(), a)])
    b = Variable(np.zeros(1, np.float32), name="b")
    optimizer.apply_gradients([(ones(), b), (ones(), a)])
    assert (values(a), values(b)) == ([-2.5], [-1.0])
    assert [w.name for w in optimizer.weights] == ["SGD/iter:0", "SGD/a/momentum:0", "SGD/b/momentum:0"]


def test_two_optimizers_share_a_variable_and_keep_their_own_slots() -> None:
    variable = Variable(np.zeros(1, np.float32))
    first, second = SGD(1.0, momentum=0.5), SGD(0.5, momentum=0.5)
    first.apply_gradients([(ones(), variable)])
    second.apply_gradients([(ones(), variable)])
    assert values(variable) == [-1.5]
    assert values(first.get_slot(variable, "momentum")) == [-1.0]
    assert values(second.get_slot(variable, "momentum")) == [-0.5]


def test_the_mean_of_one_replica_is_its_gradient_also_if_row_sparse() -> None:
    variable = Variable(np.zeros(2, np.float32))
    optimizer = SGD(1.0, gradient_aggregator=Mean())
    optimizer.apply_gradients([(ones(2), variable)])
    optimizer.apply_gradients([(IndexedSlices(ones(1), [1], (2,)), variable)])
    assert values(variable) == [-1.0, -2.0]


def test_an_overridden_stage_is_run() -> None:
    class Doubling(SGD):
        def _transform_unaggregated_gradients(self, grads_and_vars: Any) -> Any:
            return [(gradient * 2, variable) for gradient, variable in grads_and_vars]

    variable = Variable(np.zeros(1, np.float32))
    Doubling(1.0).apply_gradients([(ones(), variable)])
    assert values(variable) == [-2.0]


def test_names_of_nameless_optimizers_are_numbered() -> None:
    first, second = SGD(name=None), SGD(name="")
    assert first.get_config()["name"].startswith("sgd")
    assert second.get_config()["name"] != first.get_config()["name"]
