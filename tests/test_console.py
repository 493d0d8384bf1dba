"""The live view and the final table: what they show, what fits, and that a terminal can block nobody."""

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
from llm_latency_lens.engine.errors import OutputError
from llm_latency_lens.engine.metrics import CLIENT, CLIENT_COUNTERS
from llm_latency_lens.exporters import figures
from llm_latency_lens.exporters.console.final import FinalTable, print_final
from llm_latency_lens.exporters.console.live import LiveConsole, View, progress_of
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
    """A line that wraps makes the table unreadable; a number that is left out is lost to most readers."""
    report = reported(ticks=20, targets=targets)
    text = drawn(FinalTable(report), width)
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
    """An empty cell would look like an error; a p99.9 of ten values would look like knowledge."""
    text = drawn(FinalTable(reported(ticks=5, targets=1)), 80)
    assert figures.TOO_SMALL in text


def test_an_invalid_verdict_says_why_in_words() -> None:
    """People act on the reason; the code alone would send them to the documents."""
    report = reported(ticks=5, targets=1)
    report.verdict = Verdict(state="INVALID", reasons=[Reason("steal", "the hypervisor took 7 % of the cores")])
    text = drawn(FinalTable(report), 80)
    assert "INVALID: the hypervisor took this machine's CPU time" in text
    assert "the hypervisor took 7 % of the cores (steal)" in text


def test_a_note_under_a_valid_verdict_is_labelled_as_one() -> None:
    """VALID followed by a bullet about an exceeded bound reads as a contradiction."""
    report = reported(ticks=5, targets=1)
    reasons = [Reason("cpu", "short of CPU"), Reason("clamped", "3 values above the range", note=True)]
    report.verdict = Verdict(state="INVALID", reasons=reasons)
    text = drawn(FinalTable(report), 80)
    assert "- short of CPU (cpu)" in text
    assert "- note: 3 values above the range: the highest percentiles are lower bounds" in text


@pytest.mark.parametrize("counter", CLIENT_COUNTERS)
def test_every_counter_of_the_client_reaches_the_final_table_if_it_counted(counter: str) -> None:
    """Nothing may be dropped or late without people seeing it; a zero would only be noise."""
    report = reported(ticks=2, targets=1)
    setattr(report.client, counter, 7)
    assert f"7 {CLIENT[counter].label}" in drawn(FinalTable(report), 120)
    setattr(report.client, counter, 0)
    assert CLIENT[counter].label not in drawn(FinalTable(report), 120) or counter == "ring_drops"


def test_the_live_frame_shows_late_bodies_and_saturated_gaps() -> None:
    """Both falsify latencies while the run still goes on and could be restarted with less load."""
    view = view_of(FakeRun(ticks=5, targets=1))
    assert view.snapshot is not None
    view.snapshot.client.late_renders, view.snapshot.client.gaps_saturated = 12, 3
    text = drawn(view.frame(120, 24), 120)
    assert "12 late renders" in text
    assert "3 saturated gaps" in text


def test_a_run_without_one_success_has_no_latencies_and_no_crash() -> None:
    """The first run against a wrong address is the most common one."""
    report = reported(ticks=2, targets=1)
    report.metrics = {name: Distribution() for name in report.metrics}
    assert "no request succeeded" in drawn(FinalTable(report), 80)


def test_a_servers_message_cannot_drive_the_terminal_or_the_markup() -> None:
    """Error messages come from strangers: they must not clear the screen or break rich's markup."""
    report = reported(ticks=2, targets=1)
    report.errors = [ErrorSample(target="t", outcome="http_server", count=1, message="\x1b[2J[bold]\x07 ha\nha")]
    text = drawn(FinalTable(report), 120)
    assert "\x1b" not in text
    assert "\x07" not in text
    assert "[bold]" in text


def test_the_live_frame_shows_what_the_servers_say_of_themselves() -> None:
    """A full queue at the server explains a slow first token at once."""
    text = drawn(view_of(FakeRun(ticks=5, targets=2, servers=True)).frame(80, 24), 80)
    assert "server  target-0  8 running  4 waiting  KV cache 40.0 %  GPU 90.0 %" in text
    assert "server  target-1" in text


@pytest.mark.parametrize(("width", "height"), [(80, 24), (80, 14), (120, 40), (60, 24)])
def test_the_live_frame_never_exceeds_the_screen(width: int, height: int) -> None:
    """A frame that is too high scrolls the terminal with every refresh."""
    view = view_of(FakeRun(ticks=30, targets=9, servers=True))
    lines = drawn(view.frame(width, height), width).splitlines()
    assert max(len(line) for line in lines) <= width
    assert len(lines) < height


def test_the_live_frame_shows_progress_rates_latencies_errors_and_health() -> None:
    """The live view is all there is to judge a long run by before it ends."""
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
    """A phase ends at the first of its two limits, so the further one gives the remaining time."""
    run = FakeRun(ticks=10, targets=1)
    snapshot = next(iter(run.snapshots()))
    assert progress_of(snapshot, run.manifest()).done == pytest.approx(0.1)
    snapshot.planned_total = 40
    assert progress_of(snapshot, run.manifest()).done == pytest.approx(0.5)
    snapshot.planned_total = None
    assert progress_of(snapshot, None).done is None


def test_before_the_first_tick_the_view_says_it_waits() -> None:
    """An empty screen would look like a hang."""
    assert "waiting" in drawn(View().frame(80, 24), 80)
    assert View().line() == "lens: starting"


def read_until(fd: int, pattern: bytes, limit_s: float = 20) -> bytes:
    seen, deadline = b"", monotonic() + limit_s
    while not re.search(pattern, seen):
        assert monotonic() < deadline, seen[-500:]
        seen += os.read(fd, 65536)
    return seen


def test_a_real_terminal_gets_a_live_view_that_is_cleared_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The final table follows on the same terminal; leftovers of the view would stand above it."""
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
    """Ctrl-S in the terminal must not stop the supervisor, and with it the measurement."""
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
    """Otherwise a forgotten Ctrl-S keeps a finished run alive."""
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


def test_a_pipe_gets_plain_lines_without_escape_codes(tmp_path: Path) -> None:
    """Logs of CI systems and journals are read as plain text."""
    FakeRun(ticks=10, targets=2).write_segment(tmp_path, until=5)
    source, sink = os.pipe()
    live = LiveConsole(tmp_path, fd=sink, line_interval_s=0.0).start()
    seen = read_until(source, rb"lens: 6 s steady .*\n")
    assert live.stop()
    assert b"\x1b" not in seen
    assert b"TTFT p50/p99" in seen
    os.close(source)
    os.close(sink)


def test_quiet_writes_nothing(tmp_path: Path) -> None:
    """--quiet is for scripts, for which every line is noise."""
    FakeRun(ticks=3, targets=1).write_segment(tmp_path, until=2)
    source, sink = os.pipe()
    with LiveConsole(tmp_path, fd=sink, quiet=True) as live:
        assert live.stop()
    os.close(sink)
    assert os.read(source, 1) == b""
    os.close(source)


def test_no_color_is_obeyed_and_the_table_goes_to_the_given_descriptor(monkeypatch: pytest.MonkeyPatch) -> None:
    """NO_COLOR (no-color.org) is how people ask for plain text."""
    monkeypatch.setenv("NO_COLOR", "1")
    source, sink = os.pipe()
    print_final(reported(ticks=3, targets=1), fd=sink)
    os.close(sink)
    with open(source, "rb") as file:
        text = file.read()
    assert b"TTFT ms" in text
    assert b"\x1b" not in text


def test_a_table_that_cannot_be_written_is_an_error_that_says_why() -> None:
    """Results that are lost without a word would be missed only when they are needed."""
    full = os.open("/dev/full", os.O_WRONLY)
    with pytest.raises(OutputError, match="stdout cannot be written: No space left on device"):
        print_final(reported(ticks=3, targets=1), fd=full)
    os.close(full)
    with pytest.raises(OutputError, match="stdout cannot be written: Bad file descriptor"):
        print_final(reported(ticks=3, targets=1), fd=full)


@pytest.mark.parametrize("broken", ["closed", "full"])
def test_a_live_view_without_a_stderr_ends_in_silence(broken: str, tmp_path: Path) -> None:
    """stderr that is gone is never a reason to fail a run, nor for a traceback of the view's thread."""
    FakeRun(ticks=3, targets=1).write_segment(tmp_path, until=2)
    fd = os.open("/dev/full", os.O_WRONLY)
    if broken == "closed":
        os.close(fd)
    live = LiveConsole(tmp_path, fd=fd, line_interval_s=0.0).start()
    assert live.stop(timeout_s=10)
    if broken == "full":
        os.close(fd)


def test_the_live_view_does_without_numpy() -> None:
    """It runs in the supervisor for as long as the run lasts."""
    code = "import sys; from llm_latency_lens.exporters.console import live; print('numpy' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout == "False\n"


def test_the_light_half_of_the_console_imports_neither_rich_nor_numpy() -> None:
    """The supervisor loads these before a run and keeps them in memory for as long as it lasts."""
    modules = "account, figures; from llm_latency_lens.exporters.console import terminal"
    code = f"import sys; from llm_latency_lens.exporters import {modules}; print(sorted({{'rich', 'numpy'}} & {{*sys.modules}}))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout == "[]\n"


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0 s"), (59.4, "59 s"), (187, "3:07"), (8100, "2:15:00"), (273600, "3 d 04:00")]
)
def test_a_duration_reads_as_people_write_it(seconds: float, text: str) -> None:
    """Runs last from seconds to weeks; 273600 s says nothing to a person."""
    assert figures.clock(seconds) == text


@pytest.mark.parametrize(
    ("counts", "shape"),
    [([], ""), ([0, 0], ""), ([0, 5, 0, 10, 0], "▄ █"), ([1, 1000], "▁█")],
)
def test_a_histogram_shows_every_bucket_that_holds_something(counts: list[int], shape: str) -> None:
    """A rare slow request must stay visible beside a thousand fast ones."""
    assert figures.histogram(counts) == shape
