"""``tf.print``."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

from distopt.nest import is_nested, map_structure
from distopt.tensor import Operand


def print(*inputs: Any, output_stream: Any = None, sep: str = " ", end: str = "\n", summarize: int = 3) -> None:
    """Write ``inputs`` to ``output_stream`` (None: standard error), tensors as their values.

    Of a long axis ``summarize`` elements are shown at either end; -1 shows all.

    >>> print("loss:", np.float32([0.5, 1.0]), output_stream=sys.stdout)
    loss: [0.5 1. ]
    """
    edge = {"threshold": sys.maxsize} if summarize < 0 else {"threshold": 2 * summarize, "edgeitems": summarize}
    with np.printoptions(**edge):  # type: ignore[arg-type]  # both are integers
        text = sep.join(str(map_structure(_shown, part) if is_nested(part) else _shown(part)) for part in inputs)
    (output_stream or sys.stderr).write(text + end)


def _shown(value: Any) -> Any:
    return value.numpy() if isinstance(value, Operand) else value
