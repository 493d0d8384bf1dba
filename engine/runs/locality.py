"""Targets on this very machine: a server that shares the workers' cores is slowed by them, and keeps them waiting."""

from __future__ import annotations

import ipaddress
from collections.abc import Collection, Iterable
from contextlib import suppress
from typing import NamedTuple

import psutil

from ..plan.plan import Plan
from ..wire.tap.filters import Server


class LocalServer(NamedTuple):
    """A server on this machine. `pid` is 0 and `cores` empty where the system does not say who listens."""

    server: Server
    pid: int
    name: str
    cores: frozenset[int]


def local_servers(servers: Iterable[Server]) -> list[LocalServer]:
    """Those of the servers that have an address of this machine, with the process that listens there."""
    own: set[str] = set()
    with suppress(OSError):  # no AF_NETLINK, as in a hardened unit: loopback is known without asking
        own = {str(entry.address).partition("%")[0] for entries in psutil.net_if_addrs().values() for entry in entries}
    here = [
        each for each in sorted({*servers}) if each.address in own or ipaddress.ip_address(each.address).is_loopback
    ]
    if not here:
        return []
    listening: dict[int, int] = {}
    with suppress(psutil.Error, OSError):
        for connection in psutil.net_connections(kind="tcp"):
            if connection.status == psutil.CONN_LISTEN and connection.pid and connection.laddr:
                listening.setdefault(connection.laddr[1], connection.pid)
    return [_described(server, listening.get(server.port, 0)) for server in here]


def _described(server: Server, pid: int) -> LocalServer:
    with suppress(psutil.Error):
        if pid:
            process = psutil.Process(pid)
            return LocalServer(server, pid, process.name(), frozenset(process.cpu_affinity() or ()))
    return LocalServer(server, 0, "", frozenset())


def wants_real_time(plan: Plan, local: Collection[LocalServer]) -> bool:
    """Should the workers run before everything else on their cores? Not by default beside a server on this machine:
    it would not get them."""
    return plan.workers.realtime == "on" or (plan.workers.realtime == "auto" and not local)


def core_warnings(servers: Iterable[LocalServer], worker_cores: Collection[int]) -> list[str]:
    """A line for each server that may run on the workers' cores, with the way out. `worker_cores`: empty if not pinned."""
    lines = []
    for server in servers:
        shared = server.cores & {*worker_cores} if worker_cores else server.cores
        if server.pid and not shared:
            continue
        who = f"{server.name} (pid {server.pid})" if server.pid else f"the server on port {server.server.port}"
        where = f" on core {', '.join(map(str, sorted(shared)))}" if shared else ""
        cure = f"keep it off them: taskset -a -c -p CORES {server.pid}" if server.pid else "keep it off their cores"
        lines.append(f"{who} runs on this machine and may take turns with the workers{where}; {cure}")
    return lines
