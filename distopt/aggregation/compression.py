"""What a replica contributes, compressed: the rule of composition, and codes for one variable's values.

The rule. A replica ``r`` adds to its gradient what it has not yet been able to say, encodes that, and keeps the rest::

    p_r = g_r + e_r            its own residual, zero in the beginning
    c_r = decode(encode(p_r))  what it contributes
    e_r = p_r - c_r            what is left over

and the aggregator, whichever it is, combines the ``c_r`` as it would have combined the ``g_r``. So compression is part
of the job: it happens once, where the replica is, by variable, after the gradient was weighted and before anything is
added up. The bits of the result do not depend on where replicas are, nor on whether ``encode(p_r)`` itself crossed a
boundary or the sum of several ``c_r`` did. A residual belongs to a replica and a variable, and to the job's state.

What is not finite is sent as it is, and leaves nothing over.

Source: of the residual, Seide et al. 2014, "1-Bit Stochastic Gradient Descent"; that it converges with any such
encoding, Karimireddy et al. 2019, "Error Feedback Fixes SignSGD and other Gradient Compression Schemes".
"""

from __future__ import annotations

import abc
from collections.abc import Sequence
from typing import Any, ClassVar

import ml_dtypes
import numpy as np

from distopt.aggregation.memory import Memory
from distopt.aggregation.options import whole_number
from distopt.types import Array

RESIDUAL = "residual"


class Compression(abc.ABC):
    """A code for the flat values of one variable, of a size that depends on their number and dtype alone."""

    name: ClassVar[str]

    def applied_to(self, aggregator: Any) -> Any:
        """Return ``aggregator`` of contributions that are compressed in this way.

        Raises: ValueError where the two do not go together.
        """
        return aggregator.with_compression(self)

    @abc.abstractmethod
    def num_bytes(self, size: int, dtype: np.dtype[Any]) -> int:
        """Return how long the code of ``size`` values is."""

    @abc.abstractmethod
    def encode(self, values: Array) -> Array:
        """Return the code of flat ``values``, which are not written to, as flat uint8."""

    @abc.abstractmethod
    def decode(self, code: Array, size: int, dtype: np.dtype[Any]) -> Array:
        """Return the flat values that a code stands for."""

    def contribution(self, memory: Memory, replica: int, variable: Any, gradient: Array) -> tuple[Array, Array]:
        """Return what ``replica`` contributes of ``variable``, in the gradient's shape, and its code; see the rule."""
        residual = memory.get(RESIDUAL, replica, variable)
        with np.errstate(all="ignore"):
            wanted = gradient.reshape(-1) if residual is None else gradient.reshape(-1) + residual.reshape(-1)
            code = self.encode(wanted)
            said = self.decode(code, wanted.size, wanted.dtype)
            left = wanted - said
        left[~np.isfinite(left)] = 0
        memory.put(RESIDUAL, replica, variable, left.reshape(gradient.shape))
        return said.reshape(gradient.shape), code

    def decode_all(self, code: Array, like: Sequence[Array]) -> list[Array]:
        """Return the arrays, in the shapes and dtypes of ``like``, of the codes that follow each other in ``code``."""
        found, start = [], 0
        for array in like:
            stop = start + self.num_bytes(array.size, array.dtype)
            found.append(self.decode(code[start:stop], array.size, array.dtype).reshape(array.shape))
            start = stop
        return found

    def num_bytes_of(self, like: Sequence[Array]) -> int:
        """Return how long the codes of arrays like these are together."""
        return sum(self.num_bytes(array.size, array.dtype) for array in like)


class _Cast(Compression):
    """Numbers of 16 bits; what is too large for them is sent as the largest, and the rest with the next steps."""

    dtype: ClassVar[np.dtype[Any]]
    largest: ClassVar[float]

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"

    def num_bytes(self, size: int, dtype: np.dtype[Any]) -> int:  # noqa: ARG002 - alike for all
        """See :meth:`Compression.num_bytes`."""
        return 2 * size

    def encode(self, values: Array) -> Array:
        """See :meth:`Compression.encode`."""
        with np.errstate(over="ignore"):
            most = values.dtype.type(self.largest)
        if np.isinf(most):  # float16 values fit into bfloat16 as they are
            return values.astype(self.dtype).view(np.uint8)
        limited = np.where(np.isfinite(values), np.clip(values, -most, most), values)
        return np.asarray(limited.astype(self.dtype).view(np.uint8))

    def decode(self, code: Array, size: int, dtype: np.dtype[Any]) -> Array:  # noqa: ARG002 - as many as there are
        """See :meth:`Compression.decode`."""
        return code.view(self.dtype).astype(dtype)


class Float16(_Cast):
    """IEEE half precision: 11 significant bits, magnitudes from 6e-8 to 65504.

    Source: Micikevicius et al. 2018, "Mixed Precision Training", for gradients in half precision.

    >>> code = Float16().encode(np.array([1.0, 1e6], np.float32))
    >>> len(code), Float16().decode(code, 2, np.dtype(np.float32)).tolist()
    (4, [1.0, 65504.0])
    """

    name = "float16"
    dtype = np.dtype(np.float16)
    largest = 65504.0


class BFloat16(_Cast):
    """The upper half of a float32: 8 significant bits, the range of float32.

    Source: Kalamkar et al. 2019, "A Study of BFLOAT16 for Deep Learning Training".

    >>> BFloat16().decode(BFloat16().encode(np.array([1.0 + 2.0**-9], np.float32)), 1, np.dtype(np.float32)).tolist()
    [1.0]
    """

    name = "bfloat16"
    dtype = np.dtype(ml_dtypes.bfloat16)
    largest = 255 * 2.0**120


class Int8(Compression):
    """One byte a number and one float32 a block of numbers, the largest magnitude of the block over 127.

        q_i = round(x_i / scale)        x_i is taken to be q_i * scale, off by at most scale / 2

    Raises: ValueError for a ``block`` below 1.
    Source: Dettmers 2016, "8-Bit Approximations for Parallelism in Deep Learning"; by blocks, Dettmers et al. 2022,
        "8-bit Optimizers via Block-wise Quantization", here with evenly spaced levels.

    >>> int8, values = Int8(block=2), np.array([127.0, -63.4, 0.0], np.float32)
    >>> int8.decode(int8.encode(values), 3, values.dtype).tolist(), len(int8.encode(values))
    ([127.0, -63.0, 0.0], 11)
    """

    name = "int8"

    def __init__(self, block: int = 256) -> None:
        self.block = whole_number("block", block, least=1)

    def __repr__(self) -> str:
        return f"Int8(block={self.block})"

    def num_bytes(self, size: int, dtype: np.dtype[Any]) -> int:  # noqa: ARG002 - alike for all
        """See :meth:`Compression.num_bytes`."""
        return size + 4 * self._blocks(size)

    def encode(self, values: Array) -> Array:
        """See :meth:`Compression.encode`."""
        count = self._blocks(values.size)
        padded = np.zeros((count, self.block), np.float32)
        padded.reshape(-1)[: values.size] = values
        scales = np.abs(padded).max(axis=1, initial=0) / np.float32(127)
        # A scale that is subnormal is itself rounded: hence the limit.
        levels = np.clip(np.rint(padded / np.where(scales > 0, scales, np.float32(1))[:, None]), -127, 127)
        levels[~np.isfinite(levels)] = 1  # times a scale that is no number either
        code = np.empty(self.num_bytes(values.size, values.dtype), np.uint8)
        code[: 4 * count] = scales.view(np.uint8)
        code[4 * count :] = levels.reshape(-1)[: values.size].astype(np.int8).view(np.uint8)
        return code

    def decode(self, code: Array, size: int, dtype: np.dtype[Any]) -> Array:
        """See :meth:`Compression.decode`."""
        count = self._blocks(size)
        scales = code[: 4 * count].copy().view(np.float32)
        padded = np.zeros((count, self.block), np.float32)
        padded.reshape(-1)[:size] = code[4 * count :].view(np.int8)
        with np.errstate(invalid="ignore"):  # of an infinite scale
            return (padded * scales[:, None]).reshape(-1)[:size].astype(dtype)

    def _blocks(self, size: int) -> int:
        return -(-size // self.block)


class TopK(Compression):
    """The largest magnitudes of each variable, ``ratio`` of them and at least one, as indices and values.

    Of equal magnitudes, the first in memory are taken. Indices are 4 bytes each.

    Raises: ValueError for a ``ratio`` that is not in (0, 1], and for a variable of more than 2**32 elements.
    Source: Aji and Heafield 2017, "Sparse Communication for Distributed Gradient Descent"; with its residual, Stich et
        al. 2018, "Sparsified SGD with Memory": ``|x - top_k(x)|^2 <= (1 - k/n) |x|^2``.

    >>> top, values = TopK(0.5), np.array([1.0, -5.0, 2.0, 0.0])
    >>> top.decode(top.encode(values), 4, values.dtype)
    array([ 0., -5.,  2.,  0.])
    """

    name = "top_k"

    def __init__(self, ratio: float = 0.01) -> None:
        if not 0 < ratio <= 1:
            raise ValueError(f"ratio must be greater than 0 and at most 1, but is {ratio}")
        self.ratio = ratio

    def __repr__(self) -> str:
        return f"TopK(ratio={self.ratio})"

    def num_bytes(self, size: int, dtype: np.dtype[Any]) -> int:
        """See :meth:`Compression.num_bytes`."""
        if size > 1 << 32:
            raise ValueError(f"top_k numbers elements in 4 bytes, and a variable has {size}")
        return self._count(size) * (4 + dtype.itemsize)

    def encode(self, values: Array) -> Array:
        """See :meth:`Compression.encode`."""
        count = self._count(values.size)
        code = np.empty(self.num_bytes(values.size, values.dtype), np.uint8)
        if count:
            magnitudes = np.abs(values)
            magnitudes[np.isnan(magnitudes)] = np.inf
            smallest = np.partition(magnitudes, values.size - count)[values.size - count]
            larger = np.flatnonzero(magnitudes > smallest)
            equal = np.flatnonzero(magnitudes == smallest)[: count - len(larger)]
            chosen = np.sort(np.concatenate((larger, equal)))
            code[: 4 * count] = chosen.astype(np.uint32).view(np.uint8)
            code[4 * count :] = values[chosen].view(np.uint8)
        return code

    def decode(self, code: Array, size: int, dtype: np.dtype[Any]) -> Array:
        """See :meth:`Compression.decode`."""
        count = self._count(size)
        values: Array = np.zeros(size, dtype)
        values[code[: 4 * count].copy().view(np.uint32)] = code[4 * count :].copy().view(dtype)
        return values

    def _count(self, size: int) -> int:
        return min(size, max(1, round(self.ratio * size)))
