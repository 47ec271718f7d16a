"""Memory that several processes of a host map: anonymous, with pages that are taken before anything is stored.

``memfd_create`` gives a file without a name, which ends with the last process that maps it: nothing is left behind,
and the limit of ``/dev/shm``, 64 MB in most containers, does not count. Its pages are taken by ``posix_fallocate``, so
that too little memory is an error here, and never a SIGBUS where the memory is used. Where a host has several memory
nodes, a page lies in that of the processor that took it: so whoever will write to pages most takes them.

Long segments get huge pages, where the kernel has any: what a step reads and writes is then found in the processor's
table of pages, as with large arrays of NumPy's, which asks for such pages, too. The setting that hosts have for shared
memory is to give none; asking for them afterwards goes by it, and takes some 3 ms for each 2 MB, once.

Source: memfd_create(2), posix_fallocate(3), MADV_COLLAPSE in madvise(2).
"""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
import weakref
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from distopt.errors import SharedMemoryError
from distopt.types import Array

is_offered: Final = hasattr(os, "memfd_create") and hasattr(os, "posix_fallocate")
"""Whether this system has such memory: Linux does."""

HUGE_PAGE: Final = 2**21
"""Bytes of a huge page on most processors; with others nothing is gained, and nothing breaks."""

_MADV_COLLAPSE: Final = 25

_CGROUP_FILES: Final = (
    ("sys/fs/cgroup", "", "memory.max", "memory.current"),
    ("sys/fs/cgroup/memory", "memory", "memory.limit_in_bytes", "memory.usage_in_bytes"),
)
"""Of versions 2 and 1: where control groups are, under which name a process has one, its limit and what it uses."""


def create(num_bytes: int, *, root: Path = Path("/")) -> int:
    """Return the file descriptor of ``num_bytes`` of zeros, none of whose pages is taken; the caller closes it.

    Mappings outlive the descriptor. Raises: SharedMemoryError if there is less memory than that.
    """
    check_available(num_bytes, root)
    try:
        descriptor = os.memfd_create("distopt", os.MFD_CLOEXEC)
    except OSError as error:
        raise SharedMemoryError(f"no shared memory can be made: {error}") from error
    try:
        os.ftruncate(descriptor, num_bytes)
    except OSError as error:
        os.close(descriptor)
        raise SharedMemoryError(f"{num_bytes:,} bytes of shared memory cannot be had: {error}") from error
    return descriptor


def take(descriptor: int, start: int, stop: int) -> None:
    """Take the pages of the bytes ``start <= i < stop`` of a file, of which nothing has been used yet.

    Raises: SharedMemoryError if there are not enough.
    """
    try:
        os.posix_fallocate(descriptor, start, stop - start)
    except OSError as error:
        raise SharedMemoryError(f"{stop - start:,} bytes of shared memory cannot be had: {error}") from error
    first, last = -(-start // HUGE_PAGE) * HUGE_PAGE, stop // HUGE_PAGE * HUGE_PAGE
    if first < last:
        _use_huge_pages(descriptor, first, last - first)


def _use_huge_pages(descriptor: int, start: int, num_bytes: int) -> None:
    """Replace pages by huge ones, as many as the kernel gives at once."""
    libc = _libc()
    address = _mapped(libc, descriptor, num_bytes, start)
    if address is None:
        return
    for place in range(address, address + num_bytes, HUGE_PAGE):
        ctypes.string_at(place, 1)  # Linux 6.1 refuses (EINVAL) where nothing has been looked at; 6.12 now and then
        if libc.madvise(place, HUGE_PAGE, _MADV_COLLAPSE) != 0:
            break  # a kernel before 6.1, or no such page is free: looking for more could take long
    libc.munmap(address, num_bytes)


def map_bytes(descriptor: int, num_bytes: int) -> Array:
    """Return the memory of a file descriptor as bytes, aligned to a page; it stays mapped as long as they are used.

    Raises: SharedMemoryError if it cannot be mapped, or is shorter.
    """
    size = os.fstat(descriptor).st_size
    if num_bytes > size:
        raise SharedMemoryError(f"{num_bytes:,} bytes of shared memory cannot be mapped: there are {size:,}")
    # Not mmap.mmap, which keeps a descriptor of its own for each mapping: a process has 1,024 by default.
    libc = _libc()
    address = _mapped(libc, descriptor, num_bytes)
    if address is None:
        reason = os.strerror(ctypes.get_errno())
        raise SharedMemoryError(f"{num_bytes:,} bytes of shared memory cannot be mapped: {reason}")
    memory: Any = (ctypes.c_uint8 * num_bytes).from_address(address)
    weakref.finalize(memory, libc.munmap, address, num_bytes).atexit = False  # arrays may be used until the very end
    array: Array = np.frombuffer(memory, np.uint8)
    return array


def _mapped(libc: Any, descriptor: int, num_bytes: int, start: int = 0) -> int | None:
    """Return where a part of a file is mapped now, long ones at a multiple of a huge page; None if it cannot be."""
    failed = ctypes.c_void_p(-1).value
    wanted = None
    if num_bytes >= HUGE_PAGE:
        # The kernel takes an address that is free; if another thread gets it in between, only the alignment is lost.
        length = num_bytes + HUGE_PAGE
        free = libc.mmap(None, length, 0, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0)
        if free != failed:
            libc.munmap(free, length)
            wanted = -(-free // HUGE_PAGE) * HUGE_PAGE
    address: int = libc.mmap(wanted, num_bytes, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_SHARED, descriptor, start)
    return None if address == failed else address


def _libc() -> Any:
    """Return the C library, told what mmap, munmap and madvise take. Source: mmap(2), madvise(2)."""
    libc = ctypes.CDLL(None, use_errno=True)
    number, size, pointer = ctypes.c_int, ctypes.c_size_t, ctypes.c_void_p
    libc.mmap.restype, libc.mmap.argtypes = pointer, (pointer, size, number, number, number, ctypes.c_long)
    libc.munmap.restype, libc.munmap.argtypes = number, (pointer, size)
    libc.madvise.restype, libc.madvise.argtypes = number, (pointer, size, number)
    return libc


def check_available(num_bytes: int, root: Path = Path("/")) -> None:
    """Refuse to take more memory than there is.

    Raises: SharedMemoryError.
    """
    available = available_bytes(root)
    if available is not None and num_bytes > available:
        # The kernel would take the last page first, and then end some process.
        raise SharedMemoryError(f"{num_bytes:,} bytes of shared memory are needed, {available:,} are available")


def available_bytes(root: Path = Path("/")) -> int | None:
    """Return how much memory can still be taken, by the host and by this process's control group; None: nobody says.

    A group is a container, or a job of Slurm's; those that it lies in count, too.
    """
    found = []
    try:
        lines = (root / "proc/meminfo").read_text().splitlines()
        found += [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    except (OSError, ValueError, IndexError):
        pass
    for group, limit, used in _groups(root):
        try:
            free = int((group / limit).read_text()) - int((group / used).read_text())
            counts = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        except (OSError, ValueError):  # no such group, or no limit: "max"
            continue
        # What is cached of files is given back before anything fails; version 1 has the sum over inner groups apart.
        for kind in ("active_file", "inactive_file"):
            free += int(counts.get(f"total_{kind}", counts.get(kind, 0)))
        found.append(max(0, free))
    return min(found) if found else None


def group_of_process(root: Path = Path("/")) -> str:
    """Return what two processes have alike whose memory counts against the same limits."""
    for group, limit, _ in _groups(root):
        if (group / limit).exists():
            status = group.stat()
            return f"{status.st_dev}:{status.st_ino}"
    return ""


def too_much_together(told: Sequence[Sequence[str]]) -> list[str]:
    """Return what is wrong, for the members of each place: their control group has no room for all of its members.

    ``told``: by place, how many bytes a member asks for, how many it can have (0: nobody knows), and its group.
    """
    wanted: defaultdict[str, int] = defaultdict(int)
    room: dict[str, int] = {}
    for length, available, group, *_ in told:
        wanted[group] += int(length)
        room[group] = min(room.get(group, sys.maxsize), int(available) or sys.maxsize)
    wrong = {
        group: f"{num_bytes:,} bytes of shared memory are needed by all ranks together, {room[group]:,} are available"
        for group, num_bytes in wanted.items()
        if num_bytes > room[group]
    }
    return [wrong.get(group, "") for _, _, group, *_ in told]


def _groups(root: Path) -> Iterator[tuple[Path, str, str]]:
    """Yield the control groups of this process, inner ones first, and the names of two files of each.

    Source: cgroups(7), on ``/proc/self/cgroup``.
    """
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        lines = []
    paths = {name: path for line in lines for _, names, path in [line.split(":", 2)] for name in names.split(",")}
    for folder, controller, limit, used in _CGROUP_FILES:
        inner = Path(paths.get(controller, "/").lstrip("/"))
        # Within a container, a path may be that on the host, which is not to be seen.
        for place in dict.fromkeys((inner, *inner.parents)):
            if (root / folder / place).is_dir():
                yield root / folder / place, limit, used
