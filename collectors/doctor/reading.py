"""The passive part: cores, limits, memory, clock and interpreter, from /proc and /sys. Some milliseconds, nothing changes."""

from __future__ import annotations

import ctypes
import os
import re
import resource
import sys
import sysconfig
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from ...engine.runs.manifest import SEGMENTS
from .cgroup import cpu_quota, memory_free_bytes
from .facts import Clock, Core, Cpu, Facts, IdleState, Pressure, Python, System
from .machine import Machine
from .needs import Needs
from .network import read_network

CPUS: Final = "sys/devices/system/cpu"
INITIAL_PID_NAMESPACE: Final = "pid:[4026531836]"  # PROC_PID_INIT_INO of linux/proc_ns.h
CAP_SYS_NICE: Final = 23
NICE_WANTED: Final = 30  # RLIMIT_NICE that permits -10: 20 - niceness (getrlimit(2))
STA_UNSYNC: Final = 0x40
VERSION: Final = re.compile(r"^__version__ = ['\"](.+)['\"]", re.MULTILINE)
WATCHED: Final = frozenset({"irqbalance", "chronyd", "ntpd", "ntpd-rs", "systemd-timesyn", "phc2sys"})


def read_facts(
    needs: Needs, machine: Machine | None = None, *, tmpfs: Path = SEGMENTS.parent, tap_refusal: str | None = None
) -> Facts:
    """All passive facts. `tap_refusal`: what engine.wire.tap says on packet sockets; only cli may ask it."""
    machine = machine or Machine()
    return Facts(
        needs=needs,
        cpu=_cpu(machine, needs),
        network=read_network(machine, needs),
        system=_system(machine, tmpfs, tap_refusal),
    )


def _cpu(machine: Machine, needs: Needs) -> Cpu:
    no_turbo = machine.number(f"{CPUS}/intel_pstate/no_turbo")
    boost = machine.number(f"{CPUS}/cpufreq/boost")
    turbo = not no_turbo if no_turbo is not None else bool(boost) if boost is not None else None
    nodes = machine.cpus("sys/devices/system/node/online")
    return Cpu(
        cores=tuple(_core(machine, cpu) for cpu in sorted({*needs.worker_cores})),
        turbo=turbo,
        isolated=machine.cpus(f"{CPUS}/isolated"),
        tickless=machine.cpus(f"{CPUS}/nohz_full"),
        nodes=len(nodes) if nodes else None,
        clocksource=machine.text("sys/devices/system/clocksource/clocksource0/current_clocksource"),
    )


def _core(machine: Machine, cpu: int) -> Core:
    at = f"{CPUS}/cpu{cpu}"
    siblings = machine.cpus(f"{at}/topology/thread_siblings_list")
    states = []
    for directory in machine.listed(f"{at}/cpuidle", "state*"):
        inside = f"{at}/cpuidle/{directory.name}"
        latency, off = machine.number(f"{inside}/latency"), machine.number(f"{inside}/disable")
        if latency is not None:
            states.append(IdleState(machine.text(f"{inside}/name") or directory.name, latency, not off))
    nodes = machine.listed(at, "node[0-9]*")
    return Core(
        cpu=cpu,
        governor=machine.text(f"{at}/cpufreq/scaling_governor"),
        energy_preference=machine.text(f"{at}/cpufreq/energy_performance_preference"),
        siblings=None if siblings is None else siblings - {cpu},
        idle_states=tuple(states) or None,
        node=int(nodes[0].name.removeprefix("node")) if nodes else None,
    )


def _system(machine: Machine, tmpfs: Path, tap_refusal: str | None) -> System:
    nice, real_time = _priority(machine)
    processes = _processes(machine)
    free = None
    with suppress(OSError):
        status = os.statvfs(tmpfs)
        free = status.f_bavail * status.f_frsize
    descriptors = None
    if machine.real:
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        descriptors = 1 << 30 if hard == resource.RLIM_INFINITY else hard
    return System(
        host=_is_host(machine),
        python=_python(),
        processes=processes,
        pressure=Pressure(*(_pressure(machine, name) for name in ("cpu", "memory", "io"))),
        clock=_clock(processes) if machine.real and not _filtered(machine) else Clock(),
        descriptors=descriptors,
        cpu_quota=cpu_quota(machine),
        tmpfs=str(tmpfs),
        tmpfs_free_bytes=free,
        memory_free_bytes=memory_free_bytes(machine),
        may_raise_priority=nice,
        may_run_in_real_time=real_time,
        tap_refusal=tap_refusal,
    )


def _is_host(machine: Machine) -> bool:
    """Does /proc list the processes of the machine? A container has its own, and ProtectProc= hides those of others."""
    with suppress(OSError):
        initial = os.readlink(machine.root / "proc/self/ns/pid") == INITIAL_PID_NAMESPACE
        return initial and machine.text("proc/1/comm") is not None
    return False


def _filtered(machine: Machine) -> bool:
    """Is there a seccomp filter? It may kill a process for a system call that it does not know: no check is worth that."""
    lines = (machine.text("proc/self/status") or "").splitlines()
    return any(line.startswith("Seccomp:") and line.split()[1] != "0" for line in lines)


def _processes(machine: Machine) -> frozenset[str]:
    """Those of WATCHED that run."""
    names = (machine.text(f"proc/{each.name}/comm") for each in machine.listed("proc", "[0-9]*"))
    return frozenset(name for name in names if name in WATCHED)


def _pressure(machine: Machine, resource_name: str) -> float | None:
    """`avg10` of the line `some`, as a share."""
    for line in (machine.text(f"proc/pressure/{resource_name}") or "").splitlines():
        if line.startswith("some avg10="):
            return float(line.split()[1].removeprefix("avg10=")) / 100
    return None


def _priority(machine: Machine) -> tuple[bool | None, bool | None]:
    """Whether a worker may set its niceness to -10, and whether it may run in real time."""
    capable = None
    for line in (machine.text("proc/self/status") or "").splitlines():
        if line.startswith("CapEff:"):
            capable = bool(int(line.split()[1], 16) >> CAP_SYS_NICE & 1)
    if capable is None or capable or not machine.real:
        return capable, capable
    nice, real_time = (resource.getrlimit(each)[0] for each in (resource.RLIMIT_NICE, resource.RLIMIT_RTPRIO))
    unlimited = resource.RLIM_INFINITY
    return nice == unlimited or nice >= NICE_WANTED, real_time == unlimited or real_time >= 1


class _Timex(ctypes.Structure):
    """`struct timex` of adjtimex(2), as far as it is read."""

    _fields_ = (
        ("modes", ctypes.c_uint),
        ("offset", ctypes.c_long),
        ("freq", ctypes.c_long),
        ("maxerror", ctypes.c_long),
        ("esterror", ctypes.c_long),
        ("status", ctypes.c_int),
        ("rest", ctypes.c_char * 256),
    )


def _clock(processes: frozenset[str]) -> Clock:
    daemon = next((name for name in sorted(processes) if name != "irqbalance"), None)
    timex = _Timex()  # modes 0: only reads
    if ctypes.CDLL(None, use_errno=True).adjtimex(ctypes.byref(timex)) < 0:
        return Clock(daemon=daemon)
    return Clock(not timex.status & STA_UNSYNC, timex.maxerror / 1000, daemon)


def _python() -> Python:
    slow = []
    if hasattr(sys, "gettotalrefcount"):
        slow.append("a debug build")
    if sys.flags.dev_mode:
        slow.append("development mode (PYTHONDEVMODE)")
    if sys.gettrace() or sys.getprofile():
        slow.append("a tracer or profiler")
    slow += [f"{name} is set" for name in ("PYTHONTRACEMALLOC", "PYTHONMALLOC") if os.environ.get(name)]
    if not getattr(sys, "_is_gil_enabled", lambda: True)():
        slow.append("a free-threaded build")
    return Python(
        version=sys.version.split()[0],
        slow=tuple(slow),
        unoptimized="--enable-optimizations" not in (sysconfig.get_config_var("CONFIG_ARGS") or "")
        and "-fprofile-use" not in (sysconfig.get_config_var("PY_CFLAGS_NODIST") or ""),
        uvloop=_uvloop(),
    )


def _uvloop() -> str | None:
    """Its version. Not from importlib.metadata, whose import alone takes 20 ms of the start of a run."""
    spec = find_spec("uvloop")
    if spec is None or not spec.submodule_search_locations:
        return None
    match = None
    with suppress(OSError):
        match = VERSION.search((Path(spec.submodule_search_locations[0]) / "_version.py").read_text())
    return match[1] if match else "version not known"
