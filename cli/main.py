"""The `lens` command: a table of commands, each loaded only when it is used, so that `lens --help` stays instant."""

from __future__ import annotations

import importlib
import os
import resource
import sys
import traceback
from pathlib import Path
from typing import Any, Final, NamedTuple

import click

from ..engine import __version__
from ..engine.errors import LensError

TRACEBACK: Final = "LENS_TRACEBACK"


class Entry(NamedTuple):
    module: str
    attribute: str
    help: str


COMMANDS: Final = {
    "run": Entry("llm_latency_lens.cli.run", "run", "Run a plan, or a load given by flags, and report."),
    "probe": Entry("llm_latency_lens.cli.probe.command", "probe", "Measure continuously at a low rate, as a service."),
    "validate": Entry("llm_latency_lens.cli.validate", "validate", "Check a plan and show what it will do."),
    "simulate": Entry("llm_latency_lens.cli.simulate", "simulate", "Start the built-in provider with a known truth."),
    "report": Entry("llm_latency_lens.cli.report", "report", "Tell a run again, in another format or place."),
    "recover": Entry("llm_latency_lens.cli.recover", "recover", "Find dead runs and finish their books."),
    "schema": Entry("llm_latency_lens.cli.schema", "schema", "Print the JSON Schema of a plan or a summary."),
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
    """Measure the latency of LLM APIs, truthfully: every token is timed by the kernel's receive clock.

    Start with `lens run --simulate`.
    """


def no_core_dumps() -> None:
    """For this process and all it starts: a core file would hold keys, prompts and replies (core(5))."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))


def printable(text: str) -> str:
    """The text as stderr can show it: arguments that are not UTF-8 come as surrogates."""
    return text.encode("utf-8", "backslashreplace").decode()


def unexpected(error: Exception) -> str:
    """One line on an exception that nobody foresaw: what, where, and how to see all of it."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    where = f"{Path(frame.filename).name}:{frame.lineno}"
    said = " ".join(str(error).split())[:200]
    return f"unexpected {type(error).__name__} at {where}: {said}; {TRACEBACK}=1 shows the traceback. This is a bug."


def main(arguments: list[str] | None = None) -> Any:
    """Entry of the console script: turns every error into one line on stderr and its exit code."""
    no_core_dumps()
    try:
        code = lens.main(args=arguments, prog_name="lens", standalone_mode=False)
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
        code = 1
    sys.exit(code if isinstance(code, int) else 0)
