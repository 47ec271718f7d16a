"""Row-sparse gradients inside a backward pass, and the operation that makes them dense."""

# ruff: noqa: ARG005  (derivatives are given the result and all arguments, used or not)
from __future__ import annotations

from typing import Any, NamedTuple

import autograd.numpy as anp
from autograd.extend import defvjp, primitive

from distopt.indexed_slices import scatter_rows as _scatter_rows
from distopt.types import Array, Shape


class Rows(NamedTuple):
    """Gradient rows, arrays or boxes, ``values`` ``[n, ...]`` of which row ``i`` adds to row ``indices[i]``."""

    values: Any
    indices: Array
    shape: Shape


scatter_rows = primitive(_scatter_rows)
take_rows = primitive(lambda params, indices: params[indices])

defvjp(scatter_rows, lambda ans, values, indices, shape: lambda g: take_rows(g, indices), None, None)
defvjp(take_rows, lambda ans, params, indices: lambda g: scatter_rows(g, indices, anp.shape(params)), None)


def densify(rows: Rows) -> Any:
    """Return ``rows`` as an array, or as a box if a tape follows their values."""
    return scatter_rows(rows.values, rows.indices, rows.shape)


def concatenate(parts: list[Rows]) -> Rows:
    """Return one ``Rows`` with the rows of ``parts`` in order."""
    if len(parts) == 1:
        return parts[0]
    indices: Array = anp.concatenate([part.indices for part in parts])
    return Rows(anp.concatenate([part.values for part in parts]), indices, parts[0].shape)
