"""`lens compare BASE... -- CANDIDATE...`: whether runs got worse, with intervals, as a gate for a CI."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from ..engine.errors import OutputError, PlanError
from .options import share

if TYPE_CHECKING:
    from ..collectors.compare import Compared
    from ..exporters.compare.repeated import SidesOf

WORSE: Final = 3  # the exit code of a gate that failed
_DIVIDER: Final = "\0--"  # stands for `--` while click parses: options may follow the candidates, and no path holds \0


class TwoLists(click.Command):
    """Keeps the `--` between two lists of arguments, and takes options after it as before it."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if "--" in args:
            at = args.index("--")
            args = [*args[:at], _DIVIDER, *args[at + 1 :]]
        return super().parse_args(ctx, args)

    def collect_usage_pieces(self, ctx: click.Context) -> list[str]:
        return ["BASE... -- CANDIDATE... [OPTIONS]  |  DIR [OPTIONS]"]


@click.command(cls=TwoLists)
@click.argument("run_dirs", nargs=-1, required=True)
@click.option(
    "--margin",
    default="5%",
    show_default=True,
    callback=lambda _ctx, _parameter, text: share("--margin", text),
    metavar="SHARE",
    help="Difference that does not matter.",
)
@click.option(
    "--metric",
    "metrics",
    multiple=True,
    metavar="NAME.STAT",
    help="Compare only this, such as ttft_ms.p99 or requests_per_s; repeatable.",
)
@click.option("--steady", is_flag=True, help="Only the steady window of each run.")
@click.option("--across", is_flag=True, help="Compare runs of different loads, workloads or hosts all the same.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--markdown", "as_markdown", is_flag=True, help="Print Markdown for a pull request.")
@click.option("--junit", type=click.Path(path_type=Path), metavar="FILE", help="Also write JUnit XML.")
@click.option("--html", type=click.Path(path_type=Path), metavar="FILE", help="Also write an HTML page with plots.")
def compare(
    run_dirs: tuple[str, ...],
    margin: float,
    metrics: tuple[str, ...],
    steady: bool,
    across: bool,
    as_json: bool,
    as_markdown: bool,
    junit: Path | None,
    html: Path | None,
) -> int:
    """Compare the runs before `--` with those after it, a sweep with another, or the two sides of DIR that `lens run
    --against` made.

    Several runs on each side are compared run by run, single ones by the blocks within them. Each statistic is better,
    worse, the same (its 95 % interval lies within the margin) or undecided. The exit code is 3 if anything is worse.
    """
    from ..exporters.compare import page
    from ..exporters.compare.run import compare_runs
    from ..exporters.compare.sweeps import compare_sweeps, is_sweep
    from ..exporters.compare.sweeps import page_of as page_of_sweeps

    if as_json and as_markdown:
        raise PlanError("--json and --markdown both print on stdout; give one of them")
    sides = _sides(run_dirs)
    if any(is_sweep(path) for path in (*sides.base, *sides.candidate)):
        compared, sweeps = compare_sweeps(
            sides.base, sides.candidate, margin=margin, metrics=metrics, steady=steady, across=across
        )
        write_files(junit, html, compared, lambda: page_of_sweeps(compared, sweeps))
    else:
        compared, runs = compare_runs(
            sides.base,
            sides.candidate,
            margin=margin,
            metrics=metrics,
            steady=steady,
            across=across,
            first_notes=sides.notes,
        )
        write_files(junit, html, compared, lambda: page.page_of(compared, runs))
    print_compared(compared, as_json=as_json, as_markdown=as_markdown)
    return WORSE if compared.state == "FAIL" else 0


def print_compared(compared: Compared, *, as_json: bool, as_markdown: bool) -> None:
    """The answer on stdout in the form that was asked for."""
    if as_json:
        from ..collectors.snapshot import ENCODER

        sys.stdout.buffer.write(ENCODER.encode(compared) + b"\n")
        sys.stdout.buffer.flush()
    elif as_markdown:
        from ..exporters.compare.formats import markdown

        click.echo(markdown(compared), nl=False)
    else:
        from ..exporters.console.comparison import print_comparison

        print_comparison(compared)


def _sides(run_dirs: tuple[str, ...]) -> SidesOf:
    """The paths before and after the `--`; without one, two paths are one each, and one is a directory with both."""
    from ..exporters.compare.repeated import named_sides, own_sides

    if len(run_dirs) == 1 and _DIVIDER not in run_dirs:
        return own_sides(Path(run_dirs[0]))
    if _DIVIDER in run_dirs:
        at = run_dirs.index(_DIVIDER)
        sides = run_dirs[:at], run_dirs[at + 1 :]
    else:
        sides = run_dirs[:-1], run_dirs[-1:]
        if len(run_dirs) > 2:
            raise PlanError("put -- between the base and the candidate: lens compare BASE... -- CANDIDATE...")
    if not all(sides):
        raise PlanError("nothing to compare with: lens compare BASE... -- CANDIDATE...")
    base, candidate = ([Path(each) for each in side] for side in sides)
    return named_sides(base, candidate)


def write_files(junit: Path | None, html: Path | None, compared: Compared, page: Callable[[], str]) -> None:
    """Writes the files that were asked for. Raises OutputError."""
    from ..engine.files import replace
    from ..exporters.compare import formats

    for path, content in (
        (junit, formats.junit(compared) if junit else b""),
        (html, page().encode("utf-8", "replace") if html else b""),
    ):
        if path is not None:
            try:
                replace(path, content)
            except OSError as error:
                raise OutputError(f"{path} cannot be written: {error.strerror}") from None
            click.echo(str(path), err=True)
