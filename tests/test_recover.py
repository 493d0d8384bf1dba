"""`lens recover`: the totals of a run whose every process was killed."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from llm_latency_lens.cli import recover as command
from llm_latency_lens.cli import run as run_command
from llm_latency_lens.cli.recover import recover_run
from llm_latency_lens.collectors.snapshot import REPORT_DECODER
from llm_latency_lens.engine.errors import LensError
from llm_latency_lens.engine.records.layout import Counter
from llm_latency_lens.engine.runs import rundir
from llm_latency_lens.engine.runs.manifest import PhaseTimes
from tests.support_collector import MS, SECOND, START, plan, values
from tests.support_lens import lens, manifest_of, running
from tests.support_simulator import FAST, simulator
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


@pytest.fixture
def living() -> Iterator[int]:
    """The pid of a process that passes for a supervisor."""
    child = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()", "lens"], stdin=subprocess.PIPE)
    yield child.pid
    child.communicate()


def test_the_books_of_a_killed_run_are_finished(tmp_path: Path, tmpfs: Path) -> None:
    """What was measured before a kill is worth as much as what a finished run measured."""
    run = killed(tmp_path)
    report = recover_run(run.run_dir, segments=tmpfs)
    reported = report.requests
    assert (reported.ok, reported.failed, reported.unsent) == (3, {"lost": 1}, {"worker_down": 1})
    assert reported.planned == 5
    assert report.metrics["itl_ms"].count == 6
    assert REPORT_DECODER.decode((run.run_dir / "summary.json").read_bytes()) == report
    assert (report.verdict.state, report.verdict.reasons[0].code) == ("INVALID", "stopped")
    assert not run.segment_dir.exists()
    assert len(run.rows()) == 5
    assert [snapshot.tick for snapshot in run.snapshots()] == [0, 1, 2, 3, 4]  # and not the days since


def test_what_a_killed_collector_had_told_is_not_told_twice(tmp_path: Path, tmpfs: Path) -> None:
    """Recovery goes on from the checkpoint: rows and ticks after it are rewritten, not appended again."""
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


def test_a_run_that_goes_on_is_left_alone(tmp_path: Path, tmpfs: Path, living: int) -> None:
    """Two collectors on one run would both write its files."""
    run = killed(tmp_path)
    run.manifest.pids["supervisor"] = living
    run.manifest.write(run.segment_dir)
    with pytest.raises(LensError, match="still running"):
        recover_run(run.run_dir, segments=tmpfs)
    assert (run.segment_dir / "run.json").exists()


def test_a_pid_that_another_program_got_is_not_the_run(tmp_path: Path, tmpfs: Path) -> None:
    """Pids are used again: such a run could never be recovered."""
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
    """The message says which of the two it is."""
    (tmp_path / "summary.json").write_text("{}")
    with pytest.raises(LensError, match="is complete"):
        recover_run(tmp_path, segments=tmpfs)
    with pytest.raises(LensError, match="nothing of"):
        recover_run(tmp_path / "other", segments=tmpfs)


def test_a_segment_that_was_never_whole_is_no_obstacle(tmp_path: Path, tmpfs: Path) -> None:
    """A worker killed while it makes its ring leaves such a file."""
    run = killed(tmp_path)
    (run.segment_dir / "worker-1.1.ring").write_bytes(b"")
    assert recover_run(run.run_dir, segments=tmpfs).requests.ok == 3


def test_the_command_prints_the_summary(tmp_path: Path, tmpfs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`--json` is the same document as that of a run."""
    monkeypatch.setattr(command, "SEGMENTS", tmpfs)
    run = killed(tmp_path)
    found = CliRunner().invoke(command.recover, [str(run.run_dir), "--json"])
    assert found.exit_code == 0, found.output
    assert json.loads(found.output)["requests"]["ok"] == 3
    assert os.listdir(tmpfs) == [run.run_dir.name]


def another(root: Path, name: str, **change: object) -> Run:
    """One more killed run, under another name."""
    (root / name / "tmpfs").mkdir(parents=True)
    run = killed(root / name)
    moved = root / "tmpfs" / name
    run.segment_dir.rename(moved)
    run.segment_dir = moved
    for key, value in change.items():
        setattr(run.manifest, key, value)
    run.manifest.write(moved)
    return run


@pytest.fixture
def here(tmpfs: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The tmpfs is the program's."""
    monkeypatch.setattr(command, "SEGMENTS", tmpfs)
    return tmpfs


def never_begun(tmpfs: Path, name: str) -> None:
    """A segment directory whose supervisor died before its manifest, longer ago than any start takes."""
    (tmpfs / name).mkdir()
    then = time.time() - 2 * rundir.SETTLING_S
    os.utime(tmpfs / name, (then, then))


def test_what_runs_left_is_listed(tmp_path: Path, here: Path, living: int) -> None:
    """What dead runs left takes memory: the user sees what, since when, and what to do."""
    assert call().output == f"nothing is left in {here}\n"
    dead = another(tmp_path, "a-dead", started_at="2026-01-02T03:04:05.678+00:00")
    another(tmp_path, "b-alive", pids={"supervisor": living})
    never_begun(here, "c-never-begun")
    (here / "d-no-directory").touch()
    lines = call().output.splitlines()
    assert [line.split()[:3] for line in lines[1:4]] == [
        ["a-dead", "2026-01-02T03:04:05Z", "dead"],
        ["b-alive", "2026-11-23T00:00:00Z", "alive"],
        ["c-never-begun", "-", "dead"],
    ]
    assert lines[1].endswith(f" {dead.run_dir}")
    assert "--remove" in lines[-1]


def test_all_dead_runs_are_recovered_at_once_and_what_cannot_be_is_told(
    tmp_path: Path, here: Path, living: int
) -> None:
    """One run that cannot be recovered keeps none of the others from it."""
    dead = [another(tmp_path, name) for name in ("a", "b")]
    running = another(tmp_path, "c", pids={"supervisor": living})
    never_begun(here, "d")
    found = call("--all")
    assert found.return_value == 1
    assert [line.partition(": ")[0] for line in found.stdout.splitlines()] == [str(run.run_dir) for run in dead]
    assert "lens recover --remove d" in found.stderr
    assert sorted(path.name for path in here.iterdir()) == ["c", "d"]
    assert not (running.run_dir / "summary.json").exists()


def test_a_run_of_another_version_is_listed_and_left_to_it(tmp_path: Path, here: Path) -> None:
    """Numbers read with the wrong format would be wrong without a sign of it."""
    run = another(tmp_path, "a")
    path = run.segment_dir / "run.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"plan": {"from": "the future"}}))
    assert "  dead  " in call().output
    found = call("--all")
    assert found.return_value == 1
    assert "another version" in found.stderr
    assert path.exists()


def test_what_a_dead_run_left_is_removed_and_nothing_else(tmp_path: Path, here: Path, living: int) -> None:
    """A name from the command line must not remove a directory outside, or a run that goes on."""
    run = another(tmp_path, "a")
    another(tmp_path, "b", pids={"supervisor": living})
    assert "removed" in call("--remove", "a").output
    assert run.run_dir.exists()
    for name, why in [("b", "still running"), ("..", "is no run"), ("a", "is no run")]:
        found = call("--remove", name)
        assert why in str(found.exception)
    assert [path.name for path in here.iterdir()] == ["b"]


def test_a_run_that_a_collector_works_on_is_alive_wherever_its_processes_are(tmp_path: Path, here: Path) -> None:
    """In another container the pids mean nothing; the lock does."""
    run = another(tmp_path, "a")
    with (run.segment_dir / rundir.LOCK).open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert "still running" in str(call("--remove", "a").exception)
    assert "removed" in call("--remove", "a").output


def test_a_run_killed_before_its_first_slot_is_recovered_with_nothing_sent(tmp_path: Path, tmpfs: Path) -> None:
    """No ring and no slot is a valid state, not an error."""
    run = killed(tmp_path)
    run.manifest.phases = [PhaseTimes()]
    run.manifest.state = "starting"
    run.manifest.write(run.segment_dir)
    for path in run.segment_dir.glob("*.ring"):
        path.unlink()
    assert recover_run(run.run_dir, segments=tmpfs).requests.sent == 0


def test_a_run_that_died_before_its_manifest_is_named_by_its_directory_too(tmp_path: Path, tmpfs: Path) -> None:
    """`lens recover RUN_DIR` denied what `--all` found; both name the way out."""
    (tmp_path / "a").mkdir()
    never_begun(tmpfs, "a")
    with pytest.raises(LensError, match="died before it had begun; `lens recover --remove a`"):
        recover_run(tmp_path / "a", segments=tmpfs)


@pytest.mark.slow
def test_a_worker_that_is_dead_when_everything_dies_is_told_with_its_ticks(tmp_path: Path) -> None:
    """The outage was recorded when the worker was back: one that never came back had restarts and no ticks affected."""
    with simulator(**FAST) as sim:
        arguments = ("--base-url", f"{sim.base_url}/v1", "--model", "m", "--rate", "100", "--duration", "1h")
        with running(*arguments, "--workers", "2", cwd=tmp_path) as process:
            segments, manifest = manifest_of(tmp_path)
            deadline = time.monotonic() + 30
            while sim.stats()["requests"] < 100:
                assert time.monotonic() < deadline
                time.sleep(0.02)
            os.kill(manifest["pids"]["worker-0"], signal.SIGKILL)
            while not json.loads((segments / "run.json").read_text())["restarts"]:
                assert time.monotonic() < deadline
            process.kill()
            process.wait()
        recovered = lens("recover", "runs/latest", "--json", cwd=tmp_path)
    assert recovered.code == 0, recovered.stderr
    reasons = {each["code"]: each["detail"] for each in recovered.summary["verdict"]["reasons"]}
    assert "affected: ticks " in reasons["worker_restarts"]


@pytest.mark.parametrize("arguments", [("x", "--all"), ("--all", "--remove", "x"), ("--json",)])
def test_contradictions_are_wrong_usage(arguments: tuple[str, ...]) -> None:
    """To guess what was meant could remove a run."""
    assert isinstance(call(*arguments).exception, click.UsageError)


def test_a_new_run_says_in_one_line_what_dead_ones_left(
    tmp_path: Path, here: Path, living: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nobody looks into a tmpfs before it is full."""
    monkeypatch.setattr(run_command, "leftovers", lambda: rundir.leftovers(here))
    another(tmp_path, "alive", pids={"supervisor": living})
    run_command.warn_of_leftovers(quiet=False)
    assert capsys.readouterr() == ("", "")
    another(tmp_path, "dead")
    run_command.warn_of_leftovers(quiet=True)
    assert capsys.readouterr() == ("", "")
    run_command.warn_of_leftovers(quiet=False)
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("lens: 1 dead run left ")
    assert len(err.splitlines()) == 1


def call(*arguments: str) -> Result:
    return CliRunner().invoke(command.recover, arguments, standalone_mode=False)
