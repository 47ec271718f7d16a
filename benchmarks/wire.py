"""A network that takes its time: what one host sends arrives at another after a delay.

Each host has a TUN device, whose other end is a file descriptor of this program. A packet that its host's card has sent
arrives ``delay`` later. Kernels do the same by ``netem``, where they have it; this needs only TUN. Packets are as long
as IP allows, so that a Python keeps up with 1 Gbit/s.

How fast a card sends is limited by its host's kernel, which counts what waits to be sent. What this program has read
counts as sent, so a socket would put megabytes before the acknowledgements of the other direction.
"""

from __future__ import annotations

import fcntl
import os
import select
import socket
import struct
import sys
import time
from collections import deque
from collections.abc import Mapping

MTU = 60_000

_TUNSETIFF = 0x400454CA
_IFF_TUN_NO_PI = 0x0001 | 0x1000


def open_tun(name: str) -> int:
    """Return the file descriptor of a new TUN device, which lives as long as it is open.

    Source: Linux, Documentation/networking/tuntap.rst.
    """
    descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(descriptor, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _IFF_TUN_NO_PI))
    os.set_inheritable(descriptor, True)
    return descriptor


def forward(descriptor_of: Mapping[bytes, int], delay_s: float, lifeline: int) -> None:
    """Carry packets between the devices, which are given by IPv4 address, until the pipe ``lifeline`` is closed."""
    poll = select.epoll()
    for descriptor in (*descriptor_of.values(), lifeline):
        poll.register(descriptor, select.EPOLLIN)
    under_way: deque[tuple[float, int, bytes]] = deque()
    while True:
        now_s = time.monotonic()
        while under_way and under_way[0][0] <= now_s:
            _, target, packet = under_way.popleft()
            try:
                os.write(target, packet)
            except OSError:
                continue  # lost, as on any wire; TCP sends it again
        left_s = under_way[0][0] - now_s if under_way else 1.0
        for descriptor, _ in poll.poll(max(0.0, left_s)):
            if descriptor == lifeline:
                return
            packet = os.read(descriptor, 65536)
            target = descriptor_of.get(packet[16:20])  # where the IPv4 header has the destination
            if target is not None and packet[0] >> 4 == 4:
                under_way.append((time.monotonic() + delay_s, target, packet))


def main(argv: list[str]) -> None:
    """Forward with the arguments: seconds of delay, a pipe, and ``address=descriptor`` of each host."""
    delay, lifeline, *hosts = argv
    pairs = [host.split("=") for host in hosts]
    forward({socket.inet_aton(a): int(fd) for a, fd in pairs}, float(delay), int(lifeline))


if __name__ == "__main__":
    main(sys.argv[1:])
