"""A part of a history: its intervals and objectives, from the logs of its ticks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from llm_latency_lens.collectors.histogram import Histogram
from llm_latency_lens.collectors.snapshot import ENCODER, Report, Snapshot
from llm_latency_lens.engine.records.record import Outcome
from llm_latency_lens.exporters.hdr.blocks import LineLadders, span_of
from llm_latency_lens.exporters.history import report_between
from tests.support_collector import SECOND, START, fields, plan
from tests.support_samples import sample
from tests.support_ticks import collected, rows_of

RATE, SECONDS, TARGETS = 50, 60, 2
FOREVER = 1 << 62
OBJECTIVES = (
    "ttft_ms.p90 <= 1000",
    "ttft_ms.p50 <= 1",
    "error_rate <= 5%",
    "[target=target-1] ttft_ms.p50 <= 1000",
    "[phase=phase-0] ttft_ms.p50 <= 1000",
    "[target=target-1 phase=phase-0] ttft_ms.p50 <= 1",
    "request [50%]: ttft_ms <= 1000",
)
OF_NOTHING = ("[target=target-1 phase=other] ttft_ms.p50 <= 1000", "[phase=other] ttft_ms.p50 <= 1000")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Report, list[Snapshot]]:
    """A run of a minute whose first second is idle, so that all but its first tick is a part with all of the values."""
    root = tmp_path_factory.mktemp("history")
    made = sample("ar 0.5", 1, RATE * SECONDS, RATE, seed=3)
    rows = rows_of(made.end[0] - made.latency[0] + 1.1, made.latency[0], targets=TARGETS)
    rows += [fields(request=9000 + i, outcome=Outcome.HTTP_SERVER, end_ns=START + i * SECOND + 5) for i in range(2, 50)]
    run_plan = msgspec.structs.replace(
        plan(rate=RATE, duration_ns=(SECONDS + 2) * SECOND, targets=TARGETS), slo=(*OBJECTIVES, *OF_NOTHING)
    )
    report, ticks = collected(root, run_plan, rows)
    (root / "run" / "summary.json").write_bytes(ENCODER.encode(report))
    return root / "run", report, ticks


def certainty(metrics: dict[str, Any]) -> dict[str, Any]:
    return {name: (each.count, each.p50, each.p99, each.n_eff, each.ci95) for name, each in metrics.items()}


def test_intervals_of_a_part_with_all_values_are_those_of_the_summary(
    run: tuple[Path, Report, list[Snapshot]],
) -> None:
    """Were the two to differ, an hour of a soak could not be held against the next run of an hour."""
    folder, report, ticks = run
    part = report_between(folder, ticks[0].wall_time_ns, FOREVER)
    assert not part.run.phases  # not the way that takes the summary's intervals
    assert report.metrics["ttft_ms"].ci95 is not None
    assert certainty(part.metrics) == certainty(report.metrics)
    assert [certainty(target.metrics) for target in part.targets] == [certainty(t.metrics) for t in report.targets]


def test_a_part_of_a_run_has_wider_intervals(run: tuple[Path, Report, list[Snapshot]]) -> None:
    """Half of the values know less, and not nothing."""
    folder, report, ticks = run
    half = report_between(folder, ticks[30].wall_time_ns, FOREVER).metrics["e2e_ms"]
    complete = report.metrics["e2e_ms"]
    assert half.ci95 is not None
    assert complete.ci95 is not None
    widths = [high - low for low, high in (half.ci95.p50, complete.ci95.p50) if low is not None and high is not None]
    assert 1.1 * widths[1] < widths[0] < 2 * widths[1]


def test_objectives_of_a_part_are_decided_by_its_own_intervals(run: tuple[Path, Report, list[Snapshot]]) -> None:
    """A probe's last day has failed or not, and a phase that nobody measured can do neither."""
    folder, report, ticks = run
    part = report_between(folder, ticks[0].wall_time_ns, FOREVER)
    assert [slo.state for slo in part.slo] == ["PASS", "FAIL", "PASS", "PASS", "PASS", "FAIL", "PASS"] + 2 * [
        "UNDECIDED"
    ]
    for mine, known in zip(part.slo, report.slo, strict=True):
        assert (mine.value, mine.state, mine.ci95) == (known.value, known.state, known.ci95)


def test_lines_added_many_at_a_time_make_the_same_ladder() -> None:
    """A day has millions of lines: decoding them one by one takes minutes."""
    made = sample("iid", 1, 6000, 2, seed=4)
    ends = made.end[0].astype(np.int64)
    single, many = LineLadders[str](), LineLadders[str](span_of(int(ends.min()), int(ends.max())))
    for tick in np.unique(ends).tolist():
        histogram = Histogram()
        histogram.record((made.latency[0][ends == tick] * SECOND).astype(np.int64))
        encoded = histogram.hdr().encode().decode()
        single.add("x", tick, encoded)
        many.add("x", tick, encoded)
    assert many.all()["x"].packed() == single.all()["x"].packed()
