"""The final table of a run on stdout, from 80 columns up, readable without colour. Imports rich."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Final

from rich.console import Console, ConsoleOptions, RenderableType
from rich.table import Table
from rich.text import Text

from ...collectors.snapshot import Distribution, Report, Slo, TargetReport, Verdict
from ...engine.errors import OutputError
from .. import figures
from ..account import account_lines
from ..time_rows import server_line, time_rows
from .tables import LEVELS, errors_table, grid, literal
from .terminal import Terminal, columns

PIPE_COLUMNS: Final = 100  # width of the table where stdout is not a terminal and COLUMNS says nothing
MEAN_FROM: Final = 96  # columns from which count and mean fit
INTERVAL_FROM: Final = 116  # columns from which the interval of p99 fits
WATERFALLS: Final = 4  # targets that get one
BAR_COLUMNS: Final = 36
STYLES: Final = {"VALID": "bold green", "INVALID": "bold red", "INSUFFICIENT": "bold yellow"}
SLO_STYLES: Final = {"PASS": "green", "FAIL": "bold red", "UNDECIDED": "yellow"}


def print_final(report: Report, *, fd: int = 1) -> None:
    """Prints the final table on `fd` (stdout), as wide as the terminal. Raises OutputError if it cannot be written."""
    print_out(FinalTable(report), fd=fd)


def print_out(what: RenderableType, *, fd: int = 1) -> None:
    """Prints on `fd` (stdout), as wide as the terminal. Raises OutputError if it cannot be written."""
    try:
        sys.stdout.flush()
        terminal = Terminal(fd)
    except OSError as error:
        raise OutputError(f"stdout cannot be written: {error.strerror}") from None
    try:
        width = None if terminal.isatty() else columns(PIPE_COLUMNS)
        # rich uses only the part of IO[str] that Terminal has
        console = Console(file=terminal, highlight=False, width=width)  # type: ignore[arg-type]
        console.print(what)
        terminal.flush()
    finally:
        terminal.close()
    if terminal.error:
        raise OutputError(f"stdout cannot be written: {terminal.error.strerror}")


class FinalTable:
    """The results of a run for a person. rich asks for it with the width that there is."""

    def __init__(self, report: Report) -> None:
        self._report = report

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        r, width = self._report, options.max_width
        yield _heading(r)
        yield Text()
        yield _verdict(r.verdict)
        yield Text()
        yield _metrics(r.metrics, width)
        if len(r.targets) > 1:
            yield Text()
            yield from _side_by_side(r.targets, width)
        yield from _time(r.targets, width)
        yield Text()
        yield _account(r)
        if r.errors:
            yield Text("\nfailures, the latest message of each", style="dim")
            yield errors_table(sorted(r.errors, key=lambda e: -e.count), width)
        if r.slo:
            yield Text()
            yield _slos(r.slo)
            for slo in r.slo:
                if slo.needs_requests is not None:
                    yield Text(f"{slo.expression} is undecided: it {figures.needs(slo)}", style="dim")


def _heading(r: Report) -> Text:
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
    text = Text.assemble((verdict.state, STYLES.get(verdict.state, "bold")), f": {figures.plain_state(verdict)}")
    for reason in verdict.reasons:
        text.append(f"\n  - {'note: ' * reason.note}{reason.detail or reason.code}")
        text.append(f" ({reason.code})", style="dim")
    return text


def _metrics(metrics: dict[str, Distribution], width: int) -> RenderableType:
    shown = [(name, d) for name, d in metrics.items() if d.count]
    if not shown:
        return Text("no request succeeded: there are no latencies to show", style="bold red")
    wide = width >= MEAN_FROM
    intervals = width >= INTERVAL_FROM and any(figures.interval(d, "p99", name) for name, d in shown)
    heads = [*(("count", "mean") if wide else ()), *LEVELS, "p99.9", "max", *(("p99 95 % CI",) if intervals else ())]
    table = grid("", *heads, first=17)
    for name, d in shown:
        cells = [figures.count(d.count), figures.value(d.mean, name)] if wide else []
        cells += [figures.value(getattr(d, level), name) for level in LEVELS]
        cells += [figures.p99_9(d, name), figures.value(d.max, name)]
        if intervals:
            cells.append(figures.interval(d, "p99", name) or figures.MISSING)
        table.add_row(figures.label(name), *cells, style="bold" if name in figures.HEADLINE else "")
    return table


def _side_by_side(targets: list[TargetReport], width: int) -> Iterator[Table]:
    """One column per target, as many as fit; the others follow in further tables with the same rows."""
    longest = max(len(word) for t in targets for word in (t.name, t.model)) + 2
    column = max(12, min(28, longest, (width - 19) // len(targets)))
    fit = max(1, (width - 19) // column)
    for start in range(0, len(targets), fit):
        yield _columns(targets[start : start + fit], column)


def _columns(targets: list[TargetReport], column: int) -> Table:
    table = grid("per target", *(literal(t.name) for t in targets), first=17, width=column - 2)
    table.add_row("model", *(literal(t.model) or figures.MISSING for t in targets))
    table.add_row("ok", *(figures.count(t.requests.ok) for t in targets))
    table.add_row("failed", *(figures.count(figures.failed(t.requests)) for t in targets))
    table.add_row("requests/s", *(figures.rate(t.throughput.requests_per_s) for t in targets))
    table.add_row("output tok/s", *(figures.rate(t.throughput.output_tokens_per_s) for t in targets))
    for metric in (*figures.HEADLINE, "tpot_ms"):
        each = [t.metrics.get(metric, Distribution()) for t in targets]
        if any(d.count for d in each):
            for level in ("p50", "p95", "p99"):
                cells = [figures.value(getattr(d, level), metric) for d in each]
                table.add_row(f"{figures.label(metric)} {level}", *cells)
    if any(t.cost.usd is not None for t in targets):
        table.add_row("cost", *(figures.money(t.cost.usd) for t in targets))
        table.add_row("cost per 1k requests", *(figures.money(t.cost.usd_per_1k_requests) for t in targets))
        table.add_row("cost per day", *(figures.money(t.cost.usd_per_day) for t in targets))
    return table


def _time(targets: list[TargetReport], width: int) -> Iterator[RenderableType]:
    """A waterfall for each of the first targets: where the time of a mean request went."""
    shown = [(target, rows) for target in targets if (rows := time_rows(target))]
    for target, rows in shown[:WATERFALLS]:
        end_ms = max(row.start_ms + (row.ms or 0.0) for row in rows) or 1.0
        room = max(10, min(BAR_COLUMNS, width - 60))
        table = Table.grid(padding=(0, 2))
        table.add_column(no_wrap=True, min_width=15)
        table.add_column(justify="right", no_wrap=True, min_width=9)
        table.add_column(no_wrap=True, min_width=room)
        table.add_column(style="dim", overflow="fold")
        for row in rows:
            start, length = (round(ms / end_ms * room) for ms in (row.start_ms, max(0.0, row.ms or 0.0)))
            bar = " " * min(start, room - 1) + ("·" if row.ms is None else "█" * length or "▏")
            table.add_row(row.name, row.value, bar, row.note)
        yield Text()
        where = f" · {target.name}" if len(targets) > 1 else ""
        yield Text(f"where the time went, mean ms{where}", style="dim")
        yield table
        if line := server_line(target):
            yield Text(f"the server says: {line}", style="dim")
    if len(shown) > WATERFALLS:
        yield Text(f"{len(shown) - WATERFALLS} more targets in report.html", style="dim")


def _account(r: Report) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True, min_width=15)
    table.add_column(overflow="fold")
    for name, line in account_lines(r):
        table.add_row(name, line)
    return table


def _slos(slos: list[Slo]) -> Table:
    table = grid("SLO", "value", "95 % CI", "", first=32)
    for slo in slos:
        state = Text(slo.state, style=SLO_STYLES.get(slo.state, ""))
        table.add_row(literal(slo.expression), figures.objective(slo), figures.objective_interval(slo), state)
    return table
