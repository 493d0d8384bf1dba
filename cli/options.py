"""The options of `lens run` for click, and how they and a plan file become one Plan."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, TypeVar

import click

from ..engine.errors import PlanError
from ..engine.plan.plan import Plan
from ..engine.planfile.build import make_plan
from ..engine.planfile.document import Source
from ..engine.planfile.flags import FLAGS, Flag, apply_flags
from ..engine.planfile.reading import read_document

Command = TypeVar("Command", bound=Callable[..., Any])


def run_options(command: Command, *, without: Collection[str] = ()) -> Command:
    """Gives a click command the argument PLAN and the options of `lens run`, all but those named in `without`."""
    for flag in reversed(FLAGS):
        if flag.name not in without:
            command = _option(flag)(command)
    return click.argument("plan_path", metavar="[PLAN]", required=False, type=click.Path())(command)


def plan_from(plan_path: str | None, flags: Mapping[str, Any], environ: Mapping[str, str] = os.environ) -> Plan:
    """The plan of a file and flags together. Raises PlanError."""
    document, source = read_document(plan_path) if plan_path else ({}, Source())
    apply_flags(document, source, flags)
    if flags.get("simulate"):
        name = "simulate"
    else:
        name = Path(plan_path).stem if plan_path else "run"
    return make_plan(document, source, environ, default_name=name)


def share(option: str, text: str) -> float:
    """The value of an option that is a share: `5%` or `0.05`. Raises PlanError."""
    try:
        value = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        value = -1.0
    if not 0 < value <= 1:
        raise PlanError(f"{option} {text!r} is not a share above 0 and up to 100 %, such as 5% or 0.05")
    return value


def _option(flag: Flag) -> Callable[[Command], Command]:
    if not flag.metavar:
        return click.option(flag.option, flag.name, is_flag=True, help=flag.help)
    return click.option(flag.option, flag.name, metavar=flag.metavar, multiple=flag.multiple, help=flag.help)
