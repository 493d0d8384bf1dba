"""The host's numbers: parsers on recorded /proc text, and one look at this very machine."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from llm_latency_lens.collectors import host

STAT = "cpu  100 5 50 1000 10 1 2 40 30 3\ncpu0 100 5 50 1000 10 1 2 40 30 3\nintr 12\n"
SNMP = (
    "Ip: Forwarding DefaultTTL\nIp: 1 64\n"
    "Tcp: RtoAlgorithm RtoMin OutSegs RetransSegs InErrs\nTcp: 1 200 77 42 0\n"
    "Udp: InDatagrams\nUdp: 5\n"
)


def test_guest_time_is_not_counted_twice() -> None:
    assert host.steal_and_total(STAT) == (40, 100 + 5 + 50 + 1000 + 10 + 1 + 2 + 40)


def test_segments_are_found_by_name() -> None:
    """Kernels differ in the columns that they have."""
    assert host.segments(SNMP) == (77, 42)


def test_pressure_is_the_time_in_which_some_process_waited() -> None:
    """The averages of the kernel are over windows of their own, which are not our ticks."""
    some = "some avg10=84.14 avg60=52.72 avg300=17.14 total=5512003729\n"
    assert host.pressure_ns(some + "full avg10=0.00 avg60=0.00 avg300=0.00 total=7\n") == 5_512_003_729_000


@pytest.mark.parametrize(
    ("own", "folder", "stat", "ns"),
    [
        ("0::/a/b\n", "a/b", "usage_usec 9\nnr_throttled 1\nthrottled_usec 1500\n", 1_500_000),
        ("0::/a/b\n", "a", "throttled_usec 2\n", 2_000),
        ("4:memory:/x\n2:cpu,cpuacct:/a/b\n0::/\n", "cpu,cpuacct/a/b", "nr_throttled 1\nthrottled_time 77\n", 77),
    ],
)
def test_throttling_is_read_from_the_control_group_and_those_above_it(
    tmp_path: Path, own: str, folder: str, stat: str, ns: int
) -> None:
    """In a container the limit is that of a group above; nobody finds that out from the latencies."""
    for part in ("proc/7", f"cgroup/{folder}"):
        (tmp_path / part).mkdir(parents=True)
    (tmp_path / "proc/7/cgroup").write_text(own)
    (tmp_path / "cgroup" / folder / "cpu.stat").write_text(stat)
    found = host.throttling([7, 8], proc=tmp_path / "proc", cgroups=tmp_path / "cgroup")
    assert found == {str(tmp_path / "cgroup" / folder): ns}


@pytest.mark.parametrize(
    ("text", "model"),
    [
        ("processor\t: 0\nmodel name\t: Some CPU @ 3 GHz\nmodel name\t: other\n", "Some CPU @ 3 GHz"),
        ("processor\t: 0\nCPU implementer\t: 0x41\nCPU part\t: 0xd0c\n", "implementer 0x41 part 0xd0c"),
        ("", "unknown"),
    ],
)
def test_the_processor_has_a_name(text: str, model: str) -> None:
    assert host.cpu_model(text) == model


def test_a_sample_of_this_process_has_its_cpu_and_memory() -> None:
    taken = host.sample({"supervisor": os.getpid(), "gone": 2**22 - 1})
    assert set(taken.processes) == {"supervisor"}
    assert taken.processes["supervisor"].cpu_s > 0
    assert taken.rss_mb_max is not None
    assert taken.rss_mb_max > 1
    assert taken.total is not None
    assert taken.steal is not None
    assert taken.steal <= taken.total


def test_the_machine_is_described() -> None:
    reported = host.describe()
    assert reported["usable_threads"] >= 1
    assert reported["kernel"]
    assert reported["python"].startswith("3.")


def test_hosts_are_alike_by_what_they_are_and_not_by_their_names() -> None:
    """The runners of a CI are named anew each time; another kernel or processor is another host."""
    reported = host.describe()
    assert reported["host_hash"] == host.host_hash(reported)
    assert host.host_hash(reported | {"name": "other", "memory_mb": reported["memory_mb"]}) == reported["host_hash"]
    for key, value in (("cpu", "abacus"), ("kernel", "0.1"), ("memory_mb", 1), ("usable_threads", 4096)):
        assert host.host_hash(reported | {key: value}) != reported["host_hash"]
    assert host.identity({})["cpu"] is None  # a run of an older version
