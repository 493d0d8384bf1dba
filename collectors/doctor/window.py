"""What happens on the machine over a short time: load of others, steal, throttling, interrupts, lost frames."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from typing import Final

import msgspec
import psutil

from .cgroup import Throttling, throttling
from .facts import Window
from .machine import Machine
from .needs import Needs
from .network import carrying, interrupts_of_devices, lost_frames

TICK_S: Final = 1 / os.sysconf("SC_CLK_TCK")
IDLE: Final = (3, 4)  # of a line of /proc/stat: idle, iowait
STEAL: Final = 7
HOG_SHARE: Final = 0.1  # of a core: a process that uses more is named


class Counters(msgspec.Struct, frozen=True, kw_only=True):
    """Cumulated readings at one time. CPU times in clock ticks, (idle, steal) by core."""

    at_ns: int
    cores: dict[int, tuple[int, int]]
    own_s: float
    throttling: Throttling | None
    interrupts: dict[int, int] | None
    drops: int | None
    processes: dict[int, float] = {}


def read_counters(machine: Machine, needs: Needs) -> Counters:
    """All counters now."""
    interrupts = machine.text("proc/interrupts")
    own = os.times()
    return Counters(
        at_ns=time.monotonic_ns(),
        cores=core_times(machine.text("proc/stat") or ""),
        own_s=own.user + own.system + own.children_user + own.children_system,
        throttling=throttling(machine),
        interrupts=None if interrupts is None else interrupts_of_devices(interrupts),
        drops=_drops(machine, needs),
        processes=processor_times() if machine.real else {},
    )


def core_times(stat: str) -> dict[int, tuple[int, int]]:
    """(idle, steal) ticks of each core since boot."""
    found = {}
    for line in stat.splitlines():
        name, *words = line.split() or [""]
        if name.startswith("cpu") and name[3:].isdigit() and len(words) > STEAL:
            found[int(name[3:])] = sum(int(words[i]) for i in IDLE), int(words[STEAL])
    return found


def _drops(machine: Machine, needs: Needs) -> int | None:
    """Frames that interfaces lost, and packets that found the kernel's backlog full (softnet_stat, second column)."""
    softnet = machine.text("proc/net/softnet_stat")
    if softnet is None:
        return None
    rows = [line.split() for line in softnet.splitlines()]
    lost = [lost_frames(machine, name) or 0 for name in carrying(machine, needs) or ()]
    return sum(int(row[1], 16) for row in rows if len(row) > 1) + sum(lost)


def window_between(before: Counters, after: Counters, needs: Needs) -> Window:
    """The difference of two readings, for the cores that the run may use."""
    seconds = max(1e-9, (after.at_ns - before.at_ns) / 1e9)
    busy, stolen = {}, 0.0
    for cpu in after.cores.keys() & before.cores.keys():
        idle_s = (after.cores[cpu][0] - before.cores[cpu][0]) * TICK_S
        steal_s = (after.cores[cpu][1] - before.cores[cpu][1]) * TICK_S
        busy[cpu] = min(1.0, max(0.0, 1 - (idle_s + steal_s) / seconds))
        stolen += steal_s
    usable = [busy[cpu] for cpu in needs.usable_cores if cpu in busy]
    own = (after.own_s - before.own_s) / seconds
    throttled = periods = None
    if before.throttling is not None and after.throttling is not None:
        throttled = max(0, after.throttling.throttled - before.throttling.throttled)
        periods = max(0, after.throttling.periods - before.throttling.periods)
    rates = None
    if before.interrupts is not None and after.interrupts is not None:
        known = before.interrupts
        rates = {cpu: max(0, count - known.get(cpu, 0)) / seconds for cpu, count in after.interrupts.items()}
    return Window(
        seconds=seconds,
        busy=busy,
        hogs=busiest(before, after, frozenset(needs.usable_cores)),
        others=max(0.0, sum(usable) - own) if usable else None,
        steal=stolen / seconds / len(busy) if busy else None,
        throttled=throttled,
        periods=periods,
        interrupts_per_s=rates,
        drops=None if before.drops is None or after.drops is None else max(0, after.drops - before.drops),
    )


def processor_times() -> dict[int, float]:
    """Seconds of CPU of every process that is seen, by pid; 0.1 ms each."""
    found = {}
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            times = process.cpu_times()
            found[process.pid] = times.user + times.system
    return found


def busiest(before: Counters, after: Counters, cores: frozenset[int]) -> tuple[str, ...]:
    """The other processes that used over HOG_SHARE of a core and may run on `cores`, the busiest first."""
    least = HOG_SHARE * (after.at_ns - before.at_ns) / 1e9
    used = {pid: now - before.processes[pid] for pid, now in after.processes.items() if pid in before.processes}
    found = []
    for pid in sorted((pid for pid, cpu_s in used.items() if cpu_s > least), key=lambda pid: -used[pid]):
        with suppress(psutil.Error):
            process = psutil.Process(pid)
            if pid != os.getpid() and cores & {*process.cpu_affinity()}:
                found.append(f"{process.name()} (pid {pid})")
    return tuple(found)
