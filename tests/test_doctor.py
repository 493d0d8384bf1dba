"""`lens doctor`: every fault that can be planted is found by its check, a healthy machine has none, the unknown is never ok."""

from __future__ import annotations

import math
from pathlib import Path
from socket import AF_INET
from typing import Any

import msgspec
import pytest

from llm_latency_lens.collectors.doctor.facts import CoreTiming, Facts, Pressure, Window
from llm_latency_lens.collectors.doctor.finding import Diagnosis
from llm_latency_lens.collectors.doctor.machine import Machine
from llm_latency_lens.collectors.doctor.needs import Needs, needs_of
from llm_latency_lens.collectors.doctor.reading import read_facts
from llm_latency_lens.collectors.doctor.table import ACTIVE, PASSIVE, examine, examine_passively
from llm_latency_lens.collectors.doctor.timing import core_timing
from llm_latency_lens.collectors.doctor.window import read_counters, window_between
from llm_latency_lens.engine.planfile.build import make_plan
from llm_latency_lens.engine.planfile.document import Source
from llm_latency_lens.engine.runs.reach import Reach
from llm_latency_lens.engine.wire.endpoint import Address

from .support_doctor import HEALTHY, NEEDS, NIC, facts_of, write_machine

CPUS = "sys/devices/system/cpu"
GROUP = "sys/fs/cgroup/lens.slice/run.scope"
QUIET = Window(
    seconds=0.35,
    busy=dict.fromkeys(range(4), 0.02),
    others=0.05,
    steal=0.0,
    throttled=0,
    periods=4,
    interrupts_per_s=dict.fromkeys(range(4), 50.0),
    drops=0,
)
GOOD_CORE = core_timing(
    2,
    timers_ns=[20_000] * 250,
    stamped_ns=[9_000] * 60,
    read_ns=[25_000] * 60,
    round_trips_ns=[60_000] * 60,
)
GOOD_PATH = Reach(
    "t",
    "10.0.0.2:80",
    Address(AF_INET, ("10.0.0.2", 80)),
    "done",
    dns_us=900.0,
    tcp_us=300.0,
    rtts_us=[250.0] * 12,
    handshakes=12,
    kept=True,
    detail="two requests on one connection",
)


def not_ok(diagnosis: Diagnosis) -> dict[str, str]:
    """Warnings and failures by name."""
    return {check.name: check.state for check in diagnosis.checks if check.state in ("warn", "fail")}


def changed(value: Any, **fields: Any) -> Any:
    return msgspec.structs.replace(value, **fields)


def clean(facts: Facts) -> Facts:
    """The facts of a healthy machine with what is not in files, as the readers return it on one. The interpreter that
    runs the tests may be an unoptimized build."""
    (interface,) = facts.network.interfaces or ()
    card = changed(interface, gro=True, lro=False, rx_usecs=8, adaptive_rx=False)
    clock = changed(facts.system.clock, synchronized=True, error_ms=0.2, daemon="chronyd")
    python = changed(facts.system.python, unoptimized=False, slow=())
    system = changed(facts.system, descriptors=524_288, clock=clock, python=python)
    network = changed(facts.network, interfaces=(card,))
    return Facts(
        needs=facts.needs,
        cpu=facts.cpu,
        network=network,
        system=system,
        window=QUIET,
        timing=(GOOD_CORE,),
        reached=(GOOD_PATH,),
        core_warnings=(),
    )


@pytest.fixture
def healthy(tmp_path: Path) -> Facts:
    return clean(facts_of(write_machine(tmp_path)))


@pytest.mark.parametrize("run", range(5))
def test_a_healthy_machine_has_nothing_to_cure(run: int, tmp_path: Path) -> None:
    """A check that always warns is not read any more."""
    diagnosis = examine(clean(facts_of(write_machine(tmp_path))))
    assert [check for check in diagnosis.checks if check.state != "ok"] == []
    assert diagnosis.state == "READY"


FILES: list[tuple[str, dict[str, str | None]]] = [
    ("governor", {f"{CPUS}/cpu3/cpufreq/scaling_governor": "powersave"}),
    ("energy_preference", {f"{CPUS}/cpu2/cpufreq/energy_performance_preference": "balance_power"}),
    ("turbo", {f"{CPUS}/intel_pstate/no_turbo": "0"}),
    ("turbo", {f"{CPUS}/intel_pstate/no_turbo": None, f"{CPUS}/cpufreq/boost": "1"}),
    ("idle_states", {f"{CPUS}/cpu2/cpuidle/state2/disable": "0"}),
    ("isolation", {f"{CPUS}/isolated": "1", f"{CPUS}/nohz_full": "1"}),
    ("numa_node", {f"{NIC}/device/numa_node": "0"}),
    ("nic_irqs", {"proc/irq/41/effective_affinity_list": "3"}),
    ("irqbalance", {"proc/800/comm": "irqbalance"}),
    ("packet_steering", {f"{NIC}/queues/rx-0/rps_cpus": "00000000,0000000c"}),
    ("packet_steering", {f"{NIC}/queues/tx-0/xps_cpus": "3"}),
    ("receive_offload", {f"{NIC}/gro_flush_timeout": "200000"}),
    ("lost_frames", {f"{NIC}/statistics/rx_missed_errors": "40000"}),
    ("cpu_quota", {f"{GROUP}/cpu.max": "150000 100000"}),
    ("cpu_quota", {"sys/fs/cgroup/lens.slice/cpu.max": "50000 100000"}),
    ("pressure_cpu", {"proc/pressure/cpu": "some avg10=55.00 avg60=0 avg300=0 total=1"}),
    ("pressure_memory", {"proc/pressure/memory": "some avg10=7.00 avg60=0 avg300=0 total=1"}),
    ("pressure_io", {"proc/pressure/io": "some avg10=61.00 avg60=0 avg300=0 total=1"}),
    ("clocksource", {"sys/devices/system/clocksource/clocksource0/current_clocksource": "hpet"}),
    ("ports", {"proc/sys/net/ipv4/ip_local_port_range": "50000 50999"}),
    ("ports", {"proc/sys/net/ipv4/ip_local_reserved_ports": "32768-59999"}),
    ("ports", {"proc/net/sockstat": "TCP: inuse 1 orphan 0 tw 27000 alloc 1 mem 0"}),
    ("somaxconn", {"proc/sys/net/core/somaxconn": "128"}),
    ("tcp_buffers", {"proc/sys/net/ipv4/tcp_rmem": "4096 16384 65536"}),
    ("slow_start_after_idle", {"proc/sys/net/ipv4/tcp_slow_start_after_idle": "1"}),
    ("conntrack", {"proc/sys/net/netfilter/nf_conntrack_count": "250000"}),
    ("memory", {"proc/meminfo": "MemAvailable: 400000 kB"}),
    ("memory", {f"{GROUP}/memory.max": "200000000", f"{GROUP}/memory.current": "150000000"}),
    ("priority", {"proc/self/status": "CapEff:\t0000000000000000"}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "changes"), FILES)
def test_a_fault_in_the_files_of_a_machine_is_found_by_its_check_and_no_other(
    name: str, changes: dict[str, str | None], tmp_path: Path
) -> None:
    """From the file to the finding, with the real readers; each has a cure."""
    diagnosis = examine(clean(facts_of(write_machine(tmp_path, changes))))
    assert set(not_ok(diagnosis)) == {name}
    (check,) = [check for check in diagnosis.checks if check.state != "ok"]
    assert check.cure
    assert check.value


WINDOWS: list[tuple[str, dict[str, Any]]] = [
    ("load_of_others", {"others": 1.1, "hogs": ("python (pid 4711)",)}),
    ("interrupt_load", {"interrupts_per_s": {0: 9.0, 1: 9.0, 2: 9.0, 3: 80_000.0}}),
    ("steal", {"steal": 0.03}),
    ("throttling", {"throttled": 1}),
    ("lost_frames", {"drops": 12}),
]
TIMINGS: list[tuple[str, dict[str, Any]]] = [
    ("timers", {"timer_p99_us": 4_000.0}),
    ("wakeups", {"wakeup_p99_us": 2_500.0}),
    ("loopback", {"rtt_p50_us": 900.0}),
    ("kernel_stamps", {"stamped_share": 0.0}),
    ("kernel_stamps", {"stamps_in_order": False}),
]
PATHS: list[tuple[str, dict[str, Any]]] = [
    ("target.t.dns", {"dns_us": 400_000.0}),
    ("target.t.dns", {"stage": "dns", "error": "cannot resolve"}),
    ("target.t.tcp", {"stage": "tcp", "error": "refused"}),
    ("target.t.tls", {"stage": "tls", "error": "certificate"}),
    ("target.t.tls", {"tls": True, "tls_us": 900_000.0}),
    ("target.t.rtt", {"rtts_us": [20_000.0] * 12}),
    ("target.t.loss", {"retransmits": 2}),
    ("target.t.keep_alive", {"kept": False}),
]


@pytest.mark.parametrize(("name", "fields"), WINDOWS)
def test_what_happens_while_the_machine_is_watched_is_found(name: str, fields: dict[str, Any], healthy: Facts) -> None:
    """Load, steal and throttling come and go: only a look over some time shows them."""
    assert set(not_ok(examine(changed(healthy, window=changed(QUIET, **fields))))) == {name}


@pytest.mark.parametrize(("name", "fields"), TIMINGS)
def test_a_core_that_is_slow_to_answer_is_found(name: str, fields: dict[str, Any], healthy: Facts) -> None:
    """One bad core among good ones is that worker's requests."""
    slow = changed(GOOD_CORE, cpu=3, **fields)
    assert set(not_ok(examine(changed(healthy, timing=(GOOD_CORE, slow))))) == {name}


@pytest.mark.parametrize(("name", "fields"), PATHS)
def test_a_bad_path_to_a_target_is_found(name: str, fields: dict[str, Any], healthy: Facts) -> None:
    """What is between the client and the server is in every latency."""
    path = Reach(**{**vars(GOOD_PATH), **fields})
    assert set(not_ok(examine(changed(healthy, reached=(path,))))) == {name}


def test_faults_that_are_in_no_file_are_found(healthy: Facts) -> None:
    """Limits, ioctls and system calls have no file that a test could change."""
    (card,) = healthy.network.interfaces or ()

    def with_card(**fields: Any) -> Facts:
        network = changed(healthy.network, interfaces=(changed(card, **fields),))
        return changed(healthy, network=network)

    def with_system(**fields: Any) -> Facts:
        return changed(healthy, system=changed(healthy.system, **fields))

    unsynchronized = changed(healthy.system.clock, synchronized=False)
    slow = changed(healthy.system.python, slow=("a debug build",))
    for name, facts in (
        ("receive_offload", with_card(lro=True)),
        ("interrupt_moderation", with_card(rx_usecs=125)),
        ("interrupt_moderation", with_card(adaptive_rx=True)),
        ("clock_sync", with_system(clock=unsynchronized)),
        ("descriptors", with_system(descriptors=1024)),
        ("tmpfs_room", with_system(tmpfs_free_bytes=14_000_000)),
        ("segment_stamps", with_system(tap_refusal="segment stamps need CAP_NET_RAW")),
        ("python", with_system(python=slow)),
        ("uvloop", with_system(python=changed(healthy.system.python, uvloop=None))),
        ("local_servers", changed(healthy, core_warnings=("llama (pid 9) runs on core 3; taskset -a -c -p CORES 9",))),
        ("worker_cores", changed(healthy, needs=changed(NEEDS, usable_cores=(2, 3)))),
    ):
        assert set(not_ok(examine(facts))) == {name}, name


def test_a_busy_sibling_is_found(tmp_path: Path) -> None:
    """The sibling of a worker's core shares its execution units: half of the core is gone."""
    siblings: dict[str, str | None] = {
        f"{CPUS}/cpu{i}/topology/thread_siblings_list": f"{i % 2},{i % 2 + 2}" for i in range(4)
    }
    facts = clean(facts_of(write_machine(tmp_path, siblings)))
    assert not_ok(examine(facts)) == {}
    busy = changed(facts, window=changed(QUIET, busy={0: 0.9, 1: 0.0, 2: 0.0, 3: 0.0}))
    assert set(not_ok(examine(busy))) == {"smt_siblings"}


def test_what_a_machine_does_not_show_is_unknown_and_never_ok(tmp_path: Path) -> None:
    """A container hides most of /sys. "ok" would be a statement about something that nobody saw."""
    facts = read_facts(NEEDS, Machine(tmp_path), tmpfs=Path("/dev/shm"))
    diagnosis = examine(facts)
    seen = {"worker_cores", "tmpfs_room", "python", "uvloop"}  # of this process, not of the files
    assert {check.name for check in diagnosis.checks if check.state != "unknown"} == seen
    assert all(check.value is None for check in diagnosis.checks if check.state == "unknown")
    assert diagnosis.state != "UNFIT"


def test_an_ordinary_container_is_not_unfit(tmp_path: Path) -> None:
    """Two cores, a quota of both, no /sys to speak of, no rights: a run there is no worse than it says."""
    hidden = [path for path in HEALTHY if path.startswith(("sys/devices", "sys/class"))]
    container: dict[str, str | None] = {
        **dict.fromkeys(hidden),
        "proc/self/ns/pid": "-> pid:[4026532201]",
        "proc/self/cgroup": "0::/",
        "sys/fs/cgroup/cpu.max": "200000 100000",
        "proc/self/status": "CapEff:\t00000000a80425fb",
        "proc/sys/net/netfilter/nf_conntrack_count": None,
        "proc/sys/net/netfilter/nf_conntrack_max": None,
    }
    needs = changed(NEEDS, workers=1, worker_cores=(1,), usable_cores=(0, 1))
    diagnosis = examine_passively(facts_of(write_machine(tmp_path, container), needs))
    states = {check.name: check.state for check in diagnosis.checks}
    assert diagnosis.state == "USABLE"
    assert states["irqbalance"] == states["conntrack"] == "unknown"  # the host's are not to be seen
    assert states["cpu_quota"] == "ok"


def test_processes_that_are_hidden_are_not_said_to_be_absent(tmp_path: Path) -> None:
    """systemd's ProtectProc=invisible leaves a service the machine's PID namespace and shows it its own processes only."""
    facts = facts_of(write_machine(tmp_path, {"proc/1/comm": None}))
    states = {check.name: check.state for check in examine_passively(facts).checks}
    assert states["irqbalance"] == "unknown"


def test_a_quota_below_one_cpu_is_unfit_also_in_control_groups_of_version_1(tmp_path: Path) -> None:
    """Such a worker stands still most of the time, whatever the rest of the machine is."""
    changes: dict[str, str | None] = {
        "proc/self/cgroup": "3:cpu,cpuacct:/docker/abc\n0::/",
        "sys/fs/cgroup/cpu,cpuacct/docker/abc/cpu.cfs_quota_us": "40000",
        "sys/fs/cgroup/cpu,cpuacct/docker/abc/cpu.cfs_period_us": "100000",
        "sys/fs/cgroup/cpu,cpuacct/docker/abc/cpu.stat": "nr_periods 10\nnr_throttled 4\nthrottled_time 1",
    }
    diagnosis = examine(clean(facts_of(write_machine(tmp_path, changes))))
    assert not_ok(diagnosis) == {"cpu_quota": "fail"}
    assert diagnosis.state == "UNFIT"
    assert next(check.value for check in diagnosis.checks if check.name == "cpu_quota") == "0.4 CPUs"


def test_the_window_is_the_difference_of_two_readings(tmp_path: Path) -> None:
    """Counters since boot say nothing on now."""
    machine = Machine(write_machine(tmp_path))
    before = read_counters(machine, NEEDS)
    (tmp_path / "proc/stat").write_text("cpu 0\n" + "".join(f"cpu{i} 80 0 0 110 0 0 0 10 0 0\n" for i in range(4)))
    (tmp_path / "proc/net/softnet_stat").write_text("00000010 0000000a 0\n" * 4)
    (tmp_path / "proc/interrupts").write_text(
        "  CPU0 CPU1 CPU2 CPU3\n40: 5 0 900 0 PCI-MSI nic0-rx-0\nLOC: 9 9 9 9 x\n"
    )
    (tmp_path / GROUP / "cpu.stat").write_text("nr_periods 110\nnr_throttled 7\n")
    after = changed(read_counters(machine, NEEDS), at_ns=before.at_ns + 1_000_000_000, own_s=before.own_s + 0.5)
    window = window_between(before, after, NEEDS)
    assert window.busy == pytest.approx(dict.fromkeys(range(4), 0.8))
    assert window.others == pytest.approx(4 * 0.8 - 0.5)
    assert window.steal == pytest.approx(0.1)
    assert (window.throttled, window.periods, window.drops) == (7, 10, 40)
    assert window.interrupts_per_s == {0: 0.0, 1: 0.0, 2: 900.0, 3: 0.0}


def plan_needs(servers: list[tuple[str, int]], **load: Any) -> Needs:
    document: dict[str, Any] = {
        "targets": [{"name": "t", "base_url": "http://10.0.0.2/v1", "model": "m", "fresh_connections": "rate" in load}],
        "phases": [{"name": "p", "duration": "5s", "load": load}],
    }
    return needs_of(make_plan(document, Source(), {}, default_name="doctor"), servers)


def test_a_plan_is_compared_with_the_limits(healthy: Facts) -> None:
    """20,000 requests in flight need as many descriptors and ports; without a plan nobody knows."""
    small = changed(healthy.system, descriptors=4096)
    needs = plan_needs([("10.0.0.2", 80)], concurrency=40_000)
    diagnosis = examine(changed(healthy, needs=changed(needs, usable_cores=tuple(range(9))), system=small))
    found = not_ok(diagnosis)
    assert found["descriptors"] == "fail"
    assert found["ports"] == "fail"
    assert diagnosis.state == "UNFIT"
    few = plan_needs([("10.0.0.2", 80)], concurrency=16)
    assert not {"descriptors", "ports"} & set(not_ok(examine(changed(healthy, needs=few, system=small))))


def test_connections_that_are_not_kept_wait_for_a_minute(healthy: Facts) -> None:
    """1,000 new connections a second hold 60,000 ports, with one request in flight."""
    needs = plan_needs([("10.0.0.2", 80)], rate=1000, max_in_flight=10)
    assert needs.new_connections_per_s == pytest.approx(1000)
    assert not_ok(examine(changed(healthy, needs=needs)))["ports"] == "fail"


def test_slow_start_after_idle_matters_only_to_targets_on_other_machines(healthy: Facts) -> None:
    """It is on by default everywhere: a warning to everybody is read by nobody."""
    on = changed(healthy, network=changed(healthy.network, slow_start_after_idle=True))
    for addresses, state in (((), "unknown"), (("127.0.0.1", "::1"), "ok"), (("127.0.0.1", "10.0.0.2"), "warn")):
        checks = examine(changed(on, needs=changed(NEEDS, addresses=addresses))).checks
        assert next(check.state for check in checks if check.name == "slow_start_after_idle") == state


def test_targets_on_loopback_need_no_network_interface(tmp_path: Path) -> None:
    """The card of a machine has no part in a measurement over loopback."""
    needs = plan_needs([("127.0.0.1", 8000), ("::1", 8000)], concurrency=4)
    assert needs.loopback_only
    facts = read_facts(needs)
    assert facts.network.interfaces == ()


def test_the_statistics_of_a_core_are_of_its_samples() -> None:
    """A stamp before its send, or after its read, is of another clock."""
    good = core_timing(0, [10_000, 20_000, 30_000], [5_000, 7_000, 9_000], [15_000, 17_000, 29_000], [50_000, 70_000])
    assert (good.timer_p50_us, good.wakeup_p50_us, good.rtt_p50_us) == (20.0, 10.0, 60.0)
    assert (good.stamped_share, good.stamp_after_send_p50_us, good.stamps_in_order) == (1.0, 7.0, True)
    assert core_timing(0, [1, 2], [-900_000, 5_000], [15_000, 15_000], []).stamps_in_order is False
    none = core_timing(0, [1, 2], [], [15_000, 15_000], [])
    assert (none.stamped_share, none.stamps_in_order, none.rtt_p50_us) == (0.0, None, None)


def test_cores_that_did_not_answer_are_unknown(healthy: Facts) -> None:
    """Nothing was measured: that is neither good nor bad."""
    states = {check.name: check.state for check in examine(changed(healthy, timing=(CoreTiming(cpu=3),))).checks}
    assert {states[name] for name in ("timers", "wakeups", "loopback", "kernel_stamps")} == {"unknown"}


def test_every_check_says_why_it_matters_and_has_a_name_of_its_own() -> None:
    """The name is what a run's summary keeps."""
    rules = [*PASSIVE, *ACTIVE]
    assert len({rule.name for rule in rules}) == len(rules)
    assert all(rule.why for rule in rules)


def test_no_pressure_is_not_the_same_as_none_shown(healthy: Facts) -> None:
    """A kernel without psi=1 has no file: 0 would be a guess."""
    facts = changed(healthy, system=changed(healthy.system, pressure=Pressure(), cpu_quota=math.inf))
    states = {check.name: check.state for check in examine(facts).checks}
    assert {states[f"pressure_{name}"] for name in ("cpu", "memory", "io")} == {"unknown"}
    assert states["cpu_quota"] == "ok"
