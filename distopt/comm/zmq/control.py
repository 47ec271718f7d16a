"""A process's link to the coordinator: joining, heartbeats, and the news that the job is over.

Theory of operation. One background thread owns the socket to the coordinator. It beats every ``heartbeat_interval_s``
with what the main thread last said about its progress, and watches for the answers. News for the main thread are
plain attributes, and a byte in :attr:`ControlLink.wakeup`, a socket that the main thread polls together with its data
sockets: a wait for data ends at once when the job does. The main thread sends through a second such pair.
After an abort, from the coordinator or because that is silent, the main thread gets ``grace_s`` to leave; then the
process is ended, wherever the main thread hangs. The data path never passes through here.
"""

from __future__ import annotations

import os
import sys
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from types import TracebackType

import zmq

from distopt.comm.zmq.link import Link, LinkConfig, remote_error
from distopt.errors import (
    CollectiveTimeoutError,
    DistoptError,
    EndpointError,
    LocalProtocolError,
    PeerLostError,
    RemoteProtocolError,
)
from distopt.protocol.messages import (
    Abort,
    Alive,
    Assignment,
    Finished,
    Heartbeat,
    Join,
    Message,
    Ready,
    Release,
    Report,
    Start,
    Stop,
    Welcome,
)
from distopt.protocol.wire import Buffer, Received, encode
from distopt.types import Array


def end_process(reason: str) -> None:
    """Write ``reason`` to standard error and end this process at once, with status 1."""
    os.write(sys.__stderr__.fileno() if sys.__stderr__ is not None else 2, f"distopt: {reason}\n".encode())
    os._exit(1)


class ControlLink:
    """Talk to the coordinator at ``endpoint``.

    In this order: :meth:`start`, :meth:`begin`, the job, :meth:`finish`, :meth:`close`; at any time
    :meth:`set_progress`, :meth:`report`, :meth:`fail`, :meth:`raise_if_aborted`. All but the first two take no time.
    As a context manager it closes, and first reports an error that ends the block.

    ``on_stuck(reason)`` is called in the background thread when the main thread has not called :meth:`close` within
    ``grace_s`` of an abort.
    """

    def __init__(
        self, endpoint: str, config: LinkConfig | None = None, *, on_stuck: Callable[[str], None] = end_process
    ) -> None:
        self.config = config or LinkConfig()
        self.endpoint = endpoint
        self.resume = b""
        """The checkpoint to go on from, where the assignment ``resumes``."""
        self.stop_requested = False
        """Whether the job should end in order; a worker asks its communicator instead, as all must stop together."""
        self.released = False
        """Whether nobody needs this process any more."""
        self._on_stuck = on_stuck
        self._progress: tuple[int, str, str] = (0, "joining", "")
        self._assignment: Assignment | None = None
        self._started = False
        self._aborted: DistoptError | None = None
        self._closing = False
        self._name = f"pid {os.getpid()}"
        self._news = threading.Condition()
        self._outbox_lock = threading.Lock()
        self._thread: threading.Thread | None = None
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context.instance()
        pairs = []
        for purpose in ("wakeup", "outbox"):
            address = f"inproc://distopt-{purpose}-{uuid.uuid4().hex}"
            ours, theirs = context.socket(zmq.PAIR), context.socket(zmq.PAIR)
            for end in (ours, theirs):
                end.setsockopt(zmq.LINGER, 0)
                end.setsockopt(zmq.SNDHWM, 0)
            ours.bind(address)
            theirs.connect(address)
            pairs.append((ours, theirs))
        (self.wakeup, self._wakeup_end), (self._outbox, self._outbox_end) = pairs

    # ---------------------------------------------------------------------------------------- the main thread

    def start(self, join: Join) -> Assignment:
        """Join the job; return what this process is to do, once all have joined.

        Raises: EndpointError if no coordinator answers within ``join_timeout_s``; ManifestMismatchError,
        PeerLostError or JobAbortedError if the job ends before it begins; CollectiveTimeoutError.
        """
        if self._thread is not None:
            raise LocalProtocolError("start() was called a second time")
        self._name = f"{join.role} (pid {join.pid} on {join.host})"
        link = Link(self.endpoint, self.config, identity=f"{join.role}/{uuid.uuid4().hex}".encode())
        self._thread = threading.Thread(target=self._run, args=(link, join), name="distopt-control", daemon=True)
        self._thread.start()
        # The coordinator bounds the gathering by its own limit and says who is missing; ours comes after it.
        self._wait(lambda: self._assignment is not None, 3 * self.config.join_timeout_s, "all to join")
        assert self._assignment is not None
        return self._assignment

    def begin(self) -> None:
        """Say that everything is built and restored; return when that holds for all.

        Raises: as :meth:`start`.
        """
        self.set_progress(0, "starting", "all to be ready")
        self._send(Ready())
        self._wait(lambda: self._started, 3 * self.config.join_timeout_s, "all to be ready")
        self.set_progress(0, "started")

    def set_progress(self, step: int, phase: str, waiting_for: str = "") -> None:
        """Set what the next heartbeat says; costs nothing."""
        self._progress = (step, phase, waiting_for)

    def report(self, kind: str, body: bytes = b"", buffers: Sequence[Array] = ()) -> None:
        """Send something for the run's record; ``buffers`` are copied."""
        self._send(Report(kind=kind, body=body), buffers)

    def finish(self) -> None:
        """Say that this process has done its part; return when all workers have.

        Raises: as :meth:`raise_if_aborted`; CollectiveTimeoutError after ``round_timeout_s``.
        """
        self._send(Finished(status=0))
        step = self._progress[0]
        self.set_progress(step, "finished", "all workers to finish")
        self._wait(lambda: self.released, self.config.round_timeout_s, "all workers to finish")

    def fail(self, reason: str) -> None:
        """Say that this process cannot go on, which ends the job everywhere; does nothing after an abort."""
        if self._aborted is None and self._thread is not None:
            self._send(Finished(status=1, reason=reason[:60000]))

    def raise_if_aborted(self) -> None:
        """Raise the error that ended the job, if it has ended."""
        if self._aborted is not None:
            raise self._aborted

    def drain_wakeup(self) -> None:
        """Take the bytes out of :attr:`wakeup`; then look at the attributes."""
        while True:
            try:
                self.wakeup.recv(zmq.NOBLOCK)
            except zmq.Again:
                return

    def close(self) -> None:
        """Leave; a second call does nothing."""
        if self._closing:
            return
        self._closing = True
        if self._thread is not None:
            self._write([b""])
            self._thread.join(self.config.grace_s)
        for socket in (self.wakeup, self._outbox):
            socket.close()
        if self._thread is None:
            self._wakeup_end.close()
            self._outbox_end.close()

    def __enter__(self) -> ControlLink:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is not None:
            self.fail(f"{type(error).__name__}: {error}")
        self.close()

    def _send(self, message: Message, buffers: Sequence[Array] = ()) -> None:
        self._write(encode(message, buffers, self.config.limits))

    def _write(self, frames: Sequence[Buffer]) -> None:
        with self._outbox_lock:
            try:
                self._outbox.send_multipart(frames, zmq.NOBLOCK, copy=True)
            except zmq.Again:
                # The background thread has ended, after an abort that the main thread will meet in its next wait.
                return

    def _wait(self, happened: Callable[[], bool], timeout_s: float, what: str) -> None:
        with self._news:
            came = self._news.wait_for(lambda: happened() or self._aborted is not None, timeout_s)
        if not happened():
            self.raise_if_aborted()
        if not came:
            raise CollectiveTimeoutError(f"{self._name} waited {timeout_s:.1f} s for {what}")

    # ---------------------------------------------------------------------------------- the background thread

    def _run(self, link: Link, join: Join) -> None:
        try:
            _Watch(self, link, join).run()
        except DistoptError as error:
            self._abort(error)
            self._let_leave()
        except Exception as error:  # noqa: BLE001  the main thread must learn of it, or would wait in vain
            self._abort(LocalProtocolError(f"the control link of {self._name} failed: {type(error).__name__}: {error}"))
            self._let_leave()
        finally:
            link.close()
            self._wakeup_end.close()
            self._outbox_end.close()

    def _let_leave(self) -> None:
        """Give the main thread its time to leave after an abort."""
        deadline_s = time.monotonic() + self.config.grace_s
        while not self._closing and (left_s := deadline_s - time.monotonic()) > 0:
            if self._outbox_end.poll(int(left_s * 1000) + 1):
                self._outbox_end.recv_multipart()
        if not self._closing:
            self._on_stuck(f"{self._name} did not end within {self.config.grace_s:.1f} s of: {self._aborted}")

    def _abort(self, error: DistoptError) -> None:
        with self._news:
            self._aborted = self._aborted or error
            self._news.notify_all()
        self._wake()

    def _tell(self, **attributes: object) -> None:
        with self._news:
            for name, value in attributes.items():
                setattr(self, name, value)
            self._news.notify_all()
        self._wake()

    def _wake(self) -> None:
        try:
            self._wakeup_end.send(b"", zmq.NOBLOCK)
        except zmq.ZMQError:
            # The main thread has closed its end, or has many wake-ups to read already: nobody to wake.
            return


class _Watch:
    """The background thread's part: beat, forward, listen, and notice silence. Raises what ends the job."""

    def __init__(self, control: ControlLink, link: Link, join: Join) -> None:
        self._control = control
        self._config = control.config
        self._link = link
        self._join = join
        self._joined = False
        self._heard_s = time.monotonic()

    def run(self) -> None:
        """Return when the main thread leaves."""
        control = self._control
        poller = zmq.Poller()
        poller.register(self._link.socket, zmq.POLLIN)
        poller.register(control._outbox_end, zmq.POLLIN)
        self._link.send(self._join)
        beat_s = time.monotonic()
        while True:
            wait_s = beat_s - time.monotonic()
            poller.poll(max(0, int(wait_s * 1000) + 1))
            # Leaving first forwards what was said before; hearing comes before judging silence.
            while (received := self._link.receive()) is not None:
                self._heard_s = time.monotonic()
                self._hear(received)
            if not self._forward():
                return
            now_s = time.monotonic()
            if now_s >= beat_s:
                beat_s = now_s + self._config.heartbeat_interval_s
                self._beat(now_s)

    def _forward(self) -> bool:
        """Send on what the main thread wrote; return whether it stays."""
        outbox = self._control._outbox_end
        while True:
            try:
                frames = outbox.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return True
            if frames == [b""]:
                return False
            self._link.forward(frames)

    def _beat(self, now_s: float) -> None:
        control, silent_s = self._control, now_s - self._heard_s
        if control.released:
            return
        if not self._joined:
            if silent_s > self._config.join_timeout_s:
                raise EndpointError(
                    f"{control._name}: no coordinator answered at {self._link.endpoint} in {silent_s:.1f} s"
                )
            return
        step, phase, waiting_for = control._progress
        if silent_s > self._config.peer_timeout_s:
            waiting = f", waiting for {waiting_for}" if waiting_for else ""
            raise PeerLostError(
                f"the coordinator at {self._link.endpoint} was lost: silent for {silent_s:.1f} s; "
                f"{control._name} was at step {step} in phase {phase!r}{waiting}"
            )
        self._link.send(Heartbeat(step=step, phase=phase, waiting_for=waiting_for[:60000]))

    def _hear(self, received: Received) -> None:
        control, message = self._control, received.message
        if isinstance(message, Alive):
            return
        if isinstance(message, Welcome):
            self._joined = True
        elif isinstance(message, Assignment):
            peers = {"server": message.servers, "worker": message.workers}[message.role]
            control._name = str(peers[message.rank])
            resume = received.buffers[0].tobytes() if message.resumes and received.buffers else b""
            control._tell(resume=resume, _assignment=message)
        elif isinstance(message, Start):
            control._tell(_started=True)
        elif isinstance(message, Stop):
            control._tell(stop_requested=True)
        elif isinstance(message, Release):
            control._tell(released=True)
        elif isinstance(message, Abort):
            raise remote_error(message.code, message.reason)
        else:
            raise RemoteProtocolError(f"the coordinator at {self._link.endpoint} sent {type(message).__name__}")
