"""Memory without a name: what cannot be had is an error before it is used."""

from __future__ import annotations

import os
import resource
import sys
from pathlib import Path

import numpy as np
import pytest

from distopt.comm.communicator import Communicator
from distopt.comm.shared_memory import segments
from distopt.comm.shared_memory.rendezvous import cliques
from distopt.errors import SharedMemoryError
from distopt.testing import run_replicas

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="memfd_create is Linux's")


def test_segment_is_zeros_that_a_second_mapping_sees_change() -> None:
    descriptor = segments.create(5000)
    first, second = segments.map_bytes(descriptor, 5000), segments.map_bytes(descriptor, 5000)
    os.close(descriptor)
    assert not first.any()
    first[4999] = 7
    assert second[4999] == 7
    assert first.ctypes.data % 4096 == 0


def test_mapping_keeps_no_descriptor_and_ends_with_its_last_array() -> None:
    def maps() -> int:
        return Path("/proc/self/maps").read_text().count("memfd:distopt")

    open_files, mapped = len(os.listdir("/proc/self/fd")), maps()
    descriptor = segments.create(5000)
    part = segments.map_bytes(descriptor, 5000)[100:200]
    os.close(descriptor)
    assert len(os.listdir("/proc/self/fd")) == open_files
    assert maps() == mapped + 1
    part[0] = 3
    del part
    assert maps() == mapped


def test_mapping_of_more_than_there_is_an_error() -> None:
    descriptor = segments.create(5000)
    with pytest.raises(SharedMemoryError, match="6,000 bytes of shared memory cannot be mapped: there are 5,000"):
        segments.map_bytes(descriptor, 6000)
    os.close(descriptor)


@pytest.mark.parametrize("advice", [segments._MADV_COLLAPSE, 9999], ids=["huge pages", "a kernel without them"])
def test_a_long_segment_is_shared_and_begins_with_a_huge_page(advice: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segments, "_MADV_COLLAPSE", advice)
    num_bytes = 2 * segments.HUGE_PAGE + 5000
    descriptor = segments.create(num_bytes)
    segments.take(descriptor, 0, num_bytes)
    first, second = segments.map_bytes(descriptor, num_bytes), segments.map_bytes(descriptor, num_bytes)
    assert os.fstat(descriptor).st_size == num_bytes
    os.close(descriptor)
    assert first.ctypes.data % segments.HUGE_PAGE == second.ctypes.data % segments.HUGE_PAGE == 0
    assert not first.any()
    first[:: segments.HUGE_PAGE // 2] = 7
    first[-1] = 9
    np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize("advice", [segments._MADV_COLLAPSE, 9999], ids=["huge pages", "a kernel without them"])
def test_only_the_part_that_is_asked_for_is_taken(advice: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segments, "_MADV_COLLAPSE", advice)
    page = segments.HUGE_PAGE
    descriptor = segments.create(5 * page)
    try:
        assert os.fstat(descriptor).st_blocks == 0
        segments.take(descriptor, page, 3 * page)
        assert os.fstat(descriptor).st_blocks * 512 == 2 * page
        segments.take(descriptor, 3 * page, 3 * page + 5000)
        assert os.fstat(descriptor).st_blocks * 512 == 2 * page + 8192
    finally:
        os.close(descriptor)


@pytest.mark.skipif(not Path("/proc/self/pagemap").exists(), reason="this system does not show its table of pages")
def test_pages_have_been_looked_at_before_huge_ones_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    # Linux 6.1 gave the first huge page and then none: it wants each place to be in the table of pages.
    libc, num_bytes = segments._libc(), 3 * segments.HUGE_PAGE
    are_there = []

    class Recording:
        mmap, munmap = libc.mmap, libc.munmap

        @staticmethod
        def madvise(address: int, size: int, advice: int) -> int:
            with open("/proc/self/pagemap", "rb", buffering=0) as table:
                entry = os.pread(table.fileno(), 8, address // resource.getpagesize() * 8)
            are_there.append(int.from_bytes(entry, sys.byteorder) >> 63)
            return int(libc.madvise(address, size, advice))

    monkeypatch.setattr(segments, "_libc", Recording)
    descriptor = segments.create(num_bytes)
    try:
        segments.take(descriptor, 0, num_bytes)
    finally:
        os.close(descriptor)
    assert are_there
    assert all(are_there)


def test_segment_longer_than_allowed_is_an_error_and_leaves_no_file_open() -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    open_files = len(os.listdir("/proc/self/fd"))
    try:
        with pytest.raises(SharedMemoryError, match="8,192 bytes of shared memory cannot be had"):
            segments.create(8192)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert len(os.listdir("/proc/self/fd")) == open_files


def test_more_than_the_host_has_is_an_error_with_both_numbers(tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text("MemTotal: 9 kB\nMemAvailable:   2 kB\n")
    with pytest.raises(SharedMemoryError, match="3,000 bytes of shared memory are needed, 2,048 are available"):
        segments.create(3000, root=tmp_path)


def test_available_bytes_counts_the_container_s_limit_without_what_is_only_cached(tmp_path: Path) -> None:
    group = tmp_path / "sys/fs/cgroup"
    group.mkdir(parents=True)
    assert segments.available_bytes(tmp_path) is None
    (group / "memory.max").write_text("max\n")
    assert segments.available_bytes(tmp_path) is None
    (group / "memory.max").write_text("1000\n")
    (group / "memory.current").write_text("900\n")
    (group / "memory.stat").write_text("anon 500\nactive_file 100\ninactive_file 200\n")
    assert segments.available_bytes(tmp_path) == 400


@pytest.mark.parametrize("version", [1, 2])
def test_available_bytes_counts_the_limit_of_every_group_that_the_process_is_in(tmp_path: Path, version: int) -> None:
    """A batch system limits a job by a group of its own, inside of others."""
    folder = tmp_path / ("sys/fs/cgroup" if version == 2 else "sys/fs/cgroup/memory")
    limit, used = (
        ("memory.max", "memory.current") if version == 2 else ("memory.limit_in_bytes", "memory.usage_in_bytes")
    )
    inner = folder / "slurm/job_7/step_0"
    inner.mkdir(parents=True)
    (tmp_path / "proc/self").mkdir(parents=True)
    line = "0::/slurm/job_7/step_0" if version == 2 else "4:cpu,memory:/slurm/job_7/step_0"
    (tmp_path / "proc/self/cgroup").write_text(f"9:name=systemd:/\n{line}\n")
    for group, most, taken in (
        (inner, "max" if version == 2 else 1 << 62, 100),
        (inner.parent, 1000, 900),
        (folder, 5000, 950),
    ):
        (group / limit).write_text(f"{most}\n")
        (group / used).write_text(f"{taken}\n")
        (group / "memory.stat").write_text(
            "inactive_file 1\ntotal_inactive_file 50\n" if version == 1 else "inactive_file 50\n"
        )
    assert segments.available_bytes(tmp_path) == 150
    assert segments.group_of_process(tmp_path).endswith(f":{inner.stat().st_ino}")
    (tmp_path / "proc/self/cgroup").write_text(line.replace("/slurm", "/of_the_host/slurm"))
    assert segments.available_bytes(tmp_path) == 4100


def test_segments_that_fit_one_by_one_and_not_together_are_one_error_on_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segments, "available_bytes", lambda root=None: 250_000)

    def body(comm: Communicator) -> str:
        with pytest.raises(SharedMemoryError) as raised:
            comm.host_group.share(100_000, "a test")
        return str(raised.value)

    for message in run_replicas(body, 3):
        assert "300,000 bytes of shared memory are needed by all ranks together, 250,000 are available" in message


def test_mapping_beyond_the_end_is_an_error() -> None:
    descriptor = segments.create(100)
    try:
        with pytest.raises(SharedMemoryError, match="cannot be mapped"):
            segments.map_bytes(descriptor, 1 << 20)
    finally:
        os.close(descriptor)


def test_cliques_are_groups_of_which_all_are_linked() -> None:
    assert cliques([set()]) == ((0,),)
    assert cliques([{1, 2, 3}, {0, 3}, {0}, {0, 1}]) == ((0, 1, 3), (2,))
    assert cliques([{2}, {3}, {0}, {1}]) == ((0, 2), (1, 3))


def test_ranks_that_may_not_make_segments_are_hosts_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: object) -> int:
        raise PermissionError("seccomp")

    monkeypatch.setattr(os, "memfd_create", forbidden)
    assert run_replicas(lambda comm: comm.host_group.hosts, 2) == [((0,), (1,))] * 2
