"""Names for types that many modules use."""

from __future__ import annotations

import enum
from typing import Any, TypeAlias

import numpy as np

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]
"""Any NumPy array."""

Shape: TypeAlias = tuple[int, ...]


class ReduceOp(enum.Enum):
    """How values of several replicas or ranks become one.

    Source: TensorFlow's ``tf.distribute.ReduceOp``, which has the same two members and also takes their names.
    """

    SUM = "SUM"
    MEAN = "MEAN"

    @classmethod
    def parse(cls, value: ReduceOp | str) -> ReduceOp:
        """Return the member that ``value`` is, or names in any mixture of cases.

        Raises: ValueError for anything else.

        >>> ReduceOp.parse("mean")
        <ReduceOp.MEAN: 'MEAN'>
        """
        if isinstance(value, cls):
            return value
        member = cls.__members__.get(value.upper()) if isinstance(value, str) else None
        if member is None:
            raise ValueError(f"reduce_op must be one of {', '.join(cls.__members__)}, not {value!r}")
        return member


class UnconnectedGradients(enum.Enum):
    """What a tape returns for a source on which the target does not depend. Source: TensorFlow's enumeration."""

    NONE = "none"
    ZERO = "zero"
