"""What ranks of all hosts tell each other through the launcher, before MPI knows of any of them.

The launcher of Open MPI keeps where ``mpirun`` runs what a process publishes, by PMIx, and tells it on any host.

Rules of this file: as in :mod:`distopt.comm.launcher_table`, no answer is no error, and no proof of anything.
Source: PMIx 5.0 standard, "PMIx_Publish", "PMIx_Lookup", "PMIx_Unpublish".
"""

from __future__ import annotations

import ctypes
from collections.abc import Collection
from typing import Any, Final

from distopt.comm import pmix

_PERSISTENCE: Final = b"pmix.persist"
_AS_LONG_AS_THE_PROCESS: Final = 2
_CALLS: Final = ("PMIx_Publish", "PMIx_Lookup", "PMIx_Unpublish")


class LauncherBoard:
    """The texts that ranks of ``job`` have put up, one under a rank; ``library`` is the MPI library.

    What one has put up, another can neither replace nor take down. Not to be used before ``MPI_Init`` has been called.
    """

    def __init__(self, library: Any, job: str) -> None:
        self._library, self._job = library, job
        self.can_answer = all(hasattr(library, call) for call in _CALLS) and pmix.is_known(library)
        """Whether there is a board."""

    def put(self, rank: int, text: str) -> None:
        """Put up ``text`` under ``rank``, in place of what this process had there."""
        if self.can_answer:
            self.remove(rank)
            infos = (pmix.Info * 2)()
            infos[0].key = self._key(rank)
            infos[0].value = pmix.Value(type=pmix.STRING, data=pmix.Data(string=text.encode()))
            infos[1].key, infos[1].value.type = _PERSISTENCE, pmix.PERSISTENCE
            infos[1].value.data.longest[0] = _AS_LONG_AS_THE_PROCESS
            self._library.PMIx_Publish(infos, ctypes.c_size_t(2))

    def remove(self, rank: int) -> None:
        """Take down what this process has put up under ``rank``, if there is anything."""
        if self.can_answer:
            keys = (ctypes.c_char_p * 2)(self._key(rank), None)
            self._library.PMIx_Unpublish(keys, None, ctypes.c_size_t(0))

    def read(self, ranks: Collection[int]) -> dict[int, str]:
        """Return what stands under those ``ranks``, of those under which something does."""
        return {rank: text for rank in ranks if (text := self._read(rank)) is not None}

    def _read(self, rank: int) -> str | None:
        if not self.can_answer:
            return None
        found = pmix.Published(key=self._key(rank))  # one at a time: of several none is told if one is not there
        self._library.PMIx_Lookup(ctypes.byref(found), ctypes.c_size_t(1), None, ctypes.c_size_t(0))
        text = found.value.data.string if found.value.type == pmix.STRING else None
        return None if text is None else text.decode(errors="replace")

    def _key(self, rank: int) -> bytes:
        return f"distopt.{self._job}.{rank}".encode()
