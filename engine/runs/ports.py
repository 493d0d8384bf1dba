"""Local ports: every connection to a server takes one, and the side that closes first keeps it for a minute longer.

Linux gives them out of net.ipv4.ip_local_port_range, anew for each destination. With net.ipv4.tcp_tw_reuse it takes one
again after a second: 1 everywhere, 2 (its default) on loopback (ip(7), tcp(7)).
"""

from __future__ import annotations

import ipaddress
import re
from pathlib import Path
from time import monotonic
from typing import Final
from urllib.parse import urlsplit

from ..plan.plan import Plan, Target

PROC: Final = Path("/proc")
_in_use = re.compile(r"^TCP6?: inuse (\d+)", re.MULTILINE).findall
_in_time_wait = re.compile(r"^TCP: .* tw (\d+)", re.MULTILINE).findall
TIME_WAIT_S: Final = 60.0
REUSE_S: Final = 1.0
WARN_AT: Final = 0.8  # of the ports there are
LOOK_EVERY_S: Final = 1.0
WAY_OUT: Final = (
    "widen net.ipv4.ip_local_port_range, set net.ipv4.tcp_tw_reuse=1, or keep connections (no fresh_connections)"
)


def available(proc: Path = PROC) -> int:
    """How many local ports there are for one destination; the most there can be if this machine does not say."""
    low, high = _read(proc / "sys/net/ipv4/ip_local_port_range", "1 65535").split()
    return int(high) - int(low) + 1


def _read(path: Path, otherwise: str) -> str:
    try:
        return path.read_text()
    except OSError:
        return otherwise


def held_s(target: Target, proc: Path = PROC) -> float:
    """How long a closed connection to the target keeps its port."""
    reuse = _read(proc / "sys/net/ipv4/tcp_tw_reuse", "0").strip()
    return REUSE_S if reuse == "1" or (reuse == "2" and _loopback(target)) else TIME_WAIT_S


def _loopback(target: Target) -> bool:
    host = urlsplit(target.base_url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def foreseen(plan: Plan, proc: Path = PROC) -> list[str]:
    """A warning for each target whose connections will want more local ports than there are."""
    total, weights = available(proc), sum(target.weight for target in plan.targets)
    warnings = []
    for target in plan.targets:
        share = target.weight / weights
        held = held_s(target, proc)
        wanted = 0.0
        for load in (phase.load for phase in plan.phases):
            peak = max(max(shape.start, shape.end) for shape in load.shapes) * share
            if load.model == "closed":
                wanted = max(wanted, peak)
            elif target.fresh_connections:
                wanted = max(wanted, peak * held)
        if wanted > total * WARN_AT:
            why = (
                f"each is held for {held:g} s after its close"
                if target.fresh_connections
                else "one per request in flight"
            )
            warnings.append(
                f"target {target.name!r} will want {wanted:,.0f} local ports ({why}), there are {total:,}; {WAY_OUT}"
            )
    return warnings


class PortWatch:
    """Looks at the ports in use while a run goes on. `look()` may be called often."""

    def __init__(self, plan: Plan, proc: Path = PROC) -> None:
        self._proc = proc
        self._waiting = any(held_s(target, proc) > REUSE_S for target in plan.targets)  # does TIME_WAIT take a port?
        self._next = 0.0
        self._told = False

    def taken(self) -> int:
        """The TCP sockets of this network namespace that hold a port, whoever's they are."""
        told = _read(self._proc / "net/sockstat", "") + _read(self._proc / "net/sockstat6", "")
        taken = sum(map(int, _in_use(told)))
        return taken + sum(map(int, _in_time_wait(told))) if self._waiting else taken

    def look(self) -> str | None:
        """A warning, once, when the ports are about to run out."""
        if self._told or monotonic() < self._next:
            return None
        self._next = monotonic() + LOOK_EVERY_S
        taken, total = self.taken(), available(self._proc)
        if taken <= total * WARN_AT:
            return None
        self._told = True
        return f"{taken:,} of {total:,} local ports are taken, connects will fail with EADDRNOTAVAIL; {WAY_OUT}"
