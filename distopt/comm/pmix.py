"""The part of PMIx that is called here: what Open MPI's launcher offers to the ranks that it has started.

Source: PMIx 5.0 standard; the layouts of its stable ABI, which are those of ``pmix_types.h`` of PMIx 4 and 5.
"""

from __future__ import annotations

import ctypes
from typing import Any, Final

STRING: Final = 3
PERSISTENCE: Final = 30
PROC_INFO: Final = 38
DATA_ARRAY: Final = 39
"""Types of values."""

_MAJOR_VERSIONS: Final = (b"4", b"5")


class Proc(ctypes.Structure):
    """``pmix_proc_t``."""

    _fields_ = (("namespace", ctypes.c_char * 256), ("rank", ctypes.c_uint32))


class Data(ctypes.Union):
    """The union in ``pmix_value_t``."""

    _fields_ = (("string", ctypes.c_char_p), ("pointer", ctypes.c_void_p), ("longest", ctypes.c_uint64 * 3))


class Value(ctypes.Structure):
    """``pmix_value_t``."""

    _fields_ = (("type", ctypes.c_uint16), ("data", Data))


class Info(ctypes.Structure):
    """``pmix_info_t``."""

    _fields_ = (("key", ctypes.c_char * 512), ("flags", ctypes.c_uint32), ("value", Value))


class Query(ctypes.Structure):
    """``pmix_query_t``."""

    _fields_ = (
        ("keys", ctypes.POINTER(ctypes.c_char_p)),
        ("qualifiers", ctypes.POINTER(Info)),
        ("num_qualifiers", ctypes.c_size_t),
    )


class DataArray(ctypes.Structure):
    """``pmix_data_array_t``."""

    _fields_ = (("type", ctypes.c_uint16), ("size", ctypes.c_size_t), ("items", ctypes.c_void_p))


class ProcInfo(ctypes.Structure):
    """``pmix_proc_info_t``."""

    _fields_ = (
        ("proc", Proc),
        ("host", ctypes.c_char_p),
        ("executable", ctypes.c_char_p),
        ("pid", ctypes.c_int),
        ("exit_code", ctypes.c_int),
        ("state", ctypes.c_uint8),
    )


class Published(ctypes.Structure):
    """``pmix_pdata_t``: what was published under a key, and by whom."""

    _fields_ = (("proc", Proc), ("key", ctypes.c_char * 512), ("value", Value))


def is_known(library: Any) -> bool:
    """Return whether ``library`` has PMIx in a version whose layouts are those of this file."""
    try:
        call = library.PMIx_Get_version
    except AttributeError:
        return False
    call.restype = ctypes.c_char_p
    words = (call() or b"").replace(b",", b" ").split()  # as in "OpenPMIx 5.0.11"
    return len(words) > 1 and words[1].partition(b".")[0] in _MAJOR_VERSIONS
