"""What the measuring machine went through: CPU and memory of our processes, steal, retransmits, and what it is.

Reads /proc through psutil and by hand; a process or counter that is gone is left out, never an error.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, NamedTuple, TypeVar

import psutil

PROC: Final = Path("/proc")
CGROUPS: Final = Path("/sys/fs/cgroup")
WORKER: Final = "worker"  # how the roles of workers begin
MEGABYTE: Final = 1_000_000

T = TypeVar("T")


class Usage(NamedTuple):
    """A process at one moment: user + system CPU since its start, and resident memory."""

    cpu_s: float
    rss_bytes: int


class Sample(NamedTuple):
    """The machine at one moment. All but `processes` are cumulated since boot: steal and total over all cores in clock
    ticks, segments of the network namespace, throttling of the workers' control groups and pressure in ns."""

    processes: dict[str, Usage]
    steal: int | None
    total: int | None
    retransmits: int | None
    segments_sent: int | None = None
    throttled_ns: Mapping[str, int] = MappingProxyType({})  # by control group, of those that have a limit or could have
    cpu_pressure_ns: int | None = None
    memory_pressure_ns: int | None = None
    io_pressure_ns: int | None = None

    @property
    def rss_mb_max(self) -> float | None:
        return max((usage.rss_bytes for usage in self.processes.values()), default=0) / MEGABYTE or None


def sample(pids: Mapping[str, int]) -> Sample:
    """Reads everything once. `pids` are the run's processes by role."""
    read = {role: usage for role, pid in pids.items() if (usage := _usage(pid)) is not None}
    steal, total = _read(PROC / "stat", steal_and_total) or (None, None)
    sent = _read(PROC / "net" / "snmp", segments)
    return Sample(
        read,
        steal,
        total,
        None if sent is None else sent[1],
        None if sent is None else sent[0],
        throttling(pid for role, pid in pids.items() if role.startswith(WORKER)),
        *(_read(PROC / "pressure" / resource, pressure_ns) for resource in ("cpu", "memory", "io")),
    )


def throttling(pids: Iterable[int], *, proc: Path = PROC, cgroups: Path = CGROUPS) -> dict[str, int]:
    """How long the control groups of these processes were throttled, ns by folder, over all their cores. Those above
    them are included: their limits hold as well (cgroups(7); version 2, and the `cpu` controller of version 1)."""
    found: dict[str, int] = {}
    for text in {text for pid in pids if (text := _read(proc / str(pid) / "cgroup", str)) is not None}:
        for folder in control_groups(text, cgroups):
            throttled = _read(folder / "cpu.stat", throttled_ns)
            if throttled is not None:
                found[str(folder)] = throttled
    return found


def control_groups(text: str, cgroups: Path = CGROUPS) -> Iterator[Path]:
    """The folders of a process's control groups that may limit its CPU, its own first, from its /proc/PID/cgroup."""
    for line in text.splitlines():
        _, controllers, path = line.split(":", 2)
        names = controllers.split(",")
        if names == [""]:
            root = cgroups
        elif "cpu" in names:
            root = cgroups / controllers
        else:
            continue
        own = root / path.lstrip("/")
        yield from (folder for folder in (own, *own.parents) if folder.is_relative_to(root))


def throttled_ns(stat: str) -> int:
    """The throttled time of a cpu.stat: `throttled_usec` of version 2, `throttled_time` of version 1."""
    fields = dict(line.split() for line in stat.splitlines())
    return int(fields["throttled_usec"]) * 1000 if "throttled_usec" in fields else int(fields["throttled_time"])


def pressure_ns(pressure: str) -> int:
    """How long some process waited for the resource (/proc/pressure, kernel's accounting/psi.rst)."""
    some = pressure.splitlines()[0].split()
    return int(some[-1].removeprefix("total=")) * 1000


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
    except (OSError, ValueError, LookupError):
        return None


def steal_and_total(stat: str) -> tuple[int, int]:
    """(steal, all) ticks of /proc/stat's first line. Guest time is already in user time (proc(5))."""
    fields = [int(field) for field in stat.split("\n", 1)[0].split()[1:9]]
    return fields[7], sum(fields)


def segments(snmp: str) -> tuple[int, int]:
    """Tcp (OutSegs, RetransSegs) of /proc/net/snmp: of the complete network namespace, since boot."""
    names, values = (line.split() for line in snmp.splitlines() if line.startswith("Tcp:"))
    return int(values[names.index("OutSegs")]), int(values[names.index("RetransSegs")])


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
