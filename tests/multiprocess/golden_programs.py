"""What the ranks of ``test_golden.py`` run: every recorded dense case of each face, one replica on each rank."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import Any

import numpy as np

import distopt as tf
from distopt.comm.mpi import MpiCommunicator
from distopt.distribute import MultiWorkerMirroredStrategy
from distopt.optimizers import SGD, LossScaleOptimizer, set_default_engine
from tests.parity import test_keras3, test_v1
from tests.parity import test_keras_legacy as legacy
from tests.parity.deployments import REPLICAS, run_steps, share_of


def keras3(comm: MpiCommunicator) -> int:
    """Run the cases of Keras 3 and return how many there were."""
    for case in test_keras3.CASES:
        strategy = MultiWorkerMirroredStrategy(replicas=REPLICAS, communicator=comm)
        with strategy.scope():
            job = test_keras3.made_job(case, case["class"])
        own_clips = test_keras3.clips_own(case, job)

        def gradients_of(step: int, replica: int, case: Any = case, whole: bool = own_clips) -> list[Any]:
            return [share_of(replica, test_keras3.gradient_of(case, step, n), all_of_it=whole) for n in ("a", "b")]

        def check(step: int, case: Any = case, job: Any = job) -> None:
            test_keras3.check_values(case, case["class"], job, step)

        run_steps(strategy, job, gradients_of, len(case["steps"]), check)
        test_keras3.check_slots(case, case["class"], job)
    return len(test_keras3.CASES)


def keras_legacy(comm: MpiCommunicator) -> int:
    """Run the cases of the legacy Keras classes on both engines and return how many there were."""
    for engine in ("numpy", "compiled"):
        set_default_engine(engine)
        for case in legacy.DENSE:
            strategy = MultiWorkerMirroredStrategy(replicas=REPLICAS, communicator=comm)
            with strategy.scope():
                job = legacy.made_job(case)
            legacy.run_replicas_of(case, strategy, job)
            legacy.check_state(case, job)
    return 2 * len(legacy.DENSE)


def v1(comm: MpiCommunicator) -> int:
    """Run the cases of TensorFlow 1 and return how many there were."""
    for case in test_v1.DENSE:
        strategy = MultiWorkerMirroredStrategy(replicas=REPLICAS, communicator=comm)
        global_step = test_v1.made_step(case)
        with strategy.scope():
            job = test_v1.made_job(case, global_step)
        for step in range(len(case["steps"])):
            strategy.run(test_v1.replica_step, args=(case, job, global_step, step))
            test_v1.check_values(case, {name: variable.numpy() for name, variable in job.variables.items()}, step)
        test_v1.check_slots(case, job)
        test_v1.check_others(case, job, global_step)
    return len(test_v1.DENSE)


def made_in_replicas(comm: MpiCommunicator) -> int:
    """Make a variable in every replica and train it, with a scaled loss that overflows on one rank, then on none."""
    strategy = MultiWorkerMirroredStrategy(replicas=REPLICAS, communicator=comm)
    made: list[Any] = []
    optimizer = LossScaleOptimizer(SGD(0.25), initial_scale=4.0)

    def replica(worst: float) -> None:
        context = tf.distribute.get_replica_context()
        assert context is not None
        me = context.replica_id_in_sync_group
        if not made:
            made.append(tf.Variable(np.float32([1.0, 2.0]) + me, name="made"))
        optimizer.apply_gradients([(np.float32([me, worst if me else 1.0]), made[0])])

    for worst in (np.inf, 1.0):
        strategy.run(replica, args=(worst,))
    assert made[0].numpy().tolist() == [1.0 - 0.25, 2.0 - 0.5]  # begins as rank 0 has it
    assert (float(optimizer.loss_scale), int(optimizer.iterations)) == (2.0, 2)
    return len(made)


FACES: dict[str, Callable[[MpiCommunicator], int]] = {
    "keras3": keras3,
    "keras_legacy": keras_legacy,
    "v1": v1,
    "made_in_replicas": made_in_replicas,
}


def main() -> None:
    """Run every face; print one line on each rank."""
    comm = MpiCommunicator(timeout_s=60.0)
    assert comm.size == REPLICAS
    counts = {name: run(comm) for name, run in FACES.items()}
    sent = comm.traffic.bytes_sent
    comm.close()
    os.write(1, f"rank {comm.rank} followed {json.dumps(counts)} and sent {sent}\n".encode())


if __name__ == "__main__":
    main()
