"""The live view of a run on stderr. It reads files and never measures. Imports rich.

`LiveConsole` polls report.json, snapshot.json and run.json of the segment directory from a daemon thread and writes to
its own copy of the terminal's descriptor, without a lock that anybody else needs: a terminal that is stopped with
Ctrl-S, or a full pipe, blocks that thread and nothing else.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from time import monotonic
from typing import Final, NamedTuple, TypeVar

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from ...collectors.bounds import CPU_NOTICE, STARVED_BOUND, STEAL_NOTICE
from ...collectors.snapshot import (
    REPORT_DECODER,
    SNAPSHOT_DECODER,
    Client,
    Distribution,
    Interval,
    Report,
    Server,
    Snapshot,
    TargetReport,
)
from ...engine.files import UNDECODABLE
from ...engine.metrics import BUCKETS, CLIENT, METRICS
from ...engine.runs.manifest import Manifest, read_manifest
from .. import figures
from ..headline import label, scale_of
from ..plan_words import setting_line
from .tables import LEVELS, errors_table, grid, literal
from .terminal import Terminal, printable

REFRESH_S: Final = 0.25
LINE_INTERVAL_S: Final = 5.0  # between two lines where stderr is not a terminal
SERVERS_SHOWN: Final = 3
ERRORS_SHOWN: Final = 5
HISTORY_TICKS: Final = 120
# Of metrics.CLIENT_COUNTERS those whose increase calls for action during the run.
HEALTH_COUNTERS: Final = ("restarts", "clock_steps", "late_renders", "gaps_saturated", "export_failures")

T = TypeVar("T")


class Progress(NamedTuple):
    """How far a run is: `done` in [0, 1] and `eta_s`, both None where the plan does not say how it ends."""

    done: float | None
    eta_s: float | None


class View:
    """What the live view knows, updated by `take`; `line` and `frame` draw it. No file, clock or thread in here."""

    def __init__(self) -> None:
        self.report: Report | None = None
        self.snapshot: Snapshot | None = None
        self.manifest: Manifest | None = None
        self._ttft_p50: deque[float | None] = deque(maxlen=HISTORY_TICKS)
        self._ttft_buckets = [0] * (len(BUCKETS["ttft_ms"]) + 1)

    def take(self, report: Report | None, snapshot: Snapshot | None, manifest: Manifest | None) -> None:
        """Takes the latest of each; None keeps what there is."""
        self.report = report or self.report
        self.manifest = manifest or self.manifest
        if snapshot and (self.snapshot is None or snapshot.tick != self.snapshot.tick):
            self._ttft_p50.append(_pooled_p50(snapshot, "ttft_ms"))
            for interval in snapshot.intervals:
                for i, n in enumerate(interval.buckets.get("ttft_ms", ())):
                    self._ttft_buckets[i] += n
            self.snapshot = snapshot

    def line(self) -> str:
        """One line for logs and pipes."""
        s, r = self.snapshot, self.report
        if s is None:
            return "lens: starting"
        progress = progress_of(s, self.manifest)
        requests_per_s, tokens_per_s = _rates(s, s.intervals)
        words = [
            f"{figures.clock(s.elapsed_s)} {s.phase or s.state}",
            f"{s.ok_total:,} ok",
            f"{s.failed_total:,} failed",
            f"{s.in_flight:,} in flight",
            f"{figures.rate(requests_per_s)} req/s",
            f"{figures.rate(tokens_per_s)} tok/s",
        ]
        for metric in figures.HEADLINE[:2]:
            d = r.metrics.get(metric) if r else None
            if d and d.count:
                words.append(f"{METRICS[metric].label} p50/p99 {figures.value(d.p50)}/{figures.value(d.p99)} ms")
        if s.unsent_total:
            words.append(f"{s.unsent_total:,} not sent")
        if s.cost_usd_total is not None:
            words.append(figures.money(s.cost_usd_total))
        if s.client.limited_by:
            words.append(f"client limited: {', '.join(s.client.limited_by)}")
        if s.client.ring_drops:
            words.append(f"DROPS {s.client.ring_drops:,}")
        if progress.done is not None:
            eta = "" if progress.eta_s is None else f", ETA {figures.clock(progress.eta_s)}"
            words.append(f"{progress.done:.0%}{eta}")
        return "lens: " + " | ".join(words)

    def frame(self, width: int, height: int) -> RenderableType:
        """One screen of the live view, at most `height` - 1 lines."""
        s, r = self.snapshot, self.report
        if s is None:
            return Text("lens: waiting for the first second of the run ...", style="dim")
        parts: list[RenderableType] = [self._title(s, width), self._setting(s, width)]
        parts += [self._bar(s, width), _totals(s), Text()]
        parts += [self._latencies(s), self._sparks(width)]
        shown = list(s.servers.items())[: min(SERVERS_SHOWN, max(0, height - 15))]
        servers = [_server_line(name, server) for name, server in shown]
        free = height - 14 - len(servers)
        targets = r.targets if r else []
        if len(targets) > 1 and free > 3:
            fit = targets[: max(1, free - 5)]
            parts += [Text(), _targets(s, fit, width)]
            free -= len(fit) + 2
            if len(fit) < len(targets):
                parts.append(Text(f"  and {len(targets) - len(fit)} more targets", style="dim"))
                free -= 1
        errors = sorted(r.errors if r else [], key=lambda e: -e.count)
        if errors and free > 2:
            parts += [Text(), errors_table(errors[: min(ERRORS_SHOWN, free - 2)], width)]
        parts += [Text(), *servers, _health_line(s.client)]
        return Group(*parts)

    def _title(self, s: Snapshot, width: int) -> Text:
        name = self.manifest.plan.name if self.manifest else s.run
        phases = [phase.name for phase in self.manifest.plan.phases] if self.manifest else []
        number = f" ({phases.index(s.phase) + 1}/{len(phases)})" if s.phase in phases and len(phases) > 1 else ""
        unmeasured = ", not measured" if s.intervals and not any(i.measured for i in s.intervals) else ""
        left = Text.assemble(("LLM Latency Lens", "bold"), f"  {name}")
        right = Text(f"{s.state}: {s.phase}{number}{unmeasured}" if s.phase else s.state, style="cyan")
        left.append(" " * max(2, width - left.cell_len - right.cell_len))
        left.append_text(right)
        left.truncate(width)
        return left

    def _setting(self, s: Snapshot, width: int) -> Text:
        """What is measured and under which load, in one line."""
        words = setting_line(self.manifest.plan, s.phase) if self.manifest else ""
        text = Text(printable(words), style="dim")
        text.truncate(width, overflow="ellipsis")
        return text

    def _bar(self, s: Snapshot, width: int) -> Text:
        progress = progress_of(s, self.manifest)
        elapsed = figures.clock(s.elapsed_s)
        if progress.done is None:
            return Text(f"{elapsed} elapsed, no planned end; Ctrl-C drains and reports")
        if progress.eta_s is not None:
            elapsed = f"{progress.done:4.0%}  {elapsed}  ETA {figures.clock(progress.eta_s)}"
        cells = max(10, width - 32)
        full = min(cells, int(cells * progress.done))
        return Text.assemble(("━" * full, "green"), ("─" * (cells - full), "dim"), f" {elapsed}")

    def _latencies(self, s: Snapshot) -> Table:
        r = self.report
        far = r is not None and any(r.metrics.get(m, Distribution()).p99_9 is not None for m in figures.HEADLINE)
        table = grid("", *LEVELS, *(("p99.9",) if far else ()), "max", first=9)
        measured = r is not None and any(r.metrics.get(m, Distribution()).count for m in figures.HEADLINE)
        for metric in figures.HEADLINE:
            shown = r.metrics.get(metric, Distribution()) if r and measured else _largest(s, metric)
            scale = scale_of(metric, [shown])
            cells = [scale.value(getattr(shown, level)) for level in LEVELS]
            cells += [scale.value(shown.p99_9)] if far else []
            table.add_row(label(metric, scale), *cells, scale.value(shown.max))
        return table

    def _sparks(self, width: int) -> Text:
        """TTFT as a histogram of the run so far, and its p50 tick by tick."""
        text = Text("TTFT     ")
        filled = [i for i, n in enumerate(self._ttft_buckets) if n]
        if filled:
            bounds = (0, *BUCKETS["ttft_ms"], float("inf"))
            low, high = bounds[filled[0]], bounds[filled[-1] + 1]
            text.append(f"{low:g} ms ", style="dim")
            text.append(figures.histogram(self._ttft_buckets), style="cyan")
            text.append(f" {high:g} ms   ", style="dim")
        text.append("p50 of each tick ", style="dim")
        text.append(figures.spark(self._ttft_p50, max(8, width - text.cell_len)), style="cyan")
        return text


class LiveConsole:
    """The live view of one run. `start` never waits for the terminal, `stop` no longer than its timeout.

    `line_interval_s` is the time between two lines where `fd` (stderr) is not a terminal.
    """

    def __init__(
        self,
        segment_dir: Path,
        *,
        quiet: bool = False,
        fd: int = 2,
        line_interval_s: float = LINE_INTERVAL_S,
    ) -> None:
        self._segment_dir = segment_dir
        self._quiet = quiet
        self._fd = fd
        self._line_interval_s = line_interval_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="console", daemon=True)

    def start(self) -> LiveConsole:
        if not self._quiet:
            self._thread.start()
        return self

    def stop(self, timeout_s: float = 2.0) -> bool:
        """Ends the view and clears the screen; False if the terminal is blocked and its thread was left behind."""
        self._stop.set()
        if self._thread.ident is None:
            return True
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def __enter__(self) -> LiveConsole:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _run(self) -> None:
        try:
            terminal = Terminal(self._fd)
        except OSError:  # stderr is closed: there is nothing to draw on, and that is no reason to fail a run
            return
        try:
            if terminal.isatty() and os.environ.get("TERM", "dumb") != "dumb":
                self._draw(terminal)
            else:
                self._write_lines(terminal)
        finally:
            terminal.close()

    def _draw(self, terminal: Terminal) -> None:
        # rich uses only the part of IO[str] that Terminal has
        console = Console(file=terminal, highlight=False)  # type: ignore[arg-type]
        view = View()
        with Live(
            console=console, auto_refresh=False, transient=True, redirect_stdout=False, redirect_stderr=False
        ) as live:
            ended = False
            while not ended:
                ended = self._stop.wait(REFRESH_S)
                self._poll(view)
                live.update(view.frame(console.width, console.height), refresh=True)

    def _write_lines(self, terminal: Terminal) -> None:
        view, due_s, written = View(), monotonic() + self._line_interval_s, -1
        while not self._stop.wait(REFRESH_S):
            self._poll(view)
            tick = view.snapshot.tick if view.snapshot else -1
            if monotonic() >= due_s and tick != written:
                due_s, written = monotonic() + self._line_interval_s, tick
                terminal.write(view.line() + "\n")
                terminal.flush()

    def _poll(self, view: View) -> None:
        folder = self._segment_dir
        view.take(
            _read(lambda: REPORT_DECODER.decode((folder / "report.json").read_bytes())),
            _read(lambda: SNAPSHOT_DECODER.decode((folder / "snapshot.json").read_bytes())),
            _read(lambda: read_manifest(folder)),
        )


def _read(reader: Callable[[], T]) -> T | None:
    try:
        return reader()
    except (OSError, *UNDECODABLE):  # not written yet, or already removed: the last one stays on the screen
        return None


def progress_of(snapshot: Snapshot, manifest: Manifest | None) -> Progress:
    """How far the run is by time and by count, whichever is further (a phase ends at the first of the two)."""
    if snapshot.state == "done":
        return Progress(1.0, 0.0)
    shares: list[float] = []
    durations_ns = [phase.duration_ns for phase in manifest.plan.phases] if manifest else []
    if durations_ns and None not in durations_ns:
        shares.append(snapshot.elapsed_s * 1e9 / max(1, sum(d or 0 for d in durations_ns)))
    if snapshot.planned_total:
        ended = snapshot.ok_total + snapshot.failed_total + snapshot.unsent_total
        shares.append(ended / snapshot.planned_total)
    if not shares:
        return Progress(None, None)
    done = min(1.0, max(shares))
    return Progress(done, snapshot.elapsed_s * (1 - done) / done if done > 0.001 else None)


def _totals(s: Snapshot) -> Text:
    requests_per_s, tokens_per_s = _rates(s, s.intervals)
    text = Text.assemble((f"{s.ok_total:,}", "bold"), " ok  ")
    text.append(f"{s.failed_total:,} failed", style="bold red" if s.failed_total else "")
    if s.unsent_total:
        text.append(f"  {s.unsent_total:,} not sent", style="yellow")
    text.append(
        f"  {s.in_flight:,} in flight  {figures.rate(requests_per_s)} req/s  {figures.rate(tokens_per_s)} tok/s"
    )
    if s.cost_usd_total is not None:
        text.append(f"  {figures.money(s.cost_usd_total)}")
    return text


def _targets(s: Snapshot, targets: list[TargetReport], width: int) -> Table:
    wide = width >= 100
    heads = ["ok", "failed", "in flight", "req/s", "tok/s", "TTFT p50", "p99"]
    table = grid("target", *heads, *(("ITL p50", "E2E p50", "p99") if wide else ()), first=max(10, width // 6))
    for target in targets:
        now = [i for i in s.intervals if i.target == target.name]
        requests_per_s, tokens_per_s = _rates(s, now)
        ttft, itl, e2e = (target.metrics.get(m, Distribution()) for m in figures.HEADLINE)
        failed = figures.failed(target.requests)
        cells = [
            figures.count(target.requests.ok),
            f"[bold red]{failed:,}[/]" if failed else "0",
            figures.count(sum(i.in_flight for i in now)),
            figures.rate(requests_per_s),
            figures.rate(tokens_per_s),
            figures.value(ttft.p50),
            figures.value(ttft.p99),
        ]
        if wide:
            cells += [figures.value(itl.p50), figures.value(e2e.p50), figures.value(e2e.p99)]
        table.add_row(literal(target.name), *cells)
    return table


def _server_line(target: str, server: Server) -> Text:
    """What a target's own metrics pages say."""
    text = Text("server  ", style="dim")
    text.append(printable(target))
    for name, value in (("running", server.requests_running), ("waiting", server.requests_waiting)):
        if value is not None:
            text.append(f"  {value:,.0f} {name}")
    for name, value in (("KV cache", server.kv_cache_usage), ("GPU", server.gpu_utilisation)):
        if value is not None:
            text.append(f"  {name} {figures.share(value)}")
    if server.scrape_failures:
        text.append(f"  {server.scrape_failures:,} scrapes failed", style="yellow")
    text.no_wrap, text.overflow = True, "ellipsis"
    return text


def _health_line(c: Client) -> Text:
    text = Text("client  ", style="dim")
    if c.limited_by:
        text.append(f"LIMITED: {', '.join(c.limited_by)}  ", style="bold yellow")
    text.append(f"{c.ring_drops:,} drops", style="bold red" if c.ring_drops else "")
    if c.loop_lag_us.p99 is not None:
        text.append(f"  lag p99 {figures.value(c.loop_lag_us.p99)} us")
    for name, share, notice in (
        ("CPU", c.cpu_utilisation, CPU_NOTICE),
        ("steal", c.steal_share, STEAL_NOTICE),
    ):
        text.append(f"  {name} {figures.share(share)}", style="yellow" if (share or 0) > notice else "")
    if c.itl_coalesced_share is not None:
        text.append(f"  coalesced {figures.share(c.itl_coalesced_share)}")
    if (c.run_queue_wait_share or 0) > STARVED_BOUND:
        text.append(f"  CPU wait {figures.share(c.run_queue_wait_share)}", style="yellow")
    if c.clock != "kernel":
        text.append(f"  {c.clock} clock", style="yellow")
    for name in HEALTH_COUNTERS:
        if n := getattr(c, name):
            text.append(f"  {n:,} {CLIENT[name].label}", style="bold yellow")
    text.no_wrap, text.overflow = True, "ellipsis"
    return text


def _rates(s: Snapshot, intervals: Sequence[Interval]) -> tuple[float, float]:
    """Requests and output tokens per second of a tick."""
    seconds = s.seconds or 1.0
    return sum(i.requests.ok for i in intervals) / seconds, sum(i.tokens.output or 0 for i in intervals) / seconds


def _pooled_p50(s: Snapshot, metric: str) -> float | None:
    """The median of a tick over its targets, approximated: the mean of theirs weighted by count. For the curve only."""
    known = [(d.p50, d.count) for i in s.intervals if (d := i.metrics.get(metric)) and d.p50 is not None]
    n = sum(count for _, count in known)
    return sum(p50 * count for p50, count in known) / n if n else None


def _largest(s: Snapshot, metric: str) -> Distribution:
    """The tick's distribution with the most values: what there is to show before the measured part begins."""
    known = [i.metrics[metric] for i in s.intervals if metric in i.metrics]
    return max(known, key=lambda d: d.count, default=Distribution())
