"""Loading and initializing MPI.

Where the launcher lets survivors live, a rank that is lost before all have initialized MPI is missed by the others
inside of that, and nobody tells them. There MPI is initialized by a call that gives up the interpreter's lock, and a
thread looks meanwhile whether the ranks of this host are there (:mod:`distopt.comm.started_ranks`), and asks the
launcher for those of other hosts (:mod:`distopt.comm.launcher_table`). As only those next to the launcher are told of
all, the hosts tell each other who has come (:mod:`distopt.comm.host_beats`). If a rank is lost, one of the others has
the launcher end them all, on all hosts.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

from distopt.comm.host_beats import HostBeats
from distopt.comm.launcher_board import LauncherBoard
from distopt.comm.launcher_table import LauncherTable
from distopt.comm.mpi_segments import shared_memory_names, unlink_shared_memory
from distopt.comm.started_ranks import LaunchedRank, StartedRanks
from distopt.comm.transfers import name_ranks
from distopt.errors import EndpointError

_GRACE_S: Final = 10.0
"""So much longer a process may take to say that the others have not come, and to end."""
_ABORT_S: Final = 2.5

_LOOK_EVERY_S: Final = 0.2
_ASK_EVERY_S: Final = 1.0
_SAY_AFTER_S: Final = 10.0
"""So long all wait before one of them says for whom."""
_TURN_S: Final = 1.0
"""To say what all ranks of a host see, each waits so much longer than the one before it, which ends the others."""
_MAX_TURN_S: Final = 3.0

_OUT_WITHIN_S: Final = 0.5
"""If a rank is lost that had left ``MPI_Init``, so soon the others have left it, too."""

_CRASH_S: Final = 2.0
"""The time within which ranks that have crashed end, one after the other."""

_SEGMENTS_WITHIN_S: Final = 1.5
"""So soon the ranks inside of ``MPI_Init`` have made their segments; nobody would remove one that is made later."""

ReadRank = Callable[[Mapping[str, str]], LaunchedRank | None]
LastWords = Callable[[Callable[[], str | None]], contextlib.AbstractContextManager[None]]
_started: list[StartedRanks] = []
"""Those of this host, until all ranks know each other."""
_here: list[StartedRanks] = []
"""Those of this host."""
_initialized: list[Any] = []
_launcher: list[tuple[Callable[[], LaunchedRank | None], ReadRank, LastWords]] = []


def launched_as(own: Callable[[], LaunchedRank | None], read: ReadRank, last_words: LastWords) -> None:
    """Set how it is found out which rank this process is, and which a process is that has another environment.

    None: the launcher itself tells of ranks that are lost. ``last_words``: what makes a crash ask for an error.
    """
    _launcher[:] = [(own, read, last_words)]


def lets_survivors_live() -> bool:
    """Return whether the launcher ends nothing when a rank is lost."""
    return bool(_launcher) and _launcher[0][0]() is not None


def load_mpi(timeout_s: float = 60.0) -> Any:
    """Return the module ``mpi4py.MPI``; MPI is initialized by it.

    Units: a rank waits ``timeout_s`` for the others, which initialize it, too; then its process ends.

    Raises: EndpointError if it, or the MPI library itself, cannot be loaded.
    """
    if "mpi4py.MPI" in sys.modules:
        return sys.modules["mpi4py.MPI"]
    own = _launcher[0][0]() if _launcher else None
    # As the import may keep the interpreter's lock, no thread of ours could end it.
    faulthandler.dump_traceback_later(timeout_s + _GRACE_S, exit=True, file=sys.__stderr__ or 2)
    try:
        import mpi4py

        if own is not None:
            mpi4py.rc.initialize = mpi4py.rc.finalize = False  # see distopt.comm.mpi_ending
        from mpi4py import MPI

        if MPI.get_vendor()[0] == "MPICH":  # there, nobody comes out of MPI_Init before all of the host have mapped all
            unlink_shared_memory()
        if own is not None and not MPI.Is_initialized():
            _started.append(StartedRanks(own, _launcher[0][1], time.monotonic()))
            _here[:] = _started
            _initialize(MPI, _started[0], own, timeout_s)
    except (ImportError, RuntimeError, OSError) as error:
        raise EndpointError(
            "MPI cannot be loaded; install one with `pip install 'distopt[mpi]'`, "
            f"or load the one of your cluster, often `module load openmpi` ({error})"
        ) from error
    finally:
        faulthandler.cancel_dump_traceback_later()
    return MPI


def lost() -> str | None:
    """Return which rank of this host is lost, in words, as long as not all know each other; None if none is."""
    return _started[0].lost(time.monotonic()) if _started else None


def all_have_started() -> None:
    """Look at processes no more: all ranks know each other."""
    _started.clear()


def survive_crashes(words: str) -> contextlib.AbstractContextManager[None]:
    """Have crashes of MPI be losses that others survive, and an error, ``words``, where nobody else of this host lives.

    Until the ranks of a communicator have met for the last time, it has no collectives, but is among those that are
    told of a loss, and calls them (Open MPI 5.0.11, ``ompi_comm_revoke_local``). So a loss while it is being made may
    crash all others at once. A launcher that lets survivors live takes that for a good end of the job. So they end
    one after the other, the last one with a status.
    """
    if not _here:
        return contextlib.nullcontext()
    ((launched, _, last_words),) = _launcher
    own = launched()
    assert own is not None, "it has looked for others"

    def ask() -> str | None:
        time.sleep(_CRASH_S * own.rank / own.size)
        if set(_here[0].living) == {own.rank}:
            return words
        os.write(2, f"distopt: MPI crashed on rank {own.rank} as it made a communicator\n".encode())
        return None

    return last_words(ask)


def initialized_here() -> Any:
    """Return mpi4py's module if MPI was initialized here and not by mpi4py, which would finalize it; else None."""
    return _initialized[0] if _initialized else None


def _initialize(mpi: Any, ranks: StartedRanks, own: LaunchedRank, timeout_s: float) -> None:
    """Initialize MPI as mpi4py does, while the ranks of all hosts are watched."""
    library = ctypes.CDLL(mpi.__file__)  # finds what it is linked with, too
    watch = _StartWatch(library, ranks, own, timeout_s)
    watch.begin()
    try:
        # mpi4py's own call keeps the interpreter's lock.
        call = library.MPI_Init_thread
        if call(None, None, ctypes.c_int(mpi.THREAD_MULTIPLE), ctypes.byref(ctypes.c_int())) != mpi.SUCCESS:
            raise RuntimeError("MPI_Init_thread failed")
    finally:
        watch.ended.set()
    _initialized.append(mpi)
    for comm in (mpi.COMM_SELF, mpi.COMM_WORLD):
        comm.Set_errhandler(mpi.ERRORS_RETURN)


class _StartWatch:
    """Ends the process, and with it the job, if a rank is lost or does not come in time before ``ended`` is set."""

    def __init__(self, library: ctypes.CDLL, ranks: StartedRanks, own: LaunchedRank, timeout_s: float) -> None:
        self._library, self._ranks, self._own, self._timeout_s = library, ranks, own, timeout_s
        self._table = LauncherTable(library, own)
        self._board = LauncherBoard(library, own.job)
        self._beats = HostBeats()
        self._hears = False
        """Whether it knows which ranks of other hosts have come: of each host, the first that has."""
        self.ended = threading.Event()

    def begin(self) -> None:
        threading.Thread(target=self._watch, name="distopt start", daemon=True).start()
        threading.Thread(target=self._ask, name="distopt start, launcher", daemon=True).start()

    def _ask(self) -> None:
        speaks_as: int | None = None
        while not self.ended.wait(_ASK_EVERY_S * (1 + self._num_before())):
            self._table.ask()
            came = self._table.came_here
            here, elsewhere = self._table.first_ranks()
            is_first = min(came, default=None) == self._own.rank
            if is_first and elsewhere:
                speaks_as = here
                self._board.put(here, self._beats.next(came))
                self._beats.hear(self._board.read(sorted(elsewhere)), time.monotonic())
            elif speaks_as is not None:  # an earlier one has come
                self._board.remove(speaks_as)
                speaks_as = None
            self._hears = is_first and (self._board.can_answer or not elsewhere)
        if speaks_as is not None:
            self._board.remove(speaks_as)

    def _watch(self) -> None:
        began_s = time.monotonic()
        has_said = False
        while not self.ended.wait(_LOOK_EVERY_S):
            now_s = time.monotonic()
            turn_s = min(_MAX_TURN_S, _TURN_S * self._num_before())
            silent, silent_s = self._beats.silent(now_s)
            if reason := self._ranks.lost(now_s):
                self._await_segments()
                self._end(reason, began_s, turn_s, aborts=self._others_may_live())
            elif reason := self._table.lost():
                # On its own host, if others are there, that is seen sooner and said there; in a turn of no other rank.
                self._await_segments()
                self._end(reason, began_s, turn_s + _TURN_S / 2, aborts=self._others_may_live())
            elif silent:
                self._await_segments()
                reason = f"{self._table.names(silent)} not been heard of for {silent_s:.1f} s"
                self._end(reason, began_s, turn_s + self._turn_of_host_s(), aborts=self._others_may_live())
            elif now_s - began_s >= self._timeout_s:
                if reason := self._absent():
                    aborts = self._others_may_live()
                    self._end(f"not all ranks came: {reason}", began_s, turn_s + self._turn_of_host_s(), aborts=aborts)
                here = name_ranks(self._ranks.living or (self._own.rank,))
                reason = f"not all {self._own.size} ranks came; of this host, {here} did"
                # Those that know more are first. Each host says who has come, and its ranks end by themselves.
                self._end(reason, began_s, turn_s + _MAX_TURN_S, aborts=False)
            elif now_s - began_s >= _SAY_AFTER_S and not has_said:
                has_said = True
                if self._hears and not self._turn_of_host_s() and (late := self._absent()):
                    line = f"distopt: rank {self._own.rank} waits for all ranks to initialize MPI: so far, {late}\n"
                    os.write(2, line.encode())

    def _absent(self) -> str | None:
        return self._table.absent(self._beats.came if self._hears else None)

    def _turn_of_host_s(self) -> float:
        """Return how long this host lets others say what all see: those that are heard of and have an earlier rank."""
        silent, _ = self._beats.silent(time.monotonic())
        return _MAX_TURN_S * any(rank < self._own.rank for rank in self._beats.came - silent)

    def _num_before(self) -> int:
        """Return how many ranks of this host look and ask before this one."""
        return sum(other < self._own.rank for other in self._ranks.living)

    def _others_may_live(self) -> bool:
        """Return whether others may be inside of ``MPI_Init``."""
        if self._own.size_here == self._own.size:
            return self._ranks.living != (self._own.rank,)
        if self._hears and self._table.num_lost == 0:
            silent, _ = self._beats.silent(time.monotonic())
            return bool((self._beats.came | self._table.came_here) - silent - {self._own.rank})
        return self._table.num_lost < self._own.size - 1

    def _await_segments(self) -> None:
        until_s = time.monotonic() + _SEGMENTS_WITHIN_S
        here = len(self._ranks.living)
        while 1 < here > len(shared_memory_names()) and time.monotonic() < until_s:
            time.sleep(_LOOK_EVERY_S / 10)

    def _end(self, reason: str, began_s: float, turn_s: float, *, aborts: bool) -> None:
        """End this process, and if ``aborts`` all others, unless another one does that within ``turn_s``."""
        if self.ended.wait(_OUT_WITHIN_S + turn_s):
            return
        unlink_shared_memory()
        rank, waited_s = self._own.rank, time.monotonic() - began_s
        waiting = f"rank {rank} waited {waited_s:.1f} s for all ranks to initialize MPI"
        os.write(2, f"distopt: error: {reason}, before step 0; {waiting}\n".encode())
        if aborts:
            _end_job(self._library)
        os._exit(1)


def _end_job(library: ctypes.CDLL) -> None:
    """Have the launcher end the ranks of all hosts, as ``MPI_Abort`` does, which is not allowed yet.

    Before MPI has met the launcher this does nothing: then the end of this process, with a status, is enough. So it is
    where nobody else is left; if such a rank aborts, the launcher says status 0 (Open MPI 5.0.11).
    Source: PMIx 5.0 standard, "PMIx_Abort".
    """
    if hasattr(library, "PMIx_Abort"):
        arguments = ctypes.c_int(1), b"", None, ctypes.c_size_t(0)
        call = threading.Thread(target=library.PMIx_Abort, args=arguments, daemon=True)
        call.start()
        call.join(_ABORT_S)
