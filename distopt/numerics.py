"""What decides how numbers round on this machine: processes whose fingerprints are equal compute the same bits."""

from __future__ import annotations

import functools
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
    for controller in _blas_controllers():
        library = controller.info()
        fingerprint["blas"] = f"{library['internal_api']} {library['version']}"
        fingerprint["blas kernel"] = str(library.get("architecture", "unknown"))
        fingerprint["blas threads"] = str(library["num_threads"])
    if engine == "compiled":
        fingerprint |= _compiler()
    return fingerprint


@functools.cache
def _blas_controllers() -> tuple[Any, ...]:
    """Return what knows the BLAS that NumPy uses, which is found once: that looks at all libraries of the process.

    Others may be loaded as well: SciPy brings one of its own, when imported.
    """
    controllers = threadpoolctl.ThreadpoolController().select(user_api="blas").lib_controllers
    site = Path(np.__file__).resolve().parent.parent
    bundled = {site / "numpy.libs", site / "numpy" / ".dylibs", site / "numpy" / ".libs"}
    own = [controller for controller in controllers if Path(controller.filepath).parent in bundled]
    return tuple(own or controllers[:1])


@functools.cache
def _simd_features() -> str:
    extensions: Mapping[str, Any] = dict(np.show_config(mode="dicts").get("SIMD Extensions", {}))
    return " ".join([*extensions.get("baseline", []), *extensions.get("found", [])])


@functools.cache
def _compiler() -> dict[str, str]:
    import llvmlite
    import llvmlite.binding
    import numba

    return {
        "numba": numba.__version__,
        "llvmlite": llvmlite.__version__,
        "cpu": str(getattr(numba.config, "CPU_NAME", None) or llvmlite.binding.get_host_cpu_name()),
    }
