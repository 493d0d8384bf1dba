"""The driver's collector: what it makes of the ticks of several hosts is what one collector makes of all their requests."""

from __future__ import annotations

import gc
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_latency_lens.cli.processes.collect import collector_of
from llm_latency_lens.collectors.histogram import Histogram
from llm_latency_lens.collectors.hosts.merge import merged
from llm_latency_lens.collectors.hosts.tick import HostTick
from llm_latency_lens.collectors.series import Tally
from llm_latency_lens.collectors.snapshot import SNAPSHOT_DECODER, Report, Snapshot
from llm_latency_lens.engine.hosts.relay import FOLDER, TickFolder, incoming
from llm_latency_lens.engine.plan.plan import Plan
from llm_latency_lens.engine.runs.manifest import HostState, PhaseTimes
from tests.support_collector import MS, SECOND, START, fields, manifest, plan, slab
from tests.support_hosts import counts_by_tag
from tests.support_ticks import collected, rows_of

HOSTS = 3
REQUESTS = 240


def requests_of_hosts() -> list[dict[str, int]]:
    """Requests of some seconds, the later ones slower."""
    random = np.random.default_rng(3)
    return rows_of(np.sort(random.uniform(0, 5.5, REQUESTS)), random.lognormal(-3, 0.4, REQUESTS), targets=2)


def ticks_of_hosts(root: Path, run_plan: Plan, rows: Sequence[dict[str, int]]) -> list[TickFolder]:
    """What the collectors of the hosts leave for the driver; host i has every HOSTS-th request from i on."""
    folders = []
    for i in range(HOSTS):
        mine = [row for row in rows if row["request"] % HOSTS == i]
        collected(root / f"host-{i}", run_plan, mine, workers_total=HOSTS, first_worker=i)
        folders.append(TickFolder(root / f"host-{i}" / "segments" / FOLDER))
    return folders


def driven(
    root: Path,
    run_plan: Plan,
    folders: Sequence[TickFolder],
    *,
    killed_after: Collection[int] = (),
    lost: dict[int, int] | None = None,
    planned: int | None = None,
) -> tuple[Report, list[Snapshot], Path]:
    """The driver's report, its ticks and its run directory. Host i of `lost` sends only the ticks below the one given."""
    segments, run_dir = root / "segments", root / "run"
    segments.mkdir(parents=True)
    run_dir.mkdir()
    states = [HostState(name=f"h{i}", workers=1, first_worker=i, state="running", start_ns=START) for i in range(HOSTS)]
    phases = [PhaseTimes(start_ns=START, end_ns=START + 6 * SECOND, planned=planned)]
    driver = manifest(str(run_dir), run_plan, hosts=states, workers=HOSTS, phases=phases)
    driver.write(segments)
    collector = collector_of(segments)
    tick_ns, last = run_plan.output.tick_ns, max(folder.numbers()[-1] for folder in folders)
    for tick in range(last + 1):
        for i, folder in enumerate(folders):
            if tick in folder.numbers() and tick < (lost or {}).get(i, 1 << 30):
                TickFolder(incoming(segments, i)).put(tick, folder.read(tick))
        for i, end in (lost or {}).items():
            if tick >= end and states[i].state == "running":
                states[i].state, states[i].why, states[i].last_tick = "lost", "pulled", end - 1
                driver.write(segments)
        collector.clock = lambda tick=tick: START + (tick + 1) * tick_ns + 60 * MS  # type: ignore[misc]
        assert collector.turn() is None
        if tick in killed_after:
            del collector  # as the kernel does for a killed process: descriptors are closed, nothing is written
            gc.collect()
            collector = collector_of(segments)
    for state in states:
        state.state = "done" if state.state == "running" else state.state
    driver.state = "finished"
    driver.write(segments)
    collector.clock = lambda: START + (last + 2) * tick_ns
    report = collector.turn()
    assert report is not None
    lines = (run_dir / "intervals.jsonl").read_bytes().splitlines()
    return report, [SNAPSHOT_DECODER.decode(line) for line in lines], run_dir


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> tuple[Plan, list[dict[str, int]], list[TickFolder]]:
    run_plan, rows = plan(targets=2, rate=40.0, duration_ns=6 * SECOND), requests_of_hosts()
    return run_plan, rows, ticks_of_hosts(tmp_path_factory.mktemp("hosts"), run_plan, rows)


Hosts = tuple[Plan, list[dict[str, int]], list[TickFolder]]


def numbers(report: Report) -> dict[str, Any]:
    """All of a report that must not depend on the number of hosts. A mean is summed in another order."""
    built: dict[str, Any] = msgspec.to_builtins(report)
    for part in (built, *built["targets"], *built["run"]["phases"]):
        for metric in part["metrics"].values():
            for name in ("mean", "stddev"):
                metric[name] = None if metric[name] is None else round(metric[name], 5)
    return {name: built[name] for name in ("requests", "throughput", "tokens", "metrics", "targets", "failure_e2e_ms")}


def test_the_driver_reports_what_one_collector_of_all_requests_would(hosts: Hosts, tmp_path: Path) -> None:
    """Counts, percentiles and their intervals: merging loses nothing and averages nothing."""
    run_plan, rows, folders = hosts
    alone, ticks = collected(tmp_path / "alone", run_plan, rows)
    report, merged_ticks, run_dir = driven(tmp_path / "driver", run_plan, folders)
    assert numbers(report) == numbers(alone)
    assert counts_by_tag(run_dir / "intervals.hlog") == counts_by_tag(tmp_path / "alone" / "run" / "intervals.hlog")
    # One more, empty, may end the run: the driver had closed the last one before it knew that it was.
    assert [tick.ok_total for tick in merged_ticks[: len(ticks)]] == [tick.ok_total for tick in ticks]
    assert [host.requests.ok for host in report.run.hosts] == [REQUESTS // HOSTS] * HOSTS
    assert alone.run.hosts == []


def test_a_killed_collector_of_the_driver_counts_nothing_twice(hosts: Hosts, tmp_path: Path) -> None:
    """It goes on from its checkpoint and finds the ticks that no checkpoint held again."""
    run_plan, _, folders = hosts
    whole, _, _ = driven(tmp_path / "whole", run_plan, folders)
    report, ticks, run_dir = driven(tmp_path / "killed", run_plan, folders, killed_after=(0, 2, 3))
    assert numbers(report) == numbers(whole)
    assert [tick.tick for tick in ticks] == list(range(len(ticks)))
    assert counts_by_tag(run_dir / "intervals.hlog") == counts_by_tag(tmp_path / "whole" / "run" / "intervals.hlog")
    assert [host.requests for host in report.run.hosts] == [host.requests for host in whole.run.hosts]


def test_what_a_lost_host_left_is_accounted_for_and_named(hosts: Hosts, tmp_path: Path) -> None:
    """planned = sent + unsent, and the verdict says which ticks are without the host."""
    run_plan, _, folders = hosts
    report, _, _ = driven(tmp_path, run_plan, folders, lost={1: 3}, planned=REQUESTS)
    counts = report.requests
    assert counts.planned == REQUESTS == counts.sent + sum(counts.unsent.values())
    lost = report.run.hosts[1]
    assert lost.state == "lost"
    assert counts.unsent == {"worker_down": REQUESTS // HOSTS - lost.requests.sent} == lost.requests.unsent
    assert report.verdict.state == "INVALID"
    [reason] = [each for each in report.verdict.reasons if each.code == "host_lost"]
    assert "h1 (pulled; ticks 3-" in reason.detail


def test_no_tick_is_closed_while_a_living_host_has_not_sent_it(hosts: Hosts, tmp_path: Path) -> None:
    """Closed without the slow host, its requests would be missing from the tick and turn up in a later one."""
    run_plan, _, folders = hosts
    segments, run_dir = tmp_path / "segments", tmp_path / "run"
    segments.mkdir()
    run_dir.mkdir()
    states = [HostState(name=f"h{i}", workers=1, first_worker=i, state="running", start_ns=START) for i in range(HOSTS)]
    manifest(str(run_dir), run_plan, hosts=states, workers=HOSTS).write(segments)
    collector = collector_of(segments)
    collector.clock = lambda: START + 60 * SECOND
    for i in (0, 2):
        for tick in (0, 1):
            TickFolder(incoming(segments, i)).put(tick, folders[i].read(tick))
    assert collector.turn() is None
    assert collector.totals.next_tick == 0
    TickFolder(incoming(segments, 1)).put(0, folders[1].read(0))
    assert collector.turn() is None
    assert collector.totals.next_tick == 1


@pytest.mark.parametrize("slower", [1.0, 1.5], ids=["alike", "one slower"])
def test_a_host_that_measures_something_else_is_named(tmp_path: Path, slower: float) -> None:
    """A host with a longer way, or a tired core, must not hide in the sum; hosts that are alike must not be accused."""
    run_plan = plan(rate=200.0, duration_ns=6 * SECOND, tick_ns=SECOND // 10)
    random = np.random.default_rng(11)
    ttft = random.lognormal(-3, 0.3, 1200)
    ttft[2::HOSTS] *= slower
    rows = rows_of(np.sort(random.uniform(0, 5.5, 1200)), ttft)
    report, _, _ = driven(tmp_path / "driver", run_plan, ticks_of_hosts(tmp_path, run_plan, rows))
    named = [reason.detail for reason in report.verdict.reasons if reason.code == "hosts_disagree"]
    if slower == 1.0:
        assert named == []
        return
    [detail] = named
    assert "h2 " in detail
    assert report.run.hosts[2].ttft_ms.p50 == pytest.approx(1.5 * (report.run.hosts[0].ttft_ms.p50 or 0), rel=0.1)


def test_moments_of_a_hosts_clock_are_brought_onto_the_drivers() -> None:
    """The span of a run's ends decides its rates: with the host's own clock it could be years long."""
    packed = slab(fields()).packed()
    shifted = merged([(HostTick(slab=packed), 5 * SECOND), (HostTick(slab=packed), -SECOND)])
    [series] = shifted.series.values()
    end = fields()["end_ns"]
    assert series.tally[Tally.FIRST_END] == end - SECOND
    assert series.tally[Tally.LAST_END] == end + 5 * SECOND


@settings(max_examples=60)
@given(st.lists(st.lists(st.integers(1, 4 * 10**12), min_size=0, max_size=30), min_size=1, max_size=6))
def test_a_sum_of_packed_histograms_is_that_of_their_values(parts: list[list[int]]) -> None:
    """Cell by cell, clamped values and exact moments included."""
    packs, alone = [], Histogram()
    for values in parts:
        each = Histogram()
        if values:
            each.record(np.array(values))
            alone.record(np.array(values))
        packs.append(each.packed())
    summed = Histogram.summed(packs)
    assert summed.packed()[:2] == alone.packed()[:2]
    assert (summed.count, summed.sum, summed.min, summed.max) == (alone.count, alone.sum, alone.min, alone.max)
    assert (summed.clamped_low, summed.clamped_high) == (alone.clamped_low, alone.clamped_high)
    assert summed.m2 == pytest.approx(alone.m2, rel=1e-9, abs=1e-3)
