"""Links by themselves: addresses, and calls that are refused before anything is sent."""

from __future__ import annotations

import numpy as np
import pytest

from distopt.arena import Span
from distopt.comm.communicator import Contribution, Hosting
from distopt.comm.zmq import ControlLink, Link, LinkConfig, Listener, ServerCommunicator
from distopt.errors import EndpointError, LocalProtocolError, PlacementError
from distopt.protocol.manifest import Manifest
from distopt.protocol.messages import Join, Role
from tests.unit.comm.zmq.cluster import FAST, LENGTH, Cluster

pytestmark = pytest.mark.timeout(60)


def test_join_without_a_coordinator_ends_after_the_join_timeout() -> None:
    control = ControlLink("tcp://127.0.0.1:9", LinkConfig(heartbeat_interval_s=0.05, join_timeout_s=0.2))
    with (
        pytest.raises(EndpointError, match=r"worker \(pid 7 on here\): no coordinator answered at tcp://127.0.0.1:9"),
        control,
    ):
        control.start(Join(role=Role.WORKER, pid=7, host="here", incarnation=1, manifest=Manifest()))


def test_port_in_use_is_an_error_that_names_the_address() -> None:
    listener = Listener("tcp://127.0.0.1:0", FAST)
    with pytest.raises(EndpointError, match=f"cannot bind {listener.endpoint}: port in use"):
        Listener(listener.endpoint, FAST)
    listener.close()


@pytest.mark.parametrize("endpoint", ["nonsense", "tcp://127.0.0.1:notaport"])
def test_endpoint_that_is_no_address_is_an_error_that_names_it(endpoint: str) -> None:
    with pytest.raises(EndpointError, match=f"cannot bind {endpoint}"):
        Listener(endpoint, FAST)
    with pytest.raises(EndpointError, match=f"cannot connect to {endpoint}"):
        Link(endpoint, FAST)


def test_listener_advertises_the_name_that_others_know() -> None:
    listener = Listener("tcp://127.0.0.1:0", FAST, advertised_host="server-1")
    assert listener.endpoint.startswith("tcp://server-1:")
    listener.close()


def test_update_of_a_part_of_the_variables_is_refused_before_anything_is_sent() -> None:
    def body(comm: ServerCommunicator) -> None:
        half = np.zeros(LENGTH // 2, np.float32)
        parts = [Contribution(node, (half,)) for node in comm.hosting.covers[comm.rank]]
        with pytest.raises(PlacementError, match=r"server 0 owns segment 0\[0:1000\], but the apply call covers"):
            comm.update(parts, comm.hosting, {}, [(Span(0, 0, 500), half)])
        twice = np.zeros(2 * LENGTH, np.float32)
        with pytest.raises(PlacementError, match="covers 2000 elements, of which the servers own 1000"):
            comm.update([], comm.hosting, {}, [(Span(0, 0, 2 * LENGTH), twice)])
        assert comm.traffic.bytes_sent == 0

    Cluster(2, 1, body).results()


def test_exchange_between_workers_is_refused() -> None:
    def body(comm: ServerCommunicator) -> None:
        with pytest.raises(LocalProtocolError, match="cannot exchange"):
            comm.exchange([], [], "test")
        with pytest.raises(ValueError, match="root must be a rank below 1"):
            comm.broadcast_bytes(b"", root=1)
        with pytest.raises(ValueError, match="hosting is of 2 ranks"):
            comm.combine([], Hosting.contiguous(8, 2), None, [])  # type: ignore[arg-type]  # refused before it is used

    Cluster(1, 1, body).results()


def test_start_twice_is_refused() -> None:
    def body(comm: ServerCommunicator) -> None:
        with pytest.raises(LocalProtocolError, match="second time"):
            comm.control.start(Join(role=Role.WORKER, pid=1, host="h", incarnation=1, manifest=Manifest()))

    Cluster(1, 1, body).results()
