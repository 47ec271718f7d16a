"""What the ranks of the tests in ``test_mpi_communicator.py`` run: ``python mpi_programs.py NAME``."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import NoReturn
from unittest.mock import patch

import numpy as np

import distopt as tf
from distopt.aggregation import Sum
from distopt.canonical_sum import add_rows
from distopt.comm.communicator import Contribution, Hosting, Receive, Send
from distopt.comm.mpi import MpiCommunicator
from distopt.comm.mpi_start import load_mpi
from distopt.comm.shared_memory import meet_on_host
from distopt.distribute import CommunicationOptions, MultiWorkerMirroredStrategy
from distopt.errors import DistoptError
from distopt.ops.dense import dense_layers

TIMEOUT_S = 60.0

LOOKS_OF_A_LATE_RANK = 12
"""A rank that waits looks around every 0.1 s; who comes more than a second late is logged."""


def bits(comm: MpiCommunicator) -> None:
    """Print the hash of one aggregate for groups of 8, 5, 3, 2 and 1 ranks, one line for each rank of each."""
    for sizes in ((8,), (5, 3), (5, 2, 1)):
        color = int(np.searchsorted(np.cumsum(sizes), comm.rank, side="right"))
        group = MpiCommunicator(load_mpi().COMM_WORLD.Split(color, comm.rank), timeout_s=TIMEOUT_S)
        assert group.size == sizes[color]
        bits_of(group)
        group.close()


def bits_of(comm: MpiCommunicator) -> None:
    """Print the hash of an aggregate of thirteen replicas."""
    generator = np.random.default_rng(7)
    rows = np.asarray(generator.standard_normal((13, 70_001)) * 10.0 ** generator.integers(-6, 7, (13, 70_001)), "<f4")
    hosting = Hosting.contiguous(13, comm.size)
    comm.exchange_cost_bytes = 0
    mine = [
        Contribution(node, (np.ascontiguousarray(add_rows(rows[node.start : node.stop])),))
        for node in hosting.covers[comm.rank]
    ]
    (total,) = comm.combine(mine, hosting, Sum(), [rows[0]])
    say(f"size {comm.size} hash {hashlib.sha256(total.tobytes()).hexdigest()} sent {comm.traffic.bytes_sent}")


def steps_without_end(comm: MpiCommunicator) -> None:
    """Reduce until something happens; the second step is announced."""
    while True:
        comm.step += 1
        if comm.step == 2:
            say(f"rank {comm.rank} is ready")
        comm.all_reduce("SUM", [np.ones(50_000)])


def one_rank_raises(comm: MpiCommunicator) -> None:
    """Let rank 1 fail in its fourth step, while the others wait for it."""
    for comm.step in range(10):
        if comm.rank == 1 and comm.step == 3:
            raise DistoptError("the third of anything")
        comm.barrier()


def every_rank_raises(comm: MpiCommunicator) -> None:
    """Fail everywhere at once, as for a mistake that all see."""
    comm.barrier()
    raise DistoptError("the same everywhere")


def one_rank_leaves(comm: MpiCommunicator) -> None:
    """Let rank 1 exit with status 0, as if all were done, while the others wait for it."""
    comm.barrier()
    if comm.rank != 1:
        comm.barrier()


def ranks_are_done_one_after_the_other(comm: MpiCommunicator) -> None:
    """Let rank 1 be done, and the others hear of that before they are."""
    comm.barrier()
    until_s = time.monotonic() + TIMEOUT_S
    while comm.rank != 1 and 1 not in comm._notes.left and time.monotonic() < until_s:
        comm._notes.read()


def one_rank_is_killed_as_all_leave(comm: MpiCommunicator) -> None:
    """Let rank 1 be killed from outside while the processes end, which all are done."""
    comm.finish()
    if comm.rank == 1:
        subprocess.Popen(["sh", "-c", f"kill -9 {os.getpid()}"])


def one_rank_is_absent(comm: MpiCommunicator) -> None:
    """Let the others wait for rank 1, until it hears that they do, and then in vain, while it lives and waits on."""
    mpi = load_mpi()
    world, nothing = mpi.COMM_WORLD, np.empty(0, np.uint8)
    comm.step, comm.phase = 3, "gradient"
    others = [rank for rank in range(comm.size) if rank != 1]
    if comm.rank == 1:
        for rank in others:
            world.Recv([nothing, mpi.BYTE], rank)
        comm.barrier()
    else:
        looks = 0

        def look(missing: Sequence[int], waiting: str) -> None:
            nonlocal looks
            looks += 1
            if looks == LOOKS_OF_A_LATE_RANK:
                world.Isend([nothing, mpi.BYTE], 1)
            MpiCommunicator.look(comm, missing, waiting)

        with patch.object(comm, "look", look):
            comm.barrier()
    comm.step = 4
    if comm.rank == 1:
        signal.pause()
    comm.broadcast_bytes(None, root=1)


def one_rank_is_elsewhere(comm: MpiCommunicator) -> None:
    """Let rank 1 wait for the others in another call than that in which they wait for it."""
    comm.host_group.exchange("all are here")
    comm.step = 7
    if comm.rank == 1:
        comm.barrier()
    else:
        comm.host_group.exchange("the update")


def lengths_differ(comm: MpiCommunicator) -> None:
    """Let rank 1 contribute one element less."""
    comm.all_reduce("SUM", [np.ones(5 - (comm.rank == 1))])


def numbers_of_pieces_differ(comm: MpiCommunicator) -> None:
    """Let rank 1 contribute half of what the others do: one message to each where these send two."""
    comm.all_reduce("SUM", [np.ones(240 << (10 - (comm.rank == 1)), np.uint8)])


def one_rank_is_sent_much_before_it_comes(comm: MpiCommunicator) -> None:
    """Let rank 1 call MPI, as a rank that waits for others of its host does, while rank 0 sends it 200 MB already."""
    sent, received = np.full(200 << 20, comm.rank + 1, np.uint8), np.ones(200 << 20, np.uint8)
    comm.barrier()
    before = _resident_bytes()
    if comm.rank == 1:
        while 0 not in comm._notes.waits:  # which rank 0 tells when it has waited for a while
            comm._notes.read()
    comm.exchange([Send(1 - comm.rank, sent)], [Receive(1 - comm.rank, received)], "much")
    assert (received == 2 - comm.rank).all()
    say(f"rank {comm.rank} grew by {(_resident_bytes() - before) >> 20} MB")


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


def gradient_is_never_applied(comm: MpiCommunicator) -> None:
    """Let rank 0, on a host of its own, end with partial sums under way that nobody waits for."""
    comm._host_group = meet_on_host(comm, namespace=f"host {comm.rank}")
    options = CommunicationOptions(overlap=True)
    strategy = MultiWorkerMirroredStrategy(None, options, communicator=comm, placement="sharded")
    with strategy.scope():
        kernels = [tf.Variable(np.full((500, 500), 1e-3, np.float32)) for _ in range(3)]
    optimizer = tf.keras.optimizers.SGD(0.1)

    def replica(is_applied: bool) -> None:
        with tf.GradientTape() as tape:
            weights = [weight for kernel in kernels for weight in (kernel, None)]
            loss = tf.reduce_sum(dense_layers(np.ones((4, 500), np.float32), weights, ("relu",) * 3))
        gradients = tape.gradient(loss, kernels)
        if is_applied:
            optimizer.apply_gradients(zip(gradients, kernels, strict=True))

    strategy.run(replica, args=(True,))
    strategy.run(replica, args=(True,))
    early_bytes = comm.traffic.early_bytes
    if comm.rank == 0:
        strategy.run(replica, args=(False,))
    say(f"rank {comm.rank}: {early_bytes} bytes left early, then {comm.traffic.early_bytes - early_bytes}")


def say(line: str) -> None:
    """Write a line at once and whole."""
    os.write(1, f"{line}\n".encode())


def main() -> None:
    """Run one program as the train loop would: every error ends the job, and says why."""
    timeout_s = float(sys.argv[2]) if len(sys.argv) > 2 else TIMEOUT_S
    rank = os.environ.get("OMPI_COMM_WORLD_RANK")
    if (rank, sys.argv[1]) in (("1", "dead_before_mpi"), ("0", "first_dead_before_mpi")):
        os.kill(os.getpid(), signal.SIGKILL)
    if (rank, sys.argv[1]) == ("1", "dead_inside_of_mpi"):
        threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGKILL)).start()
    comm = MpiCommunicator(timeout_s=timeout_s)

    def on_terminate(number: int, frame: FrameType | None) -> NoReturn:
        raise comm.termination_error()

    signal.signal(signal.SIGTERM, on_terminate)
    try:
        globals()[sys.argv[1]](comm)
        comm.close()
    except DistoptError as error:
        os.write(2, f"{type(error).__name__}: {error}\n".encode())
        comm.abort(3, str(error))


if __name__ == "__main__":
    main()
