"""The options of `lens run` that repeat it and compare."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar

import click

from ...engine.errors import PlanError
from ..options import share

Command = TypeVar("Command", bound=Callable[..., Any])

RUNS_MAX: Final = 1_000
OPTIONS: Final = (
    click.option("--repeat", metavar="N", help="Run N times, each in new processes, and report how the runs differ."),
    click.option(
        "--against",
        metavar="TARGET|URL",
        help="With --repeat: also run N times against this base, a target of the plan or another base URL, in turns, and "
        "tell whether the plan's target is worse.",
    ),
    click.option("--margin", metavar="SHARE", help="With --against: difference that does not matter. [default: 5%]"),
    click.option(
        "--metric", "metrics", multiple=True, metavar="NAME.STAT", help="With --against: compare only this. Repeatable."
    ),
    click.option("--markdown", "as_markdown", is_flag=True, help="With --against: print Markdown for a pull request."),
    click.option(
        "--junit", type=click.Path(path_type=Path), metavar="FILE", help="With --against: also write JUnit XML."
    ),
)


def repeat_options(command: Command) -> Command:
    """Adds the options to a click command."""
    for option in reversed(OPTIONS):
        command = option(command)
    return command


class Repeat(NamedTuple):
    """What the options ask for. `times` runs of each side."""

    times: int
    against: str | None
    margin: float
    metrics: tuple[str, ...]
    as_markdown: bool
    junit: Path | None
    as_json: bool
    quiet: bool
    strict: bool


def repeat_of(options: Mapping[str, Any], *, as_json: bool, quiet: bool, strict: bool) -> Repeat | None:
    """None where the plan is to run once. Raises PlanError for values that are wrong or do not go together."""
    times, against = options["repeat"], options["against"]
    if times is None:
        if against is not None:
            raise PlanError(
                f"--against {against} needs --repeat N, the number of runs of each side, such as --repeat 5"
            )
        _refuse_without_against(options)
        return None
    if against is None:
        _refuse_without_against(options)
    elif not against.strip():
        raise PlanError("--against is empty; give a target of the plan or a base URL")
    if as_json and options["as_markdown"]:
        raise PlanError("--json and --markdown both print on stdout; give one of them")
    if options["metrics"]:
        from ...exporters.compare.run import named

        named(options["metrics"])  # a typo is found before the runs, not after
    return Repeat(
        times=_times(times),
        against=None if against is None else against.strip(),
        margin=share("--margin", options["margin"] or "5%"),
        metrics=options["metrics"],
        as_markdown=options["as_markdown"],
        junit=options["junit"],
        as_json=as_json,
        quiet=quiet,
        strict=strict,
    )


def _refuse_without_against(options: Mapping[str, Any]) -> None:
    for name, flag in (
        ("margin", "--margin"),
        ("metrics", "--metric"),
        ("as_markdown", "--markdown"),
        ("junit", "--junit"),
    ):
        if options[name]:
            raise PlanError(f"{flag} is for a comparison: give --repeat N --against TARGET_OR_URL, or use lens compare")


def _times(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= RUNS_MAX:
        raise PlanError(f"--repeat {text!r} is not a number of runs from 1 to {RUNS_MAX:,}")
    return int(text)
