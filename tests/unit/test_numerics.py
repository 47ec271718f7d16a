"""The numerics fingerprint names what decides how numbers round."""

from __future__ import annotations

import platform

import numpy as np
import pytest

from distopt import blas
from distopt.numerics import numerics_fingerprint


def test_fingerprint_names_machine_numpy_blas_and_engine() -> None:
    with blas.pin_threads(1):
        found = numerics_fingerprint("numpy")
    assert (found["machine"], found["numpy"], found["engine"]) == (platform.machine(), np.__version__, "numpy")
    assert found["blas threads"] == "1"
    assert found["simd"]
    assert "numba" not in found
    assert "python" not in " ".join(found)


def test_fingerprint_of_the_compiled_engine_adds_the_compiler() -> None:
    assert {"numba", "llvmlite", "cpu"} <= numerics_fingerprint("compiled").keys()


def test_fingerprint_is_the_same_after_scipy_has_brought_its_own_blas() -> None:
    with blas.pin_threads(1):
        before = numerics_fingerprint("numpy")
        pytest.importorskip("scipy.linalg")
        assert numerics_fingerprint("numpy") == before


def test_pin_threads_undoes_itself() -> None:
    before = numerics_fingerprint("numpy")["blas threads"]
    with blas.pin_threads(3):
        assert numerics_fingerprint("numpy")["blas threads"] == "3"
    assert numerics_fingerprint("numpy")["blas threads"] == before
