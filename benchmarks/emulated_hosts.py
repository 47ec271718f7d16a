"""Several hosts on one machine, each a network namespace with a network card, a name and a temporary directory.

    host 0 --- veth \\                     host 0 --- tun \\
    host 1 --- veth --- bridge            host 1 --- tun --- benchmarks.wire
    host 2 --- veth /                     host 2 --- tun /
    as fast as it goes                    each card sends at a rate (tbf), what it sends arrives after a delay

Everything that is made here carries a name of its own and is taken away at the end of the ``with`` block, also after an
error or a SIGTERM, with all processes that are still in it. Where the machine's firewall drops what bridges forward, as
Docker lets it, an exception for this bridge is added and taken back. Linux, as root; what goes over the wire is real
TCP of the kernel, the processors and the memory are shared by all hosts.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from benchmarks import wire

TOOLS = ("ip", "tc", "unshare")

_QUEUE_BYTES = 16 << 20
"""That wait in a card until it can send them; more are lost."""


def why_not() -> str:
    """Return why hosts cannot be emulated here; empty if they can."""
    if not sys.platform.startswith("linux"):
        return "hosts are emulated by network namespaces, which only Linux has"
    if os.geteuid() != 0:
        return "network namespaces take root: run this as root"
    if missing := [tool for tool in TOOLS if shutil.which(tool) is None]:
        return f"{', '.join(missing)} is missing; install iproute2 and util-linux"
    return ""


class Link(NamedTuple):
    """What joins hosts: bits a second that a card sends, and how long they take to arrive."""

    rate_bits: float
    delay_ms: float

    def __str__(self) -> str:
        return f"{self.rate_bits / 1e9:g} Gbit/s, {self.delay_ms:g} ms"


class EmulatedHosts:
    """Made by :func:`emulated_hosts`; hosts are numbered from 0."""

    def __init__(self, count: int, folder: Path) -> None:
        self.tag = f"dob{secrets.token_hex(2)}"
        self.subnet = f"10.{200 + secrets.randbelow(50)}.{secrets.randbelow(250)}"
        self.namespaces = [f"{self.tag}h{i}" for i in range(count)]
        self.folder = folder
        self.agent = folder / "agent"

    def address(self, host: int) -> str:
        """Return the address of a host."""
        return f"{self.subnet}.{host + 1}"

    def inside(self, host: int, argv: Sequence[str]) -> list[str]:
        """Return the command that runs ``argv`` on a host."""
        inner = f"hostname {self.namespaces[host]}; export TMPDIR={self.folder / str(host)}; exec {shlex.join(argv)}"
        return ["ip", "netns", "exec", self.namespaces[host], "unshare", "-u", "sh", "-c", inner]

    def mpirun(self, slots: Sequence[int], argv: Sequence[str]) -> list[str]:
        """Return the command that runs ``argv`` on so many ranks of each host; Open MPI, over TCP between hosts."""
        launcher = Path(sys.executable).parent / "mpirun"
        where = ",".join(f"{self.address(host)}:{count}" for host, count in enumerate(slots))
        return self.inside(
            0,
            [
                str(launcher) if launcher.exists() else "mpirun",
                *("--prtemca", "plm_ssh_agent", str(self.agent), "--prtemca", "plm_ssh_no_tree_spawn", "1"),
                *("--mca", "pml", "ob1", "--mca", "btl", "self,sm,tcp", "--mca", "mpi_yield_when_idle", "1"),
                *("--mca", "btl_tcp_if_include", f"{self.subnet}.0/24"),
                *("--prtemca", "prte_if_include", f"{self.subnet}.0/24"),
                *("--host", where, "-n", str(sum(slots)), "--map-by", "slot:OVERSUBSCRIBE", "--bind-to", "none"),
                *argv,
            ],
        )


@contextmanager
def emulated_hosts(count: int, link: Link | None = None) -> Iterator[EmulatedHosts]:
    """Make hosts for as long as the ``with`` block lasts, joined by links of this kind; None: as fast as it goes.

    Raises: RuntimeError, which says what is missing, where that is not possible.
    """
    if trouble := why_not():
        raise RuntimeError(trouble)
    # What is to be taken away is noted before it is made, and a signal that comes while it is taken away has to wait.
    with contextlib.ExitStack() as undo:
        undo.callback(signal.pthread_sigmask, signal.SIG_SETMASK, signal.pthread_sigmask(signal.SIG_BLOCK, ()))
        undo.callback(signal.signal, signal.SIGTERM, signal.signal(signal.SIGTERM, _end))
        try:
            folder = Path(tempfile.mkdtemp(prefix="dh"))  # short: sockets lie in it, whose paths may have 107 bytes
            undo.callback(shutil.rmtree, folder, ignore_errors=True)
            hosts = EmulatedHosts(count, folder)
            _make(hosts, link, undo)
            yield hosts
        finally:
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})


def _make(hosts: EmulatedHosts, link: Link | None, undo: contextlib.ExitStack) -> None:
    for host, namespace in enumerate(hosts.namespaces):
        (hosts.folder / str(host)).mkdir()
        undo.callback(_run, "ip", "netns", "delete", namespace, check=False)
        undo.callback(_end_all_in, namespace)
        _run("ip", "netns", "add", namespace)
    if link is None:
        _join_by_bridge(hosts, undo)
    else:
        _join_by_wire(hosts, link, undo)
    for host, namespace in enumerate(hosts.namespaces):
        _in(namespace, "ip", "link", "set", "lo", "up")
        _in(namespace, "ip", "address", "add", f"{hosts.address(host)}/24", "dev", "eth0")
        _in(namespace, "ip", "link", "set", "eth0", "up")
    hosts.agent.write_text(_agent(hosts))
    hosts.agent.chmod(0o700)


def _join_by_bridge(hosts: EmulatedHosts, undo: contextlib.ExitStack) -> None:
    bridge = f"{hosts.tag}b"
    undo.callback(_run, "ip", "link", "delete", bridge, check=False)
    _run("ip", "link", "add", bridge, "type", "bridge")
    _run("ip", "link", "set", bridge, "up")
    if shutil.which("iptables") is not None:
        rule = ["-i", bridge, "-o", bridge, "-j", "ACCEPT"]
        undo.callback(_run, "iptables", "-D", "FORWARD", *rule, check=False)
        _run("iptables", "-I", "FORWARD", *rule)
    for host, namespace in enumerate(hosts.namespaces):
        outside, inside = f"{hosts.tag}v{host}", f"{hosts.tag}w{host}"
        undo.callback(_run, "ip", "link", "delete", outside, check=False)
        _run("ip", "link", "add", outside, "type", "veth", "peer", "name", inside)
        _run("ip", "link", "set", outside, "master", bridge, "up")
        _run("ip", "link", "set", inside, "netns", namespace, "name", "eth0")


def _join_by_wire(hosts: EmulatedHosts, link: Link, undo: contextlib.ExitStack) -> None:
    ends = []
    for host, namespace in enumerate(hosts.namespaces):
        name = f"{hosts.tag}t{host}"
        descriptor = wire.open_tun(name)
        undo.callback(os.close, descriptor)
        ends.append(f"{hosts.address(host)}={descriptor}")
        _run("ip", "link", "set", name, "netns", namespace, "name", "eth0")
        _in(namespace, "ip", "link", "set", "eth0", "mtu", str(wire.MTU), "txqueuelen", "10000")
        rate = ["rate", f"{link.rate_bits:.0f}bit", "burst", str(2 * wire.MTU), "limit", str(_QUEUE_BYTES)]
        _in(namespace, "tc", "qdisc", "add", "dev", "eth0", "root", "tbf", *rate)
    reader, writer = os.pipe()
    descriptors = [int(end.partition("=")[2]) for end in ends]
    argv = [sys.executable, wire.__file__, str(link.delay_ms / 1e3), str(reader), *ends]
    with contextlib.ExitStack() as unstarted:
        unstarted.callback(os.close, writer)
        process = subprocess.Popen(argv, pass_fds=(*descriptors, reader))
        unstarted.pop_all()
    os.close(reader)
    undo.callback(_await_end, process)
    undo.callback(os.close, writer)


def _agent(hosts: EmulatedHosts) -> str:
    """Return what stands in for ssh: its first argument is an address, the others are a command for that host."""
    cases = "\n".join(
        f"  {hosts.address(i)}) n={name}; d={hosts.folder / str(i)} ;;" for i, name in enumerate(hosts.namespaces)
    )
    return f"""#!/bin/sh
address=$1; shift
case $address in
{cases}
  *) echo "no host $address" >&2; exit 1 ;;
esac
exec ip netns exec "$n" unshare -u sh -c "hostname $n; export TMPDIR=$d; $*"
"""


def _end(*_: object) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # once is enough
    sys.exit(128 + signal.SIGTERM)


def _await_end(process: subprocess.Popen[bytes]) -> None:
    try:
        process.wait(5.0)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _end_all_in(namespace: str) -> None:
    """End what is left of a job: in this namespace are only processes that were started for it."""
    for _ in range(100):  # they may start others meanwhile
        found = subprocess.run(["ip", "netns", "pids", namespace], capture_output=True, text=True, check=False)
        if not found.stdout.split():
            return
        for process in found.stdout.split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(process), signal.SIGKILL)
        time.sleep(0.02)


def _in(namespace: str, *argv: str) -> None:
    _run("ip", "netns", "exec", namespace, *argv)


def _run(*argv: str, check: bool = True) -> None:
    found = subprocess.run(argv, capture_output=True, text=True, check=False)
    if check and found.returncode:
        raise RuntimeError(f"{shlex.join(argv)}: {found.stderr.strip() or found.stdout.strip()}")
