"""What the processes of one host share: memory that all of them map, and a way to meet.

Transports connect ranks wherever they run; the ranks of one host meet here instead, whatever connects the hosts:

    segments     memory without a name, passed as a file descriptor
    rendezvous   which ranks can pass each other one: those form a host
    host_group   the ranks of a host: segments that all map, and exchanges, which are barriers that carry some bytes
    group_wait   one wait of a member for the others, and what is said when it is in vain

There are no locks in the memory itself, and nobody spins on it: who may read or write what is settled by exchanges.
"""

from __future__ import annotations

from distopt.comm.shared_memory.host_group import HostGroup, meet_on_host

__all__ = ["HostGroup", "meet_on_host"]
