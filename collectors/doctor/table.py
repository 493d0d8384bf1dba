"""All checks, in the order in which they are shown."""

from __future__ import annotations

from typing import Final

from . import active_checks, cpu_checks, network_checks, system_checks
from .facts import Facts
from .finding import Diagnosis, Rule, diagnosed

# From readings alone: some milliseconds, so that every run has them.
PASSIVE: Final = (
    Rule("worker_cores", "a worker that shares its core is late when the other runs", cpu_checks.worker_cores),
    Rule("governor", "a core that has slowed down needs up to ms to speed up: events after a pause cost more", cpu_checks.governor),
    Rule("energy_preference", "a power-saving preference keeps a core slow at low load", cpu_checks.energy_preference),
    Rule("turbo", "clock speed follows heat and load: CPU per event and the ceiling differ between runs", cpu_checks.turbo),
    Rule("idle_states", "leaving a deep C-state delays the read of every event that arrives at an idle core", cpu_checks.idle_states),
    Rule("isolation", "on isolated cores nothing is spread: a worker that is not pinned shares one core with all others", cpu_checks.isolation),
    Rule("numa_node", "packets that cross NUMA nodes cost more time per read", network_checks.numa),
    Rule("nic_irqs", "interrupts on a worker's core stop the worker", network_checks.irqs),
    Rule("irqbalance", "it moves interrupts to other cores in the middle of a run", network_checks.irqbalance),
    Rule("packet_steering", "RPS has the worker's core process packets of others, XPS may keep it from a queue of its own", network_checks.packet_steering),
    Rule("receive_offload", "packets that are held back and merged move tokens together: gaps of 0 and of twice the length", network_checks.receive_offload),
    Rule("interrupt_moderation", "the card waits so long before it reports a packet: every arrival is late by up to that", network_checks.interrupt_moderation),
    Rule("lost_frames", "lost frames are retransmitted 200 ms later, and look like a stall of the server", network_checks.lost_frames),
    Rule("cpu_quota", "a process that has used its quota stands still for the rest of the period, up to 100 ms", cpu_checks.cpu_quota),
    Rule("pressure_cpu", "tasks wait for a CPU: so will the workers", cpu_checks.pressure_cpu),
    Rule("pressure_memory", "reclaiming memory stops the workers", cpu_checks.pressure_memory),
    Rule("pressure_io", "a slow disk delays the collector's files, not the latencies", cpu_checks.pressure_io),
    Rule("clocksource", "a slow clock costs CPU with each event, a coarse one is the error of all times", cpu_checks.clocksource),
    Rule("clock_sync", "a clock that is stepped in a run moves its kernel stamps, and its wall times fit no other machine's", cpu_checks.clock_sync),
    Rule("descriptors", "each request in flight holds a file", system_checks.descriptors),
    Rule("ports", "each connection to one address holds a local port, for 60 s longer if this side closed it", network_checks.ports),
    Rule("somaxconn", "a server on this machine refuses or delays connections beyond its backlog", network_checks.somaxconn),
    Rule("tcp_buffers", "small buffers slow long prompts and replies", network_checks.tcp_buffers),
    Rule("slow_start_after_idle", "a long prompt on a connection that was idle takes more round trips, which are in its TTFT", network_checks.slow_start),
    Rule("conntrack", "a full table drops new connections", network_checks.conntrack),
    Rule("tmpfs_room", "rings that are too small drop records while the collector is away", system_checks.tmpfs_room),
    Rule("memory", "without memory a worker is killed, or everything swaps", system_checks.memory),
    Rule("priority", "what else runs on a worker's core goes first", system_checks.priority),
    Rule("segment_stamps", "a token that is read late keeps its own arrival time only with packet sockets", system_checks.segment_stamps),
    Rule("python", "a debug or unoptimized interpreter costs more CPU with each event", system_checks.python),
    Rule("uvloop", "the workers' event loop", system_checks.uvloop),
)  # fmt: skip

# From a look at the machine over a short time, and measurements on the workers' cores.
ACTIVE: Final = (
    Rule("load_of_others", "what else runs takes turns with the workers", cpu_checks.load_of_others),
    Rule("local_servers", "a server and a worker on one core slow each other", cpu_checks.local_servers),
    Rule("smt_siblings", "a busy sibling takes turns with the worker at the core's execution units", cpu_checks.smt_siblings),
    Rule("interrupt_load", "each interrupt stops the worker for some us", network_checks.interrupt_load),
    Rule("steal", "the hypervisor stops a core without a trace in this machine's clocks", cpu_checks.steal),
    Rule("throttling", "a throttled group stands still for up to 100 ms at a time", cpu_checks.throttling),
    Rule("timers", "a request is sent when a timer fires: what it is late by, the request is", active_checks.timers),
    Rule("wakeups", "how long a token waits for its worker", active_checks.wakeups),
    Rule("loopback", "the round trip that a server on this machine cannot go below", active_checks.loopback),
    Rule("kernel_stamps", "the arrival time of every token", active_checks.kernel_stamps),
)  # fmt: skip


def examine(facts: Facts) -> Diagnosis:
    """The result of all checks, those of each target that was tried included."""
    targets = [
        Rule(f"target.{reach.target}.{name}", why, active_checks.of_target(judge, reach))
        for reach in facts.reached
        for name, why, judge in active_checks.TARGET_CHECKS
    ]
    return diagnosed([*PASSIVE, *ACTIVE, *targets], facts)


def examine_passively(facts: Facts) -> Diagnosis:
    """The result of the checks that need readings only."""
    return diagnosed(PASSIVE, facts)
