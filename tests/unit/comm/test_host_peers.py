from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from distopt.comm.host_peers import HostPeers, identity
from distopt.comm.process_ends import IS_GONE

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="peers are watched on Linux only")


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    """A process that waits until it is killed."""
    process = subprocess.Popen(["sleep", "60"])
    yield process
    process.kill()
    process.wait()


def identity_of(pid: int) -> bytes:
    """Return the identity that another process has."""
    host = identity().partition(b" ")[0]
    start_time = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    return host + f" {pid} {start_time}".encode()


def write_stat(proc: Path, pid: int, state: str, start_time: int) -> None:
    (proc / str(pid)).mkdir(exist_ok=True)
    fields = [state, *["0"] * 18, str(start_time), "0"]
    (proc / str(pid) / "stat").write_text(f"{pid} (a name) with (parens) {' '.join(fields)}\n")


def test_identity_names_this_process() -> None:
    host, pid, start_time = identity().split()
    assert int(pid) == os.getpid()
    assert int(start_time) > 0
    assert host.count(b":") == 1


def test_identity_where_there_is_no_proc_is_empty(tmp_path: Path) -> None:
    assert identity(tmp_path) == b""


def test_peers_on_other_hosts_or_unknown_are_not_watched() -> None:
    own = identity()
    peers = HostPeers(0, [own, b"other:1 1 1", b"", own])
    assert peers.ranks == (3,)
    assert peers.first_lost() is None
    peers.close()


def test_peers_of_a_rank_that_is_unknown_are_not_watched() -> None:
    assert HostPeers(0, [b"", b"", identity()]).ranks == ()


def test_peer_that_is_killed_is_lost_and_named(child: subprocess.Popen[bytes]) -> None:
    peers = HostPeers(1, [identity_of(child.pid), identity()])
    assert peers.first_lost() is None
    child.kill()
    child.wait()
    assert str(peers.first_lost()) == str(peers.first_dead())
    # How it ended, Linux tells from 6.15 on.
    assert str(peers.first_dead()) in [f"rank 0 (pid {child.pid}) {how}" for how in ("was killed by SIGKILL", IS_GONE)]
    peers.close()
    peers.close()


def test_first_dead_is_the_one_that_died_first(child: subprocess.Popen[bytes]) -> None:
    second = subprocess.Popen(["sleep", "60"])
    peers = HostPeers(0, [identity(), identity_of(second.pid), identity_of(child.pid)])
    child.kill()
    child.wait()
    while not peers._deaths:
        threading.Event().wait(0.001)
    second.kill()
    second.wait()
    dead = peers.first_dead()
    assert dead is not None
    assert dead.rank == 2
    peers.close()


def test_peer_that_was_gone_before_it_could_be_watched_is_lost(child: subprocess.Popen[bytes]) -> None:
    text = identity_of(child.pid)
    child.kill()
    child.wait()
    assert str(HostPeers(0, [identity(), text]).first_lost()) == f"rank 1 (pid {child.pid}) is gone"


def test_peer_whose_process_id_was_used_again_is_lost(child: subprocess.Popen[bytes]) -> None:
    host, pid, start_time = identity_of(child.pid).split()
    text = b" ".join([host, pid, b"%d" % (int(start_time) - 1)])
    assert str(HostPeers(0, [identity(), text]).first_lost()) == f"rank 1 (pid {child.pid}) is gone"


def test_peer_that_is_stopped_for_long_is_lost_and_named(child: subprocess.Popen[bytes], tmp_path: Path) -> None:
    text = identity_of(child.pid)
    start_time = int(text.split()[2])
    write_stat(tmp_path, child.pid, "S", start_time)
    peers = HostPeers(0, [identity(), text], stopped_timeout_s=3.0, proc=tmp_path)
    start_s = peers._looked_s
    assert peers.first_lost(start_s + 1.0) is None
    write_stat(tmp_path, child.pid, "T", start_time)
    assert [peers.first_lost(start_s + s) for s in (2.0, 3.0, 4.0, 4.9)] == [None] * 4
    lost = peers.first_lost(start_s + 5.4)
    assert str(lost) == f"rank 1 (pid {child.pid}) has been stopped for 3.4 s"
    peers.close()


def test_all_peers_that_are_stopped_are_told_when_one_is_lost(child: subprocess.Popen[bytes], tmp_path: Path) -> None:
    with subprocess.Popen(["sleep", "60"]) as second, subprocess.Popen(["sleep", "60"]) as third:
        texts = [identity_of(process.pid) for process in (child, second, third)]
        peers = HostPeers(0, [identity(), *texts], stopped_timeout_s=3.0, proc=tmp_path)
        start_s = peers._looked_s
        for after_s, states in ((1.0, "TSS"), (2.0, "TTS"), (3.0, "TTS"), (3.6, "TTT"), (4.2, "TTT")):
            for text, state in zip(texts, states, strict=True):
                write_stat(tmp_path, int(text.split()[1]), state, int(text.split()[2]))
            lost = peers.first_lost(start_s + after_s)
        second.kill()
        third.kill()
    assert str(lost) == f"rank 1 (pid {child.pid}) has been stopped for 3.2 s"
    assert peers.stopped() == [child.pid, second.pid]
    peers.close()


def test_peer_that_is_stopped_and_resumed_is_not_lost(child: subprocess.Popen[bytes], tmp_path: Path) -> None:
    text = identity_of(child.pid)
    start_time = int(text.split()[2])
    write_stat(tmp_path, child.pid, "T", start_time)
    peers = HostPeers(0, [identity(), text], stopped_timeout_s=3.0, proc=tmp_path)
    start_s = peers._looked_s
    for index in range(20):
        write_stat(tmp_path, child.pid, "S" if index % 4 == 3 else "T", start_time)
        assert peers.first_lost(start_s + 0.9 * index) is None
    peers.close()


def test_peer_that_was_stopped_together_with_this_process_is_not_lost(
    child: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    text = identity_of(child.pid)
    write_stat(tmp_path, child.pid, "T", int(text.split()[2]))
    peers = HostPeers(0, [identity(), text], stopped_timeout_s=3.0, proc=tmp_path)
    start_s = peers._looked_s
    assert peers.first_lost(start_s + 1.0) is None
    assert peers.first_lost(start_s + 3600.0) is None
    peers.close()


def test_peer_that_is_really_stopped_is_seen_as_such(child: subprocess.Popen[bytes]) -> None:
    peers = HostPeers(0, [identity(), identity_of(child.pid)], stopped_timeout_s=1.0)
    child.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, child.pid, os.WSTOPPED | os.WNOWAIT)
    start_s = peers._looked_s
    assert peers.first_lost(start_s + 1.0) is None
    lost = peers.first_lost(start_s + 2.5)
    assert lost is not None
    assert lost.reason == "has been stopped for 1.5 s"
    peers.close()
