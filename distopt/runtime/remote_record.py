"""The run's record on a cluster: the first worker reports, the coordinator writes.

Reports travel on the control link. A kind names what the body is; a checkpoint's bytes are the buffer.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import msgspec
import numpy as np

from distopt import checkpoint
from distopt.checkpoint import TrainingState
from distopt.comm.zmq.control import ControlLink
from distopt.errors import RemoteProtocolError
from distopt.observe import EpochMetrics, JobInfo, LocalRecorder, StepRecord, Summary
from distopt.protocol.members import MemberStatus
from distopt.protocol.messages import Peer, Role
from distopt.types import Array

_LOGGER = logging.getLogger(__name__)


class RemoteRecorder:
    """Records by reporting to the coordinator; see :class:`distopt.observe.Recorder`."""

    def __init__(self, control: ControlLink) -> None:
        self._control = control

    def started(self, info: JobInfo) -> None:
        self._control.report("started", msgspec.json.encode(info))

    def progress(self, step: int, loss: float | None = None) -> None:
        """Nothing: heartbeats carry the step."""

    def steps(self, records: Sequence[StepRecord]) -> None:
        self._control.report("steps", msgspec.json.encode(list(records)))

    def epoch(self, metrics: EpochMetrics) -> None:
        self._control.report("epoch", msgspec.json.encode(metrics))

    def checkpoint(self, state: TrainingState) -> None:
        self._control.report("checkpoint", buffers=[np.frombuffer(checkpoint.to_bytes(state), np.uint8)])

    def finished(self, summary: Summary) -> None:
        self._control.report("finished", msgspec.json.encode(summary))


class CoordinatorRecord:
    """Hands what was reported to ``recorder``, in the coordinator's thread."""

    def __init__(self, recorder: LocalRecorder) -> None:
        self.summary: Summary | None = None
        """Set when the job has finished or stopped in order."""
        self.step = 0
        """The furthest step that a worker is known to be at."""
        self._recorder = recorder
        self._started = False

    def started(self, peers: Sequence[Peer]) -> None:
        """Log who takes part."""
        _LOGGER.info("started with %s", ", ".join(map(str, peers)))

    def report(self, sender: Peer, kind: str, body: bytes, buffers: Sequence[Array]) -> None:
        """Record a report.

        Raises: RemoteProtocolError for one that is malformed.
        """
        try:
            self._record(kind, body, buffers)
        except (msgspec.MsgspecError, IndexError) as error:
            raise RemoteProtocolError(f"{sender} sent a malformed report of kind {kind!r}: {error}") from error

    def status(self, members: Sequence[MemberStatus]) -> None:
        """Show how far the job is."""
        self.step = max((m.step for m in members if m.peer.role is Role.WORKER), default=self.step)
        if self._started and self.summary is None:
            self._recorder.progress(self.step)

    def note(self, text: str) -> None:
        """Log what does not end the job."""
        _LOGGER.warning("%s", text)

    def finished(self, status: int, reason: str) -> None:
        """Log how the job ended."""
        _LOGGER.info("ended with status %d: %s", status, reason)

    def close(self) -> None:
        """Leave the terminal as it was and close the files."""
        self._recorder.close()

    def _record(self, kind: str, body: bytes, buffers: Sequence[Array]) -> None:
        recorder = self._recorder
        if kind == "started":
            recorder.started(msgspec.json.decode(body, type=JobInfo))
            self._started = True
        elif kind == "steps":
            recorder.steps(msgspec.json.decode(body, type=list[StepRecord]))
        elif kind == "epoch":
            recorder.epoch(msgspec.json.decode(body, type=EpochMetrics))
        elif kind == "checkpoint":
            recorder.checkpoint(checkpoint.from_bytes(buffers[0].tobytes(), "a worker's checkpoint"))
        elif kind == "finished":
            self.summary = msgspec.json.decode(body, type=Summary)
            recorder.finished(self.summary)
        else:
            raise RemoteProtocolError(f"reports of kind {kind!r} are not known")
