"""A healthy bare-metal machine as files, for `lens doctor` to read: /proc and /sys below a directory, to be spoilt one by one."""

from __future__ import annotations

from pathlib import Path

from llm_latency_lens.collectors.doctor.facts import Facts
from llm_latency_lens.collectors.doctor.machine import Machine
from llm_latency_lens.collectors.doctor.needs import Needs
from llm_latency_lens.collectors.doctor.reading import read_facts
from llm_latency_lens.engine.runs.placement import Rings

CORES = range(4)
WORKERS = (2, 3)
NIC = "sys/class/net/nic0"
HEALTHY = {
    "sys/devices/system/cpu/intel_pstate/no_turbo": "1",
    "sys/devices/system/cpu/isolated": "2-3",
    "sys/devices/system/cpu/nohz_full": "2-3",
    "sys/devices/system/node/online": "0-1",
    "sys/devices/system/clocksource/clocksource0/current_clocksource": "tsc",
    "proc/self/stat": "1 (lens) R",
    "proc/self/cgroup": "0::/lens.slice/run.scope",
    "sys/fs/cgroup/cpu.stat": "usage_usec 1",
    "sys/fs/cgroup/lens.slice/run.scope/cpu.max": "max 100000",
    "sys/fs/cgroup/lens.slice/run.scope/cpu.stat": "usage_usec 1\nnr_periods 100\nnr_throttled 0",
    "sys/fs/cgroup/lens.slice/run.scope/memory.max": "max",
    "proc/meminfo": "MemTotal: 32000000 kB\nMemAvailable: 16000000 kB",
    "proc/pressure/cpu": "some avg10=0.10 avg60=0 avg300=0 total=1",
    "proc/pressure/memory": "some avg10=0.00 avg60=0 avg300=0 total=1\nfull avg10=0.00 avg60=0 avg300=0 total=0",
    "proc/pressure/io": "some avg10=1.00 avg60=0 avg300=0 total=1",
    "proc/self/status": "Name:\tlens\nCapEff:\t000001ffffffffff",
    "proc/self/ns/pid": "-> pid:[4026531836]",
    "proc/1/comm": "systemd",
    "proc/700/comm": "chronyd",
    "proc/net/route": "Iface Destination Gateway\nnic0 00000000 0100A8C0\nnic0 0000A8C0 00000000",
    "proc/net/sockstat": "sockets: used 9\nTCP: inuse 1 orphan 0 tw 13 alloc 1 mem 0",
    "proc/sys/net/ipv4/ip_local_port_range": "32768\t60999",
    "proc/sys/net/ipv4/ip_local_reserved_ports": "",
    "proc/sys/net/ipv4/tcp_rmem": "4096\t131072\t6291456",
    "proc/sys/net/ipv4/tcp_wmem": "4096\t16384\t4194304",
    "proc/sys/net/ipv4/tcp_slow_start_after_idle": "0",
    "proc/sys/net/core/somaxconn": "4096",
    "proc/sys/net/netfilter/nf_conntrack_count": "120",
    "proc/sys/net/netfilter/nf_conntrack_max": "262144",
    "proc/interrupts": "     CPU0 CPU1 CPU2 CPU3\n 40: 5 0 0 0 PCI-MSI nic0-rx-0\n 41: 0 7 0 0 PCI-MSI nic0-tx-0\nLOC: 1 1 1 1 timer",
    "proc/irq/40/effective_affinity_list": "0",
    "proc/irq/41/effective_affinity_list": "1",
    f"{NIC}/device/numa_node": "1",
    f"{NIC}/gro_flush_timeout": "0",
    f"{NIC}/queues/rx-0/rps_cpus": "00000000,00000000",
    f"{NIC}/queues/tx-0/xps_cpus": "f",
    f"{NIC}/statistics/rx_packets": "10000000",
    f"{NIC}/statistics/rx_errors": "3",
    f"{NIC}/statistics/rx_missed_errors": "3",
    "proc/stat": "cpu 0 0 0 400 0 0 0 0 0 0\n" + "".join(f"cpu{i} 0 0 0 100 0 0 0 0 0 0\n" for i in CORES),
    "proc/net/softnet_stat": "00000010 00000000 00000000\n" * 4,
}  # fmt: skip
for _cpu in CORES:
    _at = f"sys/devices/system/cpu/cpu{_cpu}"
    HEALTHY |= {
        f"{_at}/cpufreq/scaling_governor": "performance",
        f"{_at}/cpufreq/energy_performance_preference": "performance",
        f"{_at}/topology/thread_siblings_list": str(_cpu),
        f"{_at}/cpuidle/state0/name": "POLL",
        f"{_at}/cpuidle/state0/latency": "0",
        f"{_at}/cpuidle/state0/disable": "0",
        f"{_at}/cpuidle/state1/name": "C1E",
        f"{_at}/cpuidle/state1/latency": "10",
        f"{_at}/cpuidle/state1/disable": "0",
        f"{_at}/cpuidle/state2/name": "C6",
        f"{_at}/cpuidle/state2/latency": "170",
        f"{_at}/cpuidle/state2/disable": "1",
        f"{_at}/node1/cpulist": "0-3",
    }
NEEDS = Needs(
    planned=False,
    workers=len(WORKERS),
    worker_cores=WORKERS,
    usable_cores=tuple(CORES),
    pinned=True,
    in_flight=None,
    descriptors_per_worker=10_064,
    new_connections_per_s=0.0,
    destinations=1,
    rings=Rings(requests=4096, gaps=1 << 20, ticks=128),
    addresses=("10.0.0.2",),
)


def write_machine(root: Path, changes: dict[str, str | None] | None = None) -> Path:
    """The healthy machine with some files changed (None: missing) below `root`."""
    for path, text in (HEALTHY | (changes or {})).items():
        if text is not None:
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            if text.startswith("-> "):
                (root / path).symlink_to(text.removeprefix("-> "))
            else:
                (root / path).write_text(text + "\n")
    return root


def facts_of(root: Path, needs: Needs = NEEDS) -> Facts:
    """What the real reader makes of the files."""
    return read_facts(needs, Machine(root), tmpfs=Path("/dev/shm"), tap_refusal="")
