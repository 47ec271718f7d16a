"""`distopt` on a rank that may be doomed: ``python -m tests.faults.doomed PLAN LOG train ...``

``PLAN`` is JSON: by rank, when it dies, as ``[kind, number]``, where ``number`` counts from 0 on that rank:

    message   as it has sent this message to a member of its host, and not those that follow
    exchange  as it begins this exchange of the transport
    update    while it is in this update, a moment after its beginning
    block     in the middle of the writes of this update
    recovery  as it goes to meet the survivors of another rank
    save      while it writes this checkpoint
    ending    as it is about to say that it is done
    init      so many twentieths of a second after it began to initialize MPI
    start     so many milliseconds after MPI was initialized
    folder    while it opens the folder of the run
    load      while it reads the state to go on from
    prepare   as it makes the job
    manifest  as it compares the job with the others'
    restore   as it takes on the state to go on from

It dies by SIGKILL, having noted that in the file ``LOG``. ``"hosts": 2`` in the plan: ranks take themselves to be on
two hosts, the first half of them on one.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from distopt.comm.shared_memory import rendezvous


def die(log: Path, what: str) -> None:
    with log.open("a") as file:
        file.write(what + "\n")
        file.flush()
        os.kill(os.getpid(), signal.SIGKILL)


def doom(kind: str, number: int, end: Callable[[], None]) -> None:
    """Have this process call ``end`` at that point."""
    from distopt import checkpoint
    from distopt.comm import mpi
    from distopt.comm.mpi import MpiCommunicator
    from distopt.comm.shared_memory.host_group import HostGroup
    from distopt.optimizers.owner import SpanOwner
    from distopt.optimizers.piece import Piece
    from distopt.runtime import ranks, train

    def now(call: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        end()

    def afterwards(call: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        call(*arguments, **options)
        end()

    def meanwhile(call: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        threading.Timer(2e-5 * (number % 11), end).start()
        return call(*arguments, **options)

    def sometime(call: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        threading.Timer(0.05 * number, end).start()
        return call(*arguments, **options)

    def soon(call: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        result = call(*arguments, **options)
        threading.Timer(0.001 * number, end).start()
        return result

    places: dict[str, tuple[Any, str, Callable[..., Any]]] = {
        "message": (HostGroup, "_send", afterwards),
        "exchange": (MpiCommunicator, "exchange", now),
        "update": (SpanOwner, "_begin", meanwhile),
        "block": (Piece, "_inputs", meanwhile),
        "recovery": (MpiCommunicator, "survivors", now),
        "save": (checkpoint, "save", meanwhile),
        "ending": (MpiCommunicator, "finish", now),
        "init": (mpi, "load_mpi", sometime),
        "start": (mpi, "load_mpi", soon),
        "folder": (ranks.RankOfJob, "_shared_folder", meanwhile),
        "load": (checkpoint, "from_bytes", meanwhile),
        "prepare": (ranks, "prepare", now),
        "manifest": (ranks, "compare_manifests", now),
        "restore": (train, "restore_state", now),
    }
    owner, name, how = places[kind]
    call = getattr(owner, name)
    occasion = 0 if kind in ("init", "start") else number
    calls = 0

    def counted(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        return how(call, *arguments, **options) if calls == occasion + 1 else call(*arguments, **options)

    setattr(owner, name, counted)


def main() -> None:
    plan, log = json.loads(sys.argv[1]), Path(sys.argv[2])
    del sys.argv[1:3]
    of_launcher = "OMPI_COMM_WORLD_" if "OMPI_COMM_WORLD_RANK" in os.environ else "PMI_"
    rank, size = os.environ[f"{of_launcher}RANK"], os.environ[f"{of_launcher}SIZE"]
    if plan.get("hosts", 1) > 1:
        host = int(rank) * int(plan["hosts"]) // int(size)
        vars(rendezvous)["_namespace"] = lambda: f"emulated host {host}"
    if rank in plan:
        kind, number = plan[rank]
        doom(kind, number, lambda: die(log, f"{rank} {kind} {number}"))
    from distopt.cli import main as distopt

    distopt()


if __name__ == "__main__":
    main()
