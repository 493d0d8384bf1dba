"""The `lens` command: a table of commands, each loaded only when it is used, so that `lens --help` stays instant.

`main` is the one guard around all of them: whatever goes wrong is one line on stderr and an exit code, never a
traceback, and a stderr or stdout that is closed or full changes no more than it must.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import resource
import sys
import traceback
from pathlib import Path
from typing import Any, Final, NamedTuple

import click

from ..engine import __version__
from ..engine.errors import LensError, OutputError

TRACEBACK: Final = "LENS_TRACEBACK"
FAILED: Final = 1  # the exit code of a run that could not do its work or whose output could not be written


class Entry(NamedTuple):
    module: str
    attribute: str
    help: str


COMMANDS: Final = {
    "run": Entry("llm_latency_lens.cli.run", "run", "Run a plan, or a load given by flags, and report."),
    "probe": Entry("llm_latency_lens.cli.probe.command", "probe", "Measure continuously at a low rate, as a service."),
    "sweep": Entry("llm_latency_lens.cli.sweep.command", "sweep", "Find the highest load that meets the objectives."),
    "compare": Entry(
        "llm_latency_lens.cli.compare", "compare", "Tell whether runs are worse than others, for a CI gate."
    ),
    "calibrate": Entry(
        "llm_latency_lens.cli.calibrate.command", "calibrate", "Measure the accuracy and the limits of this host."
    ),
    "verify": Entry(
        "llm_latency_lens.cli.verify.command", "verify", "Compare a run's times with a packet capture of it."
    ),
    "validate": Entry("llm_latency_lens.cli.validate", "validate", "Check a plan and show what it will do."),
    "doctor": Entry("llm_latency_lens.cli.doctor", "doctor", "Check this machine, and a plan's targets, before a run."),
    "simulate": Entry(
        "llm_latency_lens.cli.simulate", "simulate", "Start the built-in provider, whose timing is known."
    ),
    "report": Entry(
        "llm_latency_lens.cli.report", "report", "Print a finished or running run, or convert or export it."
    ),
    "recover": Entry(
        "llm_latency_lens.cli.recover", "recover", "Find runs that were killed and complete their reports."
    ),
    "schema": Entry("llm_latency_lens.cli.schema", "schema", "Print the JSON Schema of a plan or a summary."),
    "systemd": Entry(
        "llm_latency_lens.cli.systemd", "systemd", "List or print the systemd units and Grafana dashboards."
    ),
    "providers": Entry("llm_latency_lens.cli.providers", "providers", "List the APIs that can be measured."),
}


class Commands(click.Group):
    """Loads a command's module when the command is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        entry = COMMANDS.get(cmd_name)
        if entry is None:
            return None
        command: click.Command = getattr(importlib.import_module(entry.module), entry.attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, entry.help) for name, entry in COMMANDS.items()])


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.version_option(__version__, prog_name="lens")
def lens() -> None:
    """Measure the latency of LLM APIs: every token is timed by the kernel's receive clock.

    Start with `lens run --simulate`.
    """


class Stdout(io.FileIO):
    """stdout whose failed writes are OutputErrors that name it: full disk, closed pipe, closed descriptor."""

    def write(self, part: Any) -> int:
        try:
            return super().write(part)
        except OSError as error:
            raise OutputError(f"stdout cannot be written: {error.strerror}") from None


class Stderr(io.FileIO):
    """stderr without errors: what cannot be written is dropped. A closed terminal is no reason to fail a run."""

    def write(self, part: Any) -> int:
        with contextlib.suppress(OSError):
            super().write(part)
        return len(part)


def no_core_dumps() -> None:
    """For this process and all it starts: a core file would hold keys, prompts and replies (core(5))."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))


def printable(text: str) -> str:
    """The text as stderr can show it: arguments that are not UTF-8 come as surrogates."""
    return text.encode("utf-8", "backslashreplace").decode()


def open_standard_streams() -> None:
    """Makes descriptors 0 to 2 valid, and stdout and stderr fail as `Stdout` and `Stderr` say.

    A shell's `>&-` starts a process without descriptor 1. The next file that it opens would get this number, and
    whatever a library or a child process prints would be written into that file. Opened read-only, descriptor 1 is
    taken and every print to it still fails.
    """
    for fd, mode in ((0, os.O_RDONLY), (1, os.O_RDONLY), (2, os.O_WRONLY)):
        try:
            os.fstat(fd)
        except OSError:
            os.set_inheritable(os.open(os.devnull, mode), True)  # POSIX: open() takes the lowest free number, `fd`
    if sys.stdout is sys.__stdout__:  # else somebody captures it, such as pytest
        buffer = io.BufferedWriter(Stdout(1, "w", closefd=False))
        sys.stdout = io.TextIOWrapper(buffer, encoding="utf-8", errors="replace", line_buffering=os.isatty(1))
    if sys.stderr is sys.__stderr__:
        raw = Stderr(2, "w", closefd=False)
        sys.stderr = io.TextIOWrapper(raw, encoding="utf-8", errors="backslashreplace", write_through=True)


def unexpected(error: Exception) -> str:
    """One line on an exception that no command expected: what, where, and how to see all of it."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    frame = traceback.extract_tb(error.__traceback__)[-1]
    where = f"{Path(frame.filename).name}:{frame.lineno}"
    message = " ".join(str(error).split())[:200]
    return f"unexpected {type(error).__name__} at {where}: {message}; {TRACEBACK}=1 shows the traceback. This is a bug."


def main(arguments: list[str] | None = None) -> Any:
    """Entry of the console script: every error is one line on stderr and an exit code."""
    no_core_dumps()
    open_standard_streams()
    try:
        code = lens.main(args=arguments, prog_name="lens", standalone_mode=False)
        sys.stdout.flush()
    except click.exceptions.Abort:
        code = 130
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except LensError as error:
        click.echo(f"lens: {printable(str(error))}", err=True)
        code = error.exit_code
    except Exception as error:
        if os.environ.get(TRACEBACK):
            raise
        click.echo(f"lens: {printable(unexpected(error))}", err=True)
        code = FAILED
    try:
        sys.stdout.flush()
    except LensError:  # reported above; the interpreter flushes once more when it ends and must find nothing wrong
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    sys.exit(code if isinstance(code, int) else 0)
