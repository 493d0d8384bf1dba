"""What was read and measured, as values. None: the machine does not show it; it never stands for zero or for no.

Everything is of the cores, interfaces and limits that the run would use.
"""

from __future__ import annotations

import msgspec

from ...engine.runs.reach import Reach
from .needs import Needs


class IdleState(msgspec.Struct, frozen=True):
    """One C-state of a core: what leaving it takes, at most."""

    name: str
    exit_us: int
    enabled: bool


class Core(msgspec.Struct, frozen=True, kw_only=True):
    """One logical CPU of a worker. `siblings` share its physical core, itself left out."""

    cpu: int
    governor: str | None = None
    energy_preference: str | None = None
    siblings: frozenset[int] | None = None
    idle_states: tuple[IdleState, ...] | None = None
    node: int | None = None


class Cpu(msgspec.Struct, frozen=True, kw_only=True):
    cores: tuple[Core, ...] = ()
    turbo: bool | None = None
    isolated: frozenset[int] | None = None
    tickless: frozenset[int] | None = None  # nohz_full
    nodes: int | None = None
    clocksource: str | None = None


class Irq(msgspec.Struct, frozen=True):
    """One interrupt line of an interface and the CPUs that serve it."""

    number: int
    name: str
    cpus: frozenset[int]


class Interface(msgspec.Struct, frozen=True, kw_only=True):
    """A network interface that carries the targets' traffic; loopback is none.

    `drops` are frames that the hardware or the driver lost since boot, of `packets` received.
    """

    name: str
    node: int | None = None  # None also where the kernel says -1
    irqs: tuple[Irq, ...] | None = None
    rps_cpus: frozenset[int] | None = None
    xps_cpus: frozenset[int] | None = None  # all its queues together; empty: not used
    gro_flush_us: float | None = None
    gro: bool | None = None
    lro: bool | None = None
    rx_usecs: int | None = None
    adaptive_rx: bool | None = None
    packets: int | None = None
    drops: int | None = None


class Network(msgspec.Struct, frozen=True, kw_only=True):
    """`interfaces` None: the route to the targets is not known."""

    interfaces: tuple[Interface, ...] | None = None
    ports: int | None = None  # local ports for outgoing connections, reserved ones left out
    time_wait: int | None = None
    somaxconn: int | None = None
    tcp_rmem: tuple[int, int, int] | None = None
    tcp_wmem: tuple[int, int, int] | None = None
    slow_start_after_idle: bool | None = None
    conntrack_count: int | None = None
    conntrack_max: int | None = None


class Pressure(msgspec.Struct, frozen=True):
    """`avg10` of /proc/pressure: the share of the last 10 s in which some task waited."""

    cpu: float | None = None
    memory: float | None = None
    io: float | None = None


class Clock(msgspec.Struct, frozen=True):
    """adjtimex(2) of this machine, and the daemon that disciplines the clock, if one is seen."""

    synchronized: bool | None = None
    error_ms: float | None = None
    daemon: str | None = None


class Python(msgspec.Struct, frozen=True, kw_only=True):
    """The interpreter that workers run on. `slow` lists what makes it slower than a release build."""

    version: str
    slow: tuple[str, ...] = ()
    unoptimized: bool = False
    uvloop: str | None = None


class System(msgspec.Struct, frozen=True, kw_only=True):
    """`host` True: this process sees the processes and tables of the machine itself, not a container's."""

    host: bool
    python: Python
    processes: frozenset[str] = frozenset()
    pressure: Pressure = Pressure()
    clock: Clock = Clock()
    descriptors: int | None = None  # hard limit
    cpu_quota: float | None = None  # CPUs; inf: no limit
    tmpfs: str = ""
    tmpfs_free_bytes: int | None = None
    memory_free_bytes: int | None = None
    may_raise_priority: bool | None = None
    may_run_in_real_time: bool | None = None
    tap_refusal: str | None = None  # why segments get no stamps of their own, empty where they do; None: not tried


class Window(msgspec.Struct, frozen=True, kw_only=True):
    """What happened on the machine while nobody measured. Shares are of one core, own CPU time left out of `others`."""

    seconds: float
    busy: dict[int, float]
    others: float | None = None  # of all usable cores together, in cores
    hogs: tuple[str, ...] = ()  # the processes that used most of it
    steal: float | None = None
    throttled: int | None = None  # periods
    periods: int | None = None
    interrupts_per_s: dict[int, float] | None = None  # of devices, by core
    drops: int | None = None


class CoreTiming(msgspec.Struct, frozen=True, kw_only=True):
    """Measured on one worker's core with a worker's priority, in us. None: the core did not answer in time."""

    cpu: int
    timer_p50_us: float | None = None
    timer_p99_us: float | None = None
    wakeup_p50_us: float | None = None
    wakeup_p99_us: float | None = None
    rtt_p50_us: float | None = None
    stamped_share: float | None = None
    stamp_after_send_p50_us: float | None = None
    stamps_in_order: bool | None = None  # every stamp lies between the send and the read of its message


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that the checks look at. Without an active part `window`, `timing` and `reached` are None or empty."""

    needs: Needs
    cpu: Cpu
    network: Network
    system: System
    window: Window | None = None
    timing: tuple[CoreTiming, ...] = ()
    reached: tuple[Reach, ...] = ()
    core_warnings: tuple[str, ...] | None = None  # servers on the workers' cores, as engine.runs.locality says it
