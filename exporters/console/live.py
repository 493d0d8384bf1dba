"""What a person sees: a live view on stderr while a run goes, and the final table on stdout. Reads, never measures.

`LiveConsole` polls report.json, snapshot.json and run.json of the segment directory from a daemon thread and writes to
its own copy of the terminal's descriptor, without a lock that anybody else could need: a terminal that is stopped with
Ctrl-S, or a full pipe, blocks that thread and nothing else. rich is imported only when something is drawn.
"""

from __future__ import annotations

import os
import sys
import threading
from collections import deque
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

import msgspec

from ...collectors.bounds import CPU_NOTICE, STEAL_NOTICE
from ...collectors.snapshot import (
    REPORT_DECODER,
    SNAPSHOT_DECODER,
    Client,
    Distribution,
    ErrorSample,
    Interval,
    Report,
    Requests,
    Server,
    Snapshot,
    TargetReport,
    Verdict,
)
from ...engine.metrics import BUCKETS, METRICS
from ...engine.runs.manifest import Manifest, read_manifest
from .. import figures

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.table import Table
    from rich.text import Text

REFRESH_S: Final = 0.25
PLAIN_S: Final = 5.0
HEADLINE: Final = ("ttft_ms", "itl_ms", "e2e_ms")
LEVELS: Final = ("p50", "p90", "p95", "p99")
STYLES: Final = {"VALID": "bold green", "INVALID": "bold red", "INSUFFICIENT": "bold yellow"}
SLO_STYLES: Final = {"PASS": "green", "FAIL": "bold red", "UNDECIDED": "yellow"}
SERVERS_SHOWN: Final = 3
HISTORY: Final = 120


class Terminal:
    """A text file over its own descriptor that holds no lock: writes are joined and go out whole at `flush`."""

    encoding = "utf-8"

    def __init__(self, fd: int) -> None:
        self._fd = os.dup(fd)
        self._pending: list[str] = []

    def write(self, text: str) -> int:
        self._pending.append(text)
        return len(text)

    def flush(self) -> None:
        rest = memoryview("".join(self._pending).encode("utf-8", "replace"))
        self._pending.clear()
        try:
            while rest:
                rest = rest[os.write(self._fd, rest) :]
        except OSError:  # nobody reads any more: the view ends, the run goes on
            pass

    def isatty(self) -> bool:
        return os.isatty(self._fd)

    def fileno(self) -> int:
        return self._fd

    def close(self) -> None:
        os.close(self._fd)


class Progress(msgspec.Struct):
    """How far a run is: `done` in [0, 1] and `eta_s`, both None where the plan does not say how it ends."""

    done: float | None
    eta_s: float | None


class View:
    """What the live view knows, fed by `take`; `lines` and `frame` draw it. No file, clock or thread in here."""

    def __init__(self) -> None:
        self.report: Report | None = None
        self.snapshot: Snapshot | None = None
        self.manifest: Manifest | None = None
        self._ttft: deque[float | None] = deque(maxlen=HISTORY)
        self._shape = [0] * (len(BUCKETS["ttft_ms"]) + 1)

    def take(self, report: Report | None, snapshot: Snapshot | None, manifest: Manifest | None) -> None:
        """Takes the latest of each; None keeps what there is."""
        self.report = report or self.report
        self.manifest = manifest or self.manifest
        if snapshot and (self.snapshot is None or snapshot.tick != self.snapshot.tick):
            self._ttft.append(_pooled(snapshot, "ttft_ms", "p50"))
            for interval in snapshot.intervals:
                for i, n in enumerate(interval.buckets.get("ttft_ms", ())):
                    self._shape[i] += n
            self.snapshot = snapshot

    def plain(self) -> str:
        """One line for logs and pipes."""
        s, r = self.snapshot, self.report
        if s is None:
            return "lens: starting"
        progress = progress_of(s, self.manifest)
        rates = _rates(s)
        words = [
            f"{figures.clock(s.elapsed_s)} {s.phase or s.state}",
            f"{s.ok_total:,} ok",
            f"{s.failed_total:,} failed",
            f"{s.in_flight:,} in flight",
            f"{figures.rate(rates['requests_per_s'])} req/s",
            f"{figures.rate(rates['output_tokens_per_s'])} tok/s",
        ]
        for metric in HEADLINE[:2]:
            shown = r.metrics.get(metric) if r else None
            if shown and shown.count:
                pair = f"{figures.value(shown.p50)}/{figures.value(shown.p99)}"
                words.append(f"{METRICS[metric].label} p50/p99 {pair} ms")
        if s.unsent_total:
            words.append(f"{s.unsent_total:,} not sent")
        if s.cost_usd_total is not None:
            words.append(figures.money(s.cost_usd_total))
        if s.client.ring_drops:
            words.append(f"DROPS {s.client.ring_drops:,}")
        if progress.done is not None:
            eta = "" if progress.eta_s is None else f", ETA {figures.clock(progress.eta_s)}"
            words.append(f"{progress.done:.0%}{eta}")
        return "lens: " + " | ".join(words)

    def frame(self, width: int, height: int) -> RenderableType:
        """One screen of the live view, at most `height` - 1 lines."""
        from rich.console import Group
        from rich.text import Text

        s, r = self.snapshot, self.report
        if s is None:
            return Text("lens: waiting for the first second of the run ...", style="dim")
        parts: list[RenderableType] = [self._title(s, width), self._bar(s, width), self._totals(s), Text()]
        parts += [self._latencies(s), self._sparks(width)]
        told = list(s.servers.items())[: min(SERVERS_SHOWN, max(0, height - 14))]
        servers = [_server_line(name, server) for name, server in told]
        room = height - 13 - len(servers)
        targets = r.targets if r else []
        if len(targets) > 1 and room > 3:
            shown = targets[: max(1, room - 5)]
            parts += [Text(), self._targets(s, shown, width)]
            room -= len(shown) + 2
            if len(shown) < len(targets):
                parts.append(Text(f"  and {len(targets) - len(shown)} more targets", style="dim"))
                room -= 1
        errors = sorted(r.errors if r else [], key=lambda e: -e.count)
        if errors and room > 2:
            parts += [Text(), _errors(errors[: min(5, room - 2)], width)]
        parts += [Text(), *servers, _health_line(s.client)]
        return Group(*parts)

    def _title(self, s: Snapshot, width: int) -> Text:
        from rich.text import Text

        name = self.manifest.plan.name if self.manifest else s.run
        left = Text.assemble(("LLM Latency Lens", "bold"), f"  {name}")
        phases = self.manifest.plan.phases if self.manifest else ()
        place = [i + 1 for i, phase in enumerate(phases) if phase.name == s.phase]
        which = f" ({place[0]}/{len(phases)})" if place and len(phases) > 1 else ""
        warm = "" if not s.intervals or any(i.measured for i in s.intervals) else ", not measured"
        right = Text(f"{s.state}: {s.phase}{which}{warm}" if s.phase else s.state, style="cyan")
        left.append(" " * max(2, width - left.cell_len - right.cell_len))
        left.append_text(right)
        left.truncate(width)
        return left

    def _bar(self, s: Snapshot, width: int) -> Text:
        from rich.text import Text

        progress = progress_of(s, self.manifest)
        tail = figures.clock(s.elapsed_s)
        if progress.done is None:
            return Text(f"{tail} elapsed, no end planned: Ctrl-C drains and reports")
        if progress.eta_s is not None:
            tail = f"{progress.done:4.0%}  {tail}  ETA {figures.clock(progress.eta_s)}"
        cells = max(10, width - 32)
        full = min(cells, int(cells * progress.done))
        return Text.assemble(("━" * full, "green"), ("─" * (cells - full), "dim"), f" {tail}")

    def _totals(self, s: Snapshot) -> Text:
        from rich.text import Text

        rates = _rates(s)
        text = Text.assemble((f"{s.ok_total:,}", "bold"), " ok  ")
        text.append(f"{s.failed_total:,} failed", style="bold red" if s.failed_total else "")
        if s.unsent_total:
            text.append(f"  {s.unsent_total:,} not sent", style="yellow")
        text.append(f"  {s.in_flight:,} in flight  ")
        text.append(f"{figures.rate(rates['requests_per_s'])} req/s  ")
        text.append(f"{figures.rate(rates['output_tokens_per_s'])} tok/s")
        if s.cost_usd_total is not None:
            text.append(f"  {figures.money(s.cost_usd_total)}")
        return text

    def _latencies(self, s: Snapshot) -> Table:
        r = self.report
        table = _grid("", *LEVELS, "p99.9", "max", first=9)
        measured = r is not None and any(r.metrics.get(m, Distribution()).count for m in HEADLINE)
        for metric in HEADLINE:
            shown = r.metrics.get(metric, Distribution()) if r and measured else _last_tick(s, metric)
            cells = [figures.value(getattr(shown, level)) for level in (*LEVELS, "p99_9", "max")]
            if shown.count and shown.p99_9 is None:
                cells[4] = "n/a"
            table.add_row(figures.label(metric), *cells)
        return table

    def _sparks(self, width: int) -> Text:
        """TTFT as a histogram of the run so far, and its p50 tick by tick."""
        from rich.text import Text

        text = Text("TTFT     ")
        filled = [i for i, n in enumerate(self._shape) if n]
        if filled:
            bounds = (0, *BUCKETS["ttft_ms"], float("inf"))
            low, high = bounds[filled[0]], bounds[filled[-1] + 1]
            text.append(f"{low:g} ms ", style="dim")
            text.append(figures.histogram(self._shape), style="cyan")
            text.append(f" {high:g} ms   ", style="dim")
        text.append("p50 each tick ", style="dim")
        text.append(figures.spark(self._ttft, max(8, width - text.cell_len)), style="cyan")
        return text

    def _targets(self, s: Snapshot, targets: list[TargetReport], width: int) -> Table:
        wide = width >= 100
        heads = ["ok", "failed", "in flight", "req/s", "tok/s", "TTFT p50", "p99"]
        table = _grid("target", *heads, *(("ITL p50", "E2E p50", "p99") if wide else ()), first=max(10, width // 6))
        for target in targets:
            now = [i for i in s.intervals if i.target == target.name]
            rates = _rates(s, now)
            ttft, itl, e2e = (target.metrics.get(m, Distribution()) for m in HEADLINE)
            bad = figures.failed(target.requests)
            cells = [
                figures.count(target.requests.ok),
                f"[bold red]{bad:,}[/]" if bad else "0",
                figures.count(sum(i.in_flight for i in now)),
                figures.rate(rates["requests_per_s"]),
                figures.rate(rates["output_tokens_per_s"]),
                figures.value(ttft.p50),
                figures.value(ttft.p99),
            ]
            if wide:
                cells += [figures.value(itl.p50), figures.value(e2e.p50), figures.value(e2e.p99)]
            table.add_row(_safe(target.name), *cells)
        return table


class LiveConsole:
    """The live view of one run. `start` and `stop` never wait for the terminal longer than `stop`'s timeout."""

    def __init__(self, segment_dir: Path, *, quiet: bool = False, fd: int | None = None) -> None:
        self._segment_dir = segment_dir
        self._quiet = quiet
        self._fd = 2 if fd is None else fd
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._main, name="console", daemon=True)

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

    def _main(self) -> None:
        self.run(self._segment_dir, self._stop)

    def run(self, segment_dir: Path, stop_event: threading.Event) -> None:
        """Draws until `stop_event` is set; in the calling thread."""
        terminal = Terminal(self._fd)
        try:
            if terminal.isatty() and os.environ.get("TERM", "dumb") != "dumb":
                _draw(terminal, segment_dir, stop_event)
            else:
                _log(terminal, segment_dir, stop_event)
        finally:
            terminal.close()


def _draw(terminal: Terminal, segment_dir: Path, stop_event: threading.Event) -> None:
    from rich.console import Console
    from rich.live import Live

    console = Console(file=terminal, highlight=False)  # type: ignore[arg-type]  # the part of IO[str] that rich uses
    view = View()
    with Live(
        console=console, auto_refresh=False, transient=True, redirect_stdout=False, redirect_stderr=False
    ) as live:
        while True:
            ended = stop_event.wait(REFRESH_S)
            _poll(view, segment_dir)
            live.update(view.frame(console.width, console.height), refresh=True)
            if ended:
                return


def _log(terminal: Terminal, segment_dir: Path, stop_event: threading.Event) -> None:
    view, due, shown = View(), monotonic() + PLAIN_S, -1
    while not stop_event.wait(REFRESH_S):
        _poll(view, segment_dir)
        tick = view.snapshot.tick if view.snapshot else -1
        if monotonic() >= due and tick != shown:
            due, shown = monotonic() + PLAIN_S, tick
            terminal.write(view.plain() + "\n")
            terminal.flush()


def _poll(view: View, segment_dir: Path) -> None:
    view.take(
        _read(segment_dir / "report.json", REPORT_DECODER),
        _read(segment_dir / "snapshot.json", SNAPSHOT_DECODER),
        _manifest(segment_dir),
    )


def _read(path: Path, decoder: msgspec.json.Decoder[Any]) -> Any:
    try:
        return decoder.decode(path.read_bytes())
    except (OSError, msgspec.DecodeError):  # not there yet, or gone: the last one stays on the screen
        return None


def _manifest(segment_dir: Path) -> Manifest | None:
    try:
        return read_manifest(segment_dir)
    except (OSError, msgspec.DecodeError):
        return None


def progress_of(snapshot: Snapshot, manifest: Manifest | None) -> Progress:
    """How far the run is by time and by count, whichever says more (a phase ends at the first of the two)."""
    if snapshot.state == "done":
        return Progress(1.0, 0.0)
    shares: list[float] = []
    durations = [phase.duration_ns for phase in manifest.plan.phases] if manifest else []
    if durations and None not in durations:
        shares.append(snapshot.elapsed_s * 1e9 / max(1, sum(d or 0 for d in durations)))
    if snapshot.planned_total:
        ended = snapshot.ok_total + snapshot.failed_total + snapshot.unsent_total
        shares.append(ended / snapshot.planned_total)
    if not shares:
        return Progress(None, None)
    done = min(1.0, max(shares))
    return Progress(done, snapshot.elapsed_s * (1 - done) / done if done > 0.001 else None)


def final_table(report: Report) -> RenderableType:
    """The run's results for a person, from 80 columns up, readable without colour."""
    return _Final(report)


class _Final:
    """Drawn late, so that it can use the width it is given."""

    def __init__(self, report: Report) -> None:
        self._report = report

    def __rich_console__(self, console: Console, options: Any) -> Any:
        from rich.text import Text

        r, width = self._report, options.max_width
        yield _heading(r)
        yield Text()
        yield _verdict(r.verdict)
        yield Text()
        yield _metrics(r.metrics, width)
        if len(r.targets) > 1:
            yield Text()
            yield from _side_by_side(r.targets, width)
        yield Text()
        yield _account(r)
        if r.errors:
            yield Text("\nfailures, the latest message of each", style="dim")
            yield _errors(sorted(r.errors, key=lambda e: -e.count), width)
        if r.slo:
            yield Text()
            yield _slos(r)


def _heading(r: Report) -> Text:
    from rich.text import Text

    only = f" · {_model(r.targets[0])}" if len(r.targets) == 1 else f" · {len(r.targets)} targets" if r.targets else ""
    text = Text.assemble(("LLM Latency Lens", "bold"), f" {r.run.version} · {r.run.name}{only}")
    text.append(
        f"\n{figures.moment(r.run.started_at)} · {figures.clock(r.run.duration_s)} · {r.run.load.replace('_', ' ')} loop"
    )
    text.append(f" · seed {r.run.seed} · {r.run.id}", style="dim")
    return text


def _model(target: TargetReport) -> str:
    return f"{target.model} at {target.name}" if target.model and target.model != target.name else target.name


def _verdict(verdict: Verdict) -> Text:
    from rich.text import Text

    text = Text.assemble((verdict.state, STYLES.get(verdict.state, "bold")), f": {figures.plain_state(verdict)}")
    for reason in verdict.reasons:
        text.append(f"\n  - {reason.detail or reason.code}")
        text.append(f" ({reason.code})", style="dim")
    return text


def _metrics(metrics: dict[str, Distribution], width: int) -> RenderableType:
    from rich.text import Text

    shown = [(name, d) for name, d in metrics.items() if d.count]
    if not shown:
        return Text("no request succeeded: there are no latencies to show", style="bold red")
    wide = width >= 96
    sure = width >= 116 and any(d.ci95 and d.ci95.get("p99") for _, d in shown)
    heads = [*(("count", "mean") if wide else ()), *LEVELS, "p99.9", "max", *(("p99 95 % CI",) if sure else ())]
    table = _grid("", *heads, first=17)
    for name, d in shown:
        cells = [figures.count(d.count), figures.value(d.mean, name)] if wide else []
        cells += [figures.value(getattr(d, level), name) for level in LEVELS]
        cells += [figures.p99_9(d, name), figures.value(d.max, name)]
        if sure:
            cells.append(_interval(d, name))
        table.add_row(figures.label(name), *cells, style="bold" if name in HEADLINE else "")
    return table


def _interval(d: Distribution, metric: str) -> str:
    bounds = (d.ci95 or {}).get("p99")
    return f"{figures.value(bounds[0], metric)} .. {figures.value(bounds[1], metric)}" if bounds else figures.MISSING


def _side_by_side(targets: list[TargetReport], width: int) -> Any:
    """One column a target, as many as fit; the rest below in tables of the same rows."""
    wanted = max(len(word) for t in targets for word in (t.name, t.model)) + 2
    column = max(12, min(28, wanted, (width - 19) // len(targets)))
    fit = max(1, (width - 19) // column)
    for start in range(0, len(targets), fit):
        yield _columns(targets[start : start + fit], column)


def _columns(targets: list[TargetReport], column: int) -> Table:
    table = _grid("per target", *(_safe(t.name) for t in targets), first=17, width=column - 2)
    table.add_row("model", *(_safe(t.model) or figures.MISSING for t in targets))
    table.add_row("ok", *(figures.count(t.requests.ok) for t in targets))
    table.add_row("failed", *(figures.count(figures.failed(t.requests)) for t in targets))
    table.add_row("requests/s", *(figures.rate(t.throughput.requests_per_s) for t in targets))
    table.add_row("output tok/s", *(figures.rate(t.throughput.output_tokens_per_s) for t in targets))
    for metric in (*HEADLINE, "tpot_ms"):
        if any(t.metrics.get(metric, Distribution()).count for t in targets):
            for level in ("p50", "p95", "p99"):
                cells = [figures.value(getattr(t.metrics.get(metric, Distribution()), level), metric) for t in targets]
                table.add_row(f"{figures.label(metric)} {level}", *cells)
    if any(t.cost.usd is not None for t in targets):
        table.add_row("cost", *(figures.money(t.cost.usd) for t in targets))
        table.add_row("cost per 1k requests", *(figures.money(t.cost.usd_per_1k_requests) for t in targets))
        table.add_row("cost per day", *(figures.money(t.cost.usd_per_day) for t in targets))
    return table


def _account(r: Report) -> Table:
    """What became of every request, token, cent and of the client itself: one labelled line each."""
    from rich.table import Table

    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True, min_width=15)
    table.add_column(overflow="fold")
    for name, line in account_lines(r):
        table.add_row(name, line)
    return table


def account_lines(r: Report) -> list[tuple[str, str]]:
    """The books of a run as (name, plain words): requests, rates, tokens, cost, client."""
    lines = [("requests", _planned(r.requests)), ("", _ended(r.requests))]
    t = r.throughput
    rates = [
        f"{figures.rate(t.requests_per_s)} requests/s",
        f"{figures.rate(t.output_tokens_per_s)} output tokens/s",
        f"{figures.rate(t.total_tokens_per_s)} tokens/s in all",
    ]
    lines.append(("throughput", ", ".join(rates)))
    if t.goodput_share is not None:
        good = f"{figures.share(t.goodput_share)} met every request SLO, {figures.rate(t.goodput_per_s)}/s"
        lines.append(("goodput", good))
    lines.append(("tokens", _tokens(r)))
    lines.append(("cost", _cost(r)))
    lines += [("client", line) if i == 0 else ("", line) for i, line in enumerate(_client(r.client))]
    return lines


def _planned(q: Requests) -> str:
    unsent = sum(q.unsent.values())
    why = f" ({figures.parts(q.unsent)})" if unsent else ""
    return f"{q.planned:,} planned = {q.sent:,} sent + {unsent:,} not sent{why}"


def _ended(q: Requests) -> str:
    bad = figures.failed(q)
    why = f" ({figures.parts(q.failed)})" if bad else ""
    line = f"{q.sent:,} sent = {q.ok:,} ok + {bad:,} failed{why} + {q.cancelled:,} cancelled"
    line += f" + {q.in_flight_at_end:,} in flight at the end"
    return line + (f"; {q.attempts:,} attempts" if q.attempts > q.sent else "")


def _tokens(r: Report) -> str:
    t = r.tokens
    if t.output is None and t.input is None:
        return "the provider did not say"
    line = f"{figures.count(t.input)} in, {figures.count(t.output)} out"
    if t.cached:
        line += f", {t.cached:,} of the input cached"
    if t.reasoning:
        line += f", {t.reasoning:,} of the output reasoning"
    return line + (f" (counted by: {t.source})" if t.source else "")


def _cost(r: Report) -> str:
    c = r.cost
    if c.usd is None:
        return f"unknown: no price for {c.unpriced_requests:,} requests" if c.unpriced_requests else "unknown"
    line = f"{figures.money(c.usd)}, {figures.money(c.usd_per_1k_requests)} per 1k requests"
    if c.usd_per_day is not None:
        line += f", {figures.money(c.usd_per_day)} a day at this rate"
    if c.unpriced_requests:
        line += f" for {c.priced_requests:,} requests, {c.unpriced_requests:,} more have no known price"
    return line + (f" (prices of {c.price_table_date})" if c.price_table_date else "")


def _client(c: Client) -> list[str]:
    lag = c.loop_lag_us
    first = f"{c.workers} worker{'s' * (c.workers != 1)}, {c.clock} clock"
    if lag.p50 is not None:
        first += f", loop lag p50 {figures.value(lag.p50)} p99 {figures.value(lag.p99)} max {figures.value(lag.max)} us"
    first += f", {c.ring_drops:,} ring drops"
    second = [f"CPU {figures.share(c.cpu_utilisation)} of the busiest core"]
    if c.cpu_us_per_event is not None:
        second.append(f"{c.cpu_us_per_event:.1f} us per event")
    second.append(f"steal {figures.share(c.steal_share)}")
    if c.rss_mb_max is not None:
        second.append(f"{c.rss_mb_max:.0f} MB")
    if c.itl_coalesced_share is not None:
        second.append(f"{figures.share(c.itl_coalesced_share)} of gaps coalesced")
    odd = {
        "clock steps": c.clock_steps,
        "GC pauses": c.gc_pauses,
        "worker restarts": c.restarts,
        "collector restarts": c.collector_restarts,
        "stale resends": c.stale_resends,
        "clamped values": c.clamped,
        "TCP retransmits": c.tcp_retransmits or 0,
        "export failures": c.export_failures,
        "records not written": c.records_dropped,
    }
    third = ", ".join(f"{n:,} {name}" for name, n in odd.items() if n)
    return [first, ", ".join(second), *([third] if third else [])]


def _slos(r: Report) -> Table:
    from rich.text import Text

    table = _grid("SLO", "value", "", first=40)
    for slo in r.slo:
        table.add_row(
            _safe(slo.expression), figures.objective(slo), Text(slo.state, style=SLO_STYLES.get(slo.state, ""))
        )
    return table


def _errors(errors: list[ErrorSample], width: int) -> Table:
    from rich.table import Table

    table = Table.grid(padding=(0, 2))
    table.add_column(justify="right", style="red", no_wrap=True)
    table.add_column(style="red", no_wrap=True)
    table.add_column(no_wrap=True, overflow="ellipsis", max_width=max(20, width - 34))
    for error in errors:
        status = f"{error.http_status} " if error.http_status else ""
        message = " ".join(error.message.split())
        table.add_row(f"{error.count:,}", error.outcome, _safe(f"{error.target}: {status}{message}"))
    return table


def _server_line(target: str, server: Server) -> Text:
    """What a target's own metrics pages say."""
    from rich.text import Text

    text = Text("server  ", style="dim")
    text.append(_printable(target))
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
    from rich.text import Text

    text = Text("client  ", style="dim")
    text.append(f"{c.ring_drops:,} drops", style="bold red" if c.ring_drops else "")
    if c.loop_lag_us.p99 is not None:
        text.append(f"  lag p99 {figures.value(c.loop_lag_us.p99)} us")
    text.append(
        f"  CPU {figures.share(c.cpu_utilisation)}", style="yellow" if (c.cpu_utilisation or 0) > CPU_NOTICE else ""
    )
    text.append(
        f"  steal {figures.share(c.steal_share)}", style="yellow" if (c.steal_share or 0) > STEAL_NOTICE else ""
    )
    if c.itl_coalesced_share is not None:
        text.append(f"  coalesced {figures.share(c.itl_coalesced_share)}")
    if c.clock != "kernel":
        text.append(f"  {c.clock} clock", style="yellow")
    for name, n in (("restarts", c.restarts), ("clock steps", c.clock_steps), ("export failures", c.export_failures)):
        if n:
            text.append(f"  {n:,} {name}", style="bold yellow")
    return text


def _grid(first_head: str, *heads: str, first: int, width: int | None = None) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column(first_head, no_wrap=True, min_width=first, overflow="ellipsis")
    for head in heads:
        table.add_column(head, justify="right", no_wrap=True, overflow="ellipsis", min_width=width, max_width=width)
    return table


def _safe(text: str) -> str:
    """Text from a plan or a server as it is, where rich looks for markup."""
    from rich.markup import escape

    return escape(_printable(text))


def _printable(text: str) -> str:
    """No control characters that could drive the terminal."""
    return "".join(c if c.isprintable() else "?" for c in text)


def _rates(s: Snapshot, intervals: list[Interval] | None = None) -> dict[str, float]:
    shown = s.intervals if intervals is None else intervals
    seconds = s.seconds or 1.0
    return {
        "requests_per_s": sum(i.requests.ok for i in shown) / seconds,
        "output_tokens_per_s": sum(i.tokens.output or 0 for i in shown) / seconds,
    }


def _pooled(s: Snapshot, metric: str, level: str) -> float | None:
    """A tick's percentile over its targets: the mean of each weighted by its count. For a course line only."""
    known = [d for i in s.intervals if (d := i.metrics.get(metric)) and d.count and getattr(d, level) is not None]
    n = sum(d.count for d in known)
    return sum(getattr(d, level) * d.count for d in known) / n if n else None


def _last_tick(s: Snapshot, metric: str) -> Distribution:
    """The fullest distribution of the tick: what there is to show before the measured part begins."""
    known = [i.metrics[metric] for i in s.intervals if metric in i.metrics]
    return max(known, key=lambda d: d.count, default=Distribution())


def print_final(report: Report, *, fd: int = 1) -> None:
    """Prints the final table on `fd` (stdout), as wide as the terminal, 100 columns where there is none."""
    from rich.console import Console

    sys.stdout.flush()
    terminal = Terminal(fd)
    try:
        width = None if terminal.isatty() else int(os.environ.get("COLUMNS", 0)) or 100
        console = Console(file=terminal, highlight=False, width=width)  # type: ignore[arg-type]  # as in _draw
        console.print(final_table(report))
        terminal.flush()
    finally:
        terminal.close()
