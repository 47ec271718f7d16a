"""The ranks of a host: what they share, and how they meet; see ``tests/conftest.py`` for where the bodies run."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import pytest

from distopt.agreement import Label
from distopt.comm.communicator import Communicator
from distopt.comm.shared_memory import meet_on_host, segments
from distopt.errors import CollectiveTimeoutError, MergeOrderError, PeerLostError, SharedMemoryError, UnequalStepsError
from distopt.testing import run_replicas
from tests.conftest import Run


def test_group_of_one_host_has_all_ranks_in_order(run: Run) -> None:
    def body(comm: Communicator) -> tuple[object, ...]:
        group = comm.host_group
        return group.ranks, group.index == comm.rank, group.holds_all

    for result in run(body):
        assert result == (tuple(range(run.size)), True, True)


def test_exchange_returns_every_member_s_payload_in_order(run: Run) -> None:
    def body(comm: Communicator) -> list[list[bytes]]:
        group = comm.host_group
        return [group.exchange("test", b"label", b"%d" % comm.rank * length) for length in (0, 1, 9000)]

    for results in run(body):
        for length, payloads in zip((0, 1, 9000), results, strict=True):
            assert payloads == [b"%d" % rank * length for rank in range(run.size)]


def test_share_maps_the_memory_of_every_member_on_all(run: Run) -> None:
    def body(comm: Communicator) -> list[list[int]]:
        group = comm.host_group
        # The first member asks for nothing; the lengths of the others are no multiples of a page.
        maps = group.share(10_000 * comm.rank, "a test")
        found = [[len(memory) for memory in maps]]
        if comm.rank:
            assert not maps[comm.rank].any()
            maps[comm.rank][:] = comm.rank
            maps[comm.rank][-1] = 100 + comm.rank
        group.exchange("written")
        found.append([int(memory[-2]) for memory in maps[1:]])
        found.append([int(memory[-1]) for memory in maps[1:]])
        group.exchange("read")
        return found

    for lengths, inner, last in run(body):
        assert lengths == [10_000 * rank for rank in range(run.size)]
        assert inner == list(range(1, run.size))
        assert last == [100 + rank for rank in range(1, run.size)]


def test_share_one_maps_one_memory_of_which_each_member_takes_its_part(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    page, take = segments.HUGE_PAGE, segments.take
    taken = threading.local()

    def take_and_note(descriptor: int, start: int, stop: int) -> None:
        taken.parts.append((start, stop))
        take(descriptor, start, stop)

    monkeypatch.setattr(segments, "take", take_and_note)

    def body(comm: Communicator) -> tuple[int, list[tuple[int, int]], int, list[int]]:
        group = comm.host_group
        taken.parts = []
        # The last member's part is the first. Parts begin within a huge page, which is whose part began before.
        begins = [(i * (page + 5000), group.size - 1 - i) for i in range(group.size)]
        memory = group.share_one(group.size * page + 100, begins, "a test")
        memory[-1 - comm.rank] = 1 + comm.rank
        group.exchange("written")
        found = memory[-group.size :].tolist()
        group.exchange("read")
        return comm.rank, taken.parts, len(memory), found

    for rank, parts, length, found in run(body):
        assert length == run.size * page + 100
        assert found == list(range(run.size, 0, -1))
        first = run.size - 1 - rank
        start, stop = (first + 1) * page if first else 0, (first + 2) * page if rank else length
        assert parts == [(start, min(stop, length))][: start < length]


def test_memory_that_one_member_cannot_get_is_one_error_on_all(run: Run) -> None:
    def body(comm: Communicator) -> str:
        group = comm.host_group
        with pytest.raises(SharedMemoryError) as raised:
            group.share(1 << 62 if comm.rank == comm.size - 1 else 100, "a test")
        assert len(group.share(100, "another test")) == group.size  # nothing is broken by it
        return str(raised.value)

    for message in run(body):
        assert f"rank {run.size - 1}: {1 << 62:,} bytes of shared memory are needed" in message


def test_ranks_of_other_namespaces_are_other_hosts(run: Run) -> None:
    def body(comm: Communicator) -> tuple[tuple[int, ...], ...]:
        group = meet_on_host(comm, namespace="even" if comm.rank % 2 == 0 else "odd")
        payloads = group.exchange("test", payload=b"%d" % comm.rank)
        assert payloads == [b"%d" % rank for rank in group.ranks]
        group.close()
        return group.hosts

    wanted = [tuple(range(start, run.size, 2)) for start in (0, 1)]
    for hosts in run(body):
        assert hosts == tuple(ranks for ranks in wanted if ranks)


def test_a_rank_that_can_share_nothing_is_a_host_of_its_own(run: Run) -> None:
    def body(comm: Communicator) -> tuple[tuple[int, ...], ...]:
        group = meet_on_host(comm, namespace="" if comm.rank == 0 else "shared")
        group.close()
        return group.hosts

    for hosts in run(body):
        assert hosts == ((0,), tuple(range(1, run.size)))[: min(2, run.size)]


def test_members_that_come_for_different_things_are_told_so() -> None:
    def body(comm: Communicator) -> None:
        comm.host_group.exchange("apply" if comm.rank else "assign w:0")

    with pytest.raises(MergeOrderError, match=r"comes to '(apply|assign w:0)' where rank [01] comes to"):
        run_replicas(body, 2)


def test_members_at_different_steps_are_told_so() -> None:
    def body(comm: Communicator) -> None:
        comm.host_group.exchange("apply", Label(1, 2, 3 + comm.rank).encode())

    with pytest.raises(UnequalStepsError, match="is at step 3"):
        run_replicas(body, 2)


def test_member_that_fails_ends_the_wait_of_the_others_and_is_named() -> None:
    errors: list[BaseException] = []
    all_have_met = threading.Barrier(3, timeout=10.0)

    def body(comm: Communicator) -> None:
        group = comm.host_group
        all_have_met.wait()
        if comm.rank == 1:
            raise ArithmeticError("bad data")
        try:
            group.exchange("the update")
        except PeerLostError as error:
            errors.append(error)
            raise

    with pytest.raises(ArithmeticError):
        run_replicas(body, 3)
    assert len(errors) == 2
    assert all("rank 1 failed with ArithmeticError: bad data" in str(error) for error in errors)
    assert all("the update" in str(error) for error in errors)


@pytest.mark.parametrize("size", [3, 5, 8])
def test_member_that_does_something_else_than_most_is_named_on_all(size: int) -> None:
    odd = size - 1

    def body(comm: Communicator) -> str:
        with pytest.raises(MergeOrderError) as raised:
            comm.host_group.exchange("reading" if comm.rank == odd else "writing")
        return str(raised.value)

    for message in run_replicas(body, size):
        assert message.startswith(
            f"rank 0 (as {size - 1} of {size}) comes to 'writing' where rank {odd} comes to 'reading';"
        )


@pytest.mark.parametrize("odd", [0, 2])
def test_member_that_waits_for_the_others_beside_the_group_is_named_on_all(odd: int) -> None:
    most = "rank 1" if odd == 0 else "rank 0"

    def body(comm: Communicator) -> str:
        comm.host_group.exchange("all are here")
        with pytest.raises(MergeOrderError) as raised:
            comm.barrier() if comm.rank == odd else comm.host_group.exchange("the update")
        return str(raised.value)

    for message in run_replicas(body, 3):
        assert message.startswith(f"{most} (as 2 of 3) comes to 'the update' where rank {odd} comes to 'barrier';")


def test_member_that_is_late_is_waited_for() -> None:
    has_looked = [threading.Event() for _ in range(3)]

    def body(comm: Communicator) -> list[bytes]:
        group, look = comm.host_group, comm.look

        def look_and_note(missing: Sequence[int], waiting: str) -> None:
            look(missing, waiting)
            has_looked[comm.rank].set()

        comm.look = look_and_note  # type: ignore[method-assign]
        if comm.rank == 1:
            for rank in (0, 2):
                assert has_looked[rank].wait(10.0)
        return group.exchange("the update", payload=b"%d" % comm.rank)

    assert run_replicas(body, 3) == [[b"0", b"1", b"2"]] * 3


def test_only_members_that_have_not_come_are_said_to_be_waited_for() -> None:
    """Whatever their place: what others have sent and nobody has read yet counts."""
    have_given_up = threading.Barrier(4, timeout=10.0)

    def body(comm: Communicator) -> str:
        group = comm.host_group
        comm.timeout_s = 0.3
        message = ""
        if comm.rank != 1:
            with pytest.raises(CollectiveTimeoutError) as raised:
                group.exchange("the update")
            message = str(raised.value)
        have_given_up.wait()
        return message

    for rank, message in enumerate(run_replicas(body, 4)):
        assert rank == 1 or "for rank 1: the update; rank 1 would come 0." in message
