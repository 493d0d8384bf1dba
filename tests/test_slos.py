"""Objectives judged on a report: of the run, of a target, of a phase; requests by their share."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from llm_latency_lens.collectors.batches import Reader
from llm_latency_lens.collectors.goodput import Line
from llm_latency_lens.collectors.report import Losses, ReportBuilder, RunView
from llm_latency_lens.collectors.series import Series, Slab
from llm_latency_lens.collectors.slos import judge_slos, lines_of
from llm_latency_lens.collectors.snapshot import Client, Report
from llm_latency_lens.collectors.totals import Totals
from tests.support_collector import MS, START, fields, manifest, plan, records
from tests.support_runs import FakeRun


@pytest.fixture(scope="module")
def report() -> Report:
    """A run of two targets; their numbers differ."""
    run = FakeRun(ticks=20, targets=2)
    for _ in run.snapshots():
        pass
    return run.report()


def state(report: Report, expression: str) -> tuple[float | None, str]:
    (slo,) = judge_slos((expression,))(report, None, {})
    assert slo.expression == expression
    return slo.value, slo.state


def test_an_objective_of_a_target_is_judged_by_its_own_requests(report: Report) -> None:
    """A plan with two targets once judged both together: a bad one passed behind a good one."""
    for target in report.targets:
        value, _ = state(report, f"[target={target.name}] ttft_ms.p99 <= 1")
        assert value == target.metrics["ttft_ms"].p99
    assert state(report, "ttft_ms.p99 <= 1")[0] == report.metrics["ttft_ms"].p99
    assert state(report, "[target=nobody] ttft_ms.p99 <= 1") == (None, "UNDECIDED")


def test_an_objective_of_a_phase_is_judged_by_that_phase(report: Report) -> None:
    """What holds at 5 requests/s need not hold at 50."""
    requests = report.run.phases[0].requests
    failed = sum(requests.failed.values())
    assert state(report, "[phase=steady] error_rate <= 100%") == (failed / (failed + requests.ok), "PASS")  # no doubt


@pytest.mark.parametrize(
    ("line", "expected"), [("request", "FAIL"), ("request [98%]", "UNDECIDED"), ("request [97%]", "UNDECIDED")]
)
def test_requests_are_judged_by_the_share_of_the_line(report: Report, line: str, expected: str) -> None:
    """Without a share one slow request fails a run of a million; a share needs an interval (tests/test_certainty.py)."""
    (slo,) = judge_slos([f"{line}: ttft_ms <= 800"])(report, None, {0: (975, 1000)})
    assert (slo.value, slo.state) == (0.975, expected)


def fast(phase: int, target: int) -> dict[str, int]:
    return fields(phase=phase, target=target)  # 20 ms to the first token, 130 ms to the end


def slow(phase: int, target: int) -> dict[str, int]:
    return fields(phase=phase, target=target, first_token_ns=START + 51 * MS, first_output_ns=START + 51 * MS)


def judged(tmp_path: Path, *rows: dict[str, int], slos: tuple[str, ...]) -> Report:
    """The report of these requests to a plan of two targets and two phases, made by the real builder."""
    made = msgspec.structs.replace(plan(targets=2, phases=2, requests=10), slo=slos)
    reader = Reader(2, lines=lines_of(made))
    totals = Totals(reader, start_ns=START, tick_ns=1000 * MS)
    reader.records(totals.run, reader.batch(records(*rows), worker=0, details={}))
    view = RunView(manifest(str(tmp_path), made), totals, START + 10_000 * MS)
    builder = ReportBuilder(made, slos=judge_slos(slos))
    return builder.report(view, client_of=lambda _: Client(), errors={}, finished=True, losses=Losses())


def test_an_objective_of_one_target_in_one_phase_is_judged_by_nothing_else(tmp_path: Path) -> None:
    """With two targets it was left open: the one objective that a plan for a comparison needs most."""
    mixed = [fast(0, 0), slow(0, 1), slow(1, 0), fast(1, 1), fast(1, 1)]
    names = [(p, t) for p in range(2) for t in range(2)]
    slos = tuple(f"[target=target-{t} phase=phase-{p}] ttft_ms.max <= 30ms" for p, t in names)
    report = judged(tmp_path, *mixed, slos=slos)
    assert [slo.state for slo in report.slo] == ["PASS", "FAIL", "FAIL", "PASS"]
    assert [round(slo.value or 0) for slo in report.slo] == [20, 50, 50, 20]


def test_every_request_line_has_a_share_and_a_value_of_its_own(tmp_path: Path) -> None:
    """One joint figure for all lines told nobody which of them failed; goodput stays the share that meets all."""
    mixed = [fast(0, 0), fast(0, 0), slow(0, 0), fast(0, 1), slow(1, 1)]
    slos = (
        "request [60%]: ttft_ms <= 30",
        "error_rate <= 1%",
        "request: e2e_ms <= 200",
        "[target=target-1 phase=phase-1] request: ttft_ms <= 30",
        "[target=target-0] request [70%]: ttft_ms <= 30",
    )
    report = judged(tmp_path, *mixed, slos=slos)
    assert [(slo.value, slo.state) for slo in report.slo] == [
        (3 / 5, "UNDECIDED"),  # five requests prove no share
        (0.0, "UNDECIDED"),
        (1.0, "PASS"),
        (0.0, "FAIL"),
        (2 / 3, "UNDECIDED"),
    ]
    assert report.throughput.goodput_share == 3 / 5


def test_the_counts_of_request_lines_survive_the_checkpoint_and_the_ticks() -> None:
    """A collector that was killed, and a report of a part of a history, know them from there."""
    reader = Reader(1, lines=[Line([("ttft_ms", "<=", 30.0)]), Line([("ttft_ms", "<=", 1.0)])])
    made = Slab()
    reader.records(made, reader.batch(records(fast(0, 0), slow(0, 0)), worker=0, details={}))
    made.add(Slab.unpacked(made.packed()))
    series = made.series[0, 0]
    assert series.lines == {0: (2, 4), 1: (0, 4)}
    assert Series.restored(series.counts(), {}, {}).lines == series.lines
