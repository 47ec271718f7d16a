"""Which names of shared memory are removed; folder and processes are stand-ins."""

from __future__ import annotations

import os
from pathlib import Path

from distopt.comm.mpi_segments import shared_memory_names, unlink_left_over

NOW_S = 1e9


def test_names_are_those_that_this_process_has_mapped_and_that_still_exist(tmp_path: Path) -> None:
    maps = tmp_path / "maps"
    maps.write_text(
        "7f00-7f01 rw-s 00000000 00:1a 5 /dev/shm/mpich_shm_1_0\n"
        "7f02-7f03 rw-s 00000000 00:1a 6 /dev/shm/mpich_shm_2_0 (deleted)\n"
        "7f04-7f05 r-xp 00000000 00:1a 7 /usr/lib/libmpi.so\n"
    )
    assert shared_memory_names(maps) == {Path("/dev/shm/mpich_shm_1_0")}
    assert shared_memory_names(tmp_path / "none") == set()


def test_left_over_names_are_removed_unless_they_are_young_mapped_or_of_something_else(tmp_path: Path) -> None:
    folder, proc = tmp_path / "shm", tmp_path / "proc"
    names = {"mpich_shm_old_0": 61, "sm_segment.host.0.1.2": 61, "mpich_shm_young_0": 59, "mpich_shm_mapped_0": 900}
    folder.mkdir()
    for name, age_s in {**names, "another": 900}.items():
        (folder / name).touch()
        os.utime(folder / name, (NOW_S - age_s, NOW_S - age_s))
    for pid in (7, 8):
        (proc / str(pid)).mkdir(parents=True)
    (proc / "7" / "maps").write_text(f"7f00-7f01 rw-s 00000000 00:1a 5 {folder / 'mpich_shm_mapped_0'}\n")
    unlink_left_over(NOW_S - 60.0, folder, proc)  # process 8 has just ended
    assert {path.name for path in folder.iterdir()} == {"mpich_shm_young_0", "mpich_shm_mapped_0", "another"}
