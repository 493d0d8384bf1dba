"""Checks of the interfaces that carry the targets, and of the kernel's network settings. Pure."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from .cpu_checks import HOST, listed
from .facts import Facts, Interface
from .finding import Finding, judged, unknown

MOVED_US: Final = 50  # the promise for the p99 of an arrival stamp's error
INTERRUPTS_PER_S: Final = 5_000.0  # at some us each, a few per cent of a core
LOST_SHARE: Final = 1e-5
PORTS_MIN: Final = 10_000
PORTS_SPARE: Final = 0.8  # of the free ports, the most that is planned for
TIME_WAIT_S: Final = 60  # TCP_TIMEWAIT_LEN of linux/tcp.h
BACKLOG_MIN: Final = 1024
BUFFER_MIN_BYTES: Final = 1 << 20
CONNTRACK_FULL: Final = 0.8


def _of_interfaces(facts: Facts, bound: str, judge: Callable[[Interface], Finding]) -> Finding:
    """The worst finding of all interfaces; ok where the targets are on loopback, unknown where the route is."""
    if facts.network.interfaces is None:
        return unknown(bound, HOST)
    if not facts.network.interfaces:
        return Finding("ok", "loopback only", bound)
    found = [judge(each) for each in facts.network.interfaces]
    return min(found, key=lambda each: ("fail", "warn", "unknown", "ok").index(each.state))


def numa(facts: Facts) -> Finding:
    bound = "interface and workers on one NUMA node"
    if facts.cpu.nodes == 1:
        return Finding("ok", "one node", bound)
    if facts.cpu.nodes is None:
        return unknown(bound, HOST)

    def judge(interface: Interface) -> Finding:
        nodes = {core.node for core in facts.cpu.cores}
        if interface.node is None or None in nodes:
            return unknown(bound, HOST)
        value = f"{interface.name} on node {interface.node}, workers on {', '.join(sorted(map(str, nodes)))}"
        return judged(nodes == {interface.node}, value, bound, f"numactl --cpunodebind={interface.node} lens run ...")

    return _of_interfaces(facts, bound, judge)


def irqs(facts: Facts) -> Finding:
    bound = "the interface's interrupts on other cores than the workers'"
    workers = {*facts.needs.worker_cores}

    def judge(interface: Interface) -> Finding:
        if interface.irqs is None:
            return unknown(bound, HOST)
        shared = [irq for irq in interface.irqs if irq.cpus <= workers]
        value = ", ".join(f"{irq.number} ({irq.name}) on {listed(irq.cpus)}" for irq in shared[:4])
        others = sorted({*facts.needs.usable_cores} - workers) or [0]
        cure = " ; ".join(f"echo {others[0]} > /proc/irq/{irq.number}/smp_affinity_list" for irq in shared[:4])
        return judged(not shared, value or f"{interface.name}: none", bound, cure)

    return _of_interfaces(facts, bound, judge)


def interrupt_load(facts: Facts) -> Finding:
    bound = f"<= {INTERRUPTS_PER_S:,.0f} a second on a worker core"
    rates = facts.window.interrupts_per_s if facts.window else None
    shown = {cpu: rates[cpu] for cpu in facts.needs.worker_cores if cpu in rates} if rates else {}
    if not shown:
        return unknown(bound, HOST)
    cpu = max(shown, key=lambda each: shown[each])
    cure = "move them: /proc/irq/NUMBER/smp_affinity_list (/proc/interrupts lists them)"
    return judged(shown[cpu] <= INTERRUPTS_PER_S, f"{shown[cpu]:,.0f} on core {cpu}", bound, cure)


def irqbalance(facts: Facts) -> Finding:
    bound = "not running"
    if "irqbalance" in facts.system.processes:
        cure = "systemctl stop irqbalance, or ban the worker cores: IRQBALANCE_BANNED_CPULIST"
        return Finding("warn", "running", bound, cure)
    return Finding("ok", "not running", bound) if facts.system.host else unknown(bound, HOST)


def packet_steering(facts: Facts) -> Finding:
    bound = "RPS to other cores than the workers'; XPS with a queue for each of them"
    workers = {*facts.needs.worker_cores}

    def judge(interface: Interface) -> Finding:
        rps, xps = interface.rps_cpus, interface.xps_cpus
        if rps is None:
            return unknown(bound, HOST)
        name = interface.name
        value = (
            f"{name}: rps_cpus {listed(rps) or 'off'}, xps_cpus {'not shown' if xps is None else listed(xps) or 'off'}"
        )
        if rps & workers:
            return Finding("warn", value, bound, f"echo 0 | tee /sys/class/net/{name}/queues/rx-*/rps_cpus")
        good = not xps or workers <= xps
        return judged(good, value, bound, f"echo 0 | tee /sys/class/net/{name}/queues/tx-*/xps_cpus")

    return _of_interfaces(facts, bound, judge)


def receive_offload(facts: Facts) -> Finding:
    bound = f"LRO off, gro_flush_timeout <= {MOVED_US} us"

    def judge(interface: Interface) -> Finding:
        name, flush = interface.name, interface.gro_flush_us
        words = {True: "on", False: "off", None: "not shown"}
        value = f"{name}: gro {words[interface.gro]}, lro {words[interface.lro]}"
        value += "" if flush is None else f", gro_flush_timeout {flush:g} us"
        if interface.lro:
            return Finding("warn", value, bound, f"ethtool -K {name} lro off")
        if flush is not None and flush > MOVED_US:
            return Finding("warn", value, bound, f"echo 0 > /sys/class/net/{name}/gro_flush_timeout")
        return unknown(bound, HOST) if interface.lro is None or flush is None else Finding("ok", value, bound)

    return _of_interfaces(facts, bound, judge)


def interrupt_moderation(facts: Facts) -> Finding:
    bound = f"rx-usecs <= {MOVED_US}, adaptive-rx off"

    def judge(interface: Interface) -> Finding:
        if interface.rx_usecs is None:
            return unknown(bound, HOST)
        value = (
            f"{interface.name}: rx-usecs {interface.rx_usecs}, adaptive-rx {'on' if interface.adaptive_rx else 'off'}"
        )
        good = interface.rx_usecs <= MOVED_US and not interface.adaptive_rx
        return judged(good, value, bound, f"ethtool -C {interface.name} adaptive-rx off rx-usecs 10")

    return _of_interfaces(facts, bound, judge)


def lost_frames(facts: Facts) -> Finding:
    bound = f"<= {LOST_SHARE:.3%} of the received since boot, none now"

    def judge(interface: Interface) -> Finding:
        if interface.drops is None or interface.packets is None:
            return unknown(bound, HOST)
        value = f"{interface.name}: {interface.drops} of {interface.packets}"
        cure = f"ethtool -S {interface.name} says which; longer rings: ethtool -G {interface.name} rx 4096"
        return judged(interface.drops <= LOST_SHARE * interface.packets, value, bound, cure)

    if facts.window is not None and facts.window.drops:
        value = f"{facts.window.drops} packets in {facts.window.seconds:.1f} s"
        return Finding(
            "warn", value, bound, "sysctl -w net.core.netdev_max_backlog=10000; ethtool -S says what the card lost"
        )
    return _of_interfaces(facts, bound, judge)


def ports(facts: Facts) -> Finding:
    needs, network = facts.needs, facts.network
    cure = "sysctl -w net.ipv4.ip_local_port_range='1024 65535', more target addresses, or kept connections"
    if not needs.planned or (needs.in_flight is None and not needs.new_connections_per_s):
        bound = f">= {PORTS_MIN:,} free"
        if network.ports is None:
            return unknown(bound)
        free = network.ports - (network.time_wait or 0)
        return judged(free >= PORTS_MIN, _ports_text(facts, free), bound, cure)
    wanted = int((needs.in_flight or 0) + needs.new_connections_per_s * TIME_WAIT_S)
    bound = f">= {wanted:,} for the plan: requests in flight, and {TIME_WAIT_S} s of the connections that are not kept"
    if network.ports is None:
        return unknown(bound)
    # A port is taken once for each destination; whose the waiting ones are is not known.
    free = network.ports * needs.destinations - (network.time_wait or 0)
    good, enough = wanted <= free * PORTS_SPARE and network.ports >= min(PORTS_MIN, 2 * wanted), wanted <= free
    return judged(good, _ports_text(facts, free), bound, cure, otherwise="warn" if enough else "fail")


def _ports_text(facts: Facts, free: int) -> str:
    many = facts.needs.destinations > 1
    times = f" x {facts.needs.destinations} destinations" * many
    return f"{free:,} free: {facts.network.ports:,}{times} less {facts.network.time_wait or 0:,} in TIME_WAIT"


def somaxconn(facts: Facts) -> Finding:
    wanted = max(BACKLOG_MIN, facts.needs.in_flight or 0) if facts.needs.loopback_only else BACKLOG_MIN
    bound = f">= {min(wanted, 65_535)}"
    value = facts.network.somaxconn
    if value is None:
        return unknown(bound)
    return judged(
        value >= min(wanted, 65_535), str(value), bound, f"sysctl -w net.core.somaxconn={min(wanted, 65_535)}"
    )


def tcp_buffers(facts: Facts) -> Finding:
    bound = f"largest >= {BUFFER_MIN_BYTES >> 20} MiB, both"
    rmem, wmem = facts.network.tcp_rmem, facts.network.tcp_wmem
    if rmem is None or wmem is None:
        return unknown(bound)
    good = min(rmem[2], wmem[2]) >= BUFFER_MIN_BYTES
    value = f"tcp_rmem {' '.join(map(str, rmem))}, tcp_wmem {' '.join(map(str, wmem))}"
    cure = "sysctl -w net.ipv4.tcp_rmem='4096 131072 6291456' net.ipv4.tcp_wmem='4096 16384 4194304'"
    return judged(good, value, bound, cure)


def slow_start(facts: Facts) -> Finding:
    bound = "0, unless all targets are on loopback"
    value = facts.network.slow_start_after_idle
    if value is None:
        return unknown(bound)
    if value and not facts.needs.addresses:
        return Finding("unknown", "1", bound, "give a PLAN: it matters to targets on other machines")
    good = not value or facts.needs.loopback_only
    return judged(good, str(int(value)), bound, "sysctl -w net.ipv4.tcp_slow_start_after_idle=0")


def conntrack(facts: Facts) -> Finding:
    wanted = facts.needs.in_flight or 0
    bound = f"<= {CONNTRACK_FULL:.0%} full" + f" with {wanted:,} connections more" * bool(wanted)
    count, most = facts.network.conntrack_count, facts.network.conntrack_max
    if count is None or most is None:
        return Finding("ok", "not loaded", bound) if facts.system.host else unknown(bound, HOST)
    good = most == 0 or count + wanted <= CONNTRACK_FULL * most
    cure = f"sysctl -w net.netfilter.nf_conntrack_max={max(262_144, 2 * (count + wanted))}"
    return judged(good, f"{count:,} of {most:,}", bound, cure, otherwise="fail" if count + wanted > most else "warn")
