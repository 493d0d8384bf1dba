"""Checks of cores, clocks and load. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Final

from ..bounds import STEAL_BOUND, STEAL_NOTICE
from .facts import Core, Facts
from .finding import Finding, judged, unknown

IDLE_EXIT_US: Final = 50  # the promise for the p99 of an arrival stamp's error
SIBLING_BUSY: Final = 0.3
OTHERS_BUSY: Final = 0.3  # cores, all together
OTHERS_SHARE: Final = 0.05  # or this share of the cores that the run may use, if that is more
PRESSURE: Final = {"cpu": 0.2, "memory": 0.02, "io": 0.3}
GOOD_CLOCKS: Final = frozenset({"tsc", "kvm-clock", "arch_sys_counter", "hyperv_clocksource_tsc_page", "xen", "pvclock", "riscv_clocksource"})  # fmt: skip
BAD_CLOCKS: Final = frozenset({"jiffies", "refined-jiffies"})
HOST: Final = "run `lens doctor` on the host itself"


def listed(cpus: Iterable[int]) -> str:
    """CPUs as the kernel writes them: 0-3,8."""
    parts: list[list[int]] = []
    for cpu in sorted(cpus):
        if parts and cpu == parts[-1][-1] + 1:
            parts[-1] = [parts[-1][0], cpu]
        else:
            parts.append([cpu])
    return ",".join("-".join(map(str, part)) for part in parts)


def _by_value(cores: Iterable[Core], field: str) -> str:
    """The values of a field and which cores have them: performance on 0-3."""
    groups: dict[str, list[int]] = {}
    for core in cores:
        groups.setdefault(str(getattr(core, field)), []).append(core.cpu)
    return ", ".join(f"{value} on {listed(cpus)}" for value, cpus in sorted(groups.items()))


def governor(facts: Facts) -> Finding:
    bound = "performance"
    if any(core.governor is None for core in facts.cpu.cores) or not facts.cpu.cores:
        return unknown(bound, HOST)
    good = all(core.governor == "performance" for core in facts.cpu.cores)
    return judged(good, _by_value(facts.cpu.cores, "governor"), bound, "cpupower frequency-set -g performance")


def energy_preference(facts: Facts) -> Finding:
    bound = "performance or balance_performance"
    if any(core.energy_preference is None for core in facts.cpu.cores) or not facts.cpu.cores:
        return unknown(bound, HOST)
    fast = {"performance", "balance_performance", "default", "0"}
    good = all(core.energy_preference in fast for core in facts.cpu.cores)
    cure = "echo performance | tee /sys/devices/system/cpu/cpu*/cpufreq/energy_performance_preference"
    return judged(good, _by_value(facts.cpu.cores, "energy_preference"), bound, cure)


def turbo(facts: Facts) -> Finding:
    if facts.cpu.turbo is None:
        return unknown("off", HOST)
    cure = "echo 1 > /sys/devices/system/cpu/intel_pstate/no_turbo, or echo 0 > /sys/devices/system/cpu/cpufreq/boost"
    return judged(not facts.cpu.turbo, "on" if facts.cpu.turbo else "off", "off", cure)


def idle_states(facts: Facts) -> Finding:
    bound = f"exit latency <= {IDLE_EXIT_US} us"
    known = [(core, state) for core in facts.cpu.cores for state in core.idle_states or () if state.enabled]
    if not known:
        return unknown(bound, HOST)
    core, deepest = max(known, key=lambda each: each[1].exit_us)
    value = f"{deepest.name}, {deepest.exit_us} us, on core {core.cpu}"
    return judged(deepest.exit_us <= IDLE_EXIT_US, value, bound, f"cpupower idle-set -D {IDLE_EXIT_US}")


def smt_siblings(facts: Facts) -> Finding:
    bound = f"siblings of worker cores <= {SIBLING_BUSY:.0%} busy"
    if not facts.cpu.cores or any(core.siblings is None for core in facts.cpu.cores):
        return unknown(bound, HOST)
    siblings = {cpu for core in facts.cpu.cores for cpu in core.siblings or ()}
    if not siblings:
        return Finding("ok", "no core has a sibling", bound)
    if facts.window is None:
        return unknown(bound)
    shares = {cpu: facts.window.busy[cpu] for cpu in siblings if cpu in facts.window.busy}
    if not shares:
        return unknown(bound, HOST)
    cpu = max(shares, key=lambda each: shares[each])
    cure = f"keep others off cores {listed(siblings)}: taskset -a -c -p CORES PID, AllowedCPUs= in their units, or turn SMT off: echo off > /sys/devices/system/cpu/smt/control"
    return judged(shares[cpu] <= SIBLING_BUSY, f"core {cpu} {shares[cpu]:.0%} busy", bound, cure)


def isolation(facts: Facts) -> Finding:
    bound = "workers use the isolated cores, pinned"
    isolated, tickless = facts.cpu.isolated, facts.cpu.tickless or frozenset()
    if isolated is None:
        return unknown(bound, HOST)
    value = f"isolcpus {listed(isolated) or 'none'}, nohz_full {listed(tickless) or 'none'}"
    workers = {*facts.needs.worker_cores}
    if not isolated | tickless:
        return Finding("ok", value, bound)
    if not facts.needs.pinned and isolated & workers:
        return Finding(
            "warn", value, bound, "workers: {pin: true}: the kernel does not spread processes over isolated cores"
        )
    good = workers <= isolated | tickless
    cure = f"start it with taskset -c {listed(isolated | tickless)} and a core for the rest"
    return judged(good, f"{value}, workers on {listed(workers)}", bound, cure)


def worker_cores(facts: Facts) -> Finding:
    needs = facts.needs
    bound = f"{needs.workers + 1} cores: one for each worker, one for the rest"
    value = f"{len(needs.usable_cores)} ({listed(needs.usable_cores)}) for {needs.workers} worker{'s' * (needs.workers > 1)}"
    cure = "fewer workers (--workers), more cores for this process (taskset, cpuset), or a larger machine"
    return judged(len(needs.usable_cores) > needs.workers, value, bound, cure)


def load_of_others(facts: Facts) -> Finding:
    most = max(OTHERS_BUSY, OTHERS_SHARE * len(facts.needs.usable_cores))
    bound = f"<= {most:g} cores"
    if facts.window is None or facts.window.others is None:
        return unknown(bound)
    window, usable = facts.window, facts.needs.usable_cores
    names = f": {', '.join(window.hogs[:3])}" if window.hogs else ""
    busy = facts.window.others
    value = f"{busy:.2f} of {len(usable)} cores{names}"
    pid = window.hogs[0].rpartition(" ")[2].rstrip(")") if window.hogs else "PID"
    cure = f"end it or move it off the worker cores {listed(facts.needs.worker_cores)}: taskset -a -c -p CORES {pid}"
    return judged(busy <= most, value, bound, cure)


def local_servers(facts: Facts) -> Finding:
    bound = "the plan's servers on other cores than the workers'"
    if facts.core_warnings is None:
        return unknown(bound, "give a PLAN")
    what, _, cure = facts.core_warnings[0].partition("; ") if facts.core_warnings else ("none", "", "")
    return judged(not facts.core_warnings, what, bound, cure)


def steal(facts: Facts) -> Finding:
    bound = f"<= {STEAL_NOTICE:.0%}; over {STEAL_BOUND:.0%} a run is INVALID"
    if facts.window is None or facts.window.steal is None:
        return unknown(bound)
    share = facts.window.steal
    cure = "a machine with dedicated cores; the hypervisor runs others on these"
    return judged(share <= STEAL_NOTICE, f"{share:.1%}", bound, cure)


def cpu_quota(facts: Facts) -> Finding:
    wanted = facts.needs.workers + 1
    bound = f">= {wanted} CPUs, below 1 no worker can run"
    quota = facts.system.cpu_quota
    if quota is None:
        return unknown(bound)
    if math.isinf(quota):
        return Finding("ok", "no limit", bound)
    cure = "raise cpu.max of the control group: docker update --cpus, resources.limits.cpu, CPUQuota="
    return judged(quota >= wanted, f"{quota:g} CPUs", bound, cure, otherwise="fail" if quota < 1 else "warn")


def throttling(facts: Facts) -> Finding:
    bound = "no period throttled"
    window = facts.window
    if window is None or window.throttled is None:
        return unknown(bound)
    value = f"{window.throttled} of {window.periods} periods in {window.seconds:.1f} s"
    cure = "raise cpu.max of the control group, or end what else runs in it (systemd-cgtop)"
    mostly = window.throttled > 1 and window.throttled * 2 > (window.periods or 0)
    return judged(window.throttled == 0, value, bound, cure, otherwise="fail" if mostly else "warn")


def _pressure(facts: Facts, name: str, cure: str) -> Finding:
    bound = f"some avg10 <= {PRESSURE[name]:.0%}"
    share: float | None = getattr(facts.system.pressure, name)
    if share is None:
        return unknown(bound, "psi=1 on the kernel's command line")
    return judged(share <= PRESSURE[name], f"{share:.1%}", bound, cure)


def pressure_cpu(facts: Facts) -> Finding:
    return _pressure(facts, "cpu", "end what else uses the CPUs: top, or systemd-cgtop")


def pressure_memory(facts: Facts) -> Finding:
    return _pressure(facts, "memory", "free memory: what swaps or reclaims stops everybody (smem, systemd-cgtop -m)")


def pressure_io(facts: Facts) -> Finding:
    return _pressure(facts, "io", "end what else writes (iotop), or give --out another disk")


def clocksource(facts: Facts) -> Finding:
    bound = "tsc, kvm-clock or another that is read without a system call"
    name = facts.cpu.clocksource
    if not name:
        return unknown(bound)
    cure = "echo tsc > /sys/devices/system/clocksource/clocksource0/current_clocksource; dmesg says why it was left"
    return judged(name in GOOD_CLOCKS, name, bound, cure, otherwise="fail" if name in BAD_CLOCKS else "warn")


def clock_sync(facts: Facts) -> Finding:
    bound = "synchronized: slewed, not stepped"
    clock = facts.system.clock
    if clock.synchronized is None:
        return unknown(bound, "`chronyc tracking` on the host")
    daemon = f", {clock.daemon}" if clock.daemon else ""
    if clock.synchronized:
        return Finding("ok", f"synchronized, error <= {clock.error_ms or 0:.3g} ms{daemon}", bound)
    cure = "start chrony and wait until `chronyc waitsync` returns; in a container, on the host"
    return Finding("warn", f"not synchronized{daemon}", bound, cure)
