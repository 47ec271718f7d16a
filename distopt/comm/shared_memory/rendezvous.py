"""Finding the ranks of a host: those that can really pass each other memory, never those with an equal hostname.

Each rank listens on a Unix socket and tells all others its boot, its network namespace (which decides whose abstract
names can be reached) and the random name of its socket. Ranks whose boot and namespace are equal connect, the higher
rank to the lower one, and prove by a secret who they are. Ranks that are all connected to each other form a host.

Nothing here waits for a peer that has not said it is there: a connection is made before the other side accepts it, and
that it was made is told through the transport.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

from distopt.comm.communicator import Communicator
from distopt.comm.shared_memory import segments
from distopt.errors import SharedMemoryError

_SECRET_BYTES: Final = 16
_HELLO: Final = struct.Struct(f"<I{_SECRET_BYTES}s")
_CREDENTIALS: Final = struct.Struct("<iII")
"""Process, user and group of a peer; unix(7), SO_PEERCRED."""

_PATIENCE_S: Final = 5.0
"""For the few bytes that a rank sends before it says that it has connected."""


class Hosts(NamedTuple):
    """The ranks by host, and this rank's connections to the others of its own."""

    ranks_of_hosts: tuple[tuple[int, ...], ...]
    sockets: dict[int, socket.socket]


def find_hosts(communicator: Communicator, namespace: str | None = None) -> Hosts:
    """Return which ranks form hosts, the same on all of them; a collective.

    ``namespace``: what makes a host, for tests; default: boot and network namespace. A rank that can share nothing is a
    host of its own.
    """
    rank, size = communicator.rank, communicator.size
    namespace = _namespace() if namespace is None else namespace
    secret = secrets.token_bytes(_SECRET_BYTES)
    address = f"\0distopt-{secrets.token_hex(16)}"
    sockets: dict[int, socket.socket] = {}
    with contextlib.ExitStack() as on_error, contextlib.ExitStack() as listening:
        on_error.callback(_close_all, sockets)
        listener = None
        if namespace and size > 1:
            with contextlib.suppress(OSError):
                listener = listening.enter_context(_listen(address, size))
        introduction = (
            b"" if listener is None else b"\n".join((namespace.encode(), address.encode(), secret.hex().encode()))
        )
        introductions = [text.split(b"\n") for text in communicator.all_gather_bytes(introduction)]
        like = [r for r in range(size) if listener is not None and introductions[r][0] == namespace.encode()]
        for peer in like:
            if peer < rank:
                with contextlib.suppress(OSError):
                    sockets[peer] = _connect(introductions[peer][1].decode(), rank, secret)
        connected = _told(communicator, sockets)
        for _ in range(sum(rank in connected[peer] for peer in like if peer > rank)):
            assert listener is not None, "others have connected to it"
            with contextlib.suppress(OSError, SharedMemoryError):
                peer, connection = _accept(listener, introductions)
                sockets[peer] = connection
        links = _told(communicator, sockets)
        on_error.pop_all()
    hosts = cliques([{peer for peer in links[r] if r in links[peer]} for r in range(size)])
    own = next(ranks for ranks in hosts if rank in ranks)
    for peer in [peer for peer in sockets if peer not in own]:
        sockets.pop(peer).close()
    return Hosts(hosts, sockets)


def cliques(links: Sequence[set[int]]) -> tuple[tuple[int, ...], ...]:
    """Return the ranks in groups of which all are linked with each other, each rank in the first that takes it.

    >>> cliques([{1, 2}, {0}, {0}, set()])
    ((0, 1), (2,), (3,))
    """
    groups: list[list[int]] = []
    for rank, own in enumerate(links):
        found = next((group for group in groups if own.issuperset(group)), None)
        if found is None:
            groups.append([rank])
        else:
            found.append(rank)
    return tuple(map(tuple, groups))


def _namespace(proc: Path = Path("/proc")) -> str:
    """Return what ranks have in common that can reach each other's sockets; empty where nothing can be shared."""
    if not segments.is_offered:
        return ""
    try:
        os.close(segments.create(1))  # a sandbox may forbid it
        boot_id = (proc / "sys/kernel/random/boot_id").read_text().strip()
        return f"{boot_id} {(proc / 'self/ns/net').stat().st_ino} {os.geteuid()}"
    except (OSError, SharedMemoryError):
        return ""


def _listen(address: str, size: int) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        listener.bind(address)
        listener.listen(size)
    except OSError:
        listener.close()
        raise
    listener.settimeout(_PATIENCE_S)
    return listener


def _connect(address: str, rank: int, secret: bytes) -> socket.socket:
    """Return a connection to a peer, which has been told the own secret as all have."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        connection.settimeout(_PATIENCE_S)
        connection.connect(address)
        _check_user(connection)
        connection.send(_HELLO.pack(rank, secret))
    except (OSError, SharedMemoryError):
        connection.close()
        raise
    return connection


def _accept(listener: socket.socket, introductions: Sequence[Sequence[bytes]]) -> tuple[int, socket.socket]:
    """Return the next rank that has connected.

    Raises: SharedMemoryError if it is not the one that it says it is; OSError if it has gone.
    """
    connection, _ = listener.accept()
    try:
        connection.settimeout(_PATIENCE_S)
        _check_user(connection)
        hello = connection.recv(_HELLO.size + 1)
        if len(hello) != _HELLO.size:
            raise SharedMemoryError("a peer on this host did not say who it is")
        rank, secret = _HELLO.unpack(hello)
        if rank >= len(introductions) or not secrets.compare_digest(introductions[rank][-1], secret.hex().encode()):
            raise SharedMemoryError(f"a process of this host says that it is rank {rank}, and cannot prove it")
    except (OSError, SharedMemoryError):
        connection.close()
        raise
    return rank, connection


def _check_user(connection: socket.socket) -> None:
    """Raise SharedMemoryError if the other side is another user's."""
    packed = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    _, user, _ = _CREDENTIALS.unpack(packed)
    if user != os.geteuid():
        raise SharedMemoryError(f"user {user} has connected to a socket of user {os.geteuid()}")


def _close_all(sockets: dict[int, socket.socket]) -> None:
    for connection in sockets.values():
        connection.close()


def _told(communicator: Communicator, sockets: dict[int, socket.socket]) -> list[set[int]]:
    """Return the peers that each rank is connected to."""
    told = communicator.all_gather_bytes(" ".join(map(str, sorted(sockets))).encode())
    return [{int(peer) for peer in peers.split()} for peers in told]
