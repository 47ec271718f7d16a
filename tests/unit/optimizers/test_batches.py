from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import distopt
from distopt import threads
from distopt.arena import BLOCK
from distopt.autodiff.tape import GradientTape
from distopt.distribute import MirroredStrategy, get_replica_context
from distopt.errors import TapeError
from distopt.optimizers import SGD, Adagrad, Adam, AdamW, get_engine, rules, set_default_engine
from distopt.optimizers import batches as batches_module
from distopt.optimizers import engine as engine_module
from distopt.optimizers.batches import Batches
from distopt.packing import BATCH_BYTES, SMALL_BYTES
from distopt.types import Array
from distopt.variable import Variable
from tests.memory_layouts import LAYOUTS

SHAPES: list[tuple[int, ...]] = [(3, 5), (), (7,), (SMALL_BYTES,), (0,), (1,), (2, 3, 4), (65, 63), (11,)]


NAMES = ("even", "odd")


def variables_and_gradients(dtype: Any, seed: int) -> tuple[list[Variable], list[Array]]:
    rng = np.random.default_rng(seed)
    variables = [
        Variable(np.asarray(rng.standard_normal(shape), dtype), dtype=np.dtype(dtype), name=NAMES[position % 2])
        for position, shape in enumerate(SHAPES)
    ]
    return variables, [np.asarray(rng.standard_normal(shape), dtype) for shape in SHAPES]


def half_decayed() -> AdamW:
    optimizer = AdamW(0.1, weight_decay=0.5)
    optimizer.exclude_from_weight_decay(var_names=["even"])
    return optimizer


OPTIMIZERS: dict[str, Callable[[], Any]] = {
    "Adam": lambda: Adam(0.1),
    "AdamW": lambda: AdamW(0.1, weight_decay=0.5),
    "AdamW, every other variable without decay": half_decayed,
    "a decay of its own pass, and averages": lambda: SGD(
        0.1, momentum=0.9, weight_decay=0.5, use_ema=True, ema_momentum=0.5, ema_overwrite_frequency=2
    ),
    "clipped by value": lambda: Adam(0.1, clipvalue=0.3),
    "clipped by global norm": lambda: SGD(0.1, momentum=0.9, global_clipnorm=0.5),
    "clipped by both, with averages": lambda: Adam(0.1, clipvalue=0.3, global_clipnorm=0.5, use_ema=True),
    "clipped by norm": lambda: Adam(0.1, clipnorm=0.5),
    "accumulated": lambda: Adagrad(0.1, weight_decay=0.5, gradient_accumulation_steps=2),
}


def run(optimizer: Any, how: str, dtype: Any) -> list[bytes]:
    variables, gradients = variables_and_gradients(dtype, seed=1)
    optimizer.build(variables)
    for step in range(4):
        pairs = [(gradients[i], variables[i]) for i in (4, 7, 0, 2, 1, 3, 8, 5) if (i + step) % 4]
        updated, hypers = [variable for _, variable in pairs], optimizer.step_hypers()
        if how == "as owners do":
            layout = optimizer.layout(updated)
            optimizer.finish(layout, layout.pack([gradient for gradient, _ in pairs]), hypers)
        elif how == "all at once" or optimizer.features.accumulation_steps > 1 or optimizer.clips.active:
            optimizer.finish_aggregated(pairs, hypers)
        else:
            for pair in pairs:
                optimizer.finish_pairs([pair], hypers)
            optimizer.advance(hypers, updated)
    slots = [array for of_variable in optimizer.state().slots for array in of_variable.values()]
    return [variable.numpy().tobytes() for variable in variables] + [copies[0].tobytes() for copies in slots]


@pytest.mark.parametrize("dtype", [np.float32, np.float64, ml_dtypes.bfloat16])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_all_at_once_has_the_bits_of_one_after_another_and_of_owners_on_both_engines(name: str, dtype: Any) -> None:
    results = {}
    try:
        for engine in ("numpy", "compiled"):
            set_default_engine(engine)
            for how in ("all at once", "one after another", "as owners do"):
                results[engine, how] = run(OPTIMIZERS[name](), how, dtype)
    finally:
        set_default_engine("compiled")
    first = results["numpy", "one after another"]
    assert [key for key, result in results.items() if result != first] == []


class CountingEngine:
    """The engine, with the sizes of the arrays that its kernels were called with."""

    name = "counting"

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def kernel(self, *what: Any) -> Any:
        kernel = get_engine().kernel(*what)

        def counting(*arguments: Any) -> None:
            self.sizes.append(arguments[0].size)
            kernel(*arguments)

        return counting


def test_small_neighbours_share_a_call_and_a_large_variable_has_its_own() -> None:
    optimizer = SGD(0.5)
    sizes = [100] * 10 + [SMALL_BYTES] + [100] * 2 + [SMALL_BYTES // 4] * (BATCH_BYTES // SMALL_BYTES)
    variables = [Variable(np.ones(size, np.float32)) for size in sizes]
    optimizer.build(variables)
    engine: Any = CountingEngine()
    batches = Batches(optimizer, engine, variables)
    batches.update([np.ones(size, np.float32) for size in sizes], optimizer.step_hypers())
    assert engine.sizes == [9 * 112 + 100, SMALL_BYTES, 2 * 112 + 7 * (SMALL_BYTES // 4), SMALL_BYTES // 4]
    assert all((variable.numpy() == 0.5).all() for variable in variables)


def test_neighbours_that_are_treated_differently_do_not_share_a_call() -> None:
    optimizer = half_decayed()
    variables = [Variable(np.ones(100, np.float32), name=name) for name in ("odd", "odd", "even", "even", "odd")]
    optimizer.build(variables)
    engine: Any = CountingEngine()
    Batches(optimizer, engine, variables).update([np.zeros(100, np.float32)] * 5, optimizer.step_hypers())
    assert sorted(engine.sizes) == [100, 212, 212]
    assert [float(variable.numpy()[0]) for variable in variables] == [np.float32(0.95)] * 2 + [1, 1] + [
        np.float32(0.95)
    ]


@pytest.mark.usefixtures("engine_name")
@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("replicas", [1, 3])
def test_gradients_may_lie_in_memory_in_any_way(name: str, replicas: int) -> None:
    rng = np.random.default_rng(3)
    shapes = [(2, 3), (7,), (SMALL_BYTES,), (300, 200)]
    of_replica = [[rng.standard_normal(shape).astype(np.float32) for shape in shapes] for _ in range(replicas)]

    def updated(lay: Callable[[Array], Array]) -> list[bytes]:
        strategy = MirroredStrategy(replicas)
        with strategy.scope():
            optimizer = OPTIMIZERS[name]()
            variables = [Variable(np.zeros(shape, np.float32)) for shape in shapes]
            for _ in range(2):

                def step() -> None:
                    replica = get_replica_context().replica_id_in_sync_group
                    optimizer.apply_gradients(zip(map(lay, of_replica[replica]), variables, strict=True))

                strategy.run(step)
        return [variable.numpy().tobytes() for variable in variables]

    expected = updated(np.copy)
    assert [how for how, lay in LAYOUTS.items() if updated(lay) != expected] == []


def test_a_variable_that_a_tape_has_read_stops_all_updates_of_the_call() -> None:
    optimizer = SGD(1.0)
    variables = [Variable(np.zeros(3, np.float32)) for _ in range(2)]
    pairs = [(np.ones(3, np.float32), variable) for variable in variables]
    with GradientTape() as tape:
        loss = distopt.reduce_sum(variables[1] * variables[1])
    with pytest.raises(TapeError):
        optimizer.apply_gradients(pairs)
    assert not any(variable.numpy().any() for variable in variables)
    tape.gradient(loss, variables)
    optimizer.apply_gradients(pairs)
    assert all((variable.numpy() == -1).all() for variable in variables)


def test_a_variable_listed_twice_is_updated_twice() -> None:
    optimizer = SGD(0.25)
    variable = Variable(np.zeros(3, np.float32))
    optimizer.apply_gradients([(np.ones(3, np.float32), variable)] * 2)
    np.testing.assert_array_equal(variable.numpy(), np.full(3, -0.5))


def test_another_engine_is_used_from_the_next_call_on(monkeypatch: pytest.MonkeyPatch) -> None:
    optimizer = SGD(1.0)
    variables = [Variable(np.zeros(3, np.float32)) for _ in range(2)]
    pairs = [(np.ones(3, np.float32), variable) for variable in variables]
    optimizer.apply_gradients(pairs)
    numpy_engine: Any = get_engine("numpy")
    asked: list[str] = []
    kernel = numpy_engine.kernel
    monkeypatch.setattr(numpy_engine, "kernel", lambda rule, *dtypes: asked.append(rule.name) or kernel(rule, *dtypes))
    set_default_engine("numpy")
    try:
        optimizer.apply_gradients(pairs)
    finally:
        set_default_engine("compiled")
    assert asked == [rules.SGD.name]


@pytest.mark.parametrize("number", [2, 3, 8])
def test_threads_share_the_updates_of_many_variables_and_change_no_bit(
    number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = [100, 3 * BLOCK, 7, 50_000, 5 * BLOCK + 3, 0, 20_000, 20_000]
    parts: list[int] = []
    run_parts = threads.run_parts
    monkeypatch.setattr(threads, "run_parts", lambda loop, of: parts.append(len(of)) or run_parts(loop, of))
    monkeypatch.setattr(engine_module, "SHARED_BYTES", 1)
    monkeypatch.setattr(batches_module, "SHARED_BYTES", 1)
    results = []
    for threads_now in (1, number):
        monkeypatch.setattr(threads, "num_threads", lambda now=threads_now: now)
        optimizer = half_decayed()
        rng = np.random.default_rng(0)
        variables = [Variable(rng.standard_normal(size).astype(np.float32), name=NAMES[size % 2]) for size in sizes]
        gradients = [rng.standard_normal(size).astype(np.float32) for size in sizes]
        for _ in range(2):
            optimizer.apply_gradients(zip(gradients, variables, strict=True))
        layout = optimizer.layout(variables)
        optimizer.finish(layout, layout.pack(gradients), optimizer.step_hypers())
        results.append([variable.numpy().tobytes() for variable in variables])
    assert results[0] == results[1]
    assert parts == [number] * 3


@pytest.mark.parametrize("clip", [{"clipvalue": 0.0}, {"clipvalue": 0.5}, {"global_clipnorm": 1.0}], ids=str)
def test_what_cannot_be_clipped_in_passing_is_clipped_before(clip: dict[str, float]) -> None:
    optimizer = SGD(1.0, **clip)
    variables = [Variable(np.zeros(2, np.float32)) for _ in range(2)]
    variables[0].constraint = lambda value: value
    gradients = [np.array([3.0, 0.0], np.float32), np.array([0.0, 4.0], np.float32)]
    optimizer.finish_aggregated(zip(gradients, variables, strict=True), optimizer.step_hypers())
    largest = clip.get("clipvalue", 4.0 / 5.0)
    np.testing.assert_allclose(variables[1].numpy(), [0.0, -largest], rtol=1e-6)
