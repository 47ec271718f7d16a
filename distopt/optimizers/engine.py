"""Two ways to run an element-wise rule over flat arrays, with the same bits.

The NumPy engine calls the rule on blocks that stay in the cache; the compiled one runs it in one in-place loop, which
the threads of :mod:`distopt.threads` share where the arrays are large. They agree because rules hold no literals,
scalars come in the slots' dtype, and the compiler may neither reorder nor fuse (``error_model="numpy"``, no fast-math,
no ``parallel``). Where a result is NaN, it is NaN in both; its payload, which nothing reads, is not compared.

Slots have the variable's dtype, and the rule computes in it, as in the reference. float16 and bfloat16 variables may
have float32 slots instead: then the rule computes in float32, and only the new variable is rounded.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from distopt import norms, threads
from distopt.arena import BLOCK
from distopt.kernels import UnprintableFunctionError, use_compiled_loops
from distopt.optimizers import kernels
from distopt.optimizers.row_kernels import RowKernel, load_row_kernel, numpy_row_kernel
from distopt.optimizers.rule import Rule
from distopt.optimizers.terms import PLAIN, Gradient, Source
from distopt.types import Array

NUMPY_BLOCK = 16384
"""Elements the NumPy engine updates at once: with its temporaries this stays in a second-level cache."""

SHARED_BYTES = 2**22
"""Bytes of all arrays together from which threads share a loop: below, waking one costs more than it brings."""

Kernel = Callable[..., None]
"""``kernel(variable, *slots, *terms, *source_scalars, *scalars)``: updates flat arrays of one length in place.

From a plain source the one term is the gradient, and there are no scalars of the source.
"""


class Blocks:
    """The norm blocks of the ranges ``start <= i < stop`` of a flat array, each a variable or a part of one."""

    def __init__(self, ranges: Sequence[tuple[int, int]]) -> None:
        self.ranges = tuple(ranges)
        bounds = [(at, min(at + BLOCK, stop)) for start, stop in ranges for at in range(start, stop, BLOCK)]
        self.starts, self.stops = (
            np.array(ends, np.int64) for ends in (zip(*bounds, strict=True) if bounds else ((), ()))
        )
        self.downward = self.starts[::-1].copy(), self.stops[::-1].copy()


class Engine(Protocol):
    """Runs rules; an engine has no state of its own."""

    name: str

    def kernel(
        self,
        rule: Rule,
        dtype: np.dtype[Any],
        slot_dtype: np.dtype[Any] | None = None,
        source: Source = PLAIN,
        *,
        copies: bool = False,
    ) -> Kernel:
        """Return what carries out ``rule`` on variables of ``dtype``, with the gradient that ``source`` makes.

        ``slot_dtype`` is that of slots and scalars: the same if not given, or float32 with a narrower ``dtype``.
        With ``copies`` it takes two lists of arrays more after those that it writes to, like these in number, length
        and dtypes, and copies the first list to the second.
        """
        ...

    def gather(self, gradient: Gradient, out: Array | None, blocks: Blocks) -> Array:
        """Store a gradient in ``out``, if given, as far as there are blocks, and return their sums of squares."""
        ...

    def update(
        self, rule: Rule, variable: Array, slots: Sequence[Array], gradient: Array, scalars: Sequence[Any]
    ) -> None:
        """Carry out ``rule`` once, writing to ``variable`` and ``slots``; all flat and of one length."""
        ...

    def row_kernel(self, rule: Rule, dtype: np.dtype[Any]) -> RowKernel:
        """Return what carries out ``rule`` on the rows that it declares; see :mod:`distopt.optimizers.row_kernels`.

        ``dtype`` is that of the variable.
        """
        ...

    def block_sums(self, values: Array) -> Array:
        """Return :func:`distopt.norms.block_sums` of the flat ``values``."""
        ...

    def range_sums(self, values: Array, starts: Array, stops: Array) -> Array:
        """Return :func:`distopt.norms.add_sums` of each range ``starts[k] <= i < stops[k]`` of the flat ``values``.

        ``values``, float32 or float64, are overwritten; no two ranges share an element.
        """
        ...


class NumpyEngine:
    """The plain one: needs nothing but NumPy."""

    name = "numpy"

    def kernel(
        self,
        rule: Rule,
        dtype: np.dtype[Any],
        slot_dtype: np.dtype[Any] | None = None,
        source: Source = PLAIN,
        *,
        copies: bool = False,
    ) -> Kernel:
        run = _run_in_blocks if slot_dtype is None or slot_dtype == dtype else _run_in_wider_blocks
        kernel = functools.partial(run, rule.step, len(rule.slots), source)
        return functools.partial(_copy_and_run, kernel, 1 + len(rule.slots)) if copies else kernel

    def gather(self, gradient: Gradient, out: Array | None, blocks: Blocks) -> Array:
        sums = []
        with np.errstate(all="ignore"):
            for first, last in blocks.ranges:
                for start in range(first, last, NUMPY_BLOCK):
                    block = slice(start, min(start + NUMPY_BLOCK, last))
                    values = gradient.source.evaluate([term[block] for term in gradient.terms], gradient.scalars)
                    sums.append(norms.block_sums(values))
                    if out is not None:
                        out[block] = values
        return np.concatenate(sums) if sums else np.empty(0, norms.accumulation_dtype(gradient.dtype))

    def update(
        self, rule: Rule, variable: Array, slots: Sequence[Array], gradient: Array, scalars: Sequence[Any]
    ) -> None:
        self.kernel(rule, variable.dtype, _dtype_of(slots))(variable, *slots, gradient, *scalars)

    def row_kernel(self, rule: Rule, dtype: np.dtype[Any]) -> RowKernel:  # noqa: ARG002
        return numpy_row_kernel(rule)

    def block_sums(self, values: Array) -> Array:
        return norms.block_sums(values)

    def range_sums(self, values: Array, starts: Array, stops: Array) -> Array:
        ranges = zip(starts.tolist(), stops.tolist(), strict=True)
        return np.array([norms.add_sums(values[start:stop]) for start, stop in ranges], values.dtype)


def _copy_and_run(kernel: Kernel, num_written: int, *arguments: Any) -> None:
    written, sources, targets = (arguments[i * num_written : (i + 1) * num_written] for i in range(3))
    for source, target in zip(sources, targets, strict=True):
        np.copyto(target, source)
    kernel(*written, *arguments[3 * num_written :])


def _run_in_blocks(step: Callable[..., Any], num_slots: int, source: Source, *arguments: Any) -> None:
    written, terms, source_scalars, scalars = _parted(num_slots, source, arguments)
    with np.errstate(all="ignore"):
        for start in range(0, written[0].size, NUMPY_BLOCK):
            block = slice(start, start + NUMPY_BLOCK)
            gradient = source.evaluate([term[block] for term in terms], source_scalars)
            results = step(*(array[block] for array in written), gradient, *scalars)
            if not num_slots:
                results = (results,)
            for array, result in zip(written, results, strict=True):
                array[block] = result


def _run_in_wider_blocks(step: Callable[..., Any], num_slots: int, source: Source, *arguments: Any) -> None:
    (variable, *slots), terms, source_scalars, scalars = _parted(num_slots, source, arguments)
    dtype = slots[0].dtype
    with np.errstate(all="ignore"):
        for start in range(0, variable.size, NUMPY_BLOCK):
            block = slice(start, start + NUMPY_BLOCK)
            wide = variable[block].astype(dtype)
            gradient = source.evaluate([term[block] for term in terms], source_scalars).astype(dtype)
            _run_in_blocks(step, num_slots, PLAIN, wide, *(slot[block] for slot in slots), gradient, *scalars)
            variable[block] = wide.astype(variable.dtype)


def _parted(num_slots: int, source: Source, arguments: Sequence[Any]) -> tuple[Sequence[Any], ...]:
    """Return the arguments of a kernel: arrays that are written to, terms, scalars of the source, of the rule."""
    terms = 1 + num_slots
    source_scalars = terms + source.num_terms
    scalars = source_scalars + len(source.scalars)
    return arguments[:terms], arguments[terms:source_scalars], arguments[source_scalars:scalars], arguments[scalars:]


class CompiledEngine:
    """The fast one: kernels compiled by Numba, kept as :mod:`distopt.kernels` says.

    What cannot be compiled runs on NumPy: a closure on float16, say.
    """

    name = "compiled"

    def __init__(self) -> None:
        self._kernels: dict[tuple[Rule, np.dtype[Any], np.dtype[Any] | None, Source, bool], Kernel] = {}
        self._gathering: dict[tuple[np.dtype[Any], Source, bool], Kernel] = {}
        self._row_kernels: dict[tuple[Rule, np.dtype[Any]], RowKernel] = {}
        self._block_sums: dict[np.dtype[Any], Kernel] = {}
        self._range_sums: dict[np.dtype[Any], Kernel] = {}

    def kernel(
        self,
        rule: Rule,
        dtype: np.dtype[Any],
        slot_dtype: np.dtype[Any] | None = None,
        source: Source = PLAIN,
        *,
        copies: bool = False,
    ) -> Kernel:
        key = rule, dtype, slot_dtype, source, copies
        found = self._kernels.get(key)
        if found is None:
            found = self._kernels[key] = self._load(rule, dtype, slot_dtype or dtype, source, copies)
        return found

    def _load(
        self, rule: Rule, dtype: np.dtype[Any], slot_dtype: np.dtype[Any], source: Source, copies: bool
    ) -> Kernel:
        try:
            if not rule.numpy_only and kernels.can_compile(dtype, slot_dtype):
                bytes_an_element = (1 + source.num_terms) * dtype.itemsize + len(rule.slots) * slot_dtype.itemsize
                kernel = kernels.load_rule(rule, dtype, slot_dtype, source, copies=copies)
                num_arrays = kernels.num_arrays(rule, source, copies=copies)
                return _Shared(kernel, num_arrays, SHARED_BYTES // bytes_an_element)
        except UnprintableFunctionError:
            pass
        return _numpy.kernel(rule, dtype, slot_dtype, source, copies=copies)

    def gather(self, gradient: Gradient, out: Array | None, blocks: Blocks) -> Array:
        dtype, terms = gradient.dtype, gradient.terms
        if not kernels.can_compile(dtype, dtype):
            return _numpy.gather(gradient, out, blocks)
        key = dtype, gradient.source, out is not None
        kernel = self._gathering.get(key)
        if kernel is None:
            kernel = self._gathering[key] = kernels.load_gathering(dtype, gradient.source, store=out is not None)
        sums = np.empty(len(blocks.starts), norms.accumulation_dtype(dtype))
        # An update that follows begins with the first blocks: then those that were read last are still in the cache.
        starts, stops = blocks.downward if out is None else (blocks.starts, blocks.stops)
        arrays = terms if out is None else (out, *terms)
        own = (*terms, *gradient.scalars)
        number = threads.num_threads() if sum(array.nbytes for array in arrays) >= SHARED_BYTES else 1
        part = -(-len(sums) // number)
        parts = [
            (sums[at : at + part], starts[at : at + part], stops[at : at + part], *own)
            for at in range(0, len(sums), max(part, 1))
        ]
        if out is not None:
            parts = [(out, *arguments) for arguments in parts]
        if len(parts) == 1:
            kernel(*parts[0])
        elif parts:
            threads.run_parts(kernel, parts)
        return sums[::-1] if out is None else sums

    def update(
        self, rule: Rule, variable: Array, slots: Sequence[Array], gradient: Array, scalars: Sequence[Any]
    ) -> None:
        self.kernel(rule, variable.dtype, _dtype_of(slots))(variable, *slots, gradient, *scalars)

    def row_kernel(self, rule: Rule, dtype: np.dtype[Any]) -> RowKernel:
        found = self._row_kernels.get((rule, dtype))
        if found is None:
            # 16-bit floats go by NumPy: there are as few rows as there are gradients, and their bits are the same.
            is_plain = rule.numpy_only or dtype not in (np.float32, np.float64)
            found = numpy_row_kernel(rule) if is_plain else load_row_kernel(rule, dtype)
            self._row_kernels[rule, dtype] = found
        return found

    def block_sums(self, values: Array) -> Array:
        dtype = norms.accumulation_dtype(values.dtype)
        kernel = self._block_sums.get(dtype)
        if kernel is None:
            kernel = self._block_sums[dtype] = kernels.load_block_sums(dtype)
        sums = np.empty(norms.number_of_blocks(values.size), dtype)
        wide = values if values.dtype == dtype else values.astype(dtype)
        number = threads.num_threads() if wide.nbytes >= SHARED_BYTES else 1
        if number == 1:
            kernel(wide, sums, BLOCK)
            return sums
        blocks = -(-sums.size // number)
        threads.run_parts(
            kernel,
            [
                (wide[start * BLOCK : (start + blocks) * BLOCK], sums[start : start + blocks], BLOCK)
                for start in range(0, sums.size, blocks)
            ],
        )
        return sums

    def range_sums(self, values: Array, starts: Array, stops: Array) -> Array:
        kernel = self._range_sums.get(values.dtype)
        if kernel is None:
            kernel = self._range_sums[values.dtype] = kernels.load_range_sums(values.dtype)
        sums = np.zeros(len(starts), values.dtype)
        kernel(values, starts, stops, sums)
        return sums


class _Shared:
    """A kernel that threads share where its arrays have at least ``least`` elements."""

    __slots__ = ("_least", "_num_arrays", "kernel")

    def __init__(self, kernel: Kernel, num_arrays: int, least: int) -> None:
        self.kernel = kernel
        self._num_arrays = num_arrays
        self._least = least

    def __call__(self, *arguments: Any) -> None:
        size = arguments[0].size
        if size < self._least:
            self.kernel(*arguments)
            return
        number = threads.num_threads()
        if number == 1:
            self.kernel(*arguments)
            return
        # Whole blocks, so that no two threads write to one cache line.
        part = -(-size // (number * BLOCK)) * BLOCK
        threads.run_parts(self.kernel, [self.part(arguments, start, start + part) for start in range(0, size, part)])

    def part(self, arguments: tuple[Any, ...], start: int, stop: int) -> tuple[Any, ...]:
        """Return the arguments for the elements ``start <= i < stop``."""
        arrays = [array[start:stop] for array in arguments[: self._num_arrays]]
        return (*arrays, *arguments[self._num_arrays :])

    def bytes_of(self, arguments: Sequence[Any]) -> int:
        """Return the bytes of all arrays."""
        return sum([array.nbytes for array in arguments[: self._num_arrays]])


def unshared(kernel: Kernel) -> Kernel:
    """Return ``kernel`` for arrays that are too small for several threads."""
    return kernel.kernel if type(kernel) is _Shared else kernel


Call = tuple[Kernel, tuple[Any, ...]]
"""A kernel and its arguments."""


def run_together(calls: Sequence[Call]) -> None:
    """Make calls of kernels that write to different arrays; threads share all of them where that pays.

    Each thread is woken once, not once a call, and gets about as many bytes as the others.
    """
    if len(calls) == 1:
        ((kernel, arguments),) = calls
        kernel(*arguments)
        return
    number = threads.num_threads()
    weights = [kernel.bytes_of(arguments) for kernel, arguments in calls if type(kernel) is _Shared]
    if number == 1 or len(weights) < len(calls) or sum(weights) < SHARED_BYTES:
        for kernel, arguments in calls:
            kernel(*arguments)
        return
    threads.run_parts(_run_calls, [(part,) for part in _divided(calls, weights, number)])


def _divided(calls: Sequence[Call], weights: Sequence[int], number: int) -> list[list[Call]]:
    """Return the calls in ``number`` parts of about equal weights; large ones are cut."""
    fair = sum(weights) / number
    parts: list[list[Call]] = [[]]
    room = fair
    for (shared, arguments), weight in zip(calls, weights, strict=True):
        assert type(shared) is _Shared
        size = arguments[0].size
        start = 0
        while start < size:
            left = weight * (size - start) / size
            blocks = (
                size - start if left <= room or len(parts) == number else int(room * size / weight) // BLOCK * BLOCK
            )
            if blocks:
                parts[-1].append((shared.kernel, shared.part(arguments, start, start + blocks)))
            start += blocks
            room -= weight * blocks / size
            if start < size:
                parts.append([])
                room = fair
    return parts


def _run_calls(calls: Sequence[Call]) -> None:
    for kernel, arguments in calls:
        kernel(*arguments)


def _dtype_of(slots: Sequence[Array]) -> np.dtype[Any] | None:
    return slots[0].dtype if slots else None


_numpy = NumpyEngine()
_engines: dict[str, Engine] = {"numpy": _numpy, "compiled": CompiledEngine()}
_default = ["compiled"]


def get_engine(name: str | None = None) -> Engine:
    """Return the engine ``name``, by default that of :func:`set_default_engine`.

    Raises: ValueError for a name other than ``"numpy"`` and ``"compiled"``.
    """
    engine = _engines.get(_default[0] if name is None else name)
    if engine is None:
        raise ValueError(f"there is no engine {name!r}; choose one of {', '.join(sorted(_engines))}")
    return engine


def set_default_engine(name: str) -> None:
    """Run every optimizer of this process, and the loops of operations, on the engine ``name`` from now on.

    At first it is ``"compiled"``.

    Raises: ValueError for a name other than ``"numpy"`` and ``"compiled"``.
    """
    get_engine(name)
    _default[0] = name
    use_compiled_loops(name == "compiled")
