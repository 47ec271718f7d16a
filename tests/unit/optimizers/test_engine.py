from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from distopt import kernels, threads
from distopt.arena import BLOCK
from distopt.optimizers import engine, get_engine, rules, set_default_engine
from distopt.optimizers import kernels as rule_kernels
from distopt.optimizers.choose import maximum, minimum, select
from distopt.optimizers.engine import NUMPY_BLOCK
from distopt.optimizers.rule import Rows, Rule, SparseUse
from distopt.types import Array

RULES = [
    rule
    for declared in rules.ALL
    for each in declared.element_wise_rules
    for rule in {each.name: each, "sparse": each.sparse_step}.values()
]
RULES = list({rule.name: rule for rule in RULES}.values())
SIZES = [1, 7, NUMPY_BLOCK + 1]


def awkward(size: int, dtype: Any, seed: int) -> Array:
    """Numbers over the whole range, denormals, zeros of both signs, infinities and NaN."""
    rng = np.random.default_rng(seed)
    finfo = ml_dtypes.finfo(dtype)
    with np.errstate(all="ignore"):
        values = (rng.standard_normal(size) * 10.0 ** rng.integers(-44, 38, size)).astype(dtype)
        special = [0.0, -0.0, np.inf, -np.inf, np.nan, finfo.smallest_subnormal, finfo.max]
    count = min(size // 3, len(special))
    values[:count] = special[:count]
    return values


def arguments(rule: Rule, size: int, dtype: Any) -> tuple[list[Array], Array, list[Any]]:
    written = [awkward(size, dtype, seed) for seed in range(1 + len(rule.slots))]
    for name, slot in zip(rule.slots, written[1:], strict=True):
        if name in ("v", "vhat", "velocity", "velocity_hat"):
            np.abs(slot, out=slot)
    rng = np.random.default_rng(99)
    scalars = [np.dtype(dtype).type(x) for x in rng.uniform(0.01, 0.99, len(rule.scalars))]
    return written, np.roll(awkward(size, dtype, 77), 5), scalars


def is_same(a: Array, b: Array) -> bool:
    """Equal bits, or NaN in both."""
    bits = np.dtype(f"u{a.dtype.itemsize}")
    with np.errstate(invalid="ignore"):  # ml_dtypes reports a NaN that is asked whether it is one
        return bool(((a.view(bits) == b.view(bits)) | (np.isnan(a) & np.isnan(b))).all())


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_both_engines_give_the_same_bits(rule: Rule, dtype: Any, size: int) -> None:
    results = []
    for name in ("numpy", "compiled"):
        (variable, *slots), gradient, scalars = arguments(rule, size, dtype)
        get_engine(name).update(rule, variable, slots, gradient, scalars)
        results.append([variable, *slots])
    for a, b in zip(*results, strict=True):
        assert a.dtype == dtype
        assert is_same(a, b)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_both_engines_give_the_same_bits_in_half_precision(rule: Rule, dtype: Any) -> None:
    size = 9000  # of all 65536 values
    every = np.arange(65536, dtype=np.uint16)
    results = []
    for name in ("numpy", "compiled"):
        rng = np.random.default_rng(5)
        variable, *slots, gradient = (rng.choice(every, size).view(dtype) for _ in range(2 + len(rule.slots)))
        scalars = [np.dtype(dtype).type(x) for x in rng.uniform(0.01, 0.99, len(rule.scalars))]
        with np.errstate(all="ignore"):
            direct = rule.step(variable, *slots, gradient, *scalars)
        get_engine(name).update(rule, variable, slots, gradient, scalars)
        first = direct[0] if rule.slots else direct
        assert first.dtype == dtype
        assert is_same(variable, first)
        results.append([variable, *slots])
    for a, b in zip(*results, strict=True):
        assert is_same(a, b)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("rule", [rule for rule in RULES if rule.slots], ids=lambda rule: rule.name)
def test_with_float32_slots_only_the_new_variable_is_rounded(rule: Rule, dtype: Any) -> None:
    results = []
    for name in ("numpy", "compiled"):
        rng = np.random.default_rng(5)
        variable, gradient = (rng.standard_normal(9000).astype(dtype) for _ in range(2))
        slots = [rng.uniform(0.1, 1, 9000).astype(np.float32) for _ in rule.slots]
        scalars = [np.float32(x) for x in rng.uniform(0.01, 0.99, len(rule.scalars))]
        with np.errstate(all="ignore"):
            expected = rule.step(variable.astype(np.float32), *slots, gradient.astype(np.float32), *scalars)
        get_engine(name).update(rule, variable, slots, gradient, scalars)
        assert is_same(variable, expected[0].astype(dtype))
        results.append([variable, *slots])
        for slot, wanted in zip(slots, expected[1:], strict=True):
            assert is_same(slot, wanted)


@pytest.fixture
def shared_from_the_first_byte(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let threads share every loop, whatever it costs."""
    monkeypatch.setattr(engine, "SHARED_BYTES", 1)
    yield
    threads.set_num_threads(None)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, ml_dtypes.bfloat16])
@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
@pytest.mark.usefixtures("shared_from_the_first_byte")
def test_the_number_of_threads_changes_no_bit(rule: Rule, dtype: Any) -> None:
    results = []
    for number in (1, 2, 3, 8):
        threads.set_num_threads(number)
        (variable, *slots), gradient, scalars = arguments(rule, 5 * BLOCK + 7, dtype)
        own = engine.CompiledEngine()
        own.update(rule, variable, slots, gradient, scalars)
        results.append([*(array.tobytes() for array in (variable, *slots)), own.block_sums(gradient).tobytes()])
    assert results[1:] == results[:1] * 3


@pytest.fixture
def freshly_compiled() -> Iterator[None]:
    """Compile in memory: Numba cannot show the code of a kernel that it has loaded."""
    before = kernels.cache_directory()
    kernels.set_cache_directory(None)
    yield
    kernels.set_cache_directory(before)


VECTORS = re.compile(r"= f(add|sub|mul) <\d+ x float>")


def kernel_code(rule: Rule, dtype: Any = np.float32) -> str:
    """The machine-independent code of a kernel, without the wrapper that takes Python's numbers apart."""
    kernel: Any = rule_kernels.load_rule(rule, np.dtype(dtype))
    (text,) = getattr(kernel, "compiled", kernel).inspect_llvm().values()
    functions = re.findall(r"^define .*?^\}", text, re.MULTILINE | re.DOTALL)
    return "\n".join(f for f in functions if "@_ZN7cpython" not in f and "@cfunc." not in f and "NRT_" not in f[:80])


@pytest.mark.parametrize("rule", [rule for rule in RULES if not rule.numpy_only], ids=lambda rule: rule.name)
@pytest.mark.usefixtures("freshly_compiled")
def test_a_float32_kernel_works_on_whole_vectors_and_holds_no_float64(rule: Rule) -> None:
    code = kernel_code(rule)
    assert VECTORS.search(code) is not None
    assert "float" in code
    assert "double" not in code


def half_step(variable: Any, gradient: Any, learning_rate: Any) -> Any:
    return variable - 0.5 * learning_rate * gradient


@pytest.mark.usefixtures("freshly_compiled")
def test_the_search_for_float64_finds_a_literal() -> None:
    sparse = SparseUse(Rows.TOUCHED, Rows.TOUCHED)
    rule = Rule("half", half_step, slots=(), scalars=("learning_rate",), sparse=sparse)
    assert "double" in kernel_code(rule)


def test_a_read_only_gradient_is_accepted() -> None:
    gradient = np.frombuffer(np.ones(4, np.float32).tobytes(), np.float32)
    for name in ("numpy", "compiled"):
        variable = np.zeros(4, np.float32)
        get_engine(name).update(rules.SGD, variable, [], gradient, [np.float32(0.5)])
        np.testing.assert_array_equal(variable, np.full(4, -0.5))


def test_a_rule_that_is_a_closure_is_compiled_in_memory() -> None:
    def make() -> Any:
        def scaled(gradient: Any, learning_rate: Any) -> Any:
            return select(gradient > learning_rate, gradient, learning_rate * gradient)

        def step(variable: Any, gradient: Any, learning_rate: Any) -> Any:
            return variable + scaled(gradient, learning_rate)

        return step

    rule = Rule("ascent", make(), (), ("learning_rate",), SparseUse(Rows.TOUCHED, Rows.TOUCHED))
    variable = np.zeros(3, np.float32)
    get_engine("compiled").update(rule, variable, [], np.ones(3, np.float32), [np.float32(2)])
    np.testing.assert_array_equal(variable, np.full(3, 2))


def test_an_unknown_engine_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"'cuda'.*compiled, numpy"):
        set_default_engine("cuda")


def choosing_step(variable: Any, low: Any, high: Any, gradient: Any, rate: Any) -> Any:
    larger, smaller = maximum(low, gradient), minimum(high, gradient)
    return select((gradient > low) & (gradient < high), variable - rate * gradient, larger), larger, smaller


CHOOSING = Rule("choosing", choosing_step, ("low", "high"), ("rate",), SparseUse(Rows.TOUCHED, Rows.TOUCHED))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_choices_of_a_rule_have_the_same_bits_on_both_engines(dtype: Any) -> None:
    size = 999
    zeros = np.array([0.0, -0.0, np.nan] * (size // 3), dtype)
    for low, gradient in ((zeros, np.roll(zeros, 1)), (np.roll(zeros, 1), awkward(size, dtype, 3))):
        results = []
        for name in ("numpy", "compiled"):
            written = [awkward(size, dtype, 1), low.copy(), awkward(size, dtype, 2)]
            get_engine(name).update(CHOOSING, written[0], written[1:], gradient, [dtype(0.5)])
            results.append(written)
        for a, b in zip(*results, strict=True):
            assert is_same(a, b)


@pytest.mark.usefixtures("freshly_compiled")
def test_a_compiled_choice_is_made_of_whole_vectors() -> None:
    code = kernel_code(CHOOSING)
    assert "double" not in code
    assert re.search(r"select <\d+ x i1>", code) is not None


@pytest.mark.usefixtures("freshly_compiled")
def test_a_half_precision_kernel_works_on_whole_vectors() -> None:
    assert VECTORS.search(kernel_code(rules.ADAM, ml_dtypes.bfloat16)) is not None
