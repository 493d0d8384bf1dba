"""`--junit FILE` and `--summary-markdown FILE` of `lens run`: what a CI shows of a run or of a comparison."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar

import click

from ..engine.errors import OutputError, PlanError
from ..engine.files import replace

if TYPE_CHECKING:
    from ..collectors.snapshot import Report

Command = TypeVar("Command", bound=Callable[..., Any])

OPTIONS: Final = (
    click.option(
        "--junit",
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="Also write JUnit XML: the verdict and each SLO, or with --against each comparison, is a test case.",
    ),
    click.option(
        "--summary-markdown",
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="Also write the result as Markdown, for a pull request or a job's summary.",
    ),
)


def summary_options(command: Command) -> Command:
    """Adds the options to a click command."""
    for option in reversed(OPTIONS):
        command = option(command)
    return command


class Summaries(NamedTuple):
    """The files that were asked for."""

    junit: Path | None = None
    markdown: Path | None = None

    def write(self, report: Report, *, strict: bool) -> None:
        """Writes both of a run. Raises OutputError."""
        from ..exporters import run_formats

        if self.junit is not None:
            write_summary(self.junit, run_formats.junit(report, strict=strict))
        if self.markdown is not None:
            write_summary(self.markdown, run_formats.markdown(report).encode("utf-8", "replace"))


def summaries_of(options: Mapping[str, Any]) -> Summaries:
    """Raises PlanError for a file that cannot be written: known before the run, not after an hour of it."""
    summaries = Summaries(options["junit"], options["summary_markdown"])
    for flag, path in (("--junit", summaries.junit), ("--summary-markdown", summaries.markdown)):
        if path is None:
            continue
        if path.is_dir():
            raise PlanError(f"{flag} {path} is a directory; give a file in it")
        if not path.parent.is_dir():
            raise PlanError(f"{flag} {path}: there is no directory {path.parent}; make it first")
        if not os.access(path if path.exists() else path.parent, os.W_OK):
            raise PlanError(f"{flag} {path} cannot be written: permission denied")
    return summaries


def write_summary(path: Path, content: bytes) -> None:
    """In one step where it is an ordinary file; a pipe or device such as /dev/stdout is written to. Raises OutputError."""
    try:
        if path.exists() and not path.is_file():
            path.write_bytes(content)
        else:
            replace(path, content)
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror}") from None
