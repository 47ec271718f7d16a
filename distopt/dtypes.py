"""The types of elements by TensorFlow's names: NumPy dtypes, and nothing else.

A dtype here is NumPy's object, so ``tf.float32 == np.float32`` and every NumPy function takes it. ``bfloat16`` is that
of ml_dtypes. ``string`` is for the ``keras.Input`` of layers that look strings up; there are no operations on strings,
and no quantized or reference types.
"""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np

from distopt.ops.arrays import cast

float16 = half = np.dtype(np.float16)
float32 = np.dtype(np.float32)
float64 = double = np.dtype(np.float64)
bfloat16 = np.dtype(ml_dtypes.bfloat16)
int8 = np.dtype(np.int8)
int16 = np.dtype(np.int16)
int32 = np.dtype(np.int32)
int64 = np.dtype(np.int64)
uint8 = np.dtype(np.uint8)
uint16 = np.dtype(np.uint16)
uint32 = np.dtype(np.uint32)
uint64 = np.dtype(np.uint64)
bool = np.dtype(np.bool_)
string = np.dtype(np.str_)

_BY_NAME = {"bfloat16": bfloat16, "half": float16, "float": float32, "double": float64}
_OFFERED = (float16, float32, float64, bfloat16, int8, int16, int32, int64, uint8, uint16, uint32, uint64, bool)


def as_dtype(type_value: Any) -> np.dtype[Any]:
    """Return the dtype that ``type_value`` stands for: a name, a NumPy type, a Python type, or a dtype itself.

    Python's ``float`` is float32 and ``int`` is int32, as in TensorFlow.

    Raises: TypeError for anything that is none of the dtypes of this module.

    >>> as_dtype("float32"), as_dtype(int), as_dtype(np.float64)
    (dtype('float32'), dtype('int32'), dtype('float64'))
    """
    if type_value is float:
        return float32
    if type_value is int:
        return int32
    dtype: np.dtype[Any]
    try:
        dtype = _BY_NAME[type_value] if isinstance(type_value, str) and type_value in _BY_NAME else np.dtype(type_value)
    except TypeError as error:
        raise TypeError(f"{type_value!r} is no dtype; known are {', '.join(map(str, _OFFERED))}") from error
    if dtype not in _OFFERED:
        raise TypeError(f"dtype {dtype} is not offered; known are {', '.join(map(str, _OFFERED))}")
    return dtype


__all__ = [
    "as_dtype",
    "bfloat16",
    "bool",
    "cast",
    "double",
    "float16",
    "float32",
    "float64",
    "half",
    "int8",
    "int16",
    "int32",
    "int64",
    "string",
    "uint8",
    "uint16",
    "uint32",
    "uint64",
]
