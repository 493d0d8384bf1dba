"""Each tick is clean, or says why this client was limited in it."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import numpy as np
import pytest

from llm_latency_lens.collectors.bounds import LIMITED_MINIMUM
from llm_latency_lens.collectors.checkpoint import Health
from llm_latency_lens.collectors.health import Moment, count_ticks, host_growth, host_shares, limited_ticks
from llm_latency_lens.collectors.host import Sample
from llm_latency_lens.collectors.snapshot import Client
from llm_latency_lens.collectors.tick_health import LIMITS, Grown, LimitedTicks, harmful, limits_of
from llm_latency_lens.collectors.verdict import Facts, judge
from llm_latency_lens.engine.records.lag import LAG_BUCKETS
from tests.support_collector import MS, SECOND, START
from tests.support_lens import finish, manifest_of, running
from tests.support_simulator import simulator

CASES: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    # reason, at its bound, past it
    ("ring_drops", {"drops": 0}, {"drops": 1}),
    ("clock_step", {"clock_steps": 0}, {"clock_steps": 1}),
    ("worker_restart", {"restarts": 0}, {"restarts": 1}),
    ("throttled", {"throttled_share": 0.01}, {"throttled_share": 0.011}),
    ("gc", {"gc_pause_share": 0.01}, {"gc_pause_share": 0.011}),
    ("steal", {"steal_share": 0.05}, {"steal_share": 0.051}),
    ("starved", {"run_queue_wait_share": 0.05}, {"run_queue_wait_share": 0.051}),
    ("cpu", {"cpu_utilisation": 0.9}, {"cpu_utilisation": 0.91}),
    ("stopped", {"stalled_share": 0.0}, {"stalled_share": 0.05}),
    ("memory", {"memory_pressure_share": 0.1}, {"memory_pressure_share": 0.11}),
    ("slow_disk", {"write_wait_share": 0.1}, {"write_wait_share": 0.11}),
    ("retransmits", {"retransmit_share": 0.01, "retransmits": 10}, {"retransmit_share": 0.011, "retransmits": 10}),
    ("retransmits", {"retransmit_share": 0.5, "retransmits": 9}, {"retransmit_share": 0.5, "retransmits": 10}),
]


def found(**given: Any) -> list[str]:
    grown = {name: given.pop(name) for name in list(given) if name in Grown._fields}
    return limits_of(Client(**given), Grown(**grown))


@pytest.mark.parametrize(("reason", "within", "past"), CASES)
def test_a_reason_holds_past_its_bound_and_not_at_it(reason: str, within: dict[str, Any], past: dict[str, Any]) -> None:
    assert found(**within) == []
    assert found(**past) == [reason]


def test_every_reason_is_proven() -> None:
    assert {limit.code for limit in LIMITS} == {reason for reason, _, _ in CASES}


def test_readings_that_a_machine_does_not_have_are_no_reason() -> None:
    """Kernels without pressure accounting or control groups must not look limited."""
    assert found() == []


def test_only_the_cause_is_named() -> None:
    """Who reads `starved` looks for other load; a worker at its own CPU limit waits without any."""
    assert found(throttled_share=0.5, run_queue_wait_share=0.4, stalled_share=0.1) == ["throttled"]
    assert found(run_queue_wait_share=0.4, stalled_share=0.1) == ["starved", "stopped"]


def test_segment_stamps_protect_what_a_late_worker_reads() -> None:
    assert harmful(["starved", "stopped"], "read")
    assert not harmful(["starved", "stopped"], "segment")
    assert harmful(["starved", "gc"], "segment")
    assert not harmful(["slow_disk", "memory", "retransmits"], "read")


def codes(ticks: LimitedTicks) -> tuple[str, list[tuple[str, bool]]]:
    judged = judge(Facts(Client(), ok=100, sent=100, limited=ticks))
    return judged.state, [(reason.code, reason.note) for reason in judged.reasons]


def test_a_run_is_invalid_if_over_a_fifth_of_its_ticks_were_harmed() -> None:
    """One bad second of a short run is a note: it says where to look, and the percentiles hold it as well."""
    by = (("gc", 3),)
    assert codes(LimitedTicks(100, 5, 5, by, "ticks 3-7")) == ("VALID", [])
    assert codes(LimitedTicks(100, 6, 6, by, "ticks 3-8")) == ("VALID", [("client_limited", True)])
    assert codes(LimitedTicks(15, 4, 4, by, "ticks 3-6")) == ("INVALID", [("client_limited", False)])
    assert codes(LimitedTicks(15, 15, 0, by, "ticks 0-14")) == ("VALID", [("client_limited", True)])
    few = LIMITED_MINIMUM - 1
    assert codes(LimitedTicks(few, few, few, by, "ticks 0-1")) == ("VALID", [("client_limited", True)])


def test_the_runs_ticks_are_counted_by_reason() -> None:
    health = Health()
    count_ticks(health, Client(), START, START + SECOND, 1)
    count_ticks(health, Client(limited_by={"gc": 1}), START + SECOND, START + 2 * SECOND, 1)
    count_ticks(health, Client(limited_by={"gc": 1, "starved": 1}), START + 2 * SECOND, START + 4 * SECOND, 2)
    count_ticks(health, Client(limited_by={"starved": 1}, stamps="segment"), START + 5 * SECOND, START + 6 * SECOND, 1)
    assert limited_ticks(health) == LimitedTicks(5, 4, 3, (("gc", 3), ("starved", 3)))
    assert health.limited_spans == [(START + SECOND, START + 4 * SECOND), (START + 5 * SECOND, START + 6 * SECOND)]


def moment(now_ns: int, **sample: Any) -> Moment:
    usual: dict[str, Any] = {"processes": {}, "steal": None, "total": None, "retransmits": None}
    return Moment(now_ns=now_ns, counters={}, lag=np.zeros(LAG_BUCKETS, np.int64), sample=Sample(**usual | sample))


def test_throttling_is_that_of_the_worst_group_and_only_what_was_seen_to_grow() -> None:
    """A group that a worker has just moved into brings its past along, which is not this tick's."""
    before = moment(START, throttled_ns={"/a": 10 * MS, "/b": 0}, cpu_pressure_ns=5)
    now = moment(
        START + SECOND, throttled_ns={"/a": 40 * MS, "/b": 20 * MS, "/new": SECOND}, cpu_pressure_ns=5 + 7 * MS
    )
    growth = host_growth(before, now)
    assert growth == {"throttled_ns": 30 * MS, "cpu_pressure_ns": 7 * MS, "write_wait_ns": 0}
    shares = host_shares(growth, SECOND)
    assert shares == {"throttled_share": 0.03, "cpu_pressure_share": 0.007, "write_wait_share": 0.0}


def test_retransmits_are_a_share_of_what_was_sent() -> None:
    growth = host_growth(
        moment(START, segments_sent=100, retransmits=1), moment(START + SECOND, segments_sent=300, retransmits=5)
    )
    assert host_shares(growth, SECOND)["retransmit_share"] == 4 / 200


@pytest.mark.slow
def test_a_stopped_worker_is_seen_in_the_tick_in_which_it_stood_still(tmp_path: Path) -> None:
    """Without it the server looks slow for a third of a second."""
    with (
        simulator(ttft_ms=20, itl_ms=5, tokens=20) as server,
        running("--base-url", f"{server.base_url}/v1", "--model", "m", "--workers", "1", "--duration", "4s", cwd=tmp_path) as run,
    ):  # fmt: skip
        segments, manifest = manifest_of(tmp_path)
        worker = next(pid for role, pid in manifest["pids"].items() if role.startswith("worker"))
        deadline = monotonic() + 20
        while not (segments / "snapshot.json").exists() and monotonic() < deadline:  # the first tick is over
            sleep(0.02)
        os.kill(worker, signal.SIGSTOP)
        sleep(0.3)  # how long the fault lasts
        os.kill(worker, signal.SIGCONT)
        ended = finish(run)
    assert ended.summary["client"]["limited_by"]["stopped"] in (1, 2)
    assert ended.summary["client"]["stalled_share"] > 0.2 / 6
    notes = {reason["code"]: reason["detail"] for reason in ended.summary["verdict"]["reasons"]}
    assert "stopped" in notes["client_limited"]
