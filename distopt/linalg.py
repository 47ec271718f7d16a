"""The operations of ``tf.linalg`` that are offered."""

from __future__ import annotations

from distopt.ops import (
    det,
    diag,
    diag_part,
    einsum,
    eye,
    global_norm,
    inv,
    l2_normalize,
    matmul,
    matrix_transpose,
    matvec,
    norm,
    solve,
    tensordot,
    trace,
)

__all__ = [
    "det",
    "diag",
    "diag_part",
    "einsum",
    "eye",
    "global_norm",
    "inv",
    "l2_normalize",
    "matmul",
    "matrix_transpose",
    "matvec",
    "norm",
    "solve",
    "tensordot",
    "trace",
]
