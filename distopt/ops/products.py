"""The two matrix products of a dense layer's backward pass.

A BLAS copies what it multiplies into an order of its own, and fills the result with zeros before it adds to it. Where a
large kernel meets a small batch, the walk through the kernel, or through its gradient, is then made several times, in
strides that leave the cache. So such products are made for a block of rows of the kernel at a time, which stays there.
With OpenBLAS 0.3.31 on Zen 3, two processes on two cores, of the time in one product (float32):

==================  =====================  ====================
batch, kernel       gradient @ kernel.T    inputs.T @ gradient
==================  =====================  ====================
64, 2048 x 2048     0.91 and 0.92          0.96 and 0.98
64, 4096 x 4096     0.89 and 0.90          0.99 and 1.00
32, 4096 x 1024     0.84 and 0.85          0.89 and 0.91
128, 2048 x 2048    0.95 and 0.96          0.95 and 0.99
256, 2048 x 2048    1.03 and 1.06          1.03 and 1.05
==================  =====================  ====================

The last bits near the blocks' edges are others than those of one product. Which way it goes depends on the shapes and
dtypes alone, so they are the same in every deployment.
"""

from __future__ import annotations

import numpy as np

from distopt.types import Array

BLOCK_ROWS = 384
"""Of the kernel: a block of 2048 columns is 3 MB in float32."""

LEAST_BYTES = 2**23
"""Of the kernel: below, blocks brought nothing."""

MOST_GRADIENTS = 128
"""Rows of the gradient: with more, copying them for each block costs more than it brings."""


def input_gradient(gradient: Array, kernel: Array) -> Array:
    """Return ``gradient @ kernel.T``.

    Shapes: ``gradient`` is ``[..., m]``, ``kernel`` ``[n, m]``; the result is ``[..., n]``.

    >>> input_gradient(np.array([[1.0, 2.0]]), np.array([[3.0, 4.0], [5.0, 6.0]]))
    array([[11., 17.]])
    """
    if gradient.ndim != 2 or not _pays(gradient, kernel.nbytes):
        product: Array = np.matmul(gradient, kernel.T)
        return product
    result = np.empty((len(gradient), len(kernel)), np.result_type(gradient, kernel))
    for start in range(0, len(kernel), BLOCK_ROWS):
        rows = slice(start, start + BLOCK_ROWS)
        np.matmul(gradient, kernel[rows].T, out=result[:, rows])
    return result


def kernel_gradient(inputs: Array, gradient: Array, out: Array | None = None) -> Array:
    """Return ``inputs.T @ gradient``, in ``out`` where that is given.

    Shapes: ``inputs`` is ``[batch, n]``, ``gradient`` ``[batch, m]``; the result is ``[n, m]``.

    >>> kernel_gradient(np.array([[1.0, 2.0]]), np.array([[3.0, 4.0]]))
    array([[3., 4.],
           [6., 8.]])
    """
    num_rows = inputs.shape[1]
    if not _pays(gradient, num_rows * gradient.shape[1] * gradient.itemsize):
        product: Array = np.matmul(inputs.T, gradient, out=out)
        return product
    if out is None:
        out = np.empty((num_rows, gradient.shape[1]), np.result_type(inputs, gradient))
    for start in range(0, num_rows, BLOCK_ROWS):
        rows = slice(start, start + BLOCK_ROWS)
        np.matmul(inputs[:, rows].T, gradient, out=out[rows])
    return out


def _pays(gradient: Array, kernel_bytes: int) -> bool:
    return kernel_bytes >= LEAST_BYTES and len(gradient) <= MOST_GRADIENTS
