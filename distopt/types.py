"""Names for types that many modules use."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]
"""Any NumPy array."""

Shape: TypeAlias = tuple[int, ...]
