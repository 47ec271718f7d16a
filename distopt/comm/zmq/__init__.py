"""The parameter-server transport: ZeroMQ sockets around the state machines of :mod:`distopt.protocol`."""

from __future__ import annotations

from distopt.comm.zmq.client import OwnedState, ServerCommunicator
from distopt.comm.zmq.control import ControlLink
from distopt.comm.zmq.link import Link, LinkConfig, Listener

__all__ = ["ControlLink", "Link", "LinkConfig", "Listener", "OwnedState", "ServerCommunicator"]
