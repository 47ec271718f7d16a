"""What the ranks of ``test_mpi_golden.py`` run: the recorded dense cases, with one replica a rank."""

from __future__ import annotations

import os

from distopt.comm.mpi import MpiCommunicator
from distopt.distribute import MultiWorkerMirroredStrategy
from distopt.errors import DistoptError
from distopt.optimizers import set_default_engine
from tests.parity import test_keras_legacy as legacy
from tests.parity.deployments import REPLICAS

TIMEOUT_S = 60.0


def main() -> None:
    """Run every case on both engines and say how many; an error ends the job."""
    comm = MpiCommunicator(timeout_s=TIMEOUT_S)
    try:
        for engine in ("numpy", "compiled"):
            set_default_engine(engine)
            for case in legacy.DENSE:
                strategy = MultiWorkerMirroredStrategy(replicas=REPLICAS, communicator=comm)
                with strategy.scope():
                    job = legacy.made_job(case)
                legacy.run_replicas_of(case, strategy, job)
                legacy.check_state(case, job)
            os.write(1, f"rank {comm.rank} met {len(legacy.DENSE)} cases on {engine}\n".encode())
        comm.close()
    except (AssertionError, DistoptError) as error:
        os.write(2, f"{type(error).__name__}: {error}\n".encode())
        comm.abort(3, str(error))


if __name__ == "__main__":
    main()
