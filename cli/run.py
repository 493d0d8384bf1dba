"""`lens run`: a plan in, a measured run out."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from ..engine import __version__
from ..engine.errors import LensError, PlanError
from ..engine.plan.plan import Plan
from ..engine.runs.interrupts import Interrupts
from ..engine.runs.locality import core_warnings
from ..engine.runs.manifest import SEGMENTS, Manifest
from ..engine.runs.rundir import HTML, SUMMARY, leftovers, run_id_of
from .launch import Stamps
from .live import address_and_plan, live_options, live_page
from .options import plan_from, run_options
from .repeat.options import repeat_of, repeat_options
from .simulated import simulator
from .summaries import Summaries, summaries_of, summary_options

if TYPE_CHECKING:
    from ..collectors.snapshot import Report
    from ..engine.hosts.driver import Driver
    from ..engine.runs.supervisor import Supervisor
    from .launch import Launch
    from .processes.export import Exporter, Live
    from .stops import StopRules


@click.command(short_help="Run a plan, or a load given by flags, and report.")
@run_options
@repeat_options
@summary_options
@live_options
def run(
    plan_path: str | None,
    *,
    as_json: bool,
    quiet: bool,
    strict: bool,
    live: str | None,
    live_control: bool,
    **flags: Any,
) -> int:
    """Measure one or many LLM endpoints, as PLAN says or as the flags say.

    The zero-configuration run is `lens run --simulate`. With --repeat N --against BASE the plan's target and the base
    are measured N times each in turns; the exit code is 3 if the plan's target is worse.
    """
    summaries = summaries_of(flags)
    repeat = repeat_of(flags, summaries, as_json=as_json, quiet=quiet, strict=strict)
    live, plan_path = address_and_plan(live, plan_path)
    with contextlib.ExitStack() as stack:
        interrupts = stack.enter_context(Interrupts())  # first: a signal must never find nobody
        beside: list[int] = []
        page = stack.enter_context(live_page(live, control=live_control, repeated=repeat is not None))
        if flags["simulate"]:
            simulated = stack.enter_context(simulator())
            flags["base_url"] = f"{simulated.base_url}/v1"
            beside.append(simulated.pid)
        plan = plan_from(plan_path, flags)
        if page is not None:
            click.echo(f"lens: live page: {page.listener.url}", err=True)
        if repeat is not None:
            from .repeat.command import carry_out_repeated

            return carry_out_repeated(plan, repeat, interrupts, beside)
        return carry_out(
            plan, interrupts, as_json=as_json, quiet=quiet, strict=strict, beside=beside, summaries=summaries, page=page
        )


def carry_out(
    plan: Plan,
    interrupts: Interrupts,
    *,
    as_json: bool,
    quiet: bool,
    strict: bool,
    beside: Sequence[int] = (),
    run_id: str = "",
    warn: bool = True,
    summaries: Summaries | None = None,
    show: Callable[[Report], None] | None = None,
    page: Live | None = None,
) -> int:
    """Runs a plan and prints the result; returns the exit code. Processes `beside` it are kept off its cores.

    `run_id` is a new one if it is empty; `warn`: say on stderr what the plan and the machine have against the run;
    `show` prints the result for people, default: the final table.
    """
    live = not (quiet or as_json)
    done = measure(plan, interrupts, warn=warn and not quiet, live=live, beside=beside, run_id=run_id, page=page)
    try:
        write_report(done.run_dir)
        return print_result(
            done.run_dir, done.manifest, as_json=as_json, quiet=quiet, strict=strict, summaries=summaries, show=show
        )
    finally:
        done.exporter.finish()


class Done(NamedTuple):
    """A run that has its summary. `exporter.finish()` is still to be called."""

    run_dir: Path
    manifest: Manifest
    exporter: Exporter


def measure(
    plan: Plan,
    interrupts: Interrupts,
    *,
    warn: bool,
    live: bool,
    beside: Sequence[int] = (),
    run_id: str = "",
    rules: Callable[[Plan, Path], StopRules] | None = None,
    page: Live | None = None,
) -> Done:
    """Runs a plan to its summary. `rules` make what ends it early, from its plan and segment directory; `warn` says on
    stderr what the plan and the machine have against the run, `live` is the live view on it, `page` the one in browsers. Raises LensError."""
    from ..engine.wire.preflight import check_targets
    from ..engine.workload import cautions
    from .launch import budget_prices, launched
    from .processes.export import Exporter, check_exports
    from .stops import StopRules

    prices = budget_prices(plan)
    if not plan.hosts.count:  # each host looks for itself
        warn_of_ceiling(plan, quiet=not warn)
        check_targets(plan, os.environ)
    run_id = run_id or run_id_of(plan.name)
    known = cautions(plan) if warn and not beside else []  # the simulator beside it limits itself
    for warning in [*known, *check_exports(plan, run_id)]:
        click.echo(f"lens: {warning}", err=True)
    with contextlib.ExitStack() as failed:
        with launched(plan, run_id, interrupts, prices=prices) as launch:
            warn_of_leftovers(quiet=not warn)
            exporter = Exporter(plan, launch.run_dir, page)
            failed.callback(exporter.abandon)
            stops = (rules or StopRules)(plan, launch.segment_dir)

            def on_tick() -> str | None:
                if exporter.restart_if_ended():
                    launch.manifest.exporter_restarts += 1
                    supervisor.publish()
                return stops.reason()

            supervisor = supervisor_of(launch, on_tick, beside, exporter.pids, quiet=not warn)
            with live_console(launch.segment_dir, quiet=not live):
                manifest = supervisor.run()
        failed.pop_all()  # from here on there is a summary, and the exporter can come to its end
    return Done(launch.run_dir, manifest, exporter)


def supervisor_of(
    launch: Launch, on_tick: Callable[[], str | None], beside: Sequence[int], exporter: Sequence[int], *, quiet: bool
) -> Supervisor | Driver:
    """What carries the run out: on this machine, or on the hosts of the plan. The pids of the `exporter` are kept off the
    workers' cores as those `beside` the run are."""
    plan = launch.plan
    if plan.hosts.count:
        from ..engine.hosts.launcher import launcher_of

        if beside and not (plan.hosts.cluster == "local" or plan.hosts.address == "local"):
            raise PlanError(
                "--simulate is on this machine only; use it with --cluster ray:local or local, or name a server"
            )
        return launch.driver(on_tick, launcher_of(plan, launch.segment_dir))
    supervisor = launch.supervisor(on_tick)
    supervisor.keep_aside([*beside, *exporter])
    if not quiet:
        warn_of_stamps(launch.stamps, supervisor.worker_cores, beside)
    return supervisor


def warn_of_stamps(stamps: Stamps, worker_cores: Collection[int], beside: Collection[int]) -> None:
    """Lines on stderr: why segments have no stamps of their own, and which servers share the workers' cores. The run's
    own processes `beside` it were moved to other cores."""
    lines = [f"one stamp per read: {stamps.refusal}"] if stamps.refusal else []
    for line in [*lines, *core_warnings([each for each in stamps.local if each.pid not in beside], worker_cores)]:
        click.echo(f"lens: {line}", err=True)


def warn_of_ceiling(plan: Plan, *, quiet: bool) -> None:
    """A line on stderr if the plan asks for more than this host's calibration found possible, or if that is unusable."""
    from ..collectors.calibration.stored import excess, load
    from ..collectors.host import describe
    from ..engine.runs.placement import worker_count

    loaded = load(describe()["host_hash"], __version__, os.environ)
    lines = [loaded.ignored] if loaded.ignored and not quiet else []
    if loaded.calibration is not None:
        lines.append(excess(plan, worker_count(plan), loaded.calibration))
    for line in filter(None, lines):
        click.echo(f"lens: {line}", err=True)


def warn_of_leftovers(*, quiet: bool) -> None:
    """One line on stderr if dead runs hold memory and wait to be recovered."""
    dead = [] if quiet else [left for left in leftovers() if not left.alive]
    if dead:
        megabytes = sum(left.bytes() for left in dead) / 1e6
        runs = "1 dead run" if len(dead) == 1 else f"{len(dead)} dead runs"
        click.echo(f"lens: {runs} left {megabytes:.0f} MB in {SEGMENTS}; `lens recover` lists them", err=True)


def write_report(run_dir: Path) -> None:
    """report.html beside the numbers. A report that cannot be drawn is a line on stderr, and no failure of the run."""
    from ..exporters.html.page import write_html

    try:
        write_html([run_dir], run_dir / HTML)
    except LensError as error:
        click.echo(f"lens: {error}", err=True)


def print_result(
    run_dir: Path,
    manifest: Manifest,
    *,
    as_json: bool,
    quiet: bool,
    strict: bool,
    summaries: Summaries | None = None,
    show: Callable[[Report], None] | None = None,
) -> int:
    """Prints the report and writes the summaries; returns the exit code."""
    from ..collectors.snapshot import REPORT_DECODER

    summary = (run_dir / SUMMARY).read_bytes()
    report = REPORT_DECODER.decode(summary)
    if summaries is not None:
        summaries.write(report, strict=strict)
    try:
        if as_json:
            sys.stdout.buffer.write(summary if summary.endswith(b"\n") else summary + b"\n")
            sys.stdout.flush()
        elif not quiet:
            from ..exporters.console.final import print_final
            from ..exporters.setting import read_setting

            if show is not None:
                show(report)
            else:
                print_final(report, read_setting(run_dir, report))
            click.echo(f"{run_dir}", err=True)
    except OSError as error:
        if not manifest.interrupted:  # a terminal that was closed, which is how the signal came
            raise LensError(f"cannot write to stdout: {error.strerror}; the report is in {run_dir}") from error
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
    undecided = any(slo.state == "UNDECIDED" for slo in report.slo)
    if strict and (undecided or report.verdict.state != "VALID"):
        return 4
    return 0


@contextlib.contextmanager
def live_console(segment_dir: Path, *, quiet: bool) -> Iterator[None]:
    """The live view beside the run; never in its way."""
    if quiet:
        yield
        return
    from ..exporters.console.live import LiveConsole

    with LiveConsole(segment_dir):
        yield
