"""Memory that several processes of a host map: anonymous, of a size that is taken when it is made.

``memfd_create`` gives a file without a name, which ends with the last process that maps it: nothing is left behind,
and the limit of ``/dev/shm``, 64 MB in most containers, does not count. Its pages are taken by ``posix_fallocate``, so
that too little memory is an error here, and never a SIGBUS where the memory is used.

Source: memfd_create(2), posix_fallocate(3).
"""

from __future__ import annotations

import ctypes
import mmap
import os
import weakref
from pathlib import Path
from typing import Any, Final

import numpy as np

from distopt.errors import SharedMemoryError
from distopt.types import Array

is_offered: Final = hasattr(os, "memfd_create") and hasattr(os, "posix_fallocate")
"""Whether this system has such memory: Linux does."""

_CGROUP_FILES: Final = (
    ("sys/fs/cgroup", "memory.max", "memory.current"),
    ("sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes"),
)
"""The limit of a container and what it uses, in versions 2 and 1."""


def create(num_bytes: int, *, root: Path = Path("/")) -> int:
    """Return the file descriptor of ``num_bytes`` of zeros; the caller closes it, which leaves mappings alone.

    Raises: SharedMemoryError if there is less memory than that.
    """
    available = available_bytes(root)
    if available is not None and num_bytes > available:
        # The kernel would take the last page first, and then end some process.
        raise SharedMemoryError(f"{num_bytes:,} bytes of shared memory are needed, {available:,} are available")
    try:
        descriptor = os.memfd_create("distopt", os.MFD_CLOEXEC)
    except OSError as error:
        raise SharedMemoryError(f"no shared memory can be made: {error}") from error
    try:
        os.posix_fallocate(descriptor, 0, num_bytes)
    except OSError as error:
        os.close(descriptor)
        raise SharedMemoryError(f"{num_bytes:,} bytes of shared memory cannot be had: {error}") from error
    return descriptor


def map_bytes(descriptor: int, num_bytes: int) -> Array:
    """Return the memory of a file descriptor as bytes, aligned to a page; it stays mapped as long as they are used.

    Raises: SharedMemoryError if it cannot be mapped, or is shorter.
    """
    size = os.fstat(descriptor).st_size
    if num_bytes > size:
        raise SharedMemoryError(f"{num_bytes:,} bytes of shared memory cannot be mapped: there are {size:,}")
    # Not mmap.mmap, which keeps a descriptor of its own for each mapping: a process has 1,024 by default.
    libc = _libc()
    address = libc.mmap(None, num_bytes, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_SHARED, descriptor, 0)
    if address == ctypes.c_void_p(-1).value:
        reason = os.strerror(ctypes.get_errno())
        raise SharedMemoryError(f"{num_bytes:,} bytes of shared memory cannot be mapped: {reason}")
    memory: Any = (ctypes.c_uint8 * num_bytes).from_address(address)
    weakref.finalize(memory, libc.munmap, address, num_bytes).atexit = False  # arrays may be used until the very end
    array: Array = np.frombuffer(memory, np.uint8)
    return array


def _libc() -> Any:
    """Return the C library, told what mmap and munmap take. Source: mmap(2)."""
    libc = ctypes.CDLL(None, use_errno=True)
    number, size, pointer = ctypes.c_int, ctypes.c_size_t, ctypes.c_void_p
    libc.mmap.restype, libc.mmap.argtypes = pointer, (pointer, size, number, number, number, ctypes.c_long)
    libc.munmap.restype, libc.munmap.argtypes = number, (pointer, size)
    return libc


def available_bytes(root: Path = Path("/")) -> int | None:
    """Return how much memory can still be taken, by the host and by this container; None where nobody says."""
    found = []
    try:
        lines = (root / "proc/meminfo").read_text().splitlines()
        found += [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    except (OSError, ValueError, IndexError):
        pass
    for folder, limit, used in _CGROUP_FILES:
        group = root / folder
        try:
            free = int((group / limit).read_text()) - int((group / used).read_text())
            counts = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        except (OSError, ValueError):  # no such group, or no limit: "max"
            continue
        # What is cached of files is given back before anything fails.
        found.append(free + int(counts.get("active_file", 0)) + int(counts.get("inactive_file", 0)))
    return min(found) if found else None
