"""Two ways to run an element-wise rule over flat arrays, with the same bits.

The NumPy engine calls the rule on blocks that stay in the cache; the compiled one runs it in one in-place loop. They
agree because rules hold no literals, scalars come in the variable's dtype, and the compiler may neither reorder nor
fuse (``error_model="numpy"``, no fast-math, no ``parallel``). Where a result is NaN, it is NaN in both; its payload,
which nothing reads, is not compared.

float16 and bfloat16 run on NumPy in both engines: the CPU has no arithmetic for them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from distopt import norms
from distopt.arena import BLOCK
from distopt.kernels import use_compiled_loops
from distopt.optimizers import kernels
from distopt.optimizers.rule import Rule
from distopt.types import Array

NUMPY_BLOCK = 16384
"""Elements the NumPy engine updates at once: with its temporaries this stays in a second-level cache."""

Kernel = Callable[..., None]
"""``kernel(variable, *slots, gradient, *scalars)``: updates flat arrays of one length and dtype in place."""


class Engine(Protocol):
    """Runs rules; an engine has no state of its own."""

    name: str

    def kernel(self, rule: Rule, dtype: np.dtype[Any]) -> Kernel:
        """Return what carries out ``rule`` on arrays of ``dtype``; scalars must have that dtype, too."""
        ...

    def update(
        self, rule: Rule, variable: Array, slots: Sequence[Array], gradient: Array, scalars: Sequence[Any]
    ) -> None:
        """Carry out ``rule`` once, writing to ``variable`` and ``slots``; all flat, of one length and dtype."""
        ...

    def block_sums(self, values: Array) -> Array:
        """Return :func:`distopt.norms.block_sums` of the flat ``values``."""
        ...


class NumpyEngine:
    """The plain one: needs nothing but NumPy."""

    name = "numpy"

    def kernel(self, rule: Rule, dtype: np.dtype[Any]) -> Kernel:  # noqa: ARG002 - NumPy looks at the arrays
        return functools.partial(_run_in_blocks, rule.step, len(rule.slots))

    def update(
        self, rule: Rule, variable: Array, slots: Sequence[Array], gradient: Array, scalars: Sequence[Any]
    ) -> None:
        self.kernel(rule, variable.dtype)(variable, *slots, gradient, *scalars)

    def block_sums(self, values: Array) -> Array:
        return norms.block_sums(values)


def _run_in_blocks(step: Callable[..., Any], num_slots: int, *arguments: Any) -> None:
    written = arguments[: 1 + num_slots]
    gradient = arguments[1 + num_slots]
    scalars = arguments[2 + num_slots :]
    with np.errstate(all="ignore"):
        for start in range(0, gradient.size, NUMPY_BLOCK):
            block = slice(start, start + NUMPY_BLOCK)
            results = step(*(array[block] for array in written), gradient[block], *scalars)
            if not num_slots:
                results = (results,)
            for array, result in zip(written, results, strict=True):
                array[block] = result


class CompiledEngine:
    """The fast one: kernels compiled by Numba, kept as :mod:`distopt.kernels` says."""

    name = "compiled"

    def __init__(self) -> None:
        self._kernels: dict[tuple[Rule, np.dtype[Any]], Kernel] = {}
        self._block_sums: dict[np.dtype[Any], Kernel] = {}

    def kernel(self, rule: Rule, dtype: np.dtype[Any]) -> Kernel:
        found = self._kernels.get((rule, dtype))
        if found is None:
            found = kernels.load_rule(rule, dtype) if _is_compiled(rule, dtype) else _numpy.kernel(rule, dtype)
            self._kernels[rule, dtype] = found
        return found

    def update(
        self, rule: Rule, variable: Array, slots: Sequence[Array], gradient: Array, scalars: Sequence[Any]
    ) -> None:
        self.kernel(rule, variable.dtype)(variable, *slots, gradient, *scalars)

    def block_sums(self, values: Array) -> Array:
        dtype = norms.accumulation_dtype(values.dtype)
        kernel = self._block_sums.get(dtype)
        if kernel is None:
            kernel = self._block_sums[dtype] = kernels.load_block_sums(dtype)
        sums = np.empty(norms.number_of_blocks(values.size), dtype)
        kernel(values if values.dtype == dtype else values.astype(dtype), sums, BLOCK, dtype.type(0))
        return sums


def _is_compiled(rule: Rule, dtype: np.dtype[Any]) -> bool:
    return dtype in (np.float32, np.float64) and not rule.numpy_only


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
