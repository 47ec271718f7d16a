"""Weight decay, averages, accumulation, loss scale: what they do, where they stop, what is saved of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import distopt as tf
from distopt.distribute import MirroredStrategy
from distopt.errors import PlacementError, ReplicaContextError
from distopt.keras import optimizers
from distopt.variable import Variable
from tests.parity.deployments import DEPLOYMENTS, Job, run_steps

EVERY = [
    optimizers.SGD,
    optimizers.Adam,
    optimizers.Adamax,
    optimizers.Nadam,
    optimizers.Adagrad,
    optimizers.Adadelta,
    optimizers.RMSprop,
    optimizers.Ftrl,
    optimizers.AdamW,
    optimizers.Lion,
    optimizers.Lamb,
    optimizers.Adafactor,
    optimizers.Muon,
]


def variable_of(value: Any, name: str | None = None) -> Variable:
    return Variable(np.asarray(value, np.float32), name=name)


def gradient(step: int, replica: int = 0) -> Any:
    return np.random.default_rng([step, replica]).standard_normal((3, 2)).astype(np.float32)


@pytest.mark.parametrize("make", EVERY)
def test_every_optimizer_accumulates_to_the_step_that_the_mean_makes(make: Any) -> None:
    accumulating, plain = make(0.1, gradient_accumulation_steps=2, use_ema=True), make(0.1, use_ema=True)
    first, second = variable_of(np.ones((3, 2))), variable_of(np.ones((3, 2)))
    for step in range(3):
        for part in range(2):
            assert int(accumulating.iterations.numpy()) == step
            before = first.numpy()
            accumulating.apply_gradients([(gradient(step) * np.float32(1.5 - part), first)])
            assert part == 1 or first.numpy().tobytes() == before.tobytes()
        plain.apply_gradients([((gradient(step) * np.float32(1.5) + gradient(step) * np.float32(0.5)) / 2, second)])
    np.testing.assert_allclose(first.numpy(), second.numpy(), rtol=1e-6)
    np.testing.assert_allclose(
        accumulating.get_slot(first, "average").numpy(), plain.get_slot(second, "average").numpy(), rtol=1e-6
    )


@pytest.mark.parametrize("make", EVERY)
def test_every_optimizer_completes_an_accumulation_that_ends_early(make: Any) -> None:
    accumulating, plain = make(0.1, gradient_accumulation_steps=5), make(0.1)
    first, second = variable_of(np.ones((3, 2))), variable_of(np.ones((3, 2)))
    parts = [gradient(part) for part in range(3)]
    for part in parts:
        if part is parts[-1]:
            accumulating.complete_accumulation()
        accumulating.apply_gradients([(part, first)])
    plain.apply_gradients([((parts[0] + parts[1] + parts[2]) / np.float32(3), second)])
    assert int(accumulating.iterations.numpy()) == 1
    np.testing.assert_allclose(first.numpy(), second.numpy(), rtol=1e-6)
    before = first.numpy()
    accumulating.apply_gradients([(parts[0], first)])
    np.testing.assert_array_equal(first.numpy(), before, "the next accumulation begins anew")


def test_completing_without_an_accumulation_changes_nothing() -> None:
    plain, asked = optimizers.SGD(0.1), optimizers.SGD(0.1)
    asked.complete_accumulation()
    first, second = variable_of(np.ones((3, 2))), variable_of(np.ones((3, 2)))
    plain.apply_gradients([(gradient(0), first)])
    asked.apply_gradients([(gradient(0), second)])
    np.testing.assert_array_equal(first.numpy(), second.numpy())


# Ftrl computes its variable anew in each step, from what it has accumulated.
@pytest.mark.parametrize("make", [make for make in EVERY if make is not optimizers.Ftrl])
def test_every_optimizer_decays_its_variables_apart_from_the_gradient(make: Any) -> None:
    decayed, left = variable_of(np.ones((3, 2)), "kernel"), variable_of(np.ones((3, 2)), "bias")
    optimizer = make(0.5, weight_decay=0.1)
    if make is optimizers.Muon:
        optimizer.adam_weight_decay = 0.1
    optimizer.exclude_from_weight_decay(var_names=["bias"])
    zero = np.zeros((3, 2), np.float32)
    optimizer.apply_gradients([(zero, decayed), (zero, left)])
    np.testing.assert_allclose(decayed.numpy(), np.full((3, 2), 0.95), rtol=1e-6)
    np.testing.assert_array_equal(left.numpy(), np.ones((3, 2)))


@pytest.mark.parametrize("make", EVERY)
def test_features_survive_the_configuration(make: Any) -> None:
    optimizer = make(
        0.5,
        weight_decay=0.25,
        use_ema=True,
        ema_momentum=0.5,
        ema_overwrite_frequency=3,
        gradient_accumulation_steps=4,
        loss_scale_factor=8.0,
    )
    twin = type(optimizer).from_config(optimizer.get_config())
    for option in ("weight_decay", "use_ema", "ema_momentum", "ema_overwrite_frequency", "loss_scale_factor"):
        assert getattr(twin, option) == getattr(optimizer, option)
    assert twin.gradient_accumulation_steps == 4
    assert make(0.5).get_config().keys() <= optimizer.get_config().keys()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gradient_accumulation_steps": 1}, "gradient_accumulation_steps must be an integer from 2"),
        ({"gradient_accumulation_steps": 2.5}, "gradient_accumulation_steps"),
        ({"use_ema": True, "ema_momentum": 1.5}, r"ema_momentum must lie in 0\.\.1, but is 1.5"),
        ({"use_ema": True, "ema_overwrite_frequency": 0.5}, "ema_overwrite_frequency must be an integer"),
        ({"loss_scale_factor": 0.0}, "loss_scale_factor must be above zero"),
        ({"weight_decay": -0.1}, "weight_decay must not be negative"),
    ],
    ids=str,
)
@pytest.mark.parametrize("make", [optimizers.SGD, optimizers.Lion])
def test_a_value_outside_of_its_range_is_refused(make: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(0.1, **options)


def test_exclusion_after_the_first_step_is_refused() -> None:
    variable, optimizer = variable_of([1.0]), optimizers.SGD(weight_decay=0.1)
    optimizer.apply_gradients([(np.ones(1, np.float32), variable)])
    with pytest.raises(ValueError, match="is built"):
        optimizer.exclude_from_weight_decay(var_list=[variable])


def test_a_schedule_is_asked_at_real_steps_only() -> None:
    schedule = optimizers.schedules.PiecewiseConstantDecay([0], [1.0, 10.0])
    variable, optimizer = variable_of(0.0), optimizers.SGD(schedule, gradient_accumulation_steps=2)
    for _ in range(4):
        optimizer.apply_gradients([(np.float32(1), variable)])
    assert float(variable.numpy()) == -11.0


def test_a_variable_without_gradient_keeps_averaging_and_loses_what_it_accumulated() -> None:
    a, b = variable_of(1.0), variable_of(8.0)
    optimizer = optimizers.SGD(1.0, use_ema=True, ema_momentum=0.5, gradient_accumulation_steps=2)
    optimizer.apply_gradients([(np.float32(0), a), (np.float32(0), b)])
    optimizer.apply_gradients([(np.float32(0), a), (np.float32(0), b)])
    b.assign(np.float32(4))
    optimizer.apply_gradients([(np.float32(0), a), (np.float32(6), b)])
    optimizer.apply_gradients([(np.float32(0), a)])
    assert float(b.numpy()) == 4.0
    assert float(optimizer.get_slot(b, "average").numpy()) == 6.0
    assert float(optimizer.get_slot(b, "gradient_accumulator").numpy()) == 0.0


def test_finalize_sets_variables_to_their_averages() -> None:
    variable, optimizer = variable_of(3.0), optimizers.SGD(1.0, use_ema=True, ema_momentum=0.5)
    for _ in range(2):
        optimizer.apply_gradients([(np.float32(1), variable)])
    optimizer.finalize_variable_values([variable])
    assert float(variable.numpy()) == 1.5


def test_averages_on_servers_cannot_be_taken_from_a_worker() -> None:
    strategy, job, _ = DEPLOYMENTS["2-servers"](
        lambda: Job({"v": variable_of(np.ones((3, 2)))}, optimizers.SGD(1.0, use_ema=True))
    )
    run_steps(strategy, job, lambda step, replica: [gradient(step, replica)], 1, lambda step: None)
    with pytest.raises(PlacementError, match="parameter servers"):
        job.optimizer.finalize_variable_values(job.variables.values())


def test_minimize_scales_the_loss_by_the_factor_that_gradients_are_divided_by() -> None:
    variable = variable_of(3.0)
    seen: list[float] = []

    class Watching(optimizers.SGD):
        def _transform_unaggregated_gradients(self, grads_and_vars: Any) -> Any:
            pairs = list(grads_and_vars)
            seen.extend(float(g.numpy()) for g, _ in pairs)
            return pairs

    optimizer = Watching(0.5, loss_scale_factor=4.0)
    optimizer.minimize(lambda: variable * variable, [variable])
    assert float(variable.numpy()) == 0.0
    assert seen == [6.0]
    assert optimizer.scale_loss(2.0) == 8.0


def test_a_saved_state_goes_on_in_the_middle_of_an_accumulation() -> None:
    def made() -> tuple[Variable, Any]:
        return variable_of(np.ones((3, 2))), optimizers.Nadam(0.1, gradient_accumulation_steps=3, use_ema=True)

    variable, optimizer = made()
    other, twin = made()
    twin.build([other])
    for step in range(8):
        optimizer.apply_gradients([(gradient(step), variable)])
        if step == 3:
            other.assign(variable.numpy())
            twin.load_state(optimizer.state())
        if step > 3:
            twin.apply_gradients([(gradient(step), other)])
    assert other.numpy().tobytes() == variable.numpy().tobytes()
    assert [w.tobytes() for w in twin.get_weights()] == [w.tobytes() for w in optimizer.get_weights()]
    assert int(optimizer.state().extras["gradients_accumulated"]) == 2


def test_row_sparse_gradients_are_accumulated_as_dense_ones() -> None:
    slices = tf.IndexedSlices(np.array([[1, 1], [2, 2], [3, 3]], np.float32), [0, 2, 0], (3, 2))
    results = []
    for given in (slices, slices.to_dense()):
        variable = variable_of(np.zeros((3, 2)))
        optimizer = optimizers.Adagrad(0.5, gradient_accumulation_steps=2)
        for _ in range(2):
            optimizer.apply_gradients([(given, variable)])
        results.append(variable.numpy())
    np.testing.assert_array_equal(*results)


@pytest.mark.parametrize("deployment", DEPLOYMENTS)
@pytest.mark.parametrize("make", [optimizers.SGD, optimizers.Lion])
def test_row_sparse_gradients_with_all_features_have_the_bits_of_two_replicas(make: Any, deployment: str) -> None:
    def made() -> Job:
        options = {"weight_decay": 0.1, "use_ema": True, "gradient_accumulation_steps": 2, "loss_scale_factor": 2.0}
        return Job({"v": variable_of(np.ones((3, 2)))}, make(0.1, **options))

    def rows(step: int, replica: int) -> list[Any]:
        values = np.random.default_rng([step, replica]).standard_normal((2 + replica, 2)).astype(np.float32)
        return [tf.IndexedSlices(values, [0, 2, 0][: 2 + replica], (3, 2))]

    results = []
    for where in ("mirrored", deployment):
        strategy, job, fetch_slots = DEPLOYMENTS[where](made)
        run_steps(strategy, job, rows, 4, lambda step: None)
        fetch_slots()
        results.append([w.tobytes() for w in (job.variables["v"].numpy(), *job.optimizer.get_weights())])
    assert results[0] == results[1]


def test_fit_scales_the_loss_and_ends_with_the_averages() -> None:
    def fitted(**options: Any) -> Any:
        model = tf.keras.Sequential([tf.keras.layers.Dense(1, kernel_initializer="ones", input_shape=(2,))])
        model.compile(optimizers.SGD(0.1, **options), tf.keras.losses.MeanSquaredError())
        model.fit(np.ones((4, 2), np.float32), np.zeros((4, 1), np.float32), epochs=3, verbose=0)
        return model

    plain, scaled, averaged = fitted(), fitted(loss_scale_factor=8.0), fitted(use_ema=True, ema_momentum=0.5)
    for a, b in zip(plain.get_weights(), scaled.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    kernel = averaged.trainable_variables[0]
    np.testing.assert_array_equal(kernel.numpy(), averaged.optimizer.get_slot(kernel, "average").numpy())
    assert kernel.numpy().tobytes() != plain.get_weights()[0].tobytes()


def test_unaggregated_gradients_that_differ_cannot_be_accumulated() -> None:
    strategy = MirroredStrategy(2)
    with strategy.scope():
        variable = variable_of(0.0)
    optimizer = optimizers.SGD(1.0, gradient_accumulation_steps=2)

    def step() -> None:
        context: Any = tf.distribute.get_replica_context()
        value = np.float32(context.replica_id_in_sync_group)
        optimizer.apply_gradients([(value, variable)], experimental_aggregate_gradients=False)

    with pytest.raises(ValueError, match="gradient_accumulation_steps=2 adds up one gradient for all replicas"):
        strategy.run(step)


def test_keras_3_classes_refuse_what_keras_3_refuses() -> None:
    for arguments, message in (
        ({"learning_rate": 1}, "must be a float, a schedule or a callable"),
        ({"clipnorm": 1.0, "clipvalue": 1.0}, "only one of"),
        ({"lr": 0.1}, "takes no argument 'lr'"),
    ):
        with pytest.raises(ValueError, match=message):
            optimizers.Lion(**arguments)
    with pytest.raises(ValueError, match="AdamW needs a number"):
        optimizers.AdamW(weight_decay=None)
    with pytest.raises(ValueError, match="beta_1 must be above 0"):
        optimizers.Lion(beta_1=0.0)
    with pytest.warns(UserWarning, match="`decay` has no effect"):
        optimizers.Lion(decay=0.1)
    a, b, late = (variable_of(0.0, name) for name in ("a", "b", "late"))
    optimizer = optimizers.Lion()
    with pytest.raises(ValueError, match="no gradients and variables"):
        optimizer.apply_gradients([])
    with pytest.raises(ValueError, match="no variable has a gradient"):
        optimizer.apply_gradients([(None, a), (None, b)])
    with pytest.warns(UserWarning, match=r"no gradients for \['b:0'\]"):
        optimizer.apply_gradients([(np.float32(1), a), (None, b)])
    with pytest.raises(ValueError, match=r"was built without \['late:0'\]"):
        optimizer.apply_gradients([(np.float32(1), late)])
    with pytest.raises(ValueError, match="1 gradients were given for 2 variables"):
        optimizer.apply([np.float32(1)])
    optimizer.apply([np.float32(1), np.float32(1)])
    assert int(optimizer.iterations.numpy()) == 2


# Scaled losses.


@pytest.mark.parametrize("make", [optimizers.LossScaleOptimizer, optimizers.LossScaleOptimizerV3])
def test_minimize_with_a_scaled_loss_is_minimize_without(make: Any) -> None:
    variable = variable_of(3.0)
    optimizer = make(optimizers.SGD(0.25), initial_scale=64.0)
    optimizer.minimize(lambda: variable * variable, [variable])
    assert float(variable.numpy()) == 1.5
    assert int(optimizer.iterations.numpy()) == 1


@pytest.mark.parametrize("inner", [optimizers.SGD, lambda rate: optimizers.AdamW(rate, clipnorm=1.0)])
@pytest.mark.parametrize("make", [optimizers.LossScaleOptimizer, optimizers.LossScaleOptimizerV3])
def test_one_replicas_overflow_leaves_the_step_out_on_all_and_is_saved(make: Any, inner: Any) -> None:
    strategy = MirroredStrategy(3)
    with strategy.scope():
        variable = variable_of(1.0)
    optimizer = make(inner(1.0), initial_scale=4.0)

    def step(bad_replica: int) -> None:
        context: Any = tf.distribute.get_replica_context()
        bad = context.replica_id_in_sync_group == bad_replica
        optimizer.apply_gradients([(np.float32(np.inf if bad else 1), variable)])

    strategy.run(step, args=(-1,))
    value = float(variable.numpy())
    assert value < 1.0
    strategy.run(step, args=(1,))
    assert float(variable.numpy()) == value
    assert float(optimizer.loss_scale.numpy()) == 2.0
    assert int(optimizer.iterations.numpy()) == (2 if make is optimizers.LossScaleOptimizer else 1)
    state = optimizer.state()
    assert float(state.extras["loss_scale"]) == 2.0
    twin = make(inner(1.0))
    twin.build([variable])
    twin.load_state(state)
    assert float(twin.loss_scale.numpy()) == 2.0
    assert int(twin.iterations.numpy()) == int(optimizer.iterations.numpy())


def test_helpers_of_the_legacy_loss_scale() -> None:
    optimizer = optimizers.LossScaleOptimizer(optimizers.SGD(0.5), dynamic=False, initial_scale=8.0)
    assert float(optimizer.get_scaled_loss(tf.Tensor(np.float32(2))).numpy()) == 16.0
    assert float(optimizer.get_scaled_loss(lambda: tf.Tensor(np.float32(2)))().numpy()) == 16.0
    slices = tf.IndexedSlices(np.array([[8.0]], np.float32), [1], (2, 1))
    dense, none, rows = optimizer.get_unscaled_gradients([tf.Tensor(np.float32(8)), None, slices])
    assert none is None
    assert float(dense.numpy()) == 1.0
    assert rows.values.numpy().tolist() == [[1.0]]
    assert (optimizer.dynamic, optimizer.dynamic_counter, optimizer.dynamic_growth_steps) == (False, None, None)
    optimizer.learning_rate = 0.25
    assert float(optimizer.inner_optimizer.learning_rate.numpy()) == 0.25
    twin = optimizers.LossScaleOptimizer.from_config(optimizer.get_config())
    assert twin.get_config() == optimizer.get_config()


def test_the_legacy_scale_never_falls_below_one_and_the_other_does() -> None:
    for make, expected in ((optimizers.LossScaleOptimizer, 1.0), (optimizers.LossScaleOptimizerV3, 0.5)):
        optimizer = make(optimizers.SGD(1.0), initial_scale=1.0)
        optimizer.apply_gradients([(np.float32(np.nan), variable_of(1.0))])
        assert float(optimizer.loss_scale.numpy()) == expected


def test_wrong_uses_of_a_loss_scale_are_refused() -> None:
    legacy, newer = optimizers.LossScaleOptimizer, optimizers.LossScaleOptimizerV3
    sgd = optimizers.SGD
    wrapped = sgd()
    wrapper = legacy(wrapped)
    for error, call in (
        (TypeError, lambda: legacy("sgd")),
        (TypeError, lambda: legacy(wrapper)),
        (TypeError, lambda: legacy(sgd(), dynamic=1)),  # type: ignore[arg-type]  # on purpose
        (ValueError, lambda: legacy(wrapped)),
        (ValueError, lambda: legacy(sgd(), dynamic=False)),
        (ValueError, lambda: legacy(sgd(), dynamic=False, initial_scale=1.0, dynamic_growth_steps=2)),
        (ValueError, lambda: newer(sgd(), dynamic=False)),
        (ValueError, lambda: newer(sgd(), clipnorm=1.0)),
    ):
        with pytest.raises(error):
            call()
    strategy = MirroredStrategy(2)
    with strategy.scope():
        variable = variable_of(1.0)
        with pytest.raises(ReplicaContextError):
            wrapper.apply_gradients([(np.float32(1), variable)])
