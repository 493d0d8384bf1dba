"""intervals.hlog read back by an independent reader: hdrhistogram's own."""

from __future__ import annotations

from pathlib import Path

from hdrh.histogram import HdrHistogram
from hdrh.log import HistogramLogReader

from llm_latency_lens.collectors.histogram import DIGITS, HIGHEST, LOWEST
from llm_latency_lens.collectors.series import Slab
from llm_latency_lens.collectors.snapshot import Report, Run, Snapshot
from llm_latency_lens.engine.runs.manifest import Manifest
from llm_latency_lens.exporters.hdr.read import sums
from llm_latency_lens.exporters.hdr.write import INTERVALS, TOTALS, IntervalHistograms, tag, write_totals
from tests.support_collector import MS, START, fields, manifest, plan, slab

REPORT = Report(run=Run(id="r", name="n", version="0", started_at=""))


def snapshot(tick: int) -> Snapshot:
    return Snapshot(
        run="r",
        tick=tick,
        wall_time_ns=0,
        elapsed_s=float(tick + 1),
        seconds=1.0,
        state="running",
        phase="phase-0",
        in_flight=0,
        sent_total=0,
        ok_total=0,
        failed_total=0,
        unsent_total=0,
        planned_total=None,
    )


def read(path: Path) -> list[HdrHistogram]:
    reader = HistogramLogReader(str(path), HdrHistogram(LOWEST, HIGHEST, DIGITS))
    found = []
    while (histogram := reader.get_next_interval_histogram()) is not None:
        found.append(histogram)
    reader.input_file.close()
    return found


def tick(number: int, *, phase: int = 0) -> Slab:
    rows = [
        fields(phase=phase, target=target, first_token_ns=START + (20 + 7 * number + 3 * target) * MS + i)
        for target in (0, 1)
        for i in range(50)
    ]
    return slab(*rows, targets=2)


def log(run: Manifest, slabs: list[Slab]) -> Path:
    sink = IntervalHistograms(Path(run.run_dir))
    for number, each in enumerate(slabs):
        sink.tick(snapshot(number), REPORT, each, run)
    sink.close(REPORT)
    return Path(run.run_dir) / INTERVALS


def test_a_tags_intervals_add_up_to_the_total_bit_for_bit(tmp_path: Path) -> None:
    slabs = [tick(number) for number in range(5)]
    total = Slab()
    for each in slabs:
        total.add(each)
    found = read(log(manifest(str(tmp_path), plan(targets=2)), slabs))
    for target in (0, 1):
        series = total.series[0, target]
        for metric, histogram in series.metrics.items():
            merged = HdrHistogram(LOWEST, HIGHEST, DIGITS)
            mine = [each for each in found if each.get_tag() == f"{metric}/target-{target}"]
            assert len(mine) == 5, metric
            for each in mine:
                merged.add(each)
            assert list(merged.counts) == list(histogram.hdr().counts)
            assert merged.get_total_count() == histogram.count


def test_the_totals_are_the_sums_of_the_intervals_in_one_line_a_tag(tmp_path: Path) -> None:
    slabs, run, total = [tick(number) for number in range(5)], manifest(str(tmp_path), plan(targets=2)), Slab()
    for each in slabs:
        total.add(each)
    log(run, slabs)
    write_totals(tmp_path, total, run, 5.0)
    found = {each.get_tag(): each for each in read(tmp_path / TOTALS)}
    assert {name: list(each.counts) for name, each in found.items()} == {
        name: list(each.hdr().counts) for name, each in sums(tmp_path / INTERVALS).items()
    }
    assert {each.get_end_time_stamp() - each.get_start_time_stamp() for each in found.values()} == {5000}


def test_totals_that_a_disk_refuses_leave_no_trace(tmp_path: Path) -> None:
    (tmp_path / TOTALS).mkdir()
    run = manifest(str(tmp_path), plan(targets=2))
    write_totals(tmp_path, tick(0), run, 1.0)
    assert [each.name for each in tmp_path.iterdir()] == [TOTALS]


def test_an_interval_says_when_it_was(tmp_path: Path) -> None:
    found = read(log(manifest(str(tmp_path), plan(targets=2)), [tick(0), tick(1)]))
    starts = sorted({(each.get_start_time_stamp(), each.get_end_time_stamp()) for each in found})
    wall_ms = 1_700_000_000_000
    assert starts == [(wall_ms, wall_ms + 1000), (wall_ms + 1000, wall_ms + 2000)]


def test_phases_that_are_not_measured_are_not_in_it(tmp_path: Path) -> None:
    run = manifest(str(tmp_path), plan(targets=2, phases=2, warmup=True))
    assert read(log(run, [tick(0)])) == []
    assert len(read(log(run, [tick(0, phase=1)]))) > 0


def test_a_target_name_cannot_break_the_line() -> None:
    assert tag("ttft_ms", "a, b\nc") == "ttft_ms/a__b_c"


def test_a_rewound_log_is_told_again_without_a_trace(tmp_path: Path) -> None:
    run = manifest(str(tmp_path), plan(targets=2))
    sink = IntervalHistograms(tmp_path)
    sink.tick(snapshot(0), REPORT, tick(0), run)
    position = sink.position()
    sink.tick(snapshot(1), REPORT, tick(1), run)
    once = (tmp_path / INTERVALS).read_bytes()
    again = IntervalHistograms(tmp_path)
    again.rewind(position)
    again.tick(snapshot(1), REPORT, tick(1), run)
    assert (tmp_path / INTERVALS).read_bytes() == once
