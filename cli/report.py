"""`lens report RUN_DIR...`: prints a run, or sends it through any exporter, also while it goes on."""

from __future__ import annotations

import sys
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from time import time_ns
from typing import TYPE_CHECKING, Final, TypeVar

import click

from ..engine.errors import OutputError, PlanError
from ..engine.plan.plan import SECOND, OtlpExport
from ..engine.plan.units import duration_ns
from ..engine.runs.rundir import HTML, INTERVALS, REQUESTS, SPANS

if TYPE_CHECKING:
    from ..collectors.snapshot import Report
    from ..exporters.spool.tail import Destination, LineTail

PRINTED: Final = ("console", "json")
Item = TypeVar("Item")  # what a line of a log is
FOREVER: Final = 1 << 63  # the last tick of a run ends a moment after it


@click.command()
@click.argument("run_dirs", nargs=-1, required=True, metavar="RUN_DIR...", type=click.Path(path_type=Path))
@click.option(
    "--to",
    "target",
    default="console",
    show_default=True,
    metavar="FORMAT|URL",
    help="console, json, html, csv, parquet, hdr, or influxdb://…, prometheus://…, otlp://…",
)
@click.option("--since", metavar="WHEN", help="Only from then on: 24h ago as `24h`, or a moment, `2026-11-01T08:00`.")
@click.option("--until", metavar="WHEN", help="Only until then.")
@click.option("--across-models", is_flag=True, help="Put runs of different load models side by side all the same.")
@click.option("--out", type=click.Path(path_type=Path), help="Where files go: a folder, or for html the file itself.")
def report(
    run_dirs: tuple[Path, ...],
    target: str,
    since: str | None,
    until: str | None,
    across_models: bool,
    out: Path | None,
) -> int:
    """Print runs, or convert or export them.

    json goes to stdout; files go into each run's directory unless --out says otherwise. Several runs stand side by side
    in html. The state directory of a probe stands for all its runs: console and json report them as one, all of the
    time or from --since to --until; so they do a part of a single run.
    """
    from ..exporters.rundir import damage_named

    with damage_named(run_dirs[0]):
        return _report(run_dirs, target, since=since, until=until, across_models=across_models, out=out)


def _report(
    run_dirs: tuple[Path, ...],
    target: str,
    *,
    since: str | None,
    until: str | None,
    across_models: bool,
    out: Path | None,
) -> int:
    from ..exporters.history import HISTORY, report_between, runs_of
    from ..exporters.rundir import read_report

    histories = [folder for folder in run_dirs if (folder / HISTORY).is_dir()]
    if target in PRINTED:
        partly = bool(since or until or histories)
        between = (_moment(since, 0), _moment(until, FOREVER)) if partly else (0, FOREVER)
        for folder in run_dirs:
            _print(folder, report_between(folder, *between) if partly else read_report(folder), target)
        return 0
    if since or until:
        raise PlanError("--since and --until are for --to console and --to json")
    run_dirs = tuple(run for folder in run_dirs for run in (runs_of(folder) if folder in histories else [folder]))
    if "://" in target:
        for run_dir in run_dirs:
            _send(run_dir, target)
        return 0
    if target == "html":
        if not across_models:
            _of_one_model(run_dirs)
        _html(run_dirs, out)
        return 0
    if target not in FILES:
        known = ", ".join((*PRINTED, "html", *FILES))
        raise PlanError(f"--to {target!r} does not exist; there are {known} and influxdb://, prometheus://, otlp://")
    for run_dir in run_dirs:
        if out:
            out.mkdir(parents=True, exist_ok=True)
        FILES[target](run_dir, out or run_dir)
    return 0


def _of_one_model(run_dirs: tuple[Path, ...]) -> None:
    """A closed loop slows down with its server, an open one does not: their latencies answer different questions."""
    from ..exporters.rundir import read_report

    models = {run_dir: read_report(run_dir).run.load for run_dir in run_dirs} if len(run_dirs) > 1 else {}
    if len(set(models.values())) > 1:
        loops = ", ".join(f"{run_dir.name} is {model.replace('_', ' ')} loop" for run_dir, model in models.items())
        raise PlanError(
            f"the runs have different load models and cannot be compared ({loops}); --across-models does it"
        )


def _moment(text: str | None, default_ns: int) -> int:
    """Unix epoch ns of `24h` ago or of a moment in ISO 8601, local time where it names no zone."""
    if text is None:
        return default_ns
    try:
        return time_ns() - duration_ns(text)
    except ValueError:
        pass
    try:
        return round(datetime.fromisoformat(text).timestamp() * SECOND)
    except ValueError:
        raise PlanError(
            f"{text!r} is neither a time ago, such as 24h, nor a moment, such as 2026-11-01T08:00"
        ) from None


def _print(folder: Path, report: Report, target: str) -> None:
    """One report on stdout, as `console` or `json`."""
    if target == "json":
        from ..collectors.snapshot import ENCODER

        sys.stdout.buffer.write(ENCODER.encode(report) + b"\n")
        sys.stdout.buffer.flush()
    else:
        from ..exporters.console.final import print_final
        from ..exporters.setting import read_setting

        print_final(report, read_setting(folder, report))


def _csv(run_dir: Path, folder: Path) -> None:
    from ..exporters import csv
    from ..exporters.rundir import finished

    if finished(run_dir):
        _wrote(folder / "metrics.csv", csv.write_metrics(run_dir, folder / "metrics.csv"))
    _wrote(folder / "intervals.csv", csv.write_intervals(run_dir, folder / "intervals.csv"))
    if any(run_dir.glob(f"{Path(REQUESTS).stem}*.msgpack")):
        _wrote(folder / "requests.csv", csv.write_requests(run_dir, folder / "requests.csv"))


def _parquet(run_dir: Path, folder: Path) -> None:
    from ..exporters.parquet import write_requests

    _wrote(folder / "requests.parquet", write_requests(run_dir, folder / "requests.parquet"))


def _hdr(run_dir: Path, folder: Path) -> None:
    """The run's total of each metric and target as a percentile distribution, as HdrHistogram's plotter reads it."""
    from ..exporters.hdr.read import write_distributions

    for path, count in write_distributions(run_dir, folder):
        _wrote(path, count)


def _html(run_dirs: tuple[Path, ...], out: Path | None) -> None:
    from ..exporters.html.page import write_html

    path = out or run_dirs[0] / HTML
    if path.is_dir():
        path = path / HTML
    write_html(run_dirs, path)
    click.echo(str(path), err=True)


def _wrote(path: Path, rows: int) -> None:
    click.echo(f"{path}: {rows:,} rows", err=True)


FILES: Final[dict[str, Callable[[Path, Path], None]]] = {
    "csv": _csv,
    "parquet": _parquet,
    "hdr": _hdr,
}


def _send(run_dir: Path, url: str) -> None:
    """Sends all ticks of the run to the URL, and to OTLP its spans; follows a run that goes on; a page is served until
    Ctrl-C."""
    from ..engine.planfile.exports import export_of
    from ..exporters import destination_of, span_destination_of
    from ..exporters.rundir import read_report
    from ..exporters.span_log import DECODE
    from ..exporters.spool.tail import LineTail, Tail

    report = read_report(run_dir)
    models = {target.name: (target.provider, target.model) for target in report.targets}
    export = export_of(url)
    destination = destination_of(export, name=report.run.name, models=models)
    if not _deliver(run_dir, report.run.id, Tail(run_dir / INTERVALS), destination, "ticks"):
        return
    if isinstance(export, OtlpExport) and (run_dir / SPANS).exists():
        spans = span_destination_of(export, name=report.run.name, models=models)
        _deliver(run_dir, report.run.id, LineTail(run_dir / SPANS, None, DECODE), spans, "spans")


def _deliver(run_dir: Path, run_id: str, tail: LineTail[Item], destination: Destination[Item], what: str) -> bool:
    """Moves all lines of the tail and says so on stderr; False after Ctrl-C. Raises OutputError."""
    from ..exporters.rundir import finished
    from ..exporters.spool.tail import Pump, Unavailable

    try:
        destination.check(run_id)
        pump = Pump(tail, destination, run_dir=run_dir, log=lambda line: click.echo(f"lens: {line}", err=True))
        done = pump.run(follow=not finished(run_dir))
        click.echo(f"{run_dir}: {tail.cursor.delivered:,} {what} to {destination.name}", err=True)
        if not done or tail.cursor.rejected:
            raise OutputError(f"{tail.cursor.rejected:,} {what} were not taken: {tail.cursor.error}")
        if not destination.keeps_cursor:
            click.echo("lens: the page stays until Ctrl-C", err=True)
            pump.stop.wait()
        return True
    except Unavailable as error:
        raise OutputError(f"{destination.name} {error}") from None
    except KeyboardInterrupt:
        click.echo("", err=True)
        return False
    finally:
        destination.close()
