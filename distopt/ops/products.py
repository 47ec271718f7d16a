"""The two matrix products of a dense layer's backward pass.

A BLAS copies what it multiplies into an order of its own, and fills the result with zeros before it adds to it. Where a
large kernel meets a small batch, that is most of the work, and products that are equal on paper take unlike times. Two
processes on two cores of an Intel Xeon, OpenBLAS 0.3.31 with its loops for AVX-512 and, in brackets, for Zen; caches
filled with something else before each product; float32, of the time of ``gradient @ kernel.T`` and ``inputs.T @
gradient``:

==================  ========================  ==============================
batch, kernel       (kernel @ gradient.T).T   inputs.T @ gradient, in blocks
==================  ========================  ==============================
16, 2048 x 2048     0.74 (0.93)               0.73 (0.68)
64, 1024 x 1024     0.86 (0.99)
64, 2048 x 2048     0.89 (0.98)               0.91 (0.86)
64, 4096 x 4096     0.94 (1.00)               0.96 (0.97)
64, 256 x 8192      0.88 (0.96)
64, 8192 x 256      1.37 (1.42)               0.95 (0.82)
128, 2048 x 2048    1.01 (0.99)               0.95 (0.91)
==================  ========================  ==============================

In float64 the first is 1.32 (1.00) for 64, 2048 x 2048. Blocks are of rows of the kernel.

The last bits are others than those of the plain products. Which way it goes depends on the shapes and dtypes alone, so
they are the same in every deployment.
"""

from __future__ import annotations

import numpy as np

from distopt.types import Array

BLOCK_ROWS = 1024
"""Of the kernel. Blocks of 384 rows took 1.43 of the time of one product for 64, 100000 x 16."""

LEAST_BYTES = 2**23
"""Of the kernel: below, blocks brought nothing."""

MOST_GRADIENTS = 128
"""Rows of the gradient: with more, copying them for each block costs more than it brings."""

LEAST_BYTES_TRANSPOSED = 2**22
LEAST_COLUMNS_TRANSPOSED = 1024
"""Of the kernel; with 16 columns the transposed product takes 8 times as long."""
MOST_GRADIENTS_TRANSPOSED = 64


def input_gradient(gradient: Array, kernel: Array) -> Array:
    """Return ``gradient @ kernel.T``.

    Shapes: ``gradient`` is ``[..., m]``, ``kernel`` ``[n, m]``; the result is ``[..., n]``.

    >>> input_gradient(np.array([[1.0, 2.0]]), np.array([[3.0, 4.0], [5.0, 6.0]]))
    array([[11., 17.]])
    """
    product: Array
    if (
        gradient.ndim == 2
        and len(gradient) <= MOST_GRADIENTS_TRANSPOSED
        and gradient.dtype == kernel.dtype == np.float32
        and kernel.nbytes >= LEAST_BYTES_TRANSPOSED
        and kernel.shape[1] >= LEAST_COLUMNS_TRANSPOSED
    ):
        product = np.matmul(kernel, gradient.T)
        return np.ascontiguousarray(product.T)
    product = np.matmul(gradient, kernel.T)
    return product


def kernel_gradient(inputs: Array, gradient: Array, out: Array | None = None) -> Array:
    """Return ``inputs.T @ gradient``, in ``out`` where that is given.

    Shapes: ``inputs`` is ``[batch, n]``, ``gradient`` ``[batch, m]``; the result is ``[n, m]``.

    >>> kernel_gradient(np.array([[1.0, 2.0]]), np.array([[3.0, 4.0]]))
    array([[3., 4.],
           [6., 8.]])
    """
    num_rows = inputs.shape[1]
    num_bytes = num_rows * gradient.shape[1] * gradient.itemsize
    if num_bytes < LEAST_BYTES or len(gradient) > MOST_GRADIENTS:
        product: Array = np.matmul(inputs.T, gradient, out=out)
        return product
    if out is None:
        out = np.empty((num_rows, gradient.shape[1]), np.result_type(inputs, gradient))
    for start in range(0, num_rows, BLOCK_ROWS):
        rows = slice(start, start + BLOCK_ROWS)
        np.matmul(inputs[:, rows].T, gradient, out=out[rows])
    return out
