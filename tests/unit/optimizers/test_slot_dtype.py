"""float32 slots of narrow variables: the update is computed in float32, and only the new variable is rounded."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

import distopt as tf
from distopt.arena import BLOCK
from distopt.canonical_sum import add_rows
from distopt.optimizers import SGD, Adam
from distopt.optimizers.owner import SpanOwner
from distopt.types import Array
from distopt.variable import Variable
from tests.parity.deployments import DEPLOYMENTS, Job, run_steps

HALF = np.dtype(ml_dtypes.bfloat16)


def narrow(values: Any) -> Array:
    return np.asarray(values, np.float32).astype(HALF)


def momentum_by_hand(start: Array, gradients: list[Array]) -> Array:
    w, m = start, np.zeros(start.shape, np.float32)
    for gradient in gradients:
        m = np.float32(0.9) * m - np.float32(0.1) * gradient.astype(np.float32)
        w = (w.astype(np.float32) + m).astype(HALF)
    return w


def gradients_of(shape: Any, count: int) -> list[Array]:
    rng = np.random.default_rng(2)
    return [narrow(rng.standard_normal(shape)) for _ in range(count)]


def momentum(**more: Any) -> SGD:
    return SGD(0.1, momentum=0.9, slot_dtype="float32", **more)


@pytest.mark.usefixtures("engine_name")
def test_one_variable_and_several_are_updated_in_float32() -> None:
    shapes = [(9000,), (3,), (2, 2)]
    starts = [narrow(np.ones(shape)) for shape in shapes]
    variables = [Variable(start, dtype=HALF) for start in starts]
    gradients = [gradients_of(shape, 4) for shape in shapes]
    optimizer = momentum()
    for step in range(4):
        optimizer.apply_gradients([(own[step], v) for own, v in zip(gradients, variables, strict=True)])
    for variable, start, own in zip(variables, starts, gradients, strict=True):
        assert optimizer.get_slot(variable, "momentum").dtype == np.float32
        assert variable.numpy().tobytes() == momentum_by_hand(start, own).tobytes()


@pytest.mark.usefixtures("engine_name")
@pytest.mark.parametrize("replicas", [2, 3, 8])
def test_under_a_strategy_gradients_are_summed_in_their_own_dtype(replicas: int) -> None:
    strategy = tf.distribute.MirroredStrategy(replicas)
    parts = gradients_of(50, replicas)
    with strategy.scope():
        variable, optimizer = Variable(narrow(np.ones(50)), dtype=HALF), momentum()

    def replica() -> None:
        rank = tf.distribute.get_replica_context().replica_id_in_sync_group
        optimizer.apply_gradients([(parts[rank], variable)])

    strategy.run(replica)
    assert variable.numpy().tobytes() == momentum_by_hand(narrow(np.ones(50)), [add_rows(np.stack(parts))]).tobytes()


def test_owners_of_parts_have_the_same_bits() -> None:
    start = narrow(np.linspace(-1, 1, 3 * BLOCK + 5))
    variable, optimizer = Variable(start, dtype=HALF), momentum()
    layout = optimizer.layout([variable])
    (gradient,) = gradients_of(start.size, 1)
    flat, hypers = layout.pack([gradient]), optimizer.step_hypers()
    for spans in layout.divide(3):
        owner = SpanOwner(optimizer, layout, spans)
        owner.apply(layout.take(flat, spans), hypers, owner.partials(layout.take(flat, spans), hypers))
    assert variable.numpy().tobytes() == momentum_by_hand(start, [gradient]).tobytes()


@pytest.mark.usefixtures("engine_name")
def test_rows_are_updated_in_float32() -> None:
    start = narrow(np.ones((4, 3)))
    variable, optimizer = Variable(start, dtype=HALF), momentum()
    values = gradients_of((2, 3), 1)[0]
    optimizer.apply_gradients([(tf.IndexedSlices(values, [3, 1], (4, 3)), variable)])
    expected = start.copy()
    expected[[3, 1]] = momentum_by_hand(start[[3, 1]], [values])
    assert variable.numpy().tobytes() == expected.tobytes()


def test_small_squares_are_not_lost() -> None:
    # bfloat16 rounds 0.999 to 1, so there Adam's second moment never moves.
    found = []
    for optimizer in (Adam(0.1), Adam(0.1, slot_dtype="float32")):
        variable = Variable(narrow(np.ones(4)), dtype=HALF)
        for _ in range(3):
            optimizer.apply_gradients([(narrow(np.full(4, 0.125)), variable)])
        found.append(optimizer.get_slot(variable, "v").numpy().astype(np.float32))
    assert not found[0].any()
    np.testing.assert_allclose(found[1], np.full(4, (1 - 0.999**3) * 0.125**2), rtol=1e-4)


def features_by_hand(start: Array, gradients: list[Array]) -> tuple[Array, Array]:
    """Momentum with a mean of two gradients a step, averages by 0.9 that overwrite the variable every second step."""
    w, m, average = start, np.zeros(start.shape, np.float32), start.astype(np.float32)
    for step in range(len(gradients) // 2):
        first, second = (g.astype(np.float32) for g in gradients[2 * step : 2 * step + 2])
        mean = ((first + second) / np.float32(2)).astype(HALF)
        m = np.float32(0.9) * m - np.float32(0.1) * mean.astype(np.float32)
        w = (w.astype(np.float32) + m).astype(HALF)
        decay = np.float32(0.9 if step else 0)
        average = decay * average + (np.float32(1) - decay) * w.astype(np.float32)
        if step % 2:
            w = average.astype(HALF)
    return w, average


FEATURES: dict[str, Any] = {
    "use_ema": True,
    "ema_momentum": 0.9,
    "ema_overwrite_frequency": 2,
    "gradient_accumulation_steps": 2,
}


@pytest.mark.usefixtures("engine_name")
@pytest.mark.parametrize("deployment", ["alone", *DEPLOYMENTS])
def test_accumulators_and_averages_are_kept_in_float32(deployment: str) -> None:
    start, gradients = narrow(np.linspace(0.5, 2, 3 * BLOCK + 5)), gradients_of(3 * BLOCK + 5, 8)

    def job() -> Job:
        return Job({"v": Variable(start, dtype=HALF)}, momentum(**FEATURES))

    def part(step: int, replica: int) -> Array:
        return gradients[step] if replica == 0 else (gradients[step].astype(np.float32) / 4).astype(HALF)

    if deployment == "alone":
        variables, optimizer = job()
        for gradient in gradients:
            optimizer.apply_gradients([(gradient, variables["v"])])
        wanted, average = features_by_hand(start, gradients)
    else:
        strategy, (variables, optimizer), fetch = DEPLOYMENTS[deployment](job)
        run_steps(strategy, Job(variables, optimizer), lambda s, r: [part(s, r)], len(gradients), lambda step: None)
        fetch()
        sums = [add_rows(np.stack([part(s, 0), part(s, 1)])) for s in range(len(gradients))]
        wanted, average = features_by_hand(start, sums)
    variable = variables["v"]
    for name in ("momentum", "gradient_accumulator", "average"):
        assert optimizer.get_slot(variable, name).dtype == np.float32
    assert variable.numpy().tobytes() == wanted.tobytes()
    assert optimizer.get_slot(variable, "average").numpy().tobytes() == average.tobytes()


def test_split_variables_and_final_averages_are_rounded_to_the_variable() -> None:
    strategy = tf.distribute.MirroredStrategy(2)
    start, gradients = narrow(np.ones(7)), gradients_of(7, 2)
    with strategy.scope():
        variable = Variable(start, dtype=HALF)
    optimizer = momentum(use_ema=True, ema_momentum=0.9)
    strategy.extended.checks = tf.distribute.Checks(never_reduced="ignore")

    def replica(step: int) -> None:
        rank = tf.distribute.get_replica_context().replica_id_in_sync_group
        optimizer.apply_gradients([(gradients[(step + rank) % 2], variable)], experimental_aggregate_gradients=False)

    for step in range(3):
        strategy.run(replica, args=(step,))
    averages = [optimizer.get_slot(variable, "average").copy_of(rank) for rank in (0, 1)]
    assert averages[0].tobytes() != averages[1].tobytes()
    optimizer.finalize_variable_values([variable])
    assert [variable.copy_of(rank).tobytes() for rank in (0, 1)] == [a.astype(HALF).tobytes() for a in averages]


def test_state_can_be_taken_and_loaded() -> None:
    states = []
    for _ in range(2):
        variable, optimizer = Variable(narrow(np.ones(20)), dtype=HALF), momentum()
        optimizer.build([variable])
        states.append((variable, optimizer))
    (variable, optimizer), (other, twin) = states
    first, second = gradients_of(20, 2)
    optimizer.apply_gradients([(first, variable)])
    twin.load_state(optimizer.state())
    other.assign(variable.numpy())
    for own, opt in ((variable, optimizer), (other, twin)):
        opt.apply_gradients([(second, own)])
    assert variable.numpy().tobytes() == other.numpy().tobytes()


def test_the_option_is_part_of_the_configuration_and_wide_variables_have_no_use_for_it() -> None:
    optimizer = momentum()
    assert optimizer.get_config()["slot_dtype"] == "float32"
    assert "slot_dtype" not in SGD().get_config()
    twin = SGD.from_config(optimizer.get_config())
    variable = Variable(np.ones(3), dtype=np.dtype(np.float64))
    twin.build([variable])
    assert twin.get_slot(variable, "momentum").dtype == np.float64
    with pytest.raises(ValueError, match="slot_dtype must be None or float32, but is 'float64'"):
        SGD(slot_dtype="float64")
