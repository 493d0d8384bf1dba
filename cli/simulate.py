"""`lens simulate`: the built-in provider with a known truth, to try the lens on or to point anything else at."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click
import msgspec

from ..engine.errors import PlanError
from ..engine.simulator.script import flags, script_from
from ..engine.simulator.server.process import HELP, Options, serve

Command = Callable[..., int]


def process_options(command: Command) -> Command:
    """Adds a flag per option of the process."""
    for field in reversed(msgspec.structs.fields(Options)):
        flag = "--" + field.name.replace("_", "-")
        if field.type is bool:
            command = click.option(flag, is_flag=True, help=HELP[field.name])(command)
        else:
            command = click.option(flag, default=field.default, show_default=True, help=HELP[field.name])(command)
    return command


def script_options(command: Command) -> Command:
    """Adds a flag per key of the script."""
    for flag, key, description in reversed(flags()):
        command = click.option(flag, f"script_{key}", metavar="VALUE", help=description)(command)
    return command


@click.command(short_help="Start the built-in provider with a known truth.")
@process_options
@click.option("--script", "script_path", metavar="FILE", help="JSON file with the script; flags override its keys.")
@click.option("--fault", "faults", metavar="NAME=P", multiple=True, help="Adds a fault; repeatable.")
@script_options
def simulate(script_path: str | None, faults: tuple[str, ...], **given: Any) -> int:
    """Start a simulated LLM provider that speaks OpenAI, Azure, Anthropic, Google, Cohere, Ollama and TGI.

    Prints one JSON line with its address and serves until Ctrl-C. Distributions are a number, uniform:LOW:HIGH,
    lognormal:MEDIAN:SIGMA or exponential:MEAN. GET /stats and /metrics show what it did.
    """
    keys = {name.removeprefix("script_"): text for name, text in given.items() if name.startswith("script_")}
    options = {name: value for name, value in given.items() if not name.startswith("script_")}
    script = script_from(script_path, {key: text for key, text in keys.items() if text is not None}, faults)
    try:
        return serve(script, msgspec.convert(options, Options, strict=False))
    except msgspec.ValidationError as error:
        raise PlanError(f"lens simulate: {error}") from error
