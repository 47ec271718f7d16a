"""Real jobs of real processes, which end within a limit and leave nothing behind.

A job's processes carry a mark in their environment, so that they are found wherever they went: into another process
group or session, or to another parent. When a job is left, all of them are killed; a test fails if any had to be,
or if the job left a file in ``/dev/shm``.

Linux only, as are the tests that use it.
"""

from __future__ import annotations

import os
import re
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Final

from distopt.runtime.restarts import AS_MANY_AS_ASKED_FOR

MARK: Final = "DISTOPT_TEST_JOB"
ROOT: Final = Path(__file__).resolve().parents[2]

_SHARED_MEMORY: Final = Path("/dev/shm")
_POLL_S: Final = 0.02


@dataclass(frozen=True)
class JobResult:
    """How a job ended: its exit status as the shell has it (128 + signal), and what it wrote."""

    status: int
    stdout: str
    stderr: str
    seconds: float

    def __str__(self) -> str:
        return f"status {self.status} after {self.seconds:.1f} s\n--- stdout\n{self.stdout}\n--- stderr\n{self.stderr}"


@dataclass(frozen=True)
class Process:
    """One process of a job, as it was when it was looked at."""

    pid: int
    argv: tuple[str, ...]
    environment: Mapping[str, str] = field(repr=False)

    @property
    def mpi_rank(self) -> int | None:
        """Its rank, for the processes that an MPI launcher started."""
        rank = self.environment.get("OMPI_COMM_WORLD_RANK") or self.environment.get("PMI_RANK")
        return None if rank is None else int(rank)


def run_job(
    argv: Sequence[str],
    *,
    limit_s: float,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
) -> JobResult:
    """Run ``argv`` to its end and return what came of it; ``env`` is added to this process's environment.

    Raises: AssertionError, with all output, if it takes longer than ``limit_s`` or leaves anything behind.
    """
    with start_job(argv, limit_s=limit_s, env=env, cwd=cwd) as job:
        return job.wait()


@contextmanager
def start_job(
    argv: Sequence[str],
    *,
    limit_s: float,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
) -> Iterator[Job]:
    """Start ``argv`` in a session of its own; at the end of the ``with`` block nothing of it is left.

    Raises: AssertionError at the end of the block for processes or files in ``/dev/shm`` that the job left behind.
    """
    job = Job(argv, limit_s, env or {}, cwd)
    try:
        yield job
    except BaseException:
        job.kill_all()
        raise
    else:
        job.assert_nothing_is_left()
    finally:
        job.release()


def mpirun(num_ranks: int, argv: Sequence[str]) -> list[str]:
    """Return the command that runs ``argv``, the arguments of a Python, on ``num_ranks`` ranks of this host."""
    launcher = Path(sys.executable).parent / "mpirun"
    found = str(launcher) if launcher.exists() else shutil.which("mpirun")
    assert found is not None, "no mpirun; pip install 'distopt[mpi]'"
    return [found, "-n", str(num_ranks), sys.executable, *argv]


class Job:
    """A running job; made by :func:`start_job`."""

    def __init__(self, argv: Sequence[str], limit_s: float, env: Mapping[str, str], cwd: Path | None) -> None:
        self.mark = uuid.uuid4().hex
        self._started_s = time.monotonic()
        self._deadline_s = self._started_s + limit_s
        self._limit_s = limit_s
        self._argv = argv
        self._shared_memory_before = _shared_memory_files()
        # Short, because sockets lie in it, whose paths may have 107 bytes.
        self._folder = Path(tempfile.mkdtemp(prefix="dj"))
        self.process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=ROOT if cwd is None else cwd,
            env={**os.environ, **_mpi_environment(), **self._paths(), **env, MARK: self.mark},
            start_new_session=True,
        )
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        self._stdout = _Output(self.process.stdout)
        self._stderr = _Output(self.process.stderr)

    def wait(self) -> JobResult:
        """Return how the job ended, once its first process has.

        Raises: AssertionError if that does not happen within the limit.
        """
        try:
            status = self.process.wait(max(0.0, self._deadline_s - time.monotonic()))
        except subprocess.TimeoutExpired:
            self.kill_all()
            raise AssertionError(
                f"the job took longer than {self._limit_s:g} s: {self._argv}\n{self._result(-signal.SIGKILL)}"
            ) from None
        seconds = time.monotonic() - self._started_s
        self._wait_for_others()
        result = self._result(status, seconds)
        sys.stdout.write(f"{result}\n")  # which pytest shows, whole, if the test fails
        return result

    def processes(self) -> list[Process]:
        """Return the job's living processes, its first one included, by process id."""
        return list(_marked(self.mark))

    def find(self, *, mpi_rank: int | None = None, argument: str | None = None) -> Process:
        """Return the one process that has this rank, or this string in an argument; it must exist within the limit."""
        while True:
            found = [
                process
                for process in self.processes()
                if (mpi_rank is None or process.mpi_rank == mpi_rank)
                and (argument is None or any(argument in word for word in process.argv))
            ]
            if len(found) == 1:
                return found[0]
            self._pause(f"{len(found)} processes have rank {mpi_rank} and argument {argument}, not 1")

    def wait_for_line(self, pattern: str, *, stream: str = "stdout", count: int = 1) -> list[str]:
        """Return the first ``count`` lines of ``stdout`` or ``stderr`` in which ``pattern`` is found, once they exist.

        Raises: AssertionError if they do not within the limit, or if the stream ends before.
        """
        output = self._stdout if stream == "stdout" else self._stderr
        lines = output.wait_for(re.compile(pattern), count, self._deadline_s)
        if len(lines) < count:
            self.kill_all()
            raise AssertionError(f"{len(lines)} lines with {pattern!r} in {stream}\n{self._result(self._status())}")
        return lines

    def wait_for_line_in(self, path: Path, pattern: str, *, count: int = 1) -> list[str]:
        """Return the first ``count`` lines of a file, which need not exist yet, in which ``pattern`` is found."""
        while True:
            text = path.read_text() if path.exists() else ""
            lines = [line for line in text.splitlines() if re.search(pattern, line)]
            if len(lines) >= count:
                return lines[:count]
            self._pause(f"{len(lines)} lines with {pattern!r} in {path}")

    def signal(self, process: Process | int, number: int) -> None:
        """Send a signal to one process."""
        os.kill(process if isinstance(process, int) else process.pid, number)

    def kill(self, process: Process | int) -> None:
        """``kill -9`` one process."""
        self.signal(process, signal.SIGKILL)

    def stop(self, process: Process | int) -> None:
        """``kill -STOP`` one process."""
        self.signal(process, signal.SIGSTOP)

    def resume(self, process: Process | int) -> None:
        """``kill -CONT`` one process."""
        self.signal(process, signal.SIGCONT)

    def kill_all(self) -> list[Process]:
        """Kill every process of the job, until none is left; return those that were."""
        killed: dict[int, Process] = {}
        while alive := self.processes():
            killed.update({process.pid: process for process in alive})
            for process in alive:
                try:
                    os.kill(process.pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
            self._await_ends(alive, 5.0)
        self.process.wait()
        return list(killed.values())

    def assert_nothing_is_left(self) -> None:
        """Fail if a process or a file in shared memory outlived the job; kill the one, and name both."""
        self._wait_for_others()
        left = self.kill_all()
        assert not left, f"processes outlived the job: {left}\n{self._result(self._status())}"
        files = _unused(_shared_memory_files() - self._shared_memory_before)
        assert not files, f"the job left {sorted(map(str, files))}\n{self._result(self._status())}"

    def release(self) -> None:
        """Close the pipes and remove the job's folder."""
        self._stdout.close()
        self._stderr.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _wait_for_others(self, linger_s: float = 5.0) -> None:
        """Give the other processes the time to end after the first one that they are allowed."""
        if self.process.poll() is not None:
            self._await_ends(self.processes(), linger_s)

    def _await_ends(self, processes: Sequence[Process], limit_s: float) -> None:
        deadline_s = time.monotonic() + limit_s
        for process in processes:
            try:
                pidfd = os.pidfd_open(process.pid)
            except ProcessLookupError:
                continue
            try:
                poll = select.poll()
                poll.register(pidfd, select.POLLIN)
                poll.poll(max(0.0, deadline_s - time.monotonic()) * 1000.0)
            finally:
                os.close(pidfd)

    def _pause(self, reason: str) -> None:
        if time.monotonic() >= self._deadline_s:
            self.kill_all()
            raise AssertionError(f"within {self._limit_s:g} s: {reason}\n{self._result(self._status())}")
        threading.Event().wait(_POLL_S)

    def _status(self) -> int:
        status = self.process.poll()
        return 0 if status is None else status

    def _result(self, status: int, seconds: float | None = None) -> JobResult:
        if seconds is None:
            seconds = time.monotonic() - self._started_s
        return JobResult(
            status=128 - status if status < 0 else status,
            stdout=self._stdout.text(),
            stderr=self._stderr.text(),
            seconds=seconds,
        )

    def _paths(self) -> dict[str, str]:
        inherited = os.environ.get("PYTHONPATH")
        return {
            "TMPDIR": str(self._folder),
            "PYTHONPATH": str(ROOT) if not inherited else f"{ROOT}{os.pathsep}{inherited}",
        }


class _Output:
    """The lines of a pipe, read by a thread as they come."""

    def __init__(self, pipe: IO[bytes]) -> None:
        self._pipe = pipe
        self._lines: list[str] = []
        self._ended = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def wait_for(self, pattern: re.Pattern[str], count: int, deadline_s: float) -> list[str]:
        """Return up to ``count`` lines that match; fewer if the time is over or the pipe is closed."""

        def matches() -> list[str]:
            return [line for line in self._lines if pattern.search(line)][:count]

        with self._changed:
            self._changed.wait_for(
                lambda: len(matches()) >= count or self._ended, max(0.0, deadline_s - time.monotonic())
            )
            return matches()

    def text(self) -> str:
        """Return what was written; all of it, if no process holds the other end any more."""
        self._thread.join(1.0)
        with self._changed:
            return "".join(f"{line}\n" for line in self._lines)

    def close(self) -> None:
        self._thread.join(5.0)
        self._pipe.close()

    def _read(self) -> None:
        for line in self._pipe:
            with self._changed:
                self._lines.append(line.decode(errors="replace").rstrip("\n"))
                self._changed.notify_all()
        with self._changed:
            self._ended = True
            self._changed.notify_all()


def _mpi_environment() -> dict[str, str]:
    """Return what lets Open MPI run here: more ranks than cores, as root, quietly, and without threads that compete.

    MPICH allows all of that by itself, and ignores these.
    """
    return {
        **AS_MANY_AS_ASKED_FOR,
        "OMPI_ALLOW_RUN_AS_ROOT": "1",
        "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
        "OMPI_MCA_osc": "^ucx",
        "OMP_NUM_THREADS": "1",
        "PYTHONUNBUFFERED": "1",
    }


def _marked(mark: str) -> Iterator[Process]:
    """Return the processes that carry the mark; those that are dead and not yet waited for have no environment."""
    wanted = f"{MARK}={mark}".encode()
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            environment = (folder / "environ").read_bytes().split(b"\0")
            argv = (folder / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue  # it has just ended, or is not ours
        if wanted in environment:
            pairs = (entry.decode(errors="replace").partition("=") for entry in environment)
            words = tuple(word.decode(errors="replace") for word in argv if word)
            yield Process(int(folder.name), words, {name: value for name, _, value in pairs})


def _shared_memory_files() -> frozenset[Path]:
    return frozenset(_SHARED_MEMORY.iterdir()) if _SHARED_MEMORY.exists() else frozenset()


def _unused(files: frozenset[Path]) -> set[Path]:
    """Return those of ``files`` that no living process has mapped: another job of this machine may use the rest."""
    unused = set(files)
    for folder in Path("/proc").iterdir():
        if not unused:
            break
        if not folder.name.isdigit():
            continue
        try:
            maps = (folder / "maps").read_text(errors="replace")
        except OSError:
            continue
        unused = {path for path in unused if str(path) not in maps}
    return {path for path in unused if path.exists() and not _is_probe(path)}


def _is_probe(path: Path) -> bool:
    """Return whether this is the name that each process of Open MPI makes and removes at once, to see whether it can.

    One that is killed in between leaves it. All jobs of a machine share these names, so it is nobody's to remove; it is
    empty, and the next process takes the next number. Source: Open MPI 5.0, opal/mca/shmem/posix.
    """
    return re.fullmatch(r"open_mpi\.\d{4}", path.name) is not None and path.stat().st_size == 0
