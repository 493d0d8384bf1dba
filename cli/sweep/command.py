"""`lens sweep`: the highest rate or concurrency at which all objectives are met, with its interval."""

from __future__ import annotations

import contextlib
import shutil
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click
import msgspec

from ...engine.errors import LensError, PlanError
from ...engine.plan.plan import SECOND, Plan
from ...engine.plan.units import duration_ns
from ...engine.runs.interrupts import Interrupts
from ..options import plan_from, run_options, share
from ..simulated import simulator

if TYPE_CHECKING:
    from ...collectors.sweep import SweepReport
    from .folder import Settings

BELOW: Final = 3  # the answer is below what was required, or no load of the range meets the objectives
OPEN: Final = 4  # the client was the limit, or too little is known
INTERRUPTED: Final = 130
_RESUMED: Final = ("quiet", "as_json")  # options of a run that may stand beside --resume
RUNS: Final = "runs"  # output.dir of a plan that says nothing


@click.command(short_help="Find the highest load that meets the objectives.")
@partial(run_options, without=("strict",))
@click.option("--over", metavar="LOAD=LOW:HIGH", help="The load that varies: rate=1:100 or concurrency=1:64.")
@click.option(
    "--precision",
    default="5%",
    show_default=True,
    callback=lambda _ctx, _parameter, text: share("--precision", text),
    metavar="SHARE",
    help="Half width of the answer's interval that is aimed at.",
)
@click.option("--grid", metavar="V,V,...", help="Measure these loads and no others.")
@click.option("--require", metavar="V", help="Exit with 3 when the answer is below this load.")
@click.option("--max-time", metavar="TIME", help="End the sweep after this long, with what is known then.")
@click.option(
    "--resume",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Continue a sweep that was killed or interrupted; finished points are not run again.",
)
def sweep(
    plan_path: str | None,
    *,
    over: str | None,
    precision: float,
    grid: str | None,
    require: str | None,
    max_time: str | None,
    resume: Path | None,
    as_json: bool,
    quiet: bool,
    **flags: Any,
) -> int:
    """Find the highest rate or concurrency at which PLAN, or the flags, meet all objectives.

    Loads double until one fails, then the interval in between is halved until the answer is known to --precision. Each
    point is a run of its own: it ends when its objectives are decided, when its queue keeps growing, or after --duration
    (default 2m). The exit code is 0 when the answer was found, 3 when it is below --require, 4 when this client was the
    limit or too little is known.
    """
    with contextlib.ExitStack() as stack:
        interrupts = stack.enter_context(Interrupts())  # first: a signal must never find nobody
        from .folder import Settings, umask

        umask()
        beside: list[int] = []
        limit_s = _seconds(max_time)
        if resume is not None:
            plan, settings = _resumed(resume, plan_path, flags, over or grid)
            changes = {"max_time_s": limit_s} if limit_s is not None else {}
            settings = msgspec.structs.replace(settings, **changes)
            if require is not None:
                settings = _requiring(settings, require)
            if settings.simulate:
                simulated = stack.enter_context(simulator())
                beside.append(simulated.pid)
                url = f"{simulated.base_url}/v1"
                targets = tuple(msgspec.structs.replace(target, base_url=url) for target in plan.targets)
                plan = msgspec.structs.replace(plan, targets=targets)
            return _carry_out(plan, settings, resume, interrupts, beside, as_json=as_json, quiet=quiet)
        from .asked import plan_of, wanted_of

        wanted = wanted_of(over, grid, precision=precision, require=require)
        if flags["simulate"]:
            simulated = stack.enter_context(simulator())
            flags["base_url"] = f"{simulated.base_url}/v1"
            beside.append(simulated.pid)
        plan = plan_of(plan_path, flags, wanted)
        settings = Settings(
            wanted=wanted,
            max_time_s=limit_s,
            simulate=bool(flags["simulate"]),
            plan_sha256=_identity(plan),
        )
        return _carry_out(plan, settings, None, interrupts, beside, as_json=as_json, quiet=quiet)


def _seconds(text: str | None) -> float | None:
    if text is None:
        return None
    try:
        found = duration_ns(text) / SECOND
    except ValueError as error:
        raise PlanError(f"--max-time {text!r} is not understood: {error}") from None
    if not found > 0:
        raise PlanError(f"--max-time {text!r} must be above 0")
    return found


def _identity(plan: Plan) -> str:
    from ...engine.planfile.build import plan_sha256

    return plan_sha256(plan)


def _requiring(settings: Settings, require: str) -> Settings:
    from .asked import load_of

    wanted = settings.wanted
    changed = msgspec.structs.replace(wanted, require=load_of(wanted.over, require, "--require"))
    return msgspec.structs.replace(settings, wanted=changed)


def _resumed(
    folder: Path, plan_path: str | None, flags: Mapping[str, Any], range_: str | None
) -> tuple[Plan, Settings]:
    """The plan and settings in a sweep's directory. Raises PlanError for anything beside --resume that would change it."""
    from ...engine.runs.rundir import PLAN
    from .asked import plan_of
    from .folder import read_settings

    settings = read_settings(folder)
    given = [name for name, value in flags.items() if value not in (None, False, ())]
    if range_:
        given.insert(0, "over or --grid")
    if given:
        raise PlanError(
            f"--{given[0].replace('_', '-')} cannot stand beside --resume: what is measured is in {folder / PLAN}"
        )
    plan = plan_from(str(folder / PLAN), {})
    if plan_path is not None and _identity(plan_of(plan_path, {}, settings.wanted)) != settings.plan_sha256:
        raise PlanError(f"{plan_path} is not the plan of {folder}; leave it out, or start another sweep")
    return plan, settings


def _carry_out(
    plan: Plan,
    settings: Settings,
    resume: Path | None,
    interrupts: Interrupts,
    beside: list[int],
    *,
    as_json: bool,
    quiet: bool,
) -> int:
    from ...engine.runs.rundir import PLAN
    from ...exporters.sweep.words import point_line
    from ..launch import budget_prices
    from .folder import DIRECTORY, locked, make_folder, recover_killed, run_dirs
    from .sweeper import Sweeper

    budget_prices(plan)
    if resume is None:
        if plan.output.dir == RUNS:
            plan = msgspec.structs.replace(plan, output=msgspec.structs.replace(plan.output, dir=DIRECTORY))
        folder = make_folder(plan, settings)
    else:
        folder = resume
    with locked(folder):
        if resume is not None:
            recover_killed(folder)

        def on_point(report: SweepReport) -> None:
            if not quiet:
                click.echo(f"lens: {point_line(report)}", err=True)

        sweeper = Sweeper(
            plan,
            settings.wanted,
            folder,
            interrupts,
            max_time_s=settings.max_time_s,
            beside=beside,
            on_point=on_point,
            live=not (quiet or as_json),
        )
        try:
            sweeper.run()
        except KeyboardInterrupt:  # between two runs
            sweeper.ended = "interrupted"
        except LensError:
            if resume is None and not run_dirs(folder, PLAN):  # it never began
                shutil.rmtree(folder, ignore_errors=True)
            raise
        report = sweeper.report
        _write(folder, report)
    if sweeper.ended and sweeper.ended != "interrupted":
        click.echo(f"lens: the sweep ended early: {sweeper.ended}", err=True)
    _print(folder, report, as_json=as_json, quiet=quiet)
    if sweeper.ended == "interrupted":
        return INTERRUPTED
    return _code(report, settings, complete=sweeper.complete)


def _write(folder: Path, report: SweepReport) -> None:
    """points.csv and report.html. A report that cannot be drawn is a line on stderr, and no failure of the sweep."""
    from ...exporters.sweep.files import write_files

    try:
        write_files(folder, report)
    except LensError as error:
        click.echo(f"lens: {error}", err=True)


def _print(folder: Path, report: SweepReport, *, as_json: bool, quiet: bool) -> None:
    if as_json:
        from ...collectors.sweep import ENCODER

        sys.stdout.buffer.write(ENCODER.encode(report) + b"\n")
        sys.stdout.buffer.flush()
    elif not quiet:
        from ...exporters.console.sweep import print_sweep

        print_sweep(report)
        click.echo(str(folder), err=True)


def _code(report: SweepReport, settings: Settings, *, complete: bool) -> int:
    from ...collectors.sweep import below

    wanted, answer = settings.wanted, report.answer
    if answer.state == "BELOW_RANGE" or (wanted.require is not None and below(answer, wanted.require)):
        return BELOW
    if answer.state in ("CLIENT_LIMITED", "UNDECIDED"):
        return 0 if wanted.grid and complete and answer.state == "UNDECIDED" else OPEN
    return 0
