"""Row-sparse gradients between real processes."""

from __future__ import annotations

import re
import sys

import pytest

from tests.multiprocess.harness import mpirun, run_job

pytestmark = [
    pytest.mark.multiprocess,
    pytest.mark.skipif(sys.platform != "linux", reason="real MPI jobs are tested on Linux"),
]


def test_row_sparse_conformance_suite_passes_under_mpirun() -> None:
    argv = [
        "-m",
        "mpi4py",
        "-m",
        "pytest",
        "-q",
        "-x",
        "-p",
        "no:cacheprovider",
        "tests/conformance/test_row_sparse.py",
    ]
    result = run_job(mpirun(3, argv), limit_s=110.0)
    assert result.status == 0, result
    assert len(re.findall(r"\d+ passed", result.stdout)) == 3, result
