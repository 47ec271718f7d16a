"""The coordinator's state machine, in virtual time."""

from __future__ import annotations

import msgspec
import pytest

from distopt.errors import LocalProtocolError
from distopt.protocol.commands import Command, Deliver, EndJob, Note, Send, Started
from distopt.protocol.manifest import Manifest
from distopt.protocol.membership import Membership, Phase
from distopt.protocol.messages import (
    Abort,
    Alive,
    Assignment,
    Error,
    Finished,
    Heartbeat,
    Message,
    Pull,
    Ready,
    Release,
    Report,
    Role,
    RoundHead,
    RoundKind,
    Start,
    Stop,
    Welcome,
)
from tests.unit.protocol.virtual_job import CONFIG, EVERYONE, FIRST, MANIFEST, SECOND, SERVER, Job, ending, join, sent

# ------------------------------------------------------------------------------------------------ a job that goes well


def test_job_goes_through_all_phases_to_success() -> None:
    job = Job()
    assert sent(job.hear(SERVER, join(Role.SERVER, pid=1))) == {SERVER: Welcome(waiting_for="2 of 2 workers")}
    job.hear(FIRST, join(Role.WORKER, pid=2))
    assert job.machine.phase is Phase.GATHERING
    assignments = sent(job.hear(SECOND, join(Role.WORKER, pid=3)))
    assert job.machine.phase.value == "starting"
    assert [type(m) for m in assignments.values()] == [Assignment] * 3
    assert job.hear(SERVER, Ready()) == job.hear(FIRST, Ready()) == []
    commands = job.hear(SECOND, Ready())
    assert isinstance(commands[0], Started)
    assert sent(commands) == dict.fromkeys(EVERYONE, Start())
    assert sent(job.hear(FIRST, Heartbeat(step=1, phase="gradient"))) == {FIRST: Alive()}
    assert job.hear(FIRST, Finished(status=0)) == []
    commands = job.hear(SECOND, Finished(status=0))
    assert sent(commands) == dict.fromkeys(EVERYONE, Release())
    assert job.machine.phase.value == "stopping"
    assert job.hear(SERVER, Finished(status=0)) == [EndJob(0, "finished")]
    assert job.machine.phase.value == "done"
    assert job.after(1000.0) == []


def test_assignment_names_everyone_and_differs_only_by_role_and_rank() -> None:
    first, second = (Job().gathered().assignments[identity] for identity in (FIRST, SECOND))
    assert isinstance(first, Assignment)
    assert (first.role, first.rank) == (Role.WORKER, 0)
    assert first.hosting == ((0, 1, 2, 3), (4, 5, 6, 7))
    assert [str(peer) for peer in (*first.servers, *first.workers)] == [
        "server 0 (pid 1 on h)",
        "worker 0 (pid 2 on h)",
        "worker 1 (pid 3 on h)",
    ]
    assert first.servers[0].endpoint == "tcp://e"
    assert msgspec.structs.replace(first, rank=1) == second


@pytest.mark.parametrize(
    ("indices", "ranks"),
    [((None, None), [0, 1]), ((1, 0), [1, 0]), ((None, 5), [1, 0]), ((7, 3), [1, 0])],
)
def test_ranks_follow_requested_indices_then_the_order_of_joining(
    indices: tuple[int | None, int | None], ranks: list[int]
) -> None:
    job = Job()
    job.hear(SERVER, join(Role.SERVER))
    job.hear(FIRST, join(Role.WORKER, pid=2, index=indices[0]))
    assignments = sent(job.hear(SECOND, join(Role.WORKER, pid=3, index=indices[1])))
    found = [assignments[identity] for identity in (FIRST, SECOND)]
    assert [a.rank for a in found if isinstance(a, Assignment)] == ranks


def test_stop_is_passed_on_once_and_ends_with_success() -> None:
    job = Job().running()
    assert sent(job.machine.request_stop()) == dict.fromkeys(EVERYONE, Stop())
    assert job.machine.request_stop() == []
    job.hear(FIRST, Finished(status=0))
    job.hear(SECOND, Finished(status=0))
    assert job.hear(SERVER, Finished(status=0)) == [EndJob(0, "stopped on request")]


def test_report_is_delivered_with_its_sender() -> None:
    report = Report(kind="epoch", body=b"x")
    (command,) = Job().running().hear(SECOND, report)
    assert isinstance(command, Deliver)
    assert (str(command.sender), command.report) == ("worker 1 (pid 3 on h)", report)


def test_status_lists_servers_then_workers_with_what_they_said() -> None:
    job = Job().running()
    job.hear(SECOND, Heartbeat(step=4, phase="update", waiting_for="server 0"))
    job.now_s += 2
    found = [(str(s.peer.role), s.peer.rank, s.step, s.waiting_for, s.silent_s) for s in job.machine.status(job.now_s)]
    assert found == [("server", 0, 0, "", 2.0), ("worker", 0, 0, "", 2.0), ("worker", 1, 4, "server 0", 2.0)]


# --------------------------------------------------------------------------------------------------------- joining


def test_repeated_join_is_welcomed_again_and_changes_nothing() -> None:
    job = Job()
    message = join(Role.WORKER)
    job.hear(FIRST, message)
    answer = sent(job.hear(FIRST, message))[FIRST]
    assert answer == Welcome(waiting_for="1 of 1 servers and 1 of 2 workers (joined: a worker (pid 7 on h))")


@pytest.mark.parametrize(
    ("identity", "message", "text"),
    [
        (FIRST, join(Role.WORKER, pid=8), "joined a second time, as someone else than"),
        (
            SECOND,
            join(Role.WORKER, pid=8, index=1),
            "index that is taken: a worker of index 1 (pid 2 on h)",
        ),
        (b"s2", join(Role.SERVER, pid=8), "is one too many: the job has its 1 servers, a server (pid 1 on h)"),
        (b"c", join(Role.COORDINATOR), "is a second coordinator"),
        (b"x", Heartbeat(step=0, phase="x"), "you have not joined this job"),
    ],
)
def test_unwanted_process_is_refused_without_harm(identity: bytes, message: Message, text: str) -> None:
    job = Job()
    job.hear(SERVER, join(Role.SERVER, pid=1))
    job.hear(FIRST, join(Role.WORKER, pid=2, index=1))
    (command,) = job.hear(identity, message)
    assert isinstance(command, Send)
    assert isinstance(command.message, Error)
    assert text in command.message.text
    assert job.machine.phase is Phase.GATHERING


def test_late_join_is_refused_without_harm() -> None:
    job = Job().running()
    answer = sent(job.hear(b"late", join(Role.WORKER, pid=9)))[b"late"]
    assert isinstance(answer, Error)
    assert "a worker (pid 9 on h) comes late: the job is running" in answer.text
    assert job.machine.phase is Phase.RUNNING


def test_gathering_that_takes_too_long_names_who_is_missing() -> None:
    job = Job()
    for _ in range(20):
        job.hear(FIRST, join(Role.WORKER, pid=2))
        assert job.after(3.0) == []
    end = ending(job.after(0.5))
    assert end.code == "CollectiveTimeoutError"
    assert end.reason == (
        "after 60.5 s of gathering the job still waits for 1 of 1 servers and "
        "1 of 2 workers (joined: a worker (pid 2 on h))"
    )


def test_starting_that_takes_too_long_names_who_is_not_ready() -> None:
    job = Job().gathered()
    job.hear(SERVER, Ready())
    for _ in range(20):
        assert job.after(3.0, *EVERYONE) == []
    assert "waits for worker 0 (pid 2 on h), worker 1 (pid 3 on h)" in ending(job.after(0.5)).reason


@pytest.mark.parametrize(
    ("other", "text"),
    [
        (msgspec.structs.replace(MANIFEST, job="seed = 2"), "configuration seed: 1 against 2"),
        (msgspec.structs.replace(MANIFEST, variables=()), "variable 0: w:0 float32[2] against (absent)"),
        (msgspec.structs.replace(MANIFEST, hooks=("clip",)), "hook 0: (absent) against clip"),
    ],
)
def test_other_manifest_ends_the_job_naming_process_and_difference(other: Manifest, text: str) -> None:
    job = Job()
    job.hear(SERVER, join(Role.SERVER, pid=1))
    job.hear(FIRST, join(Role.WORKER, pid=2, manifest=other))
    assert job.after(CONFIG.settle_s - 0.1) == []
    commands = job.after(0.1)
    assert set(sent(commands)) == {SERVER, FIRST}
    end = ending(commands)
    assert end.code == "ManifestMismatchError"
    assert "a worker (pid 2 on h) does not belong to this job (the value of 2 of 3 first)" in end.reason
    assert text in end.reason
    assert job.machine.latecomers == 1
    assert isinstance(sent(job.hear(SECOND, join(Role.WORKER, pid=3)))[SECOND], Abort)
    assert job.machine.latecomers == 0


def test_coordinator_of_another_job_than_the_others_is_the_odd_one_as_soon_as_all_have_joined() -> None:
    job, other = Job(), msgspec.structs.replace(MANIFEST, job="seed = 2")
    job.hear(SERVER, join(Role.SERVER, pid=1, manifest=other))
    job.hear(FIRST, join(Role.WORKER, pid=2, manifest=other))
    end = ending(job.hear(SECOND, join(Role.WORKER, pid=3, manifest=other)))
    assert end.reason == (
        "the coordinator does not belong to this job (the value of 3 of 4 first): configuration seed: 2 against 1"
    )


@pytest.mark.parametrize("odd", [0, 1, 2])
def test_other_numerics_end_the_job_naming_the_odd_process(odd: int) -> None:
    job = Job()
    commands: list[Command] = []
    for position, (identity, role) in enumerate(zip(EVERYONE, (Role.SERVER, Role.WORKER, Role.WORKER), strict=True)):
        numerics = {"blas": "b" if position == odd else "a"}
        manifest = msgspec.structs.replace(MANIFEST, numerics=numerics)
        commands = job.hear(identity, join(role, pid=position, manifest=manifest))
    (end,) = [command for command in commands if isinstance(command, EndJob)]
    assert f"(pid {odd} on h) computes with other numerics than the others (the value of 2 of 3 first)" in end.reason
    assert "numerics blas: a against b" in end.reason
    assert end.code == "ManifestMismatchError"


def test_other_numerics_are_only_named_where_the_job_allows_them() -> None:
    job = Job(msgspec.structs.replace(CONFIG, require_equal_numerics=False))
    job.hear(SERVER, join(Role.SERVER, pid=1))
    job.hear(FIRST, join(Role.WORKER, pid=2))
    other = msgspec.structs.replace(MANIFEST, numerics={"blas": "b"})
    commands = job.hear(SECOND, join(Role.WORKER, pid=3, manifest=other))
    (note,) = [command for command in commands if isinstance(command, Note)]
    assert "numerics blas: a against b" in note.text
    assert job.machine.phase is Phase.STARTING


# -------------------------------------------------------------------------------------------------------- failures


def test_silence_up_to_the_limit_is_allowed_and_beyond_it_ends_the_job() -> None:
    job = Job().running()
    assert job.after(5.0) == []
    assert "silent for 5.0 s" in ending(job.after(0.001)).reason


@pytest.mark.parametrize(
    ("lost", "name"),
    [(SERVER, "server 0 (pid 1 on h)"), (FIRST, "worker 0 (pid 2 on h)"), (SECOND, "worker 1 (pid 3 on h)")],
)
def test_lost_process_is_named_with_its_step_and_who_waits_for_what(lost: bytes, name: str) -> None:
    job = Job().running()
    job.hear(lost, Heartbeat(step=17, phase="gradient"))
    others = [identity for identity in EVERYONE if identity != lost]
    job.hear(others[0], Heartbeat(step=17, phase="update", waiting_for="something of the lost"))
    commands = job.after(5.5, *others)
    assert set(sent(commands)) == set(EVERYONE)
    end = ending(commands)
    assert (end.status, end.code) == (1, "PeerLostError")
    assert end.reason.startswith(f"{name} was lost: silent for 5.5 s, last heard at step 17 in phase 'gradient'; ")
    assert "at step 17 was waiting for something of the lost" in end.reason
    assert job.machine.phase is Phase.FAILED


def test_process_lost_while_gathering_ends_the_job() -> None:
    job = Job()
    job.hear(FIRST, join(Role.WORKER, pid=2))
    assert "a worker (pid 2 on h) was lost" in ending(job.after(5.1)).reason


def test_server_lost_while_stopping_fails_the_job_and_workers_may_leave() -> None:
    job = Job().running()
    job.hear(FIRST, Finished(status=0))
    job.hear(SECOND, Finished(status=0))
    assert "server 0 (pid 1 on h) was lost" in ending(job.after(5.1)).reason


def test_no_progress_names_the_slowest_and_its_phase() -> None:
    job = Job().running()
    job.hear(FIRST, Heartbeat(step=9, phase="gradient"))
    job.now_s += 2.0
    job.hear(SECOND, Heartbeat(step=9, phase="update", waiting_for="server 0"))
    job.now_s += 2.0
    job.hear(SERVER, Heartbeat(step=9, phase="update", waiting_for="replicas 0..3 of worker 0"))
    for _ in range(25):
        assert job.after(4.0, *EVERYONE) == []
    end = ending(job.after(1.0, *EVERYONE))
    assert end.code == "CollectiveTimeoutError"
    assert "the slowest is worker 0 (pid 2 on h) at step 9 in phase 'gradient', 102.0 s later than" in end.reason
    assert "server 0 (pid 1 on h) at step 9 was waiting for replicas 0..3 of worker 0" in end.reason


def test_progress_of_anyone_postpones_the_stall() -> None:
    job = Job().running()
    for step in range(60):
        job.hear(FIRST, Heartbeat(step=step, phase="gradient"))
        assert job.after(4.0, *EVERYONE) == []


def test_failed_process_ends_the_job_with_its_own_reason() -> None:
    job = Job().running()
    job.hear(SECOND, Heartbeat(step=3, phase="gradient"))
    commands = job.hear(SECOND, Finished(status=1, reason="ZeroDivisionError: x"))
    assert ending(commands).reason == "worker 1 (pid 3 on h) failed at step 3 in phase 'gradient': ZeroDivisionError: x"


def test_second_failure_changes_nothing_and_is_answered_with_the_first() -> None:
    job = Job().running()
    first = ending(job.hear(SECOND, Finished(status=1, reason="first")))
    (answer,) = job.hear(FIRST, Finished(status=1, reason="second"))
    assert isinstance(answer, Send)
    assert isinstance(answer.message, Abort)
    assert answer.message.reason == first.reason
    assert job.machine.fail("third") == []
    assert job.after(1000.0) == []


@pytest.mark.parametrize(
    ("phase", "message", "text"),
    [
        ("gathered", Start(), "sent Start while the job was starting"),
        ("running", Ready(), "sent Ready while the job was running"),
        ("gathered", Finished(status=0), "left while the job was starting"),
        ("running", Pull(head=RoundHead(0, RoundKind.UPDATE, 0, 8), sender=0), "sent Pull while the job was running"),
    ],
)
def test_message_in_a_wrong_phase_ends_the_job(phase: str, message: Message, text: str) -> None:
    job: Job = getattr(Job(), phase)()
    assert ending(job.hear(FIRST, message)).reason == f"worker 0 (pid 2 on h) {text}"


def test_server_that_leaves_before_the_workers_ends_the_job() -> None:
    assert "server 0 (pid 1 on h) left" in ending(Job().running().hear(SERVER, Finished(status=0))).reason


def test_stop_while_gathering_ends_the_job_at_once() -> None:
    job = Job()
    job.hear(SERVER, join(Role.SERVER))
    assert "it waited for 2 of 2 workers" in ending(job.machine.request_stop()).reason


def test_coordinator_that_cannot_go_on_tells_everyone() -> None:
    commands = Job().running().machine.fail("the disk is full")
    assert set(sent(commands)) == set(EVERYONE)
    assert ending(commands).reason == "the disk is full"


def test_illegal_move_is_our_own_error() -> None:
    with pytest.raises(LocalProtocolError, match="from gathering to done"):
        Job().machine._move(Phase.DONE, 0.0)


def test_spans_for_another_number_of_servers_are_refused() -> None:
    with pytest.raises(ValueError, match="spans for 2 servers, but the job has 1"):
        Membership(msgspec.structs.replace(CONFIG, spans=((), ())), MANIFEST, 0.0)


def test_process_whose_end_its_parent_saw_is_named_once_the_others_have_said_what_they_wait_for() -> None:
    job = Job().running()
    assert job.machine.process_ended(3, "worker 1 (pid 3) was killed by SIGKILL", job.now_s) == []
    job.hear(SERVER, Heartbeat(step=2, phase="update", waiting_for="replicas 4..7 of worker 1"))
    assert job.after(1.0) == []
    end = ending(job.after(0.3))
    assert end.reason == (
        "worker 1 (pid 3) was killed by SIGKILL, last heard at step 0 in phase 'joining'; "
        "server 0 (pid 1 on h) at step 2 was waiting for replicas 4..7 of worker 1"
    )


def test_process_that_ends_before_it_joins_ends_the_job_at_once() -> None:
    end = ending(Job().machine.process_ended(99, "worker 0 (pid 99) exited with status 1", 0.0))
    assert end.reason == "worker 0 (pid 99) exited with status 1 before it joined"
