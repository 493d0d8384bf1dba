"""The collector against real rings: scripted writers, the real process, and SIGKILLs of it at random moments."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import msgspec
import pytest
from hdrh.histogram import HdrHistogram
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llm_latency_lens.cli.processes.collect import collector_of
from llm_latency_lens.collectors.collector import GRACE_NS, Collector
from llm_latency_lens.collectors.snapshot import REPORT_DECODER, SNAPSHOT_DECODER, Report, Requests, Snapshot
from llm_latency_lens.engine.plan.plan import Plan, Workload
from llm_latency_lens.engine.records.layout import TURN_SHIFT, Counter, Geometry
from llm_latency_lens.engine.records.record import FAILURES, GAP_COALESCED, Outcome, Unsent
from llm_latency_lens.engine.records.resume import mark_dead
from llm_latency_lens.engine.records.writer import SegmentWriter
from llm_latency_lens.engine.runs.manifest import Manifest, PhaseTimes
from tests.support_collector import MS, SECOND, START, fields, happens, manifest, plan, unsent, values
from tests.test_exporter_json import rows_of
from tests.test_hdrlog import read

TICK = 100 * MS


class Run:
    """A run's two directories, its manifest and its writers; the test plays supervisor and workers."""

    def __init__(self, root: Path, run_plan: Plan, **given: Any) -> None:
        self.segment_dir, self.run_dir = root / "segments", root / "run"
        self.segment_dir.mkdir()
        self.run_dir.mkdir()
        self.manifest: Manifest = manifest(str(self.run_dir), run_plan, **given)
        self.manifest.write(self.segment_dir)
        self.geometry = Geometry(4096, 1 << 15, 256, 16, len(run_plan.phases), len(run_plan.targets))

    def writer(self, worker: int = 0, incarnation: int = 1) -> SegmentWriter:
        path = self.segment_dir / f"worker-{worker}.{incarnation}.ring"
        made = SegmentWriter.create(path, self.geometry, worker=worker, incarnation=incarnation)
        made.ticks.start(self.manifest.phases[0].start_ns, self.manifest.plan.output.tick_ns)
        return made

    def finish(self, end_ns: int = 0, planned: int | None = None) -> None:
        for times in self.manifest.phases:
            times.end_ns = end_ns or times.end_ns
            times.planned = planned
        self.manifest.state = "finished"
        self.manifest.write(self.segment_dir)

    def snapshots(self) -> list[Snapshot]:
        return [SNAPSHOT_DECODER.decode(line) for line in (self.run_dir / "intervals.jsonl").read_bytes().splitlines()]

    def rows(self) -> list[dict[str, Any]]:
        return rows_of(self.run_dir)


class Clock:
    """CLOCK_MONOTONIC of a test."""

    def __init__(self, now_ns: int = START) -> None:
        self.now_ns = now_ns

    def __call__(self) -> int:
        return self.now_ns


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path, plan(tick_ns=TICK))


LIVES: list[Collector] = []


def collector(run: Run, clock: Clock) -> Collector:
    """A new life of the collector; the one before is gone as by SIGKILL."""
    kill_all()
    made = collector_of(run.segment_dir)
    made.clock = clock
    LIVES.append(made)
    return made


def kill_all() -> None:
    """What the kernel does for a killed process: descriptors are closed, nothing is written."""
    while LIVES:
        made = LIVES.pop()
        made.checkpoint.close()
        made.sinks.clear()


@pytest.fixture(autouse=True)
def _every_life_ends() -> Iterator[None]:
    yield
    kill_all()


def done(run: Run, clock: Clock) -> Report:
    """A fresh collector, up to the end of a finished run."""
    made = collector(run, clock)
    for _ in range(20):
        if (report := made.turn()) is not None:
            return report
    raise AssertionError("the collector does not come to an end")


def ended(at_ms: int, **given: Any) -> dict[str, int]:
    """An ok request that ended so long after the start."""
    return fields(intended_ns=START + (at_ms - 131) * MS, **given)


def gaps(*ms: int, flags: int = 0) -> array[int]:
    return array("Q", [gap * MS | flags for gap in ms])


def sums(parts: list[Requests]) -> Requests:
    total = Requests()
    for part in parts:
        for name in ("planned", "sent", "ok", "cancelled", "in_flight_at_end", "attempts"):
            setattr(total, name, getattr(total, name) + getattr(part, name))
        if part.tcp_retransmits is not None:
            total.tcp_retransmits = (total.tcp_retransmits or 0) + part.tcp_retransmits
        for mine, others in ((total.unsent, part.unsent), (total.failed, part.failed)):
            for key, count in others.items():
                mine[key] = mine.get(key, 0) + count
    return total


# --- ticks ------------------------------------------------------------------------------------------------------------


def test_a_record_is_told_in_the_tick_of_its_end_however_late_it_is_read(run: Run) -> None:
    writer, clock = run.writer(), Clock(START + TICK)
    made = collector(run, clock)
    for at_ms in (150, 250, 250, 490):
        assert writer.push(values(ended(at_ms)), gaps(10))
    clock.now_ns = START + 5 * TICK + GRACE_NS  # the collector was stopped until now
    assert made.turn() is None
    told = run.snapshots()
    assert [snapshot.tick for snapshot in told] == [0, 1, 2, 3, 4]
    assert [sum(interval.requests.ok for interval in snapshot.intervals) for snapshot in told] == [0, 1, 2, 0, 1]
    assert told[-1].ok_total == 4


def test_a_tick_has_the_same_number_and_time_on_every_telling(run: Run) -> None:
    clock = Clock(START + TICK + GRACE_NS)
    run.writer()
    collector(run, clock).turn()
    [told] = run.snapshots()
    assert (told.tick, told.seconds, told.elapsed_s) == (0, 0.1, 0.1)
    assert told.wall_time_ns == 1_700_000_000 * SECOND + TICK
    assert told.intervals[0].target == "target-0"


def test_nothing_is_told_before_the_run_began(tmp_path: Path) -> None:
    waiting = Run(tmp_path, plan(tick_ns=TICK), phases=[PhaseTimes()])
    made = collector(waiting, Clock(START + 50 * TICK))
    assert made.turn() is None
    assert not (waiting.run_dir / "intervals.jsonl").exists()


def test_a_run_that_never_began_ends_with_an_empty_report(tmp_path: Path) -> None:
    failed = Run(tmp_path, plan(tick_ns=TICK), phases=[PhaseTimes()])
    failed.finish()
    report = done(failed, Clock())
    assert (report.requests, report.verdict.state) == (Requests(), "INSUFFICIENT")


def test_the_console_finds_the_latest_report_and_snapshot(run: Run) -> None:
    run.writer().push(values(ended(140)), None)
    collector(run, Clock(START + 2 * TICK + GRACE_NS)).turn()
    report = REPORT_DECODER.decode((run.segment_dir / "report.json").read_bytes())
    snapshot = SNAPSHOT_DECODER.decode((run.segment_dir / "snapshot.json").read_bytes())
    assert (report.requests.ok, snapshot.tick, snapshot.state) == (1, 1, "running")


# --- the totals -------------------------------------------------------------------------------------------------------


def test_every_outcome_and_every_reason_reconciles_in_total_and_over_the_ticks(run: Run) -> None:
    writer, count = run.writer(), 0
    for outcome in Outcome:
        for i in range(3):
            if outcome:
                writer.push(values(ended(140 + 100 * i, request=count, outcome=outcome)), None)
                count += 1
    writer.push(values(unsent(Unsent.NO_CAPACITY, slots=5, request=count)), None)
    writer.close()
    run.finish(START + 4 * TICK, planned=count + 5)
    report = done(run, Clock(START + 5 * TICK))
    told = report.requests
    assert told.planned == told.sent + sum(told.unsent.values()) == count + 5
    assert told.sent == told.ok + sum(told.failed.values()) + told.cancelled + told.in_flight_at_end
    assert told.failed == {outcome.name.lower(): 3 for outcome in FAILURES}
    over_ticks = sums([interval.requests for snapshot in run.snapshots() for interval in snapshot.intervals])
    assert msgspec.structs.replace(over_ticks, planned=told.planned) == told
    assert "totals_do_not_balance" not in [reason.code for reason in report.verdict.reasons]
    assert len(run.rows()) == count + 1
    assert run.snapshots()[-1].state == "done"


def test_a_slot_that_is_in_no_book_is_a_reason(run: Run) -> None:
    writer = run.writer()
    writer.push(values(ended(140)), None)
    writer.close()
    run.finish(START + TICK, planned=2)
    report = done(run, Clock(START + 5 * TICK))
    assert report.verdict.state == "INVALID"
    assert "totals_do_not_balance" in [reason.code for reason in report.verdict.reasons]


def test_unmeasured_phases_are_kept_apart(tmp_path: Path) -> None:
    warm = Run(
        tmp_path,
        plan(phases=2, warmup=True, tick_ns=TICK),
        phases=[PhaseTimes(start_ns=START), PhaseTimes(start_ns=START + 2 * TICK)],
    )
    writer = warm.writer()
    writer.push(values(ended(150)), gaps(99))
    writer.push(values(ended(350, phase=1)), array("Q", [10 * MS | 1 << 42]))
    writer.close()
    warm.finish(START + 4 * TICK)
    report = done(warm, Clock(START + 5 * TICK))
    assert (report.requests.ok, report.metrics["itl_ms"].count, report.metrics["itl_ms"].max) == (1, 1, 10.0)
    assert [(phase.name, phase.measured, phase.requests.ok) for phase in report.run.phases] == [
        ("phase-0", False, 1),
        ("phase-1", True, 1),
    ]
    assert report.targets[0].requests.ok == 1
    assert [
        interval.measured for snapshot in warm.snapshots() for interval in snapshot.intervals if interval.requests.ok
    ] == [
        False,
        True,
    ]


def test_what_a_full_ring_drops_is_in_the_books_by_outcome_and_makes_the_run_invalid(run: Run) -> None:
    writer, pushed = run.writer(), 0
    for number in range(run.geometry.requests + 7):
        pushed += writer.push(values(ended(140, request=number)), gaps(10))
    assert pushed == run.geometry.requests
    writer.close()
    run.finish(START + 2 * TICK, planned=run.geometry.requests + 7)
    report = done(run, Clock(START + 3 * TICK))
    assert report.requests.ok == report.requests.planned == run.geometry.requests + 7
    assert report.metrics["ttft_ms"].count == report.metrics["itl_ms"].count == run.geometry.requests
    assert report.client.ring_drops == 7
    assert (report.verdict.state, report.verdict.reasons[0].code) == ("INVALID", "ring_drops")
    assert report.throughput.requests_per_s is not None


def test_a_coalesced_gap_is_counted_not_recorded(run: Run) -> None:
    writer = run.writer()
    writer.push(values(ended(140)), gaps(10, 20) + gaps(1, flags=GAP_COALESCED))
    writer.close()
    run.finish(START + TICK)
    report = done(run, Clock(START + 3 * TICK))
    assert report.metrics["itl_ms"].count == 2
    assert report.client.itl_coalesced_share == pytest.approx(1 / 3)


def test_a_detail_finds_its_record_though_it_was_read_a_turn_before(run: Run) -> None:
    writer, clock = run.writer(), Clock(START + TICK)
    made = collector(run, clock)
    detail = {"request": 4, "phase": 0, "message": "overloaded, try later", "request_id": "abc"}
    writer.push_detail(msgspec.msgpack.encode(detail))
    made.turn()
    clock.now_ns += TICK + GRACE_NS
    made.turn()  # a checkpoint with the detail still waiting
    writer.push(values(ended(190, request=4, outcome=Outcome.HTTP_OVERLOADED, http_status=503)), None)
    writer.close()
    run.finish(START + 3 * TICK)
    report = done(run, Clock(START + 4 * TICK))
    [sample] = report.errors
    assert (sample.target, sample.outcome, sample.count) == ("target-0", "http_overloaded", 1)
    assert (sample.message, sample.http_status) == ("overloaded, try later", 503)
    assert run.rows()[0]["request_id"] == "abc"


# --- workers that die -------------------------------------------------------------------------------------------------


def test_a_dead_workers_requests_are_lost_once_and_its_segment_goes(run: Run) -> None:
    first = run.writer(0, 1)
    first.counters[Counter.HEARTBEAT_NS] = START + 150 * MS
    first.counters[Counter.EVENTS_MEASURED] = 10
    first.push(values(ended(140, request=0)), None)
    first.begin(1, 1, START + MS, 0, 0)
    first.sent(1, START + 2 * MS)
    first.begin(2, 2, START + 3 * MS, 0, 0)
    mark_dead(first.path)
    clock = Clock(START + 2 * TICK + GRACE_NS)
    made = collector(run, clock)
    made.turn()
    assert not first.path.exists()
    second = run.writer(0, 2)
    second.counters[Counter.EVENTS_MEASURED] = 5
    second.counters[Counter.CPU_MEASURED_NS] = 30_000
    second.counters[Counter.MEASURED_NS] = 120_000
    second.push(values(ended(340, request=3)), None)
    second.close()
    run.manifest.restarts = 1
    run.finish(START + 4 * TICK, planned=4)
    report = done(run, Clock(START + 5 * TICK))
    assert (report.requests.ok, report.requests.failed, report.requests.unsent) == (2, {"lost": 1}, {"worker_down": 1})
    assert report.client.cpu_us_per_event == pytest.approx(2.0)
    assert report.client.cpu_utilisation == pytest.approx(0.25)
    assert "worker_restarts" in [reason.code for reason in report.verdict.reasons]
    assert not list(run.segment_dir.glob("*.ring"))
    lost = [snapshot.tick for snapshot in run.snapshots() for i in snapshot.intervals if "lost" in i.requests.failed]
    assert lost == [1]  # the tick of the worker's last sign of life


@pytest.mark.parametrize(("kind", "identity"), [("sessions", (7, 3)), ("prompt", (0, 0))])
def test_a_lost_request_of_a_session_keeps_its_session_and_turn(
    kind: Literal["sessions", "prompt"], identity: tuple[int, int], tmp_path: Path
) -> None:
    """Recorded as session 0, turn 0 they were all taken for the first request of one conversation."""
    run = Run(tmp_path, msgspec.structs.replace(plan(tick_ns=TICK), workload=Workload(kind=kind)))
    turn = 3 if kind == "sessions" else 0
    writer = run.writer()
    writer.begin(1, 7 | turn << TURN_SHIFT, START + MS, 0, 0)
    writer.sent(1, START + 2 * MS)
    mark_dead(writer.path)
    run.finish(START + TICK)
    done(run, Clock(START + 2 * TICK))
    assert [(row["outcome"], (row["session"], row["turn"])) for row in run.rows()] == [("lost", identity)]


def test_a_segment_that_a_checkpoint_holds_is_not_read_again(run: Run) -> None:
    """Killed after the checkpoint, before it could remove the file."""
    writer = run.writer()
    writer.push(values(ended(140)), None)
    writer.close()
    kept = writer.path.read_bytes()
    made = collector(run, Clock(START + 2 * TICK + GRACE_NS))
    made.turn()
    writer.path.write_bytes(kept)
    run.finish(START + 3 * TICK)
    assert done(run, Clock(START + 4 * TICK)).requests.ok == 1
    assert not writer.path.exists()


def test_a_finished_run_does_not_wait_for_a_worker_that_nobody_marked_dead(run: Run) -> None:
    child = subprocess.Popen([sys.executable, "-c", "pass"])
    child.wait()
    writer = run.writer()
    writer.push(values(ended(140)), None)
    content = bytearray(writer.path.read_bytes())
    assert int.from_bytes(content[20:24], "little") == os.getpid()
    content[20:24] = child.pid.to_bytes(4, "little")
    writer.path.write_bytes(content)
    run.finish(START + TICK)
    assert done(run, Clock(START + 3 * TICK)).requests.ok == 1


# --- lives of the collector -------------------------------------------------------------------------------------------

steps = st.lists(
    st.one_of(
        st.tuples(st.just("push"), st.integers(1, 40)),
        st.tuples(st.just("turn"), st.integers(1, 350)),
        st.tuples(st.just("beat"), st.just(0)),
        st.tuples(st.just("kill"), st.just(0)),
    ),
    min_size=5,
    max_size=25,
)


@pytest.mark.slow
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(steps=steps)
def test_any_sequence_of_records_turns_and_deaths_counts_everything_once(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, int]]
) -> None:
    run = Run(tmp_path_factory.mktemp("lives"), plan(tick_ns=TICK, targets=2))
    writer, clock, number = run.writer(), Clock(START), 0
    made = collector(run, clock)
    for what, amount in steps:
        if what == "push":
            for _ in range(amount):
                at_ms = (clock.now_ns - START) // MS
                happens(writer, number % 2, clock.now_ns, 5 * MS, 6 * MS)
                writer.push(values(ended(at_ms, request=number, target=number % 2)), gaps(5, 6))
                number += 1
        elif what == "beat":
            writer.ticks.acknowledge()
        elif what == "turn":
            clock.now_ns += amount * MS
            made.turn()
        else:  # nothing of the object survives a SIGKILL; the files are as they are
            made = collector(run, clock)
    writer.close()
    run.finish(clock.now_ns, planned=number)
    check_once(run, done(run, clock), number)


def check_once(run: Run, report: Report, number: int) -> None:
    """Each of `number` ok requests with two gaps of 5 and 6 ms is everywhere once, by its end and as it happened."""
    assert (report.requests.planned, report.requests.ok) == (number, number)
    assert report.metrics["ttft_ms"].count == number
    assert report.metrics["itl_ms"].count == 2 * number
    assert sorted(row["request"] for row in run.rows()) == list(range(number))
    snapshots = run.snapshots()
    assert [snapshot.tick for snapshot in snapshots] == list(range(len(snapshots)))
    assert sum(interval.requests.ok for snapshot in snapshots for interval in snapshot.intervals) == number
    assert sum(i.metrics["itl_ms"].count for snapshot in snapshots for i in snapshot.intervals) == 2 * number
    assert (snapshots[-1].state, snapshots[-1].ok_total) == ("done", number)
    logged: list[HdrHistogram] = read(run.run_dir / "intervals.hlog") if number else []
    itl = [each.get_total_count() for each in logged if each.get_tag().startswith("itl_ms/")]
    assert sum(itl) == 2 * number
    ended_itl = [each.get_total_count() for each in logged if each.get_tag().startswith("itl_ms.ended/")]
    assert sum(ended_itl) == 2 * number
    assert sum(i.requests.sent for snapshot in snapshots for i in snapshot.intervals) == number
    assert sum(i.tokens.output or 0 for snapshot in snapshots for i in snapshot.intervals) == (
        report.tokens.output or 0
    )
    assert [reason.code for reason in report.verdict.reasons if reason.code == "totals_do_not_balance"] == []


@pytest.fixture
def process(tmp_path: Path) -> Iterator[list[subprocess.Popen[bytes]]]:
    started: list[subprocess.Popen[bytes]] = []
    yield started
    for each in started:
        if each.poll() is None:
            each.kill()
        each.wait()


def start(run: Run) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "llm_latency_lens.cli.processes.collect", "--segment-dir", str(run.segment_dir)]
    return subprocess.Popen([*command, "--parent", str(os.getpid())], stderr=subprocess.PIPE)


@pytest.mark.slow
def test_repeated_sigkills_of_the_process_lose_nothing_and_count_nothing_twice(
    tmp_path: Path, process: list[subprocess.Popen[bytes]]
) -> None:
    """Exactly once, in summary.json, intervals.jsonl, intervals.hlog and requests.msgpack, on the real clock."""
    chance = random.Random(7)
    begin = time.monotonic_ns()
    run = Run(tmp_path, plan(tick_ns=20 * MS), phases=[PhaseTimes(start_ns=begin)], anchor_mono_ns=begin)
    writer, number, kills = run.writer(), 0, 0
    process.append(start(run))
    ticked = run.run_dir / "intervals.jsonl"
    while kills < 10:
        seen = ticked.stat().st_size if ticked.exists() else 0
        deadline = time.monotonic() + 20
        extra = chance.random() * 0.06
        while not (ticked.exists() and ticked.stat().st_size > seen) and time.monotonic() < deadline:
            number += _push(writer, number)
        until = time.monotonic() + extra
        while time.monotonic() < until:
            number += _push(writer, number)
        process[-1].send_signal(signal.SIGKILL)
        process[-1].wait()
        process[-1].stderr.close()  # type: ignore[union-attr]  # a pipe, as asked for
        kills += 1
        process.append(start(run))
    writer.close()
    run.finish(time.monotonic_ns(), planned=number)
    _, error = process[-1].communicate(timeout=60)
    assert (process[-1].returncode, error) == (0, b"")
    report = REPORT_DECODER.decode((run.run_dir / "summary.json").read_bytes())
    check_once(run, report, number)
    assert number > 100


def _push(writer: SegmentWriter, number: int) -> int:
    """One more request that ends now, if the ring has room."""
    now = time.monotonic_ns()
    if number - int(writer._tails[0]) >= writer.geometry.requests - 1:
        time.sleep(0.001)
        return 0
    happens(writer, 0, now, 5 * MS, 6 * MS)
    assert writer.push(values(fields(request=number, intended_ns=now - 131 * MS)), gaps(5, 6))
    if not number % 16:
        writer.ticks.acknowledge()
    time.sleep(0.0003)
    return 1


def test_the_process_ends_with_one_if_the_summary_cannot_be_written(
    tmp_path: Path, process: list[subprocess.Popen[bytes]]
) -> None:
    run = Run(tmp_path, plan(tick_ns=TICK))
    writer = run.writer()
    writer.push(values(ended(140)), None)
    writer.close()
    run.run_dir.rmdir()
    run.finish(START + TICK)
    process.append(start(run))
    _, error = process[-1].communicate(timeout=60)
    assert process[-1].returncode == 1
    assert b"summary.json" in error
    report = REPORT_DECODER.decode((run.segment_dir / "report.json").read_bytes())
    assert report.requests.ok == 1
    assert report.client.export_failures > 0


def test_two_collectors_never_work_on_one_run(tmp_path: Path, process: list[subprocess.Popen[bytes]]) -> None:
    run = Run(tmp_path, plan(tick_ns=TICK), phases=[PhaseTimes(start_ns=time.monotonic_ns())])
    run.writer()
    process.append(start(run))
    deadline = time.monotonic() + 30
    while not (run.segment_dir / "checkpoint").exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.append(start(run))
    _, error = process[-1].communicate(timeout=60)
    assert process[-1].returncode == 1
    assert b"another collector" in error
    process[0].kill()
    process[0].wait()
    process[0].stderr.close()  # type: ignore[union-attr]  # a pipe, as asked for


def test_a_run_directory_that_comes_back_gets_every_line(run: Run) -> None:
    writer, clock = run.writer(), Clock(START)
    made = collector(run, clock)
    away = run.run_dir.with_name("away")
    run.run_dir.rename(away)
    for tick in range(1, 4):
        happens(writer, 0, START + tick * TICK - 10 * MS, 5 * MS, 6 * MS)
        writer.push(values(ended(tick * 100 - 10, request=tick - 1)), gaps(5, 6))
        clock.now_ns = START + tick * TICK + GRACE_NS
        made.turn()
    assert json.loads((run.segment_dir / "snapshot.json").read_text())["client"]["export_failures"] > 0
    away.rename(run.run_dir)
    writer.close()
    run.finish(clock.now_ns, planned=3)
    report = made.turn()
    assert report is not None
    check_once(run, report, 3)
    assert "export_failures" in [reason.code for reason in report.verdict.reasons]
