"""`lens run`: a plan in, a measured run out."""

from __future__ import annotations

import contextlib
import datetime
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click
import msgspec

from ..engine import __version__
from ..engine.errors import LensError, PlanError
from ..engine.plan.plan import Plan
from ..engine.plan.price import price, read_price_table
from ..engine.plan.written import stripped
from ..engine.planfile.build import plan_sha256
from ..engine.runs.manifest import SEGMENTS, Manifest, PhaseTimes
from ..engine.runs.rundir import leftovers, make_run_dir, make_segment_dir, remove_segments, run_id_of
from ..engine.runs.runlog import note
from .options import plan_from, run_options


@click.command(short_help="Run a plan, or a load given by flags, and report.")
@run_options
def run(plan_path: str | None, *, as_json: bool, quiet: bool, strict: bool, **flags: Any) -> int:
    """Measure one or many LLM endpoints, as PLAN says or as the flags say.

    The zero-configuration run is `lens run --simulate`.
    """
    with contextlib.ExitStack() as stack:
        beside: list[int] = []
        if flags["simulate"]:
            flags["base_url"], pid = stack.enter_context(simulator())
            beside.append(pid)
        plan = plan_from(plan_path, flags)
        return carry_out(plan, as_json=as_json, quiet=quiet, strict=strict, beside=beside)


def carry_out(plan: Plan, *, as_json: bool, quiet: bool, strict: bool, beside: Sequence[int] = ()) -> int:
    """Runs a plan and tells the result; gives the exit code of METRICS. Processes `beside` it are kept off its cores."""
    from ..engine.runs.ports import PortWatch, foreseen
    from ..engine.runs.supervisor import Supervisor, geometry_of, worker_count
    from ..engine.wire.preflight import check_targets
    from .processes.export import Exporter, check_exports
    from .stops import StopRules

    prices = budget_prices(plan)
    check_targets(plan, os.environ)
    run_id = run_id_of(plan.name)
    for warning in [*check_exports(plan, run_id), *foreseen(plan)]:
        click.echo(f"lens: {warning}", err=True)
    workers = worker_count(plan)
    geometry = geometry_of(plan, workers)
    run_dir = make_run_dir(plan, run_id)
    segment_dir = make_segment_dir(run_dir)
    tell_leftovers(quiet=quiet)
    manifest = manifest_of(plan, run_id, run_dir, workers)
    exporter = Exporter(plan, run_dir)
    try:
        manifest.write(segment_dir)
        collector = collector_command(segment_dir)
        rules, ports = StopRules(plan, segment_dir), PortWatch(plan)

        def on_tick() -> str | None:
            if warning := ports.look():
                note(run_dir, "ports", warning=warning)
                click.echo(f"lens: {warning}", err=True)
            return rules.reason()

        tap = None
        if os.environ.get("X_STAMPS", "segment") == "segment":
            from ..engine.runs.tap import servers_of, start_tap

            started = start_tap(segment_dir, servers_of(plan, os.environ))
            if isinstance(started, str):
                click.echo(f"lens: {started}", err=True)
            else:
                tap = started
        supervisor = Supervisor(
            plan, manifest, segment_dir, collector, geometry, prices=prices, on_tick=on_tick, tap=tap
        )
        supervisor.keep_aside(beside)
        with watched(segment_dir, quiet=quiet or as_json):
            supervisor.run()
        if tap:
            tap.close()
    except BaseException:
        exporter.abandon()
        raise
    finally:
        if (run_dir / "summary.json").exists() or manifest.state == "starting":  # else `lens recover` needs it
            remove_segments(run_dir, segment_dir)
    write_report(run_dir)
    code = tell(run_dir, manifest, as_json=as_json, quiet=quiet, strict=strict)
    exporter.finish()
    return code


def collector_command(segment_dir: Path) -> list[str]:
    """Starts the collector of a run as a child of this process, with which it ends."""
    module = [sys.executable, "-m", "llm_latency_lens.cli.processes.collect"]
    return [*module, "--segment-dir", str(segment_dir), "--parent", str(os.getpid())]


def tell_leftovers(*, quiet: bool) -> None:
    """One line on stderr if dead runs hold memory and wait to be recovered."""
    dead = [] if quiet else [left for left in leftovers() if not left.alive]
    if dead:
        megabytes = sum(left.bytes() for left in dead) / 1e6
        runs = "1 dead run" if len(dead) == 1 else f"{len(dead)} dead runs"
        click.echo(f"lens: {runs} left {megabytes:.0f} MB in {SEGMENTS}; `lens recover` lists them", err=True)


def budget_prices(plan: Plan) -> list[tuple[int, int]]:
    """Pico-USD per input and output token of each target, its dearest tier, where the plan has a budget to keep.

    Checks the plan's prices and price table, budget or not. Raises PlanError for one that is wrong, and with a budget
    for a target whose price nobody knows: its spend could not be limited.
    """
    for target in plan.targets:
        if target.price is not None:
            try:
                price(target.price)
            except PlanError as error:
                raise PlanError(f"target {target.name!r}: {error}") from error
    if plan.price_table:
        read_price_table(plan.price_table)
    if plan.limits.budget_usd is None:
        return []
    from ..collectors.cost import prices_of

    found: list[tuple[int, int]] = []
    for target, tiers in zip(plan.targets, prices_of(plan).tiers, strict=True):
        if not tiers:
            raise PlanError(
                f"budget_usd needs the price of {target.model!r} (target {target.name!r}), which is in no table; "
                "give the target a price: {input: USD, output: USD} per million tokens"
            )
        found.append((max(max(t.input, t.cache_write) for t in tiers), max(max(t.output, t.reasoning) for t in tiers)))
    return found


def write_report(run_dir: Path) -> None:
    """report.html beside the numbers. A report that cannot be drawn is told, and is no failure of the run."""
    from ..exporters.html.page import write_html

    try:
        write_html([run_dir], run_dir / "report.html")
    except LensError as error:
        click.echo(f"lens: {error}", err=True)


def manifest_of(plan: Plan, run_id: str, run_dir: Path, workers: int) -> Manifest:
    """The manifest of a run that has not begun."""
    from ..engine.load.models import planned_slots

    return Manifest(
        run_id=run_id,
        run_dir=str(run_dir.absolute()),
        version=__version__,
        plan=stripped(plan),
        plan_sha256=plan_sha256(plan),
        workers=workers,
        started_at=datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds"),
        phases=[PhaseTimes(planned=planned_slots(plan, index)) for index in range(len(plan.phases))],
        pids={"supervisor": os.getpid()},
    )


def tell(run_dir: Path, manifest: Manifest, *, as_json: bool, quiet: bool, strict: bool) -> int:
    """Prints the report and gives the exit code."""
    from ..collectors.snapshot import REPORT_DECODER

    summary = (run_dir / "summary.json").read_bytes()
    report = REPORT_DECODER.decode(summary)
    if as_json:
        sys.stdout.buffer.write(summary if summary.endswith(b"\n") else summary + b"\n")
        sys.stdout.flush()
    elif not quiet:
        from ..exporters.console.final import print_final

        print_final(report)
        click.echo(f"{run_dir}", err=True)
    if manifest.interrupted:
        return 130
    if report.requests.sent and not report.requests.ok and not report.requests.cancelled:
        worst = max(
            report.requests.failed, key=lambda name: report.requests.failed[name], default="in flight at the end"
        )
        sample = next((f": {error.message}" for error in report.errors if error.outcome == worst), "")
        click.echo(f"lens: all {report.requests.sent} requests failed, most as {worst}{sample}", err=True)
        return 1
    if any(slo.state == "FAIL" for slo in report.slo):
        return 3
    if strict and report.verdict.state != "VALID":
        return 4
    return 0


@contextlib.contextmanager
def watched(segment_dir: Path, *, quiet: bool) -> Iterator[None]:
    """The live view beside the run; never in its way."""
    if quiet:
        yield
        return
    from ..exporters.console.live import LiveConsole

    with LiveConsole(segment_dir):
        yield


@contextlib.contextmanager
def simulator() -> Iterator[tuple[str, int]]:
    """The built-in provider on a free loopback port, for as long as the run lasts; gives its base URL and its pid."""
    import subprocess

    process = subprocess.Popen(
        [sys.executable, "-m", "llm_latency_lens.engine.simulator", "--port", "0", "--die-with-parent"],
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            raise LensError(f"the simulator ended with exit code {process.wait()} before it listened")
        yield f"http://127.0.0.1:{msgspec.json.decode(line)['port']}/v1", process.pid
    finally:
        process.terminate()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()
