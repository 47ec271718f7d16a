"""Sockets that carry messages: a :class:`Listener` that many talk to, and a :class:`Link` to one of them.

Rules of this file: ZeroMQ's errors end here; nothing blocks; every socket lets go of unsent messages after
``linger_s``; no message above the limits is sent or used.

Buffers are sent without a copy. The protocol makes that safe: whoever sends an array gets an answer, or asks the next
question, only after the other side has received it whole, and writes to the array only then.

Endpoints are IPv4, on the loopback unless an address says otherwise. Messages are not encrypted or authenticated:
whoever can reach a port can speak to it, so bind other addresses only in a network of your own. CURVE keys for
anything that leaves the loopback belong to :class:`LinkConfig`, as paths of key files; they do not exist yet.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, NamedTuple

import msgspec
import zmq

from distopt import errors
from distopt.errors import DistoptError, EndpointError, PeerLostError, RemoteProtocolError
from distopt.protocol.messages import Error, Message, Role
from distopt.protocol.wire import Buffer, Received, WireLimits, decode, encode
from distopt.types import Array

Seconds = Annotated[float, msgspec.Meta(gt=0)]

_MOST_FRAME_BYTES = 2**62
_COPIED_BYTES = 1 << 19
"""Frames below this are copied into ZeroMQ: without a copy, its clean-up thread competes for the interpreter."""


class LinkConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Times and sizes of all links of a process.

    ``peer_timeout_s``: silence after which a peer counts as lost. ``round_timeout_s``: the longest wait for one answer
    of a server, which must cover the slowest worker's step. ``grace_s``: how long a process may go on after an abort.
    """

    heartbeat_interval_s: Seconds = 0.5
    peer_timeout_s: Seconds = 5.0
    join_timeout_s: Seconds = 60.0
    round_timeout_s: Seconds = 120.0
    grace_s: Seconds = 3.0
    linger_s: Seconds = 1.0
    limits: WireLimits = WireLimits()


class Incoming(NamedTuple):
    """Frames from ``identity``; not decoded, so that the receiver can answer what is malformed."""

    identity: bytes
    frames: list[Buffer]


class Listener:
    """Bind ``endpoint`` and talk to all who connect; port 0 takes a free one.

    ``advertised_host``: the name by which others reach this machine, where that is not the bound address.

    Raises: EndpointError if the address cannot be bound.
    """

    def __init__(self, endpoint: str, config: LinkConfig, advertised_host: str = "") -> None:
        self._limits = config.limits
        self.socket = _socket(zmq.ROUTER, config)
        self.socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        try:
            self.socket.bind(endpoint)
        except zmq.ZMQError as error:
            self.socket.close(linger=0)
            raise EndpointError(f"cannot bind {endpoint}: {_explained(error)}") from error
        bound = self.socket.getsockopt_string(zmq.LAST_ENDPOINT)
        self.endpoint = _advertised(bound, advertised_host) if advertised_host else bound
        """What others connect to."""

    def receive(self) -> Incoming | None:
        """Return the next message, or None if none is waiting."""
        frames = _receive(self.socket)
        return None if frames is None else Incoming(bytes(frames[0]), frames[1:])

    def decode(self, frames: Sequence[Buffer]) -> Received:
        """Return the message in ``frames``. Raises: RemoteProtocolError."""
        return decode(frames, self._limits)

    def send(self, identity: bytes, message: Message, buffers: Sequence[Array] = ()) -> None:
        """Send to one peer; leave ``buffers`` alone until it has answered.

        Raises: PeerLostError if no such peer is connected.
        """
        frames = encode(message, buffers, self._limits)
        try:
            self.socket.send_multipart([identity, *frames], zmq.NOBLOCK, copy=False)
        except zmq.ZMQError as error:
            raise PeerLostError(f"{identity!r} cannot be reached: {_explained(error)}") from error

    def refuse(self, identity: bytes, error: DistoptError) -> None:
        """Tell a peer that its message was refused; one that has gone is not told."""
        try:
            self.send(identity, Error(code=type(error).__name__, text=str(error)[:60000]))
        except PeerLostError:
            return

    def close(self) -> None:
        """Let go of the address; a second call does nothing."""
        self.socket.close()


class Link:
    """Connect to the listener at ``endpoint``, now or as soon as it exists.

    ``identity``: what the listener knows us by; a random one if empty.

    Raises: EndpointError if ``endpoint`` is no address.
    """

    def __init__(self, endpoint: str, config: LinkConfig, identity: bytes = b"") -> None:
        self.endpoint = endpoint
        self._limits = config.limits
        self.socket = _socket(zmq.DEALER, config)
        try:
            if identity:
                self.socket.setsockopt(zmq.IDENTITY, identity)
            self.socket.connect(endpoint)
        except zmq.ZMQError as error:
            self.socket.close(linger=0)
            raise EndpointError(f"cannot connect to {endpoint}: {_explained(error)}") from error

    def send(self, message: Message, buffers: Sequence[Array] = ()) -> None:
        """Send; leave ``buffers`` alone until the other side has answered."""
        self.forward(encode(message, buffers, self._limits))

    def forward(self, frames: Sequence[Buffer]) -> None:
        """Send a message that is encoded already."""
        try:
            self.socket.send_multipart(frames, zmq.NOBLOCK, copy=False)
        except zmq.ZMQError as error:
            raise PeerLostError(f"cannot send to {self.endpoint}: {_explained(error)}") from error

    def receive(self) -> Received | None:
        """Return the next message, or None if none is waiting.

        Raises: RemoteProtocolError for one that is malformed; what an Error names, for a refusal.
        """
        frames = _receive(self.socket)
        if frames is None:
            return None
        received = decode(frames, self._limits)
        if isinstance(received.message, Error):
            raise remote_error(received.message.code, f"{self.endpoint} refused a message: {received.message.text}")
        return received

    def close(self) -> None:
        """Send what is on its way, for at most ``linger_s``; a second call does nothing."""
        self.socket.close()


def data_identity(session: str, role: Role, rank: int) -> bytes:
    """Return what a process is called on the data links of a job."""
    return f"{session}/{role}/{rank}".encode()


def remote_error(code: str, text: str) -> DistoptError:
    """Return the error that another process names by its class; an unknown class becomes a RemoteProtocolError."""
    found = getattr(errors, code, None)
    if isinstance(found, type) and issubclass(found, DistoptError):
        return found(text)
    return RemoteProtocolError(text)


def _socket(kind: int, config: LinkConfig) -> zmq.Socket[bytes]:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context.instance()
    socket = context.socket(kind)
    socket.setsockopt(zmq.LINGER, int(config.linger_s * 1000))
    socket.setsockopt(zmq.MAXMSGSIZE, min(config.limits.max_message_bytes, _MOST_FRAME_BYTES))
    socket.copy_threshold = _COPIED_BYTES
    # The protocol bounds what is under way: a few messages a round and peer, one answer a heartbeat.
    socket.setsockopt(zmq.SNDHWM, 0)
    return socket


def _receive(socket: zmq.Socket[bytes]) -> list[Buffer] | None:
    try:
        return [frame.buffer for frame in socket.recv_multipart(zmq.NOBLOCK, copy=False)]
    except zmq.Again:
        return None
    except zmq.ZMQError as error:
        raise EndpointError(f"cannot receive: {_explained(error)}") from error


def _explained(error: zmq.ZMQError) -> str:
    if error.errno == zmq.EADDRINUSE:
        return "port in use (address already in use)"
    return str(error.strerror)


def _advertised(bound: str, host: str) -> str:
    scheme, _, rest = bound.partition("://")
    port = rest.rpartition(":")[2]
    return f"{scheme}://{host}:{port}"
