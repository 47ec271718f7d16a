"""What ranks put up for each other; the library is a stand-in that keeps it as the launcher would."""

from __future__ import annotations

import ctypes
from typing import Any

from distopt.comm import pmix
from distopt.comm.launcher_board import LauncherBoard


class Library:
    """The library of a process that knows what all have ``published``, by key: the text, and by which process."""

    def __init__(self, published: dict[bytes, tuple[bytes, int]], process: int) -> None:
        self._published, self._process = published, process
        self.PMIx_Get_version = _Version()

    def PMIx_Publish(self, infos: Any, number: Any) -> int:
        assert number.value == 2
        assert (infos[1].key, infos[1].value.type, infos[1].value.data.longest[0]) == (b"pmix.persist", 30, 2)
        self._published.setdefault(infos[0].key, (infos[0].value.data.string, self._process))
        return 0

    def PMIx_Unpublish(self, keys: Any, infos: Any, number: Any) -> int:
        assert (keys[1], infos, number.value) == (None, None, 0)
        if self._published.get(keys[0], (b"", -1))[1] == self._process:
            del self._published[keys[0]]
        return 0

    def PMIx_Lookup(self, found: Any, count: Any, infos: Any, number: Any) -> int:
        assert (count.value, infos, number.value) == (1, None, 0)
        wanted = ctypes.cast(found, ctypes.POINTER(pmix.Published))[0]
        if wanted.key not in self._published:
            return -46
        wanted.value.type = pmix.STRING
        wanted.value.data.string = self._published[wanted.key][0]
        return 0


class _Version:
    restype: Any = None

    def __call__(self) -> bytes:
        return b"OpenPMIx 5.0.11"


def test_what_one_rank_puts_up_others_read_until_it_is_replaced_or_taken_down() -> None:
    published: dict[bytes, tuple[bytes, int]] = {}
    here, there = (LauncherBoard(Library(published, process), "job@1") for process in range(2))
    here.put(0, "1 0")
    here.put(0, "2 0 1")
    assert there.read([0, 2]) == {0: "2 0 1"}
    there.put(0, "another's place")
    assert there.read([0]) == {0: "2 0 1"}
    here.remove(0)
    here.remove(0)
    assert there.read([0]) == {}


def test_jobs_do_not_read_each_others() -> None:
    library = Library({}, 0)
    LauncherBoard(library, "job@1").put(0, "1 0")
    assert LauncherBoard(library, "job@2").read([0]) == {}


def test_without_pmix_there_is_no_board() -> None:
    board = LauncherBoard(object(), "job@1")
    board.put(0, "1 0")
    board.remove(0)
    assert not board.can_answer
    assert board.read([0]) == {}
