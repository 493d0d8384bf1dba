"""`lens report RUN_DIR...`: tells a run again, on the terminal or through any exporter, also while it still goes."""

from __future__ import annotations

import sys
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from time import time_ns
from typing import Final

import click

from ..engine.errors import PlanError
from ..engine.plan.plan import EXPORTS, SECOND, Secret
from ..engine.plan.units import duration_ns

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
    """Tell runs again, in another format or place.

    json goes to stdout; files go into each run's directory unless --out says otherwise. Several runs stand side by side
    in html. The state directory of a probe stands for all its runs: console and json tell them as one, whole or from
    --since to --until; so they do a part of a single run.
    """
    from ..exporters.history import HISTORY, runs_of

    kind = target.partition(":")[0]
    histories = [folder for folder in run_dirs if (folder / HISTORY).is_dir()]
    if (since or until or histories) and target in ("console", "json"):
        for folder in run_dirs:
            _tell_between(folder, target, _moment(since, 0), _moment(until, FOREVER))
        return 0
    if since or until:
        raise PlanError("--since and --until are for --to console and --to json")
    run_dirs = tuple(run for folder in run_dirs for run in (runs_of(folder) if folder in histories else [folder]))
    if "://" in target:
        for run_dir in run_dirs:
            _send(run_dir, target, kind)
        return 0
    if target not in FORMATS:
        raise PlanError(
            f"--to {target!r} does not exist; there are {', '.join(FORMATS)} and influxdb://, prometheus://, otlp://"
        )
    if target == "html":
        if not across_models:
            _of_one_model(run_dirs)
        _html(run_dirs, out)
        return 0
    for run_dir in run_dirs:
        if out:
            out.mkdir(parents=True, exist_ok=True)
        FORMATS[target](run_dir, out or run_dir)
    return 0


def _of_one_model(run_dirs: tuple[Path, ...]) -> None:
    """A closed loop slows down with its server, an open one does not: their latencies answer different questions."""
    from ..exporters.rundir import read_report

    models = {run_dir: read_report(run_dir).run.load for run_dir in run_dirs} if len(run_dirs) > 1 else {}
    if len(set(models.values())) > 1:
        told = ", ".join(f"{run_dir.name} is {model.replace('_', ' ')} loop" for run_dir, model in models.items())
        raise PlanError(f"the runs have different load models and cannot be compared ({told}); --across-models does it")


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


def _tell_between(folder: Path, target: str, since_ns: int, until_ns: int) -> None:
    from ..collectors.snapshot import ENCODER
    from ..exporters.console.final import print_final
    from ..exporters.history import report_between

    told = report_between(folder, since_ns, until_ns)
    if target == "console":
        print_final(told)
    else:
        sys.stdout.buffer.write(ENCODER.encode(told) + b"\n")
        sys.stdout.buffer.flush()


def _console(run_dir: Path, _: Path) -> None:
    from ..exporters.console.final import print_final
    from ..exporters.rundir import read_report

    print_final(read_report(run_dir))


def _json(run_dir: Path, _: Path) -> None:
    from ..collectors.snapshot import ENCODER
    from ..exporters.rundir import read_report

    sys.stdout.buffer.write(ENCODER.encode(read_report(run_dir)) + b"\n")
    sys.stdout.buffer.flush()


def _csv(run_dir: Path, folder: Path) -> None:
    from ..exporters import csv

    _told(folder / "intervals.csv", csv.write_intervals(run_dir, folder / "intervals.csv"))
    if any(run_dir.glob("requests*.msgpack")):
        _told(folder / "requests.csv", csv.write_requests(run_dir, folder / "requests.csv"))


def _parquet(run_dir: Path, folder: Path) -> None:
    from ..exporters.parquet import write_requests

    _told(folder / "requests.parquet", write_requests(run_dir, folder / "requests.parquet"))


def _hdr(run_dir: Path, folder: Path) -> None:
    """The run's total of each metric and target as a percentile distribution, as HdrHistogram's plotter reads it."""
    from ..exporters.hdr.read import write_distributions

    for path, count in write_distributions(run_dir, folder):
        _told(path, count)


def _html(run_dirs: tuple[Path, ...], out: Path | None) -> None:
    from ..exporters.html.page import write_html

    path = out or run_dirs[0] / "report.html"
    if path.is_dir():
        path = path / "report.html"
    write_html(run_dirs, path)
    click.echo(str(path), err=True)


def _told(path: Path, rows: int) -> None:
    click.echo(f"{path}: {rows:,} rows", err=True)


FORMATS: Final[dict[str, Callable[[Path, Path], None]]] = {
    "console": _console,
    "json": _json,
    "html": lambda run_dir, folder: _html((run_dir,), folder),
    "csv": _csv,
    "parquet": _parquet,
    "hdr": _hdr,
}


def _send(run_dir: Path, url: str, kind: str) -> None:
    """Tells all ticks of the run to the URL; follows a run that is still going; a page is served until Ctrl-C."""
    from ..exporters.rundir import finished, read_report
    from ..exporters.spool.tail import LOG, Pump, Tail, Unavailable
    from .processes.export import destination_of

    told = read_report(run_dir)
    models = {target.name: (target.provider, target.model) for target in told.targets}
    kind = {"influxdbs": "influxdb", "otlps": "otlp"}.get(kind, kind)
    if kind not in EXPORTS:
        raise PlanError(f"export {kind!r} does not exist; there are {', '.join(EXPORTS)}")
    destination = destination_of(EXPORTS[kind](url=Secret(url)), name=told.run.name, models=models)
    try:
        check = getattr(destination, "check", None)
        if check:
            check(told.run.id)
        tail = Tail(run_dir / LOG)
        pump = Pump(tail, destination, run_dir=run_dir, log=lambda line: click.echo(f"lens: {line}", err=True))
        done = pump.run(follow=not finished(run_dir))
        click.echo(f"{run_dir}: {tail.cursor.delivered:,} ticks to {destination.name}", err=True)
        if not done or tail.cursor.rejected:
            raise PlanError(f"{tail.cursor.rejected:,} ticks were not taken: {tail.cursor.error}")
        if kind == "prometheus":
            click.echo("lens: the page stays until Ctrl-C", err=True)
            pump.stop.wait()
    except Unavailable as error:
        raise PlanError(f"{destination.name} {error}") from None
    except KeyboardInterrupt:
        click.echo("", err=True)
    finally:
        destination.close()
