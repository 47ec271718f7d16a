"""Start a whole cluster on this machine, watch over it, and leave nothing behind.

Theory of operation. The launcher starts the coordinator, learns from its first line of output where it listens, and
starts servers and workers with that address. From then on one loop on the main thread takes events from a queue: a
child has ended, the coordinator printed a line, a signal came, a limit ran out. The coordinator decides what becomes of
the job; the launcher tells it what only a parent knows (who ended, that the user wants to stop) and goes when it goes.

================================  ==================================================================================
what happens                      what follows
================================  ==================================================================================
the coordinator ends              the others get ``leave_s`` to end, then SIGTERM, then SIGKILL; its status is ours
it is killed                      the same, and the error names it and the step
a server or worker fails          the coordinator is told; if it has not ended the job within ``fault_s``, we do
Ctrl-C, SIGTERM                   the coordinator is asked to stop; a second one kills everything at once, as does one
                                  before the job has begun
we are killed                     the kernel closes the lifelines and signals the children (``runtime.lifeline``)
================================  ==================================================================================

The one error of the job is in ``error.json`` when :meth:`Launcher.run` returns a status that is neither 0 nor 130.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from types import FrameType
from typing import IO, Protocol, TextIO

import msgspec

from distopt.errors import EndpointError, PeerLostError
from distopt.observe import ErrorRecord, RunFolder
from distopt.runtime.children import Child, last_line
from distopt.runtime.lifeline import Order
from distopt.runtime.signals import INTERRUPTED, describe_status, handling

_LOOK_S = 0.2
"""How soon the loop sees a signal that did not wake it."""


class Program(Protocol):
    """The command line of one process of the job; ``coordinator`` is None for the coordinator itself."""

    def __call__(self, role: str, index: int | None, coordinator: str | None) -> Sequence[str]: ...


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How long the launcher waits, in seconds."""

    start_s: float = 60.0
    """For the coordinator to say where it listens."""
    fault_s: float = 4.0
    """For the coordinator to end the job after a server or worker has failed."""
    stop_s: float = 30.0
    """For the job to reach the end of a step and a checkpoint after Ctrl-C."""
    leave_s: float = 2.0
    """For the others to end after the coordinator has."""
    terminate_s: float = 1.0
    """Between SIGTERM and SIGKILL."""


class Ready(msgspec.Struct, frozen=True):
    """The coordinator's first line of output."""

    endpoint: str


@dataclass(frozen=True)
class _Ended:
    child: Child


@dataclass(frozen=True)
class _Line:
    text: bytes
    """Empty: there will be no more."""


@dataclass(frozen=True)
class _Signal:
    number: int


class Launcher:
    """Run one job as local processes; see the module's text.

    ``output`` gets what the coordinator prints, after its first line.
    """

    def __init__(
        self,
        folder: RunFolder,
        program: Program,
        *,
        num_servers: int,
        num_workers: int,
        output: TextIO,
        limits: Limits | None = None,
    ) -> None:
        self._folder = folder
        self._program = program
        self._members = [("server", i) for i in range(num_servers)] + [("worker", i) for i in range(num_workers)]
        self._output: TextIO | None = output
        self._limits = limits or Limits()
        self._events: SimpleQueue[_Ended | _Line | _Signal] = SimpleQueue()
        self._children: list[Child] = []
        self._output_ended = False

    def run(self) -> int:
        """Return the job's exit status, when every process has ended.

        Must be called on the main thread.
        """
        with handling(self._signalled):
            status = 1
            try:
                status = self._run()
            finally:
                self._end_all(at_once=status == INTERRUPTED and self._coordinator_runs)
            return status

    def _run(self) -> int:
        try:
            coordinator = self._start("coordinator", None, None, captured=True)
            endpoint = self._await_endpoint(coordinator)
            if endpoint is None:
                return INTERRUPTED
            for role, index in self._members:
                self._start(role, index, endpoint)
            return self._supervise(coordinator)
        except (EndpointError, PeerLostError) as error:
            self._record(error)
            return 1

    @property
    def _coordinator_runs(self) -> bool:
        return any(child.role == "coordinator" and not child.has_ended for child in self._children)

    def _signalled(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002
        self._events.put(_Signal(number))

    def _start(self, role: str, index: int | None, coordinator: str | None, *, captured: bool = False) -> Child:
        command = self._program(role, index, coordinator)
        log = self._folder.log(role, index)
        try:
            child = Child(role, index, command, log, lambda c: self._events.put(_Ended(c)), captured=captured)
        except OSError as error:
            raise EndpointError(f"{role} cannot be started as {command[0]}: {error}") from error
        self._children.append(child)
        if child.output is not None:
            threading.Thread(target=self._read, args=(child.output,), name="read output", daemon=True).start()
        return child

    def _read(self, stream: IO[bytes]) -> None:
        for line in stream:
            self._events.put(_Line(line))
        self._events.put(_Line(b""))

    def _next(self, until_s: float | None) -> _Ended | _Line | _Signal | None:
        """Return the next event, or None when the monotonic clock has passed ``until_s``."""
        while True:
            left_s = _LOOK_S if until_s is None else until_s - time.monotonic()
            try:
                return self._events.get(timeout=max(0.0, min(_LOOK_S, left_s)))
            except Empty:
                # A signal that comes while another is pending may go to another thread, and does not wake this one.
                if until_s is not None and time.monotonic() >= until_s:
                    return None

    def _await_endpoint(self, coordinator: Child) -> str | None:
        """Return where the coordinator listens, or None if a signal came first."""
        until_s = time.monotonic() + self._limits.start_s
        while True:
            match self._next(until_s):
                case None:
                    raise EndpointError(f"{_named(coordinator)} did not listen within {self._limits.start_s:g} s")
                case _Signal():
                    return None
                case _Ended():
                    raise PeerLostError(f"{coordinator.loss()} before it listened")
                case _Line(text):
                    try:
                        return msgspec.json.decode(text, type=Ready).endpoint
                    except msgspec.MsgspecError:
                        self._forward(text)

    def _supervise(self, coordinator: Child) -> int:
        """Return the job's status, once the coordinator has ended or a limit has run out."""
        until_s: float | None = None
        failed: Child | None = None
        stopping = False
        while True:
            match self._next(until_s):
                case _Line(text):
                    self._forward(text)
                case _Signal() if stopping or self._folder.read_progress() is None:
                    return INTERRUPTED  # asked twice, or before there was anything to save
                case _Signal():
                    stopping = True
                    until_s = time.monotonic() + self._limits.stop_s
                    coordinator.tell(Order(stop=True))
                case _Ended(child) if child is coordinator:
                    return self._conclude(coordinator)
                case _Ended(child):
                    if child.returncode == 0:
                        continue
                    coordinator.tell(Order(lost=child.loss()))
                    if failed is None:
                        failed = child
                        fault_until_s = time.monotonic() + self._limits.fault_s
                        until_s = fault_until_s if until_s is None else min(until_s, fault_until_s)
                case None if failed is not None:
                    raise PeerLostError(
                        f"{failed.loss()}{self._at_step()}, and {_named(coordinator)} "
                        f"did not end the job within {self._limits.fault_s:g} s"
                    )
                case None:
                    raise PeerLostError(
                        f"{_named(coordinator)} did not stop the job within {self._limits.stop_s:g} s{self._at_step()}"
                    )

    def _conclude(self, coordinator: Child) -> int:
        """Pass on the rest of the output, and return the status that follows from the coordinator's end."""
        until_s = time.monotonic() + 1.0
        while not self._output_ended and (event := self._next(until_s)) is not None:
            if isinstance(event, _Line):
                self._forward(event.text)
        returncode = coordinator.returncode
        assert returncode is not None
        if returncode < 0:
            _show_cursor()
            waiting = ", ".join(str(child) for child in self._children if child is not coordinator)
            raise PeerLostError(f"{coordinator.loss()}{self._at_step()}; {waiting or 'nobody'} waited for it")
        if returncode not in (0, INTERRUPTED) and self._folder.read_error() is None:
            end = last_line(coordinator.log)
            self._record(
                PeerLostError(
                    f"{_named(coordinator)} {describe_status(returncode)}" + (f"; its log ends: {end}" * bool(end))
                )
            )
        return returncode

    def _forward(self, text: bytes) -> None:
        if not text:
            self._output_ended = True
        elif self._output is not None:
            try:
                self._output.write(text.decode("utf-8", "replace"))
                self._output.flush()
            except BrokenPipeError:  # the reader, `| head` for instance, has had enough; the job goes on
                self._output = None

    def _at_step(self) -> str:
        step = self._folder.read_progress()
        return " before step 0" if step is None else f" at step {step}"

    def _record(self, error: Exception) -> None:
        self._folder.first_error(ErrorRecord(who="launcher", kind=type(error).__name__, message=str(error)))

    def _end_all(self, *, at_once: bool) -> None:
        """Return when no child is left."""
        if not at_once:
            if not self._coordinator_runs:
                self._wait_for_all(self._limits.leave_s)
            for child in self._left():
                child.terminate()
            self._wait_for_all(self._limits.terminate_s)
        for child in self._left():
            child.kill()
        self._wait_for_all(5.0)

    def _left(self) -> list[Child]:
        return [child for child in self._children if not child.has_ended]

    def _wait_for_all(self, limit_s: float) -> None:
        until_s = time.monotonic() + limit_s
        for child in self._children:
            child.wait(until_s - time.monotonic())


def _named(child: Child) -> str:
    return f"{child} (pid {child.pid})"


def _show_cursor() -> None:
    """The live display hides the cursor; a killed one cannot show it again."""
    if sys.stderr.isatty():
        sys.stderr.write("\x1b[?25h")
        sys.stderr.flush()
