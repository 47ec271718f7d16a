"""However spans are divided among owners, the bits are those of one owner of everything."""

from __future__ import annotations

import functools
import itertools
from typing import Any

import numpy as np
import pytest

from distopt.arena import BLOCK, Span
from distopt.autodiff.tape import GradientTape
from distopt.canonical_sum import Node, SumTree
from distopt.errors import TapeError
from distopt.optimizers import SGD, Adam, Optimizer
from distopt.optimizers.piece import Copies
from distopt.optimizers.terms import Terms
from distopt.tensor import Tensor
from distopt.types import Array
from distopt.variable import Variable

CLIPS: list[dict[str, float]] = [
    {},
    {"clipvalue": 0.5},
    {"clipnorm": 1.0},
    {"global_clipnorm": 1.0},
    {"clipvalue": 0.5, "clipnorm": 1.0},
    {"clipvalue": 0.5, "global_clipnorm": 1.0},
    {"clipnorm": 1.5},
]


def model(seed: int = 0) -> list[Variable]:
    rng = np.random.default_rng(seed)
    shapes = [(3, BLOCK), (5,), (), (2 * BLOCK + 17,), (40, 7)]
    return [Variable(rng.standard_normal(shape).astype(np.float32), name=f"v{i}") for i, shape in enumerate(shapes)]


def gradients(variables: list[Variable], step: int) -> list[Array]:
    rng = np.random.default_rng(1000 + step)
    return [rng.standard_normal(v.shape).astype(v.dtype) for v in variables]


def whole(make: Any, clips: dict[str, float], steps: int = 3) -> tuple[list[Variable], Optimizer]:
    variables, optimizer = model(), make(**clips)
    for step in range(steps):
        layout = optimizer.layout(variables)
        optimizer.finish(layout, layout.pack(gradients(variables, step)), optimizer.step_hypers())
    return variables, optimizer


def everything(variables: list[Variable], optimizer: Optimizer) -> list[bytes]:
    slots = [a.tobytes() for v in variables for a in optimizer.slots.of(v).values()]
    return [v.numpy().tobytes() for v in variables] + slots


def momentum(**kwargs: Any) -> Optimizer:
    return SGD(0.1, momentum=0.9, **kwargs)


@pytest.mark.usefixtures("engine_name")
@pytest.mark.parametrize("owners", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("clips", CLIPS, ids=str)
@pytest.mark.parametrize("make", [momentum, Adam])
def test_spans_of_several_owners_give_the_bits_of_one(make: Any, clips: dict[str, float], owners: int) -> None:
    expected = everything(*whole(make, clips))
    variables, optimizer = model(), make(**clips)
    layout = optimizer.layout(variables)
    divided = [(spans, optimizer.span_owner(layout, spans)) for spans in layout.divide(owners)]
    for step in range(3):
        flat = layout.pack(gradients(variables, step))
        hypers = optimizer.step_hypers()
        parts = [owner.partials(layout.take(flat, spans), hypers) for spans, owner in divided]
        for spans, owner in reversed(divided):
            owner.apply(layout.take(flat, spans), hypers, np.concatenate(parts))
        optimizer.advance(hypers)
    assert everything(variables, optimizer) == expected


@pytest.mark.parametrize("clips", [*CLIPS, {"both": 1.0}], ids=str)
@pytest.mark.parametrize("make", [momentum, Adam])
@pytest.mark.usefixtures("engine_name")
def test_pairs_give_the_bits_of_flat_arrays(make: Any, clips: dict[str, float]) -> None:
    def made() -> Optimizer:
        optimizer = make(**{name: value for name, value in clips.items() if name != "both"})
        if "both" in clips:
            optimizer.clipnorm, optimizer.global_clipnorm = 1.0, 1.5
        return optimizer

    expected = everything(*whole(lambda: made(), {}))
    variables, optimizer = model(), made()
    for step in range(3):
        pairs = list(zip(gradients(variables, step), variables, strict=True))
        optimizer.finish_aggregated(pairs, optimizer.step_hypers())
    assert everything(variables, optimizer) == expected


def test_the_engines_give_the_same_bits_over_steps_and_clips() -> None:
    from distopt.optimizers import set_default_engine

    for clips in CLIPS:
        results = []
        for name in ("numpy", "compiled"):
            set_default_engine(name)
            results.append(everything(*whole(Adam, clips)))
        set_default_engine("compiled")
        assert results[0] == results[1]


def decayed(**kwargs: Any) -> Optimizer:
    return SGD(0.1, momentum=0.9, weight_decay=0.01, use_ema=True, **kwargs)


def written_in(span: Span, layout: Any, optimizer: Optimizer) -> list[Array]:
    segment = layout.segment_of(span)
    buffers = [segment.buffer, *optimizer.slots.buffers(segment).values()]
    return [buffer[span.start : span.stop] for buffer in buffers]


@pytest.mark.usefixtures("engine_name")
@pytest.mark.parametrize("clips", [{}, {"global_clipnorm": 1.0}], ids=str)
@pytest.mark.parametrize("terms", [1, 2, 11])
@pytest.mark.parametrize(
    ("make", "dtype", "in_one_loop"),
    [
        (SGD, "float32", True),
        (momentum, "float64", True),
        (Adam, "float32", True),
        (Adam, "bfloat16", True),
        (functools.partial(Adam, slot_dtype="float32"), "float16", True),
        (decayed, "float32", False),
    ],
)
def test_what_is_to_be_copied_while_spans_are_updated_is_copied_and_changes_no_bit(
    make: Any,
    dtype: str,
    in_one_loop: bool,
    terms: int,
    clips: dict[str, float],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The spans are two blocks each, and one and a rest, so that neighbours are not always of one length."""
    separate: list[int] = []
    made_apart = Copies.make
    monkeypatch.setattr(Copies, "make", lambda copies: (separate.append(len(copies.sources)), made_apart(copies))[1])
    results = []
    for copies in (False, True):
        rng = np.random.default_rng(3)
        variable = Variable(rng.standard_normal(7 * BLOCK + 40).astype(dtype))
        optimizer = make(**clips)
        layout = optimizer.layout([variable])
        spans = layout.chunks(layout.divide(1)[0], 2 * BLOCK * variable.storage.itemsize)
        assert [span.stop - span.start for span in spans[:3]] == [2 * BLOCK] * 3
        owner = optimizer.span_owner(layout, spans)

        for _ in range(2):
            own = [[rng.standard_normal(s.stop - s.start).astype(dtype) for s in spans] for _ in range(terms)]
            given = Terms(SumTree(terms), {Node(i, i + 1): arrays for i, arrays in enumerate(own)})
            hypers = optimizer.step_hypers()
            partials = owner.partials(given, hypers)
            written = [written_in(span, layout, optimizer) for span in spans]
            before = [[array.tobytes() for array in arrays] for arrays in written]
            asked = [Copies(arrays, list(map(np.empty_like, arrays))) for arrays in written]
            following = [*asked[1:], asked[0]]
            order = list(owner.apply_each(given, hypers, partials, copies_of=following.__getitem__ if copies else None))
            optimizer.advance(hypers)
            assert order == list(range(len(spans)))
            if copies:  # those of the first span are made after its update
                assert [[array.tobytes() for array in targets] for _, targets in asked[1:]] == before[1:]
        results.append(everything([variable], optimizer))
    assert results[0] == results[1]
    assert sum(map(bool, separate)) == (4 if in_one_loop else 2 * len(spans))


def test_gradients_are_not_written_to() -> None:
    variables, optimizer = model(), momentum(clipvalue=0.1, global_clipnorm=0.1)
    layout = optimizer.layout(variables)
    flat = layout.pack(gradients(variables, 0))
    before = [array.copy() for array in flat]
    optimizer.finish(layout, flat, optimizer.step_hypers())
    for array, kept in zip(flat, before, strict=True):
        np.testing.assert_array_equal(array, kept)


@pytest.mark.parametrize("make", [SGD, momentum, Adam, lambda: Adam(amsgrad=True)])
@pytest.mark.usefixtures("engine_name")
def test_padding_of_variables_stays_zero(make: Any) -> None:
    variables, optimizer = model(), make()
    layout = optimizer.layout(variables)
    for step in range(3):
        optimizer.finish(layout, layout.pack(gradients(variables, step)), optimizer.step_hypers())
    (run,) = layout.runs
    inside = np.zeros(run.size, bool)
    for part in layout.parts:
        inside[part.start : part.stop] = True
    assert not run.view()[~inside].any()


def test_a_constrained_variable_is_never_cut() -> None:
    variables = [Variable(np.ones(3 * BLOCK, np.float32), name=n, constraint=abs if n == "b" else None) for n in "abc"]
    layout = momentum().layout(variables)
    (points,) = layout.cut_points()
    assert points == (0, BLOCK, 2 * BLOCK, 3 * BLOCK, 6 * BLOCK, 7 * BLOCK, 8 * BLOCK, 9 * BLOCK)
    index = layout.runs[0].segment.index
    with pytest.raises(ValueError, match="may not be cut"):
        momentum().span_owner(layout, [Span(index, 0, 4 * BLOCK)])


@pytest.mark.parametrize("owners", [1, 2, 3, 5, 8, 40])
def test_divided_spans_cover_every_element_once(owners: int) -> None:
    layout = momentum().layout(model())
    divided = layout.divide(owners)
    assert len(divided) == owners
    (run,) = layout.runs
    spans = [span for mine in divided for span in mine]
    assert spans[0].start == run.start
    assert spans[-1].stop == run.stop
    assert all(a.stop == b.start for a, b in itertools.pairwise(spans))


def test_a_wrong_gradient_dtype_or_length_is_refused_before_anything_changes() -> None:
    variables, optimizer = model(), momentum()
    layout = optimizer.layout(variables)
    before = everything(variables, optimizer)
    flat = layout.pack(gradients(variables, 0))
    with pytest.raises(ValueError, match="float64"):
        optimizer.finish(layout, [a.astype(np.float64) for a in flat], optimizer.step_hypers())
    with pytest.raises(ValueError, match="span"):
        optimizer.finish(layout, [a[:-1] for a in flat], optimizer.step_hypers())
    assert everything(variables, optimizer) == before
    assert int(optimizer.iterations.numpy()) == 0


def test_a_variable_that_a_live_tape_has_read_is_not_updated() -> None:
    variables, optimizer = model(), momentum()
    layout = optimizer.layout(variables)
    flat = layout.pack(gradients(variables, 0))
    with GradientTape() as tape:
        loss = variables[1] * 2.0
    with pytest.raises(TapeError, match="v1:0"):
        optimizer.finish(layout, flat, optimizer.step_hypers())
    assert tape.gradient(loss, variables[1]) is not None
    optimizer.finish(layout, flat, optimizer.step_hypers())
    assert int(optimizer.iterations.numpy()) == 1


@pytest.mark.usefixtures("engine_name")
@pytest.mark.parametrize("clips", [{"global_clipnorm": 1.0}, {"clipnorm": 0.5}], ids=str)
def test_many_small_variables_of_two_dtypes_are_clipped_with_the_bits_of_one_after_another(clips: Any) -> None:
    rng = np.random.default_rng(0)
    shapes = [(100,), (), (0,), (3, 7), (BLOCK + 1,)] * 8
    dtypes = [np.float32 if i % 3 else np.float64 for i in range(len(shapes))]
    values = [np.asarray(rng.standard_normal(s), d) for s, d in zip(shapes, dtypes, strict=True)]
    by_layout, by_pairs = ([Variable(value, name=f"v{i}") for i, value in enumerate(values)] for _ in range(2))
    flat, one = momentum(**clips), momentum(**clips)
    for step in range(2):
        given = gradients(by_layout, step)
        layout = flat.layout(by_layout)
        flat.finish(layout, layout.pack(given), flat.step_hypers())
        hypers = one.step_hypers()
        for pair in one.clip(zip(map(Tensor, given), by_pairs, strict=True)):
            one.finish_pairs([pair], hypers)
        one.advance(hypers)
    assert [v.numpy().tobytes() for v in by_layout] == [v.numpy().tobytes() for v in by_pairs]


def test_variables_of_two_dtypes_share_one_global_norm() -> None:
    single, double = Variable(np.float32([0])), Variable(np.float64([0]))
    SGD(1.0, global_clipnorm=1.0).apply_gradients([(np.float32([3]), single), (np.float64([4]), double)])
    np.testing.assert_allclose([single.numpy()[0], double.numpy()[0]], [-0.6, -0.8], rtol=1e-6)


@pytest.mark.usefixtures("engine_name")
def test_an_update_of_split_variables_changes_every_copy_alike() -> None:
    variables, optimizer = model(), momentum()
    layout = optimizer.layout(variables)
    variables[1].split([0, 1])
    variables[1].write_copy(1, "assign_add", np.ones(5, np.float32))
    start = [variables[1].copy_of(r).copy() for r in (0, 1)]
    values = gradients(variables, 0)
    hypers = optimizer.step_hypers()
    optimizer.finish(layout, layout.pack(values), hypers)
    for r in (0, 1):
        np.testing.assert_array_equal(variables[1].copy_of(r), start[r] - np.float32(0.1) * values[1])
        np.testing.assert_array_equal(
            optimizer.slots.copy_of(variables[1], r)["momentum"], -np.float32(0.1) * values[1]
        )
    assert int(optimizer.iterations.numpy()) == 1


def test_replicas_update_their_own_copies_and_slots() -> None:
    variable, optimizer = Variable(np.zeros(3, np.float32)), momentum()
    optimizer.build([variable])
    variable.split([2, 3])
    optimizer.split_slots([variable])
    for replica in (2, 3):
        optimizer.finish_pairs([(np.full(3, replica, np.float32), variable)], optimizer.step_hypers(), replica)
    for replica in (2, 3):
        expected = np.full(3, -np.float32(0.1) * np.float32(replica))
        np.testing.assert_array_equal(variable.copy_of(replica), expected)
        np.testing.assert_array_equal(optimizer.slots.copy_of(variable, replica)["momentum"], expected)
