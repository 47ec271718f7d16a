"""What the ranks of ``test_v1_cases.py`` run: every dense TensorFlow 1 case of ``golden.json``, two replicas in all."""

from __future__ import annotations

import sys

from distopt.comm.mpi import MpiCommunicator
from distopt.distribute import MultiWorkerMirroredStrategy
from tests.parity.test_v1 import DENSE, check_others, check_slots, check_values, made_job, made_step, replica_step


def main() -> None:
    """Follow every case, and print how many there were."""
    communicator = MpiCommunicator(timeout_s=60.0)
    for case in DENSE:
        strategy = MultiWorkerMirroredStrategy(replicas=2, communicator=communicator)
        global_step = made_step(case)
        with strategy.scope():
            job = made_job(case, global_step)
        for step in range(len(case["steps"])):
            strategy.run(replica_step, args=(case, job, global_step, step))
            check_values(case, {name: variable.numpy() for name, variable in job.variables.items()}, step)
        check_slots(case, job)
        check_others(case, job, global_step)
    sent = communicator.traffic.bytes_sent
    sys.stdout.write(f"rank {communicator.rank} followed {len(DENSE)} cases and sent {sent}\n")
    sys.stdout.flush()
    communicator.close()


if __name__ == "__main__":
    main()
