"""Rules after norms and whole-variable rules, and features: any engine, owners and deployment, one set of bits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from distopt.arena import BLOCK
from distopt.autodiff.tape import GradientTape
from distopt.checkpoint import state_hash
from distopt.distribute import MirroredStrategy
from distopt.errors import TapeError
from distopt.indexed_slices import IndexedSlices
from distopt.optimizers import SGD, Adafactor, AdamW, Lamb, Lion, Muon, Optimizer, rules, set_default_engine
from distopt.optimizers.rule import ALL_ROWS, AfterNorms, Kind, Rows, Rule, SparseUse
from distopt.types import Array
from distopt.variable import Variable
from tests.parity.deployments import DEPLOYMENTS, Job, run_steps

SHAPES = [(3, BLOCK), (5,), (), (2 * BLOCK + 17,), (40, 7), (2, 3, 4)]
STEPS = 3

MAKERS: dict[str, Callable[[], Optimizer]] = {
    "lamb": lambda: Lamb(0.1),
    "lamb-decayed": lambda: Lamb(0.1, weight_decay=0.5),
    "adafactor": lambda: Adafactor(0.1),
    "adafactor-decayed": lambda: Adafactor(0.1, weight_decay=0.5),
    "muon": lambda: Muon(0.1),
    "adamw": lambda: AdamW(0.1, amsgrad=True),
    "lion": lambda: Lion(0.1, weight_decay=0.1),
    "averages": lambda: Lamb(0.1, use_ema=True, ema_overwrite_frequency=2),
    "accumulation": lambda: Lamb(0.1, gradient_accumulation_steps=2),
    "all-features": lambda: SGD(
        0.1,
        momentum=0.9,
        weight_decay=0.1,
        use_ema=True,
        ema_momentum=0.5,
        gradient_accumulation_steps=2,
        global_clipnorm=1.0,
        loss_scale_factor=4.0,
    ),
}


def model() -> list[Variable]:
    rng = np.random.default_rng(0)
    return [Variable(rng.standard_normal(shape).astype(np.float32), name=f"v{i}") for i, shape in enumerate(SHAPES)]


def made(make: Callable[[], Optimizer]) -> Job:
    optimizer = make()
    variables = {variable.name: variable for variable in model()}
    if optimizer.weight_decay is not None:
        optimizer.exclude_from_weight_decay(var_names=["v1", "v3"])
    optimizer.build(variables.values())
    return Job(variables, optimizer)


def gradients(step: int, replica: int = 0) -> list[Array]:
    rng = np.random.default_rng([1000, step, replica])
    scale = 10.0 ** rng.integers(-3, 3)
    return [(scale * rng.standard_normal(shape)).astype(np.float32) for shape in SHAPES]


def everything(job: Job) -> list[bytes]:
    slots = [a.tobytes() for v in job.variables.values() for a in job.optimizer.slots.of(v).values()]
    return [v.numpy().tobytes() for v in job.variables.values()] + slots


def whole(make: Callable[[], Optimizer]) -> list[bytes]:
    job = made(make)
    for step in range(STEPS):
        job.optimizer.apply_gradients(zip(gradients(step), job.variables.values(), strict=True))
    return everything(job)


@pytest.mark.parametrize("name", MAKERS)
def test_both_engines_give_the_same_bits(name: str) -> None:
    results = []
    for engine in ("numpy", "compiled"):
        set_default_engine(engine)
        results.append(whole(MAKERS[name]))
    assert results[0] == results[1]
    assert len(results[0]) > len(SHAPES)


@pytest.mark.parametrize("owners", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.usefixtures("engine_name")
def test_spans_of_several_owners_give_the_bits_of_one(name: str, owners: int) -> None:
    job = made(MAKERS[name])
    optimizer = job.optimizer
    layout = optimizer.layout(tuple(job.variables.values()))
    divided = [(spans, optimizer.span_owner(layout, spans)) for spans in layout.divide(owners)]
    for step in range(STEPS):
        factor = optimizer.loss_scale_factor or 1.0
        flat = layout.pack([g / np.float32(factor) for g in gradients(step)])
        hypers = optimizer.step_hypers()
        parts = [owner.partials(layout.take(flat, spans), hypers) for spans, owner in divided]
        for spans, owner in reversed(divided):
            owner.apply(layout.take(flat, spans), hypers, np.concatenate(parts))
        optimizer.advance(hypers)
    assert everything(job) == whole(MAKERS[name])


@pytest.mark.parametrize("deployment", DEPLOYMENTS)
@pytest.mark.parametrize("name", MAKERS)
def test_two_replicas_give_the_bits_of_two_replicas_in_one_process(name: str, deployment: str) -> None:
    results = []
    for where in ("mirrored", deployment):
        strategy, job, fetch_slots = DEPLOYMENTS[where](lambda: made(MAKERS[name]))
        run_steps(strategy, job, gradients, STEPS, lambda step: None)
        fetch_slots()
        results.append([*everything(job), job.optimizer.state().iterations])
    assert results[0] == results[1]


def test_a_whole_variable_is_never_cut_and_one_after_norms_is_cut_at_blocks() -> None:
    variables = model()
    (points,) = Adafactor().layout(variables).cut_points()
    assert [point for point in points[:-1] if point % BLOCK == 0 and 0 < point < 3 * BLOCK] == []
    (points,) = Lamb().layout(variables).cut_points()
    assert points[:3] == (0, BLOCK, 2 * BLOCK)


@pytest.mark.parametrize("make", [Adafactor, Lamb, Muon])
def test_variable_without_elements_keeps_the_slots_that_it_has_in_one_process_and_in_parts(make: Any) -> None:
    variable = Variable(np.zeros((0, 5), np.float32))
    optimizer = make(0.1)
    optimizer.apply_gradients([(np.zeros((0, 5), np.float32), variable)])
    slots = optimizer.slots.of(variable)
    assert all(not slot.any() for slot in slots.values()), "a mean over nothing is no number"


def test_slots_have_the_shapes_that_the_rule_declares_and_are_saved_and_hashed() -> None:
    job = made(lambda: Adafactor(0.1))
    variables = list(job.variables.values())
    shapes = [[job.optimizer.get_slot(variables[i], slot).shape for slot in "rcv"] for i in (1, 2, 4, 5)]
    assert shapes == [[(), (), (5,)], [(), (), ()], [(40,), (7,), (40, 7)], [(2, 3), (2, 4), (2, 3, 4)]]
    job.optimizer.apply_gradients(zip(gradients(0), variables, strict=True))
    state = job.optimizer.state()
    assert state.slots[4]["r"][0].shape == (40,)
    other = made(lambda: Adafactor(0.1))
    other.optimizer.load_state(state)
    assert everything(other)[len(SHAPES) :] == everything(job)[len(SHAPES) :]
    weights = job.optimizer.get_weights()
    other.optimizer.set_weights(weights)
    assert [w.shape for w in weights[1:7]] == [s[:-1] for s in SHAPES[:1]] + [(), (), (), (40,), (2, 3)]


def test_a_state_with_a_slot_of_another_shape_is_refused_before_anything_changes() -> None:
    state = made(lambda: Adafactor(0.1)).optimizer.state()
    wrong = {**state.slots[4], "r": (np.zeros(7, np.float32),)}
    job = made(lambda: Adafactor(0.1))
    with pytest.raises(
        ValueError, match=r"slot 'r' of variable 'v4:0' is float32\[7\] in the state, not float32\[40\]"
    ):
        job.optimizer.load_state(type(state)(1, (*state.slots[:4], wrong, state.slots[5]), state.extras))
    assert int(job.optimizer.iterations.numpy()) == 0


@pytest.mark.parametrize("rule", [r for r in rules.ALL if r.kind is Kind.WHOLE_VARIABLE], ids=lambda rule: rule.name)
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_a_whole_variable_rule_computes_in_the_dtype_of_its_variable(rule: Rule, dtype: Any) -> None:
    seen: set[np.dtype[Any]] = set()

    class Watched(np.ndarray):  # type: ignore[type-arg]  # of any shape and dtype
        def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **kwargs: Any) -> Any:
            plain = [np.asarray(x) if isinstance(x, Watched) else x for x in inputs]
            if "out" in kwargs:
                kwargs["out"] = tuple(map(np.asarray, kwargs["out"]))
            result = getattr(ufunc, method)(*plain, **kwargs)
            if np.asarray(result).dtype.kind == "f":
                seen.add(np.asarray(result).dtype)
            return result.view(Watched) if isinstance(result, np.ndarray) else result

    rng = np.random.default_rng(3)
    shape = (4, 6) if rule.name != "adafactor" else (6,)
    arrays = [rng.uniform(0.1, 1, s).astype(dtype).view(Watched) for s in (shape, *rule.shapes_of_slots(shape), shape)]
    with np.errstate(all="ignore"):
        results = rule.step(*arrays, *[np.dtype(dtype).type(0.5)] * len(rule.scalars))
    assert all(np.asarray(result).dtype == dtype for result in results)
    # Sums of squares of half precision are added up in float32, and nothing is ever float64.
    assert seen - {np.dtype(np.float32)} <= {np.dtype(dtype)}


@pytest.mark.parametrize("make", [Lamb, Adafactor, Muon, AdamW, Lion])
def test_row_sparse_gradients_count_as_dense_ones_also_under_a_constraint(make: Any) -> None:
    results = []
    values, indices = np.array([[1, 2], [3, 4], [5, 6]], np.float32), [2, 0, 2]
    slices = IndexedSlices(values, indices, (4, 2))
    for gradient in (slices, slices.to_dense()):
        variable = Variable(np.ones((4, 2), np.float32), constraint=lambda value: value * 0.5)
        make(0.1).apply_gradients([(gradient, variable)])
        results.append(variable.numpy())
    np.testing.assert_array_equal(results[0], results[1])
    assert results[0][1, 0] < 0.51


def test_local_clip_takes_the_norm_of_sparse_rows_as_stored() -> None:
    slices = IndexedSlices(np.array([[3.0], [4.0]], np.float32), [0, 0], (1, 1))
    variable = Variable(np.zeros((1, 1), np.float32))
    optimizer = AdamW(1.0, beta_1=0.0, weight_decay=0.0, clipnorm=1.0)
    optimizer.apply_gradients([(slices, variable)])
    np.testing.assert_allclose(optimizer.get_slot(variable, "momentum").numpy(), [[1.4]], rtol=1e-6)


def test_each_replica_is_clipped_before_the_sum() -> None:
    strategy = MirroredStrategy(3)
    with strategy.scope():
        variable = Variable(np.zeros(2, np.float32))
    optimizer = AdamW(1.0, beta_1=0.0, weight_decay=0.0, clipnorm=1.0)
    job = Job({"v": variable}, optimizer)
    run_steps(strategy, job, lambda step, r: [np.array([3, 4], np.float32) * np.float32(10**r)], 1, lambda step: None)
    np.testing.assert_allclose(optimizer.get_slot(variable, "momentum").numpy(), [1.8, 2.4], rtol=1e-6)


def test_a_variable_that_a_live_tape_has_read_stops_an_update_before_anything_changes() -> None:
    for name in ("lamb", "all-features", "muon"):
        job = made(MAKERS[name])
        job.optimizer.apply_gradients(zip(gradients(0), job.variables.values(), strict=True))
        before = everything(job)
        with GradientTape() as tape:
            loss = job.variables["v1:0"] * 2.0
        with pytest.raises(TapeError, match="v1:0"):
            job.optimizer.apply_gradients(zip(gradients(1), job.variables.values(), strict=True))
        assert everything(job) == before
        assert tape.gradient(loss, job.variables["v1:0"]) is not None


def test_a_rule_of_a_kind_without_what_the_kind_needs_is_refused() -> None:
    touched = SparseUse(Rows.TOUCHED, Rows.TOUCHED)
    move = Rule("move", rules.LAMB.step, (), ("factor",), ALL_ROWS)
    with pytest.raises(ValueError, match="second pass"):
        Rule("x", rules.LAMB.step, (), (), ALL_ROWS, Kind.AFTER_NORMS)
    with pytest.raises(ValueError, match="second pass"):
        Rule("x", rules.LAMB.step, (), (), ALL_ROWS, after_norms=AfterNorms(rules.LAMB.step, move))
    with pytest.raises(ValueError, match="variable's shape"):
        Rule("x", rules.LAMB.step, ("r",), (), ALL_ROWS, slot_shapes=lambda shape: (shape[:1],))
    with pytest.raises(ValueError, match="all rows"):
        Rule("x", rules.LAMB.step, (), (), touched, Kind.WHOLE_VARIABLE)


def test_the_state_hash_covers_slots_of_their_own_shape() -> None:
    from distopt.checkpoint import DataPosition, TrainingState, VariableState

    def hashed(job: Job) -> str:
        state = job.optimizer.state()
        variables = tuple(
            VariableState(position=i, name=v.name, value=(v.numpy(),), slots=slots)
            for i, (v, slots) in enumerate(zip(job.variables.values(), state.slots, strict=True))
        )
        return state_hash(
            TrainingState(
                iterations=state.iterations,
                variables=variables,
                extras=state.extras,
                position=DataPosition(epoch=0, step=0),
                job_digest="",
            )
        )

    job = made(lambda: Adafactor(0.1))
    before = hashed(job)
    job.optimizer.get_slot(job.variables["v4:0"], "r").assign_add(np.ones(40, np.float32))
    assert hashed(job) != before
