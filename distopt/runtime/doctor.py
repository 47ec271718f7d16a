"""What this machine offers a job."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from distopt import __version__, blas
from distopt.comm.shared_memory import segments
from distopt.errors import SharedMemoryError
from distopt.kernels import cache_directory
from distopt.numerics import numerics_fingerprint
from distopt.runtime.cluster import INSTALL_MPI

_PROBE = "import mpi4py; mpi4py.rc.initialize = False; from mpi4py import MPI; print(MPI.Get_library_version())"


def findings() -> Iterator[tuple[str, str]]:
    """Yield pairs of a subject and what was found."""
    yield "distopt", __version__
    yield "python", f"{platform.python_version()} ({sys.executable})"
    yield "system", f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores"
    yield "mpi", _mpi()
    yield (
        "mpirun",
        shutil.which("mpirun") or shutil.which("mpirun", path=str(Path(sys.executable).parent)) or "not found",
    )
    yield "shared memory", _shared_memory()
    yield "digits data", "found" if importlib.util.find_spec("sklearn") else "pip install 'distopt[digits]'"
    yield "kernel cache", _cache()
    with blas.pin_threads(1):
        for what, value in numerics_fingerprint("compiled").items():
            yield f"numerics: {what}", value


def _mpi() -> str:
    """Ask in another process: loading an MPI library can end a process that no launcher started."""
    if importlib.util.find_spec("mpi4py") is None:
        return f"mpi4py is not installed; {INSTALL_MPI}"
    try:
        probe = subprocess.run([sys.executable, "-c", _PROBE], capture_output=True, text=True, timeout=20, check=False)
    except subprocess.TimeoutExpired:
        return "the MPI library did not load within 20 s"
    if probe.returncode != 0:
        return f"no library; {INSTALL_MPI}"
    return " ".join(probe.stdout.partition("\n")[0].partition(",")[0].split())


def _shared_memory() -> str:
    """Say whether ranks of one host can share memory, by taking a page of it."""
    if not segments.is_offered:
        return "not offered by this system: ranks of one host send each other messages"
    try:
        os.close(segments.create(1))
    except SharedMemoryError as error:
        return str(error)
    available = segments.available_bytes()
    return "offered" if available is None else f"offered; {available / 2**30:.1f} GiB are available"


def _cache() -> str:
    """Say whether compiled kernels can be kept; without it they are compiled anew in every process."""
    base = cache_directory()
    if base is None:
        return "no home directory: kernels stay in memory"
    existing = next(path for path in (base, *base.parents) if path.exists())
    return f"{base} is {'writable' if os.access(existing, os.W_OK) else 'not writable: kernels stay in memory'}"
