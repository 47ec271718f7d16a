"""Convolution and pooling of images ``[batch, height, width, channels]``.

Theory of operation. A convolution is one matrix product: the windows of the image, one a row (im2col), times the
kernel as a matrix. It is linear in each of its two arguments, so its derivatives are again made of three functions,
each linear in two arguments: the product itself, what it sends back to the image, and what to the kernel. Pooling is a
choice of elements (max) or a sum over windows (average); both are linear once the choice is made.

Source of the paddings: TensorFlow's ``SAME`` and ``VALID``; with SAME the output has ``ceil(n / stride)`` elements,
and of an odd number of padded ones the larger half follows the image.
"""

# ruff: noqa: ARG001, ARG005  (derivatives are given the result and all arguments, used or not)
from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import autograd.numpy as anp
import numpy as np
from autograd.extend import defvjp, primitive
from numpy.lib.stride_tricks import sliding_window_view

from distopt.autodiff.nodes import FUSED, Fused, Node, strip_all
from distopt.ops.arithmetic import divide
from distopt.ops.shapes import operand
from distopt.tensor import Tensor, call
from distopt.types import Array, Shape


class Windows(NamedTuple):
    """Where windows lie: their size, the steps between them, the steps inside of them, and the padding around."""

    size: tuple[int, int]
    strides: tuple[int, int]
    dilations: tuple[int, int]
    pads: tuple[tuple[int, int], tuple[int, int]]

    def counts(self, shape: Shape) -> tuple[int, int]:
        """Return how many windows there are, down and across, in images of ``shape``."""
        spans = [(size - 1) * step + 1 for size, step in zip(self.size, self.dilations, strict=True)]
        lengths = [n + sum(pad) for n, pad in zip(shape[1:3], self.pads, strict=True)]
        down, across = ((n - span) // stride + 1 for n, span, stride in zip(lengths, spans, self.strides, strict=True))
        return down, across


def conv2d(input: Any, filters: Any, strides: Any = 1, padding: str = "VALID", dilations: Any = 1) -> Tensor:
    """Return the sums of the products of each window of ``input`` with ``filters``.

    Shapes: ``input`` ``[batch, height, width, channels]``, ``filters`` ``[height, width, channels, outputs]``; the
    result is ``[batch, ..., ..., outputs]``. ``strides`` and ``dilations`` are a number, ``(down, across)``, or four
    numbers of which the outer two are 1. ``padding`` is ``VALID`` or ``SAME``.

    Raises: ValueError for shapes that do not fit, an unknown padding, or windows larger than the image.

    >>> image = np.arange(9.0).reshape(1, 3, 3, 1)
    >>> conv2d(image, np.ones((2, 2, 1, 1))).numpy()[0, :, :, 0]
    array([[ 8., 12.],
           [20., 24.]])
    """
    input, filters = operand(input), operand(filters)
    if len(input.shape) != 4 or len(filters.shape) != 4 or input.shape[3] != filters.shape[2]:
        raise ValueError(
            f"images of shape {input.shape} do not fit a kernel of shape {filters.shape}: they are [batch, height, "
            "width, channels] and [height, width, channels, outputs]"
        )
    windows = windows_of(input.shape, filters.shape[:2], strides, padding, dilations)
    return call(_convolve, input, filters, windows)


def max_pool2d(input: Any, ksize: Any, strides: Any = None, padding: str = "VALID") -> Tensor:
    """Return the largest element of each window; where it occurs several times, the first gets the gradient.

    Shapes: ``[batch, height, width, channels]``, and the same with fewer windows. ``ksize`` and ``strides`` (None: as
    ``ksize``) are as those of :func:`conv2d`.

    Raises: as :func:`conv2d`.
    """
    input = _images(input)
    return call(_max_pool, input, windows_of(input.shape, ksize, ksize if strides is None else strides, padding))


def avg_pool2d(input: Any, ksize: Any, strides: Any = None, padding: str = "VALID") -> Tensor:
    """Return the mean of each window, of those of its elements that are in the image.

    Shapes, Raises: as :func:`max_pool2d`.
    """
    input = _images(input)
    windows = windows_of(input.shape, ksize, ksize if strides is None else strides, padding)
    counts = _window_sums(np.ones((1, *input.shape[1:3], 1), input.dtype), windows)
    return divide(call(_window_sums, input, windows), counts)


def windows_of(shape: Shape, size: Any, strides: Any, padding: str, dilations: Any = 1) -> Windows:
    """Return the windows of images of ``shape``.

    Raises: ValueError as :func:`conv2d` says.
    """
    window, steps, holes = pair_of(size, "a window"), pair_of(strides, "strides"), pair_of(dilations, "dilations")
    pads = ((0, 0), (0, 0))
    if padding.upper() == "SAME":
        spans = [(n - 1) * hole + 1 for n, hole in zip(window, holes, strict=True)]
        totals = [
            max((-(-n // step) - 1) * step + span - n, 0)
            for n, step, span in zip(shape[1:3], steps, spans, strict=True)
        ]
        pads = ((totals[0] // 2, totals[0] - totals[0] // 2), (totals[1] // 2, totals[1] - totals[1] // 2))
    elif padding.upper() != "VALID":
        raise ValueError(f"padding must be VALID or SAME, not {padding!r}")
    windows = Windows(window, steps, holes, pads)
    if min(windows.counts(shape)) < 1:
        raise ValueError(f"a window of {window} does not fit into images of shape {shape}")
    return windows


def pair_of(value: Any, what: str) -> tuple[int, int]:
    """Return ``(down, across)`` of one number, two, or four with ones around them.

    Raises: ValueError for anything else, or numbers below 1.

    >>> pair_of(2, "strides"), pair_of([1, 2, 3, 1], "strides")
    ((2, 2), (2, 3))
    """
    numbers = [int(n) for n in np.atleast_1d(value)]
    if len(numbers) == 4 and numbers[0] == numbers[3] == 1:
        numbers = numbers[1:3]
    if len(numbers) == 1:
        numbers *= 2
    if len(numbers) != 2 or min(numbers) < 1:
        raise ValueError(f"{what} must be a positive number or two of them, not {value!r}")
    return numbers[0], numbers[1]


def _images(input: Any) -> Any:
    input = operand(input)
    if len(input.shape) != 4:
        raise ValueError(f"images are [batch, height, width, channels], not of shape {input.shape}")
    return input


# Plain arrays: windows of an image, and adding windows up to an image.


def _cut(x: Array, windows: Windows, filling: float = 0) -> Array:
    """Return the windows of ``x`` as a view ``[batch, down, across, channels, height, width]``."""
    if windows.pads != ((0, 0), (0, 0)):
        x = np.pad(x, ((0, 0), *windows.pads, (0, 0)), constant_values=filling)
    spans = [(size - 1) * step + 1 for size, step in zip(windows.size, windows.dilations, strict=True)]
    (down, across), (inner_down, inner_across) = windows.strides, windows.dilations
    return sliding_window_view(x, spans, axis=(1, 2))[:, ::down, ::across, :, ::inner_down, ::inner_across]


def _paste(parts: Array, windows: Windows, shape: Shape) -> Array:
    """Return images of ``shape`` with ``parts`` ``[batch, down, across, height, width, channels]`` added in place."""
    (top, bottom), (left, right) = windows.pads
    image = np.zeros((shape[0], shape[1] + top + bottom, shape[2] + left + right, shape[3]), parts.dtype)
    rows, columns = parts.shape[1:3]
    (down, across), (inner_down, inner_across) = windows.strides, windows.dilations
    for i in range(windows.size[0]):
        for j in range(windows.size[1]):
            y, x = i * inner_down, j * inner_across
            image[:, y : y + rows * down : down, x : x + columns * across : across] += parts[:, :, :, i, j]
    return image[:, top : top + shape[1], left : left + shape[2]]


def _matrix(x: Array, windows: Windows) -> Array:
    """Return the windows of ``x``, one a row: ``[batch * down * across, height * width * channels]``."""
    cut = np.moveaxis(_cut(x, windows), 3, 5)
    return np.ascontiguousarray(cut).reshape(-1, windows.size[0] * windows.size[1] * x.shape[3])


# Convolution.


def _forward(needed: Sequence[int], x: Array, kernel: Array, windows: Windows) -> tuple[Array, Array]:
    matrix = _matrix(x, windows)
    result = np.dot(matrix, kernel.reshape(-1, kernel.shape[3]))
    return result.reshape(len(x), *windows.counts(x.shape), kernel.shape[3]), matrix


_convolve = primitive(lambda x, kernel, windows: _forward((), x, kernel, windows)[0])


@primitive  # type: ignore[untyped-decorator]  # autograd is untyped
def _to_image(gradient: Array, kernel: Array, windows: Windows, shape: Shape) -> Array:
    rows = np.dot(gradient.reshape(-1, kernel.shape[3]), kernel.reshape(-1, kernel.shape[3]).T)
    return _paste(rows.reshape(*gradient.shape[:3], *windows.size, shape[3]), windows, shape)


@primitive  # type: ignore[untyped-decorator]  # autograd is untyped
def _to_kernel(gradient: Array, x: Array, windows: Windows) -> Array:
    return _kernel_gradient(gradient, _matrix(x, windows), windows)


def _kernel_gradient(gradient: Array, matrix: Array, windows: Windows) -> Array:
    outputs = gradient.shape[3]
    product: Array = np.dot(matrix.T, gradient.reshape(-1, outputs))
    return product.reshape(*windows.size, -1, outputs)


def _backward(node: Node, gradient: Any, owned: bool) -> Sequence[Any]:
    x, kernel, windows = node.args
    return [
        _to_image.fun(gradient, kernel, windows, x.shape)
        if argnum == 0
        else _kernel_gradient(gradient, node.saved, windows)
        for argnum in node.argnums
    ]


defvjp(
    _convolve,
    lambda ans, x, kernel, windows: lambda g: _to_image(g, kernel, windows, anp.shape(x)),
    lambda ans, x, kernel, windows: lambda g: _to_kernel(g, x, windows),
    None,
)
defvjp(
    _to_image,
    lambda ans, gradient, kernel, windows, shape: lambda g: _convolve(g, kernel, windows),
    lambda ans, gradient, kernel, windows, shape: lambda g: _to_kernel(gradient, g, windows),
    None,
    None,
)
defvjp(
    _to_kernel,
    lambda ans, gradient, x, windows: lambda g: _convolve(x, g, windows),
    lambda ans, gradient, x, windows: lambda g: _to_image(gradient, g, windows, anp.shape(x)),
    None,
)
FUSED[_convolve] = Fused(_backward, fresh=True, forward=_forward)


# Pooling.


def _positions(x: Array, windows: Windows) -> Array:
    """Return where in the flat ``x`` the first largest element of each window is."""
    cut = _cut(x, windows, -np.inf if x.dtype.kind in "fV" else np.iinfo(x.dtype).min)
    best = cut.reshape(*cut.shape[:4], -1).argmax(axis=-1)
    batch, down, across, channel = np.ogrid[tuple(map(slice, cut.shape[:4]))]
    rows = down * windows.strides[0] + best // windows.size[1] - windows.pads[0][0]
    columns = across * windows.strides[1] + best % windows.size[1] - windows.pads[1][0]
    places: Array = np.ravel_multi_index((batch + 0 * best, rows, columns, channel + 0 * best), x.shape)
    return places


@primitive  # type: ignore[untyped-decorator]  # autograd is untyped
def _max_pool(x: Array, windows: Windows) -> Array:
    largest: Array = x.reshape(-1)[_positions(x, windows)]
    return largest


@primitive  # type: ignore[untyped-decorator]  # autograd is untyped
def _take(x: Array, positions: Array) -> Array:
    taken: Array = x.reshape(-1)[positions]
    return taken


@primitive  # type: ignore[untyped-decorator]  # autograd is untyped
def _put(values: Array, positions: Array, shape: Shape) -> Array:
    result = np.zeros(int(np.prod(shape)), values.dtype)
    np.add.at(result, positions.reshape(-1), values.reshape(-1))
    return result.reshape(shape)


@primitive  # type: ignore[untyped-decorator]  # autograd is untyped
def _window_sums(x: Array, windows: Windows) -> Array:
    sums: Array = _cut(x, windows).sum(axis=(4, 5), dtype=x.dtype)
    return sums


@primitive  # type: ignore[untyped-decorator]  # autograd is untyped
def _spread(sums: Array, windows: Windows, shape: Shape) -> Array:
    parts = np.broadcast_to(sums[:, :, :, None, None, :], (*sums.shape[:3], *windows.size, sums.shape[3]))
    return _paste(parts, windows, shape)


defvjp(
    _max_pool,
    # Which elements are largest is a constant of the derivative.
    lambda ans, x, windows: lambda g: _put(g, _positions(strip_all(x), windows), anp.shape(x)),
    None,
)
defvjp(_take, lambda ans, x, positions: lambda g: _put(g, positions, anp.shape(x)), None)
defvjp(_put, lambda ans, values, positions, shape: lambda g: _take(g, positions), None, None)
defvjp(_window_sums, lambda ans, x, windows: lambda g: _spread(g, windows, anp.shape(x)), None)
defvjp(_spread, lambda ans, sums, windows, shape: lambda g: _window_sums(g, windows), None, None)
