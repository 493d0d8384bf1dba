"""What the measuring machine went through: CPU and memory of our processes, steal, retransmits, and what it is.

Reads /proc through psutil and by hand; a process or counter that is gone is left out, never an error.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar

import psutil

PROC: Final = Path("/proc")
MEGABYTE: Final = 1_000_000

T = TypeVar("T")


class Usage(NamedTuple):
    """A process at one moment: user + system CPU since its start, and resident memory."""

    cpu_s: float
    rss_bytes: int


class Sample(NamedTuple):
    """The machine at one moment. Steal and total are cumulated over all cores in clock ticks since boot."""

    processes: dict[str, Usage]
    steal: int | None
    total: int | None
    retransmits: int | None

    @property
    def rss_mb_max(self) -> float | None:
        return max((usage.rss_bytes for usage in self.processes.values()), default=0) / MEGABYTE or None


def sample(pids: Mapping[str, int]) -> Sample:
    """Reads everything once. `pids` are the run's processes by role."""
    read = {role: usage for role, pid in pids.items() if (usage := _usage(pid)) is not None}
    steal, total = _read(PROC / "stat", steal_and_total) or (None, None)
    return Sample(read, steal, total, _read(PROC / "net" / "snmp", retransmits))


def _usage(pid: int) -> Usage | None:
    try:
        process = psutil.Process(pid)
        with process.oneshot():
            times = process.cpu_times()
            return Usage(times.user + times.system, process.memory_info().rss)
    except psutil.Error:
        return None


def _read(path: Path, parse: Callable[[str], T]) -> T | None:
    try:
        return parse(path.read_text())
    except (OSError, ValueError, IndexError):
        return None


def steal_and_total(stat: str) -> tuple[int, int]:
    """(steal, all) ticks of /proc/stat's first line. Guest time is already in user time (proc(5))."""
    fields = [int(field) for field in stat.split("\n", 1)[0].split()[1:9]]
    return fields[7], sum(fields)


def retransmits(snmp: str) -> int:
    """Tcp RetransSegs of /proc/net/snmp: of the complete network namespace, since boot."""
    names, values = (line.split() for line in snmp.splitlines() if line.startswith("Tcp:"))
    return int(values[names.index("RetransSegs")])


# Of `describe`: what makes two machines alike for a measurement. Not the name: the runners of a CI all have their own.
IDENTITY: Final = ("cpu", "cores", "threads", "usable_threads", "memory_gb", "kernel", "machine")


def describe() -> dict[str, Any]:
    """What kind of machine this is, for summary.json's run.host."""
    found = _describe()
    return found | {"host_hash": host_hash(found)}


def identity(host: Mapping[str, Any]) -> dict[str, Any]:
    """What of a described host decides whether runs can be compared; None for what a description lacks."""
    memory = host.get("memory_mb")
    known = dict(host) | {"memory_gb": round(memory / 1000) if isinstance(memory, int | float) else None}
    return {name: known.get(name) for name in IDENTITY}


def host_hash(host: Mapping[str, Any]) -> str:
    """16 hex digits, the same for hosts of equal identity."""
    return hashlib.sha256(json.dumps(identity(host), sort_keys=True).encode()).hexdigest()[:16]


def _describe() -> dict[str, Any]:
    return {
        "name": platform.node(),
        "cpu": _read(PROC / "cpuinfo", cpu_model),
        "cores": psutil.cpu_count(logical=False),
        "threads": psutil.cpu_count(),
        "usable_threads": len(os.sched_getaffinity(0)),
        "memory_mb": round(psutil.virtual_memory().total / MEGABYTE),
        "kernel": platform.release(),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "governor": _read(Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"), str.strip),
        "clocksource": _read(Path("/sys/devices/system/clocksource/clocksource0/current_clocksource"), str.strip),
        "hypervisor": _read(PROC / "cpuinfo", lambda text: " hypervisor" in text),
    }


def cpu_model(cpuinfo: str) -> str:
    """The first processor's name; ARM has none and reports its implementer and part."""
    fields: dict[str, str] = {}
    for line in cpuinfo.splitlines():
        name, _, value = line.partition(":")
        fields.setdefault(name.strip(), value.strip())
    if "model name" in fields:
        return fields["model name"]
    return f"implementer {fields['CPU implementer']} part {fields['CPU part']}" if "CPU part" in fields else "unknown"
