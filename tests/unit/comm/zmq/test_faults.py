"""What cannot go on ends everywhere, soon, with an error that names who, at which step, waiting for what."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import numpy as np
import pytest
import zmq

from distopt.canonical_sum import Node
from distopt.comm.zmq import ControlLink, LinkConfig, Listener, ServerCommunicator
from distopt.errors import (
    CollectiveTimeoutError,
    DistoptError,
    EndpointError,
    JobAbortedError,
    ManifestMismatchError,
    PeerLostError,
    RemoteProtocolError,
    StaleGradientError,
)
from distopt.protocol import wire
from distopt.protocol.manifest import Manifest
from distopt.protocol.messages import (
    Abort,
    Alive,
    Assignment,
    Finished,
    Heartbeat,
    Join,
    Message,
    Peer,
    Pull,
    Push,
    Ready,
    Role,
    RoundHead,
    RoundKind,
    Start,
    Welcome,
)
from tests.unit.comm.zmq.cluster import FAST, LENGTH, Cluster, HandPlayedWorker, Task, wait_for
from tests.unit.comm.zmq.test_cluster import WHOLE, contributions, descend

pytestmark = pytest.mark.timeout(60)


def update(comm: ServerCommunicator, step: int) -> None:
    comm.step = step
    hypers = {"learning_rate": 0.1} if comm.rank == 0 else None
    comm.update(contributions(comm, step), comm.hosting, hypers, [(WHOLE, np.zeros(LENGTH, np.float32))])


# ---------------------------------------------------------------------------------------------------- lost peers


def test_worker_that_falls_silent_ends_the_job_with_its_name_and_who_waited() -> None:
    config = LinkConfig(heartbeat_interval_s=0.05, peer_timeout_s=1.0, join_timeout_s=10, round_timeout_s=10, grace_s=1)
    cluster = Cluster(2, 1, lambda comm: update(comm, 17), by_hand=[1], config=config)
    worker = HandPlayedWorker(cluster, 1)
    worker.say(Heartbeat(step=17, phase="gradient"))
    started_s = time.monotonic()
    error = cluster.workers[0].error()
    assert isinstance(error, PeerLostError)
    assert time.monotonic() - started_s < 3.0
    text = str(error)
    assert "worker 1 (pid" in text
    assert "was lost: silent for 1." in text
    assert "last heard at step 17 in phase 'gradient'" in text
    assert "at step 17 was waiting for replicas 4..7 of worker 1" in text
    assert "worker 0 (pid" in text
    assert "at step 17 was waiting for server 0" in text
    assert str(cluster.servers[0].error()) == text
    assert cluster.ending() == (1, text, "PeerLostError")
    assert cluster.record.ending == (1, text)
    assert worker.hear(Abort).reason == text
    worker.close()


def play_coordinator(listener: Listener, then: Callable[[bytes], None]) -> None:
    """Take one worker into a job without servers, start it, and call ``then`` once it is at step 3."""
    peer = Peer(Role.WORKER, 0, 1, "test")
    assignment = Assignment(
        role=Role.WORKER, rank=0, session="s", num_replicas=1, hosting=((0,),), spans=(), servers=(), workers=(peer,)
    )
    answers: dict[type[Message], list[Message]] = {
        Join: [Welcome(waiting_for=""), assignment],
        Ready: [Start()],
        Heartbeat: [Alive()],
    }
    while listener.socket.poll(5000):
        incoming = listener.receive()
        assert incoming is not None
        message = listener.decode(incoming.frames).message
        for answer in answers.get(type(message), []):
            listener.send(incoming.identity, answer)
        if isinstance(message, Heartbeat) and message.step == 3:
            then(incoming.identity)
            return


def start_alone(listener: Listener, stuck: list[str], config: LinkConfig) -> ControlLink:
    control = ControlLink(listener.endpoint, config, on_stuck=stuck.append)
    control.start(Join(role=Role.WORKER, pid=7, host="here", incarnation=1, manifest=Manifest()))
    control.begin()
    control.set_progress(3, "update", "server 0")
    return control


def wait_for_ever(control: ControlLink) -> None:
    """Wait as for data, of which none comes; only the end of the job ends this."""
    while True:
        control.raise_if_aborted()
        assert control.wakeup.poll(5000), "nobody woke the main thread"
        control.drain_wakeup()


def test_coordinator_that_falls_silent_wakes_a_blocked_wait_with_an_error() -> None:
    config = LinkConfig(heartbeat_interval_s=0.05, peer_timeout_s=0.5, join_timeout_s=10, grace_s=5)
    listener = Listener("tcp://127.0.0.1:0", config)
    coordinator = Task(lambda: play_coordinator(listener, lambda identity: None))
    stuck: list[str] = []
    control = start_alone(listener, stuck, config)
    coordinator.result()
    with pytest.raises(PeerLostError) as caught:
        wait_for_ever(control)
    control.close()
    assert "the coordinator at tcp://127.0.0.1:" in str(caught.value)
    assert "was lost: silent for 0." in str(caught.value)
    assert "worker 0 (pid 1 on test) was at step 3 in phase 'update', waiting for server 0" in str(caught.value)
    assert stuck == []
    listener.close()


def test_process_that_does_not_leave_after_an_abort_is_ended() -> None:
    config = LinkConfig(heartbeat_interval_s=0.05, peer_timeout_s=1.0, join_timeout_s=10, grace_s=0.2)
    listener = Listener("tcp://127.0.0.1:0", config)
    coordinator = Task(
        lambda: play_coordinator(listener, lambda identity: listener.send(identity, Abort(reason="worker 9 was lost")))
    )
    ended = threading.Event()
    reasons: list[str] = []

    def on_stuck(reason: str) -> None:
        reasons.append(reason)
        ended.set()

    control = ControlLink(listener.endpoint, config, on_stuck=on_stuck)
    control.start(Join(role=Role.WORKER, pid=7, host="here", incarnation=1, manifest=Manifest()))
    control.begin()
    control.set_progress(3, "update")
    coordinator.result()
    assert ended.wait(5)
    assert reasons == ["worker 0 (pid 1 on test) did not end within 0.2 s of: worker 9 was lost"]
    control.close()
    listener.close()


def test_worker_whose_task_raises_ends_the_job_with_its_reason() -> None:
    def body(comm: ServerCommunicator) -> None:
        update(comm, 0)
        if comm.rank == 1:
            raise ZeroDivisionError("replica 5 divided by zero")
        update(comm, 1)

    cluster = Cluster(2, 1, body)
    assert isinstance(cluster.workers[1].error(), ZeroDivisionError)
    error = cluster.workers[0].error()
    assert isinstance(error, JobAbortedError)
    assert "worker 1 (pid" in str(error)
    assert "ZeroDivisionError: replica 5 divided by zero" in str(error)
    assert cluster.ending().status == 1


def test_server_whose_owner_raises_ends_the_job_with_its_reason() -> None:
    def body(comm: ServerCommunicator) -> None:
        comm.update(contributions(comm, 0), comm.hosting, {}, [(WHOLE, np.zeros(LENGTH, np.float32))])

    cluster = Cluster(2, 1, body)
    for worker in cluster.workers:
        assert "server 0 (pid" in str(worker.error())
        assert "KeyError: 'learning_rate'" in str(worker.error())
    assert cluster.ending().status == 1


def test_server_that_does_not_answer_is_named_after_the_round_timeout() -> None:
    listener = Listener("tcp://127.0.0.1:0", FAST)
    peers = (Peer(Role.WORKER, 0, 1, "test"),)
    servers = (Peer(Role.SERVER, 0, 1, "test", listener.endpoint),)
    assignment = Assignment(
        role=Role.WORKER,
        rank=0,
        session="s",
        num_replicas=1,
        hosting=((0,),),
        spans=((),),
        servers=servers,
        workers=peers,
    )
    control = ControlLink("tcp://127.0.0.1:1", FAST)
    comm = ServerCommunicator(control, assignment, LinkConfig(round_timeout_s=0.1))
    comm.step = 5
    with pytest.raises(CollectiveTimeoutError, match=r"worker 0 waited 0\.1 s in step 5 for server 0: gather"):
        comm.barrier()
    for thing in (comm, control, listener):
        thing.close()


# ------------------------------------------------------------------------------------------------ starting a job


def test_manifest_that_differs_is_refused_before_the_job_begins() -> None:
    manifests = [Manifest(job="seed = 1"), Manifest(job="seed = 2")]
    cluster = Cluster(2, 1, descend, manifest_of=manifests.__getitem__)
    for task in (*cluster.workers, *cluster.servers):
        error = task.error()
        assert isinstance(error, ManifestMismatchError)
        assert "a worker of index 1 (pid" in str(error)
        assert "configuration seed: 1 against 2" in str(error)
    assert cluster.ending().code == "ManifestMismatchError"
    assert cluster.record.peers == ()


def test_stop_before_all_have_joined_ends_the_job() -> None:
    cluster = Cluster(2, 1, descend, by_hand=[1])
    cluster.loop.request_stop()
    error = cluster.workers[0].error()
    assert isinstance(error, JobAbortedError | EndpointError)
    assert "stopped before it began" in cluster.ending().reason


# ------------------------------------------------------------------------------------------- broken by the others


def refused_by_hand(cluster: Cluster, worker: HandPlayedWorker, error: type[DistoptError]) -> str:
    """Return what server 0 refuses the worker's last message with."""
    with pytest.raises(error) as caught:
        wait_for(worker.data[0], Alive)
    worker.say(Finished(status=1, reason="the test is over"))
    assert cluster.ending().status == 1
    worker.close()
    return str(caught.value)


def push(number: int, node: Node, digest: bytes = b"d" * 16, *, sender: int = 0, width: int = 8) -> Push:
    head = RoundHead(number, RoundKind.UPDATE, 3, width)
    return Push(head=head, sender=sender, node=node, digest=digest)


ZEROS = [np.zeros(LENGTH, np.float32)]


@pytest.mark.parametrize(
    ("message", "arrays", "error", "text"),
    [
        (push(1, Node(0, 8)), ZEROS, RemoteProtocolError, "the server awaits round 0"),
        (push(0, Node(1, 3)), ZEROS, RemoteProtocolError, "no part of the sum"),
        (push(0, Node(0, 8)), [], RemoteProtocolError, "takes float32[1000]"),
        (push(0, Node(0, 8)), [np.zeros(LENGTH)], RemoteProtocolError, "pushed float64[1000]"),
        (push(0, Node(0, 8), width=9), ZEROS, RemoteProtocolError, "over 9 leaves"),
        (push(0, Node(0, 8), sender=1), ZEROS, RemoteProtocolError, "speaks as 1"),
        (Ready(), [], RemoteProtocolError, "no use for Ready"),
    ],
)
def test_server_refuses_what_breaks_the_protocol(
    message: Push, arrays: list[np.ndarray], error: type[DistoptError], text: str
) -> None:
    cluster = Cluster(1, 1, descend, by_hand=[0])
    worker = HandPlayedWorker(cluster, 0)
    worker.data[0].send(message, arrays)
    assert text in refused_by_hand(cluster, worker, error)


def test_server_refuses_a_late_push_and_drops_a_repeated_one() -> None:
    cluster = Cluster(1, 1, descend, by_hand=[0])
    worker = HandPlayedWorker(cluster, 0)
    (data,) = worker.data
    first = RoundHead(0, RoundKind.REDUCE, 0, 8, "sum")
    message = Push(head=first, sender=0, node=Node(0, 8), digest=b"d" * 16)
    data.send(message, [np.arange(3.0)])
    data.send(message, [np.arange(3.0)])
    data.send(Pull(head=first, sender=0))
    while not data.socket.poll(100):
        worker.say(Heartbeat(step=0, phase="reduce"))
    received = data.receive()
    assert received is not None
    np.testing.assert_array_equal(received.buffers[0], np.arange(3.0))
    data.send(message, [np.arange(3.0)])
    assert "worker 0 is late with reduce round 0 of step 0" in refused_by_hand(cluster, worker, StaleGradientError)


def test_workers_with_other_bytes_for_the_same_replicas_end_the_job_with_both_names() -> None:
    cluster = Cluster(2, 1, lambda comm: update(comm, 3), by_hand=[1])
    worker = HandPlayedWorker(cluster, 1)
    worker.data[0].send(push(0, Node(0, 4), b"other bytes here", sender=1), ZEROS)
    error = cluster.workers[0].error()
    assert "NondeterministicReplicaError" in str(error)
    for part in ("worker 0", "worker 1", "replicas 0..3", "step 3"):
        assert part in str(error)
    assert cluster.ending().status == 1
    worker.close()


def test_wrong_version_and_strangers_are_answered_and_do_not_disturb_the_job() -> None:
    def knock(endpoint: str) -> None:
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context.instance()
        stranger = context.socket(zmq.DEALER)
        stranger.setsockopt(zmq.LINGER, 0)
        stranger.connect(endpoint)
        ready = bytes(wire.encode(Ready())[0])
        for head, text in [
            (b"GET / HTTP/1.1\r\n", "not of this protocol"),
            (ready[:4] + b"\x63\x00" + ready[6:], "version 99; this process speaks version 1"),
            (ready, "no part in this job"),
        ]:
            stranger.send_multipart([head])
            assert stranger.poll(5000)
            answer = wire.decode(stranger.recv_multipart()).message
            assert text in str(answer) or "have not joined" in str(answer)
        stranger.close()

    cluster: Cluster

    def body(comm: ServerCommunicator) -> None:
        update(comm, 0)
        if comm.rank == 0:
            knock(comm._servers[0].endpoint)
            knock(cluster.loop.endpoint)
        update(comm, 1)

    cluster = Cluster(2, 1, body)
    cluster.results()
