"""The control group of this process, version 1 or 2: its CPU quota, its throttling, its memory (cgroups(7))."""

from __future__ import annotations

from typing import Final, NamedTuple

from .machine import Machine, fields_of

MOUNT: Final = "sys/fs/cgroup"
NO_LIMIT_BYTES: Final = 1 << 60  # version 1 writes a number near 2^63 for no limit


class Throttling(NamedTuple):
    periods: int
    throttled: int


def _levels(machine: Machine, controller: str) -> list[str]:
    """The directories of this process's group and all above it that hold the controller's files, the innermost first."""
    found: list[str] = []
    for line in (machine.text("proc/self/cgroup") or "").splitlines():
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        if controllers and controller not in controllers.split(","):
            continue
        mounts = [f"{MOUNT}/{controllers}", f"{MOUNT}/{controller}"] if controllers else [MOUNT, f"{MOUNT}/unified"]
        mount = next((each for each in mounts if machine.has(each)), None)
        if mount is None:
            continue
        parts = [part for part in path.split("/") if part and part != ".."]
        levels = ["/".join([mount, *parts[:depth]]) for depth in range(len(parts), -1, -1)]
        found += [level for level in levels if machine.has(level)]
    return found


def cpu_quota(machine: Machine) -> float | None:
    """CPUs that the group may use, the least of all levels; inf without a limit, None if no group is seen."""
    quotas = []
    for level in _levels(machine, "cpu"):
        words = (machine.text(f"{level}/cpu.max") or "").split()
        if len(words) == 2:
            quotas.append(float("inf") if words[0] == "max" else int(words[0]) / int(words[1]))
        quota, period = machine.number(f"{level}/cpu.cfs_quota_us"), machine.number(f"{level}/cpu.cfs_period_us")
        if quota is not None and period:
            quotas.append(float("inf") if quota < 0 else quota / period)
        if machine.has(f"{level}/cpu.stat") and not words and quota is None:
            quotas.append(float("inf"))  # the root group has no cpu.max, nor any limit
    return min(quotas, default=None)


def throttling(machine: Machine) -> Throttling | None:
    """The periods of the level that was throttled most, since the group was made."""
    found = []
    for level in _levels(machine, "cpu"):
        stat = fields_of(machine.text(f"{level}/cpu.stat"))
        if "nr_throttled" in stat:
            found.append(Throttling(stat.get("nr_periods", 0), stat["nr_throttled"]))
    if not found:
        return Throttling(0, 0) if cpu_quota(machine) == float("inf") else None
    return max(found, key=lambda each: each.throttled)


def memory_free_bytes(machine: Machine) -> int | None:
    """What may still be allocated: of the machine and of the group, the less. File cache that can be dropped is free."""
    lines = (machine.text("proc/meminfo") or "").splitlines()
    free = [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    for level in _levels(machine, "memory"):
        names = ("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes")
        for limit_name, usage_name in names:
            limit, usage = machine.number(f"{level}/{limit_name}"), machine.number(f"{level}/{usage_name}")
            if limit is not None and usage is not None and limit < NO_LIMIT_BYTES:
                cache = fields_of(machine.text(f"{level}/memory.stat")).get("inactive_file", 0)
                free.append(max(0, limit - usage + cache))
    return min(free, default=None)
