"""What decides how numbers round on this machine: processes whose fingerprints are equal compute the same bits."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import threadpoolctl


def numerics_fingerprint(engine: str) -> dict[str, str]:
    """Return NumPy's version, its BLAS, SIMD features, the machine and, for ``"compiled"``, the compiler's versions.

    Take it after :func:`distopt.blas.pin_threads`; the number of BLAS threads is part of it. Python's version is not.
    """
    fingerprint = {"machine": platform.machine(), "numpy": np.__version__, "engine": engine, "simd": _simd_features()}
    for library in _blas_libraries():
        fingerprint["blas"] = f"{library['internal_api']} {library['version']}"
        fingerprint["blas kernel"] = str(library.get("architecture", "unknown"))
        fingerprint["blas threads"] = str(library["num_threads"])
    if engine == "compiled":
        fingerprint |= _compiler()
    return fingerprint


def _blas_libraries() -> list[dict[str, Any]]:
    """Return the BLAS that NumPy uses. Others may be loaded as well: SciPy brings one of its own, when imported."""
    libraries = [library for library in threadpoolctl.threadpool_info() if library["user_api"] == "blas"]
    site = Path(np.__file__).resolve().parent.parent
    bundled = {site / "numpy.libs", site / "numpy" / ".dylibs", site / "numpy" / ".libs"}
    own = [library for library in libraries if Path(library["filepath"]).parent in bundled]
    return own or libraries[:1]


def _simd_features() -> str:
    extensions: Mapping[str, Any] = dict(np.show_config(mode="dicts").get("SIMD Extensions", {}))
    return " ".join([*extensions.get("baseline", []), *extensions.get("found", [])])


def _compiler() -> dict[str, str]:
    import llvmlite
    import llvmlite.binding
    import numba

    return {
        "numba": numba.__version__,
        "llvmlite": llvmlite.__version__,
        "cpu": str(getattr(numba.config, "CPU_NAME", None) or llvmlite.binding.get_host_cpu_name()),
    }
