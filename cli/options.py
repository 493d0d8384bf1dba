"""The options of `lens run` for click, and how they and a plan file become one Plan."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import click

from ..engine.plan.plan import Plan
from ..engine.planfile.build import make_plan
from ..engine.planfile.document import Source
from ..engine.planfile.flags import FLAGS, Flag, apply_flags
from ..engine.planfile.reading import read_document

Command = TypeVar("Command", bound=Callable[..., Any])


def run_options(command: Command) -> Command:
    """Gives a click command the argument PLAN and all options of `lens run`."""
    for flag in reversed(FLAGS):
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


def _option(flag: Flag) -> Callable[[Command], Command]:
    if not flag.metavar:
        return click.option(flag.option, flag.name, is_flag=True, help=flag.help)
    return click.option(flag.option, flag.name, metavar=flag.metavar, multiple=flag.multiple, help=flag.help)
