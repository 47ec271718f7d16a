"""The recorded cases of the reference, and variables made in replicas, with the two replicas on two MPI ranks."""

from __future__ import annotations

import json
import re
import sys

import pytest

from tests.multiprocess.harness import mpirun, run_job
from tests.parity import test_keras3, test_keras_legacy, test_v1

pytestmark = [
    pytest.mark.multiprocess,
    pytest.mark.skipif(sys.platform != "linux", reason="real MPI jobs are tested on Linux"),
]


@pytest.mark.timeout(320)
def test_two_mpi_ranks_follow_every_recorded_case() -> None:
    result = run_job(mpirun(2, ["-m", "tests.multiprocess.golden_programs"]), limit_s=300.0)
    assert result.status == 0, result
    lines = re.findall(r"rank (\d) followed (\{.*\}) and sent (\d+)", result.stdout)
    assert sorted(rank for rank, _, _ in lines) == ["0", "1"], result
    wanted = {
        "keras3": len(test_keras3.CASES),
        "keras_legacy": 2 * len(test_keras_legacy.DENSE),
        "v1": len(test_v1.DENSE),
        "made_in_replicas": 1,
    }
    for _, counts, sent in lines:
        assert json.loads(counts) == wanted
        assert int(sent) > 1000 * sum(wanted.values())
