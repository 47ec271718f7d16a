"""The recorded dense cases on two MPI ranks."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from tests.multiprocess.harness import mpirun, run_job
from tests.parity.test_keras_legacy import DENSE

ROOT = Path(__file__).parents[2]

pytestmark = [
    pytest.mark.multiprocess,
    pytest.mark.skipif(sys.platform != "linux", reason="real MPI jobs are tested on Linux"),
]


def test_two_mpi_ranks_follow_the_reference_in_every_dense_case() -> None:
    result = run_job(mpirun(2, ["-m", "tests.multiprocess.mpi_golden"]), limit_s=120.0, cwd=ROOT)
    assert result.status == 0, result
    found = re.findall(r"rank (\d) met (\d+) cases on (\w+)", result.stdout)
    expected = [(rank, str(len(DENSE)), engine) for rank in "01" for engine in ("compiled", "numpy")]
    assert sorted(found) == sorted(expected), result
