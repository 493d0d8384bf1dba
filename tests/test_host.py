"""The host's numbers: parsers on recorded /proc text, and one look at this very machine."""

from __future__ import annotations

import os

import pytest

from llm_latency_lens.collectors import host

STAT = "cpu  100 5 50 1000 10 1 2 40 30 3\ncpu0 100 5 50 1000 10 1 2 40 30 3\nintr 12\n"
SNMP = (
    "Ip: Forwarding DefaultTTL\nIp: 1 64\n"
    "Tcp: RtoAlgorithm RtoMin ActiveOpens RetransSegs InErrs\nTcp: 1 200 77 42 0\n"
    "Udp: InDatagrams\nUdp: 5\n"
)


def test_guest_time_is_not_counted_twice() -> None:
    assert host.steal_and_total(STAT) == (40, 100 + 5 + 50 + 1000 + 10 + 1 + 2 + 40)


def test_retransmits_are_found_by_name() -> None:
    assert host.retransmits(SNMP) == 42


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
