from __future__ import annotations

import io
import os
import pty
import re
import subprocess
import sys
import termios
import threading
from pathlib import Path
from time import monotonic

import pytest
from rich.console import Console

from llm_latency_lens.collectors.snapshot import Distribution, ErrorSample, Reason, Report, Verdict
from llm_latency_lens.exporters import figures
from llm_latency_lens.exporters.console.live import LiveConsole, View, final_table, print_final, progress_of
from tests.support_runs import FakeRun

WIDTHS = (80, 100, 120)


def drawn(renderable: object, width: int) -> str:
    file = io.StringIO()
    Console(file=file, width=width, no_color=True, highlight=False).print(renderable)
    return file.getvalue()


def view_of(run: FakeRun) -> View:
    view = View()
    for snapshot in run.snapshots():
        view.take(None, snapshot, run.manifest())
    view.take(run.report(), None, None)
    return view


def reported(**kwargs: int) -> Report:
    run = FakeRun(**kwargs)
    list(run.snapshots())
    return run.report()


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("targets", [1, 2, 7])
def test_the_final_table_fits_its_width_and_names_every_number(width: int, targets: int) -> None:
    report = reported(ticks=20, targets=targets)
    text = drawn(final_table(report), width)
    assert max(len(line) for line in text.splitlines()) <= width
    for word in (
        "VALID",
        "TTFT ms",
        "ITL ms",
        "E2E ms",
        "p50",
        "p99.9",
        "planned",
        "ring drops",
        "PASS",
        "FAIL",
        "429",
    ):
        assert word in text
    assert all(target.name in text for target in report.targets)
    cut = [line for line in text.split("failures")[0].splitlines() if "…" in line]
    assert all(line.startswith("model") for line in cut)  # only a long model name may be cut


def test_a_percentile_without_enough_requests_says_so() -> None:
    text = drawn(final_table(reported(ticks=5, targets=1)), 80)
    assert figures.TOO_SMALL in text


def test_an_invalid_verdict_says_why_in_words() -> None:
    report = reported(ticks=5, targets=1)
    report.verdict = Verdict(state="INVALID", reasons=[Reason("steal", "the hypervisor took 7 % of the cores")])
    text = drawn(final_table(report), 80)
    assert "INVALID: the client disturbed what it measured" in text
    assert "the hypervisor took 7 % of the cores (steal)" in text


def test_a_run_without_one_success_has_no_latencies_and_no_crash() -> None:
    report = reported(ticks=2, targets=1)
    report.metrics = {name: Distribution() for name in report.metrics}
    assert "no request succeeded" in drawn(final_table(report), 80)


def test_a_servers_message_cannot_drive_the_terminal_or_the_markup() -> None:
    report = reported(ticks=2, targets=1)
    report.errors = [ErrorSample(target="t", outcome="http_server", count=1, message="\x1b[2J[bold]\x07 ha\nha")]
    text = drawn(final_table(report), 120)
    assert "\x1b" not in text
    assert "\x07" not in text
    assert "[bold]" in text


def test_the_live_frame_shows_what_the_servers_say_of_themselves() -> None:
    text = drawn(view_of(FakeRun(ticks=5, targets=2, servers=True)).frame(80, 24), 80)
    assert "server  target-0  8 running  4 waiting  KV cache 40.0 %  GPU 90.0 %" in text
    assert "server  target-1" in text


@pytest.mark.parametrize(("width", "height"), [(80, 24), (80, 14), (120, 40), (60, 24)])
def test_the_live_frame_never_exceeds_the_screen(width: int, height: int) -> None:
    view = view_of(FakeRun(ticks=30, targets=9, servers=True))
    lines = drawn(view.frame(width, height), width).splitlines()
    assert max(len(line) for line in lines) <= width
    assert len(lines) < height


def test_the_live_frame_shows_progress_rates_latencies_errors_and_health() -> None:
    run = FakeRun(ticks=30, targets=2)
    view = View()
    for snapshot in run.snapshots():
        if snapshot.tick < 15:
            view.take(None, snapshot, run.manifest())
    view.take(run.report(), None, None)
    text = drawn(view.frame(80, 40), 80)
    assert "server" not in text
    for word in ("50%", "ETA 15 s", "tok/s", "TTFT ms", "▁", "target-1", "http_rate_limited", "0 drops", "CPU 31"):
        assert word in text


def test_progress_follows_whichever_of_time_and_count_is_further() -> None:
    run = FakeRun(ticks=10, targets=1)
    snapshot = next(iter(run.snapshots()))
    assert progress_of(snapshot, run.manifest()).done == pytest.approx(0.1)
    snapshot.planned_total = 40
    assert progress_of(snapshot, run.manifest()).done == pytest.approx(0.5)
    snapshot.planned_total = None
    assert progress_of(snapshot, None).done is None


def test_before_the_first_tick_the_view_says_it_waits() -> None:
    assert "waiting" in drawn(View().frame(80, 24), 80)
    assert View().plain() == "lens: starting"


def read_until(fd: int, pattern: bytes, limit_s: float = 20) -> bytes:
    seen, deadline = b"", monotonic() + limit_s
    while not re.search(pattern, seen):
        assert monotonic() < deadline, seen[-500:]
        seen += os.read(fd, 65536)
    return seen


def test_a_real_terminal_gets_a_live_view_that_is_cleared_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    FakeRun(ticks=10, targets=2).write_segment(tmp_path, until=5)
    leader, follower = pty.openpty()
    termios.tcsetwinsize(follower, (40, 100))
    live = LiveConsole(tmp_path, fd=follower).start()
    seen = read_until(leader, rb"target-1")
    reader = threading.Thread(target=lambda: os.read(leader, 1 << 20), daemon=True)
    reader.start()
    assert live.stop(timeout_s=10)
    assert b"\x1b[?25l" in seen  # the cursor is hidden while the view is up
    os.close(follower)
    os.close(leader)


def test_a_blocked_terminal_blocks_nobody_but_its_own_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    FakeRun(ticks=5, targets=1).write_segment(tmp_path, until=3)
    leader, follower = pty.openpty()
    termios.tcflow(follower, termios.TCOOFF)  # what Ctrl-S does
    live = LiveConsole(tmp_path, fd=follower).start()
    assert live.stop(timeout_s=1.0) is False
    termios.tcflow(follower, termios.TCOON)
    read_until(leader, rb"\x1b\[\?25h")
    os.close(follower)
    os.close(leader)


def test_a_process_with_a_blocked_terminal_still_exits(tmp_path: Path) -> None:
    FakeRun(ticks=5, targets=1).write_segment(tmp_path, until=3)
    code = (
        "import sys; from pathlib import Path; from llm_latency_lens.exporters.console.live import LiveConsole;"
        "l = LiveConsole(Path(sys.argv[1])).start(); l.stop(0.5); print('out'); sys.exit(7)"
    )
    leader, follower = pty.openpty()
    termios.tcflow(follower, termios.TCOOFF)
    env = {**os.environ, "TERM": "xterm"}
    run = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        stderr=follower,
        stdout=subprocess.PIPE,
        timeout=30,
        env=env,
        check=False,
    )
    assert (run.returncode, run.stdout) == (7, b"out\n")
    os.close(follower)
    os.close(leader)


def test_a_pipe_gets_plain_lines_without_escape_codes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llm_latency_lens.exporters.console.live.PLAIN_S", 0.0)
    FakeRun(ticks=10, targets=2).write_segment(tmp_path, until=5)
    source, sink = os.pipe()
    live = LiveConsole(tmp_path, fd=sink).start()
    seen = read_until(source, rb"lens: 6 s steady .*\n")
    assert live.stop()
    assert b"\x1b" not in seen
    assert b"TTFT p50/p99" in seen
    os.close(source)
    os.close(sink)


def test_quiet_writes_nothing(tmp_path: Path) -> None:
    FakeRun(ticks=3, targets=1).write_segment(tmp_path, until=2)
    source, sink = os.pipe()
    with LiveConsole(tmp_path, fd=sink, quiet=True) as live:
        assert live.stop()
    os.close(sink)
    assert os.read(source, 1) == b""
    os.close(source)


def test_no_color_is_obeyed_and_the_table_goes_to_the_given_descriptor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    source, sink = os.pipe()
    print_final(reported(ticks=3, targets=1), fd=sink)
    os.close(sink)
    with open(source, "rb") as file:
        text = file.read()
    assert b"TTFT ms" in text
    assert b"\x1b" not in text


def test_importing_the_console_does_not_import_rich() -> None:
    code = "import sys, llm_latency_lens.exporters.console.live; print('rich' in sys.modules, 'numpy' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout == "False False\n"


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0 s"), (59.4, "59 s"), (187, "3:07"), (8100, "2:15:00"), (273600, "3 d 04:00")]
)
def test_a_stretch_of_time_reads_as_people_write_it(seconds: float, text: str) -> None:
    assert figures.clock(seconds) == text


@pytest.mark.parametrize(
    ("counts", "shape"),
    [([], ""), ([0, 0], ""), ([0, 5, 0, 10, 0], "▄ █"), ([1, 1000], "▁█")],
)
def test_a_histogram_shows_every_bucket_that_holds_something(counts: list[int], shape: str) -> None:
    assert figures.histogram(counts) == shape
