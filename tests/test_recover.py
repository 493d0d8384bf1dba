"""`lens recover`: the books of a run whose every process was killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from llm_latency_lens.cli import recover as command
from llm_latency_lens.cli.recover import recover_run
from llm_latency_lens.collectors.snapshot import REPORT_DECODER
from llm_latency_lens.engine.errors import LensError
from llm_latency_lens.engine.manifest import PhaseTimes
from llm_latency_lens.engine.ring import Counter
from tests.support_collector import MS, SECOND, START, plan, values
from tests.test_collector import TICK, Run, ended, gaps, start


def killed(root: Path, *, planned: int | None = 1000) -> Run:
    """A run of 7 days as a SIGKILL of everything after 400 ms leaves it: 3 records, 2 requests in flight, run.json."""
    week = PhaseTimes(start_ns=START, end_ns=START + 7 * 86_400 * SECOND, planned=planned)
    run = Run(root / "tmpfs", plan(tick_ns=TICK, duration_ns=7 * 86_400 * SECOND), phases=[week])
    writer = run.writer()
    writer.counters[Counter.HEARTBEAT_NS] = START + 400 * MS
    for number in range(3):
        writer.push(values(ended(140 + 100 * number, request=number)), gaps(5, 6))
    writer.begin(1, 3, START + MS, 0, 0)
    writer.sent(1, START + 2 * MS)
    writer.begin(2, 4, START + 3 * MS, 0, 0)
    run.manifest.pids = {"supervisor": _dead(), "worker-0": _dead()}
    run.manifest.write(run.segment_dir)
    return run


def _dead() -> int:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    return child.pid


@pytest.fixture
def tmpfs(tmp_path: Path) -> Path:
    (tmp_path / "tmpfs").mkdir()
    return tmp_path / "tmpfs"


def test_the_books_of_a_killed_run_are_finished(tmp_path: Path, tmpfs: Path) -> None:
    run = killed(tmp_path)
    report = recover_run(run.run_dir, segments=tmpfs)
    told = report.requests
    assert (told.ok, told.failed, told.unsent) == (3, {"lost": 1}, {"worker_down": 1})
    assert told.planned == 5
    assert report.metrics["itl_ms"].count == 6
    assert REPORT_DECODER.decode((run.run_dir / "summary.json").read_bytes()) == report
    assert (report.verdict.state, report.verdict.reasons[0].code) == ("INVALID", "stopped")
    assert not run.segment_dir.exists()
    assert len(run.rows()) == 5
    assert [snapshot.tick for snapshot in run.snapshots()] == [0, 1, 2, 3, 4]  # and not the days since


def test_what_a_killed_collector_had_told_is_not_told_twice(tmp_path: Path, tmpfs: Path) -> None:
    run = killed(tmp_path)
    run.manifest.phases = [PhaseTimes(start_ns=time.monotonic_ns() - SECOND)]
    run.manifest.write(run.segment_dir)
    collector = start(run)
    deadline = time.monotonic() + 30
    while not (run.segment_dir / "checkpoint").exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    collector.send_signal(signal.SIGKILL)
    collector.communicate()
    report = recover_run(run.run_dir, segments=tmpfs)
    assert (report.requests.ok, report.requests.failed) == (3, {"lost": 1})
    assert sorted(row["request"] for row in run.rows()) == [0, 1, 2, 3, 4]
    ticks = [snapshot.tick for snapshot in run.snapshots()]
    assert ticks == list(range(len(ticks)))


def test_a_run_that_goes_on_is_left_alone(tmp_path: Path, tmpfs: Path) -> None:
    run = killed(tmp_path)
    child = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()", "lens"], stdin=subprocess.PIPE)
    try:
        run.manifest.pids["supervisor"] = child.pid
        run.manifest.write(run.segment_dir)
        with pytest.raises(LensError, match="still running"):
            recover_run(run.run_dir, segments=tmpfs)
    finally:
        child.communicate()
    assert (run.segment_dir / "run.json").exists()


def test_a_pid_that_another_program_got_is_not_the_run(tmp_path: Path, tmpfs: Path) -> None:
    run = killed(tmp_path)
    child = subprocess.Popen(["sleep", "60"])
    try:
        run.manifest.pids["supervisor"] = child.pid
        run.manifest.write(run.segment_dir)
        assert recover_run(run.run_dir, segments=tmpfs).requests.ok == 3
    finally:
        child.kill()
        child.wait()


def test_a_whole_run_has_nothing_to_recover_and_an_unknown_one_neither(tmp_path: Path, tmpfs: Path) -> None:
    (tmp_path / "summary.json").write_text("{}")
    with pytest.raises(LensError, match="is whole"):
        recover_run(tmp_path, segments=tmpfs)
    with pytest.raises(LensError, match="nothing of"):
        recover_run(tmp_path / "other", segments=tmpfs)


def test_a_segment_that_was_never_whole_is_no_obstacle(tmp_path: Path, tmpfs: Path) -> None:
    run = killed(tmp_path)
    (run.segment_dir / "worker-1.1.ring").write_bytes(b"")
    assert recover_run(run.run_dir, segments=tmpfs).requests.ok == 3


def test_the_command_prints_the_summary(tmp_path: Path, tmpfs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "SEGMENTS", tmpfs)
    run = killed(tmp_path)
    found = CliRunner().invoke(command.recover, [str(run.run_dir), "--json"])
    assert found.exit_code == 0, found.output
    assert json.loads(found.output)["requests"]["ok"] == 3
    assert os.listdir(tmpfs) == [run.run_dir.name]
