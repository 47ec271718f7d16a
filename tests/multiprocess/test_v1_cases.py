"""The recorded cases of TensorFlow 1's optimizers, under MPI."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from tests.multiprocess.harness import ROOT, mpirun, run_job
from tests.parity.test_v1 import DENSE

pytestmark = [
    pytest.mark.multiprocess,
    pytest.mark.skipif(sys.platform != "linux", reason="real MPI jobs are tested on Linux"),
]


@pytest.mark.parametrize("num_ranks", [1, 2])
def test_ranks_follow_the_reference_at_every_step(num_ranks: int) -> None:
    program = str(Path(__file__).with_name("v1_cases.py"))
    result = run_job(mpirun(num_ranks, [program]), limit_s=100.0, env={"PYTHONPATH": str(ROOT)})
    assert result.status == 0, result
    lines = re.findall(r"followed (\d+) cases and sent (\d+)", result.stdout)
    assert [int(count) for count, _ in lines] == [len(DENSE)] * num_ranks, result
    assert all((int(sent) > 0) == (num_ranks > 1) for _, sent in lines), result
