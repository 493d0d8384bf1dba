"""`lens doctor [PLAN]`: whether this machine can measure, and what would make it better."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from socket import AF_INET, AF_INET6
from typing import TYPE_CHECKING, Final

import click

from ..engine.errors import LensError
from ..engine.plan.plan import Plan
from .options import plan_from

if TYPE_CHECKING:
    from ..collectors.doctor.facts import Facts
    from ..collectors.doctor.finding import Diagnosis

UNFIT: Final = 1
WATCHED_S: Final = 0.3  # how long the machine is watched; /proc/stat counts in steps of 10 ms
MARKS: Final = {"fail": "FAIL", "warn": "warn", "unknown": "?", "ok": "ok"}


@click.command()
@click.argument("plan_path", metavar="[PLAN]", required=False, type=click.Path())
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option(
    "--all", "show_all", is_flag=True, help="Show the checks that are ok or unknown, too, and why each matters."
)
@click.option(
    "--root",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    default=Path("/"),
    metavar="DIR",
    help="Read /proc and /sys below DIR, a copy of another machine's; nothing is measured then.",
)
def doctor(plan_path: str | None, *, as_json: bool, show_all: bool, root: Path) -> int:
    """Check this machine before a run: cores, network, limits, clocks, and with PLAN its targets.

    Reads and measures for about two seconds, changes nothing, and sends no request that is billed. READY: nothing to
    improve. USABLE: warnings, with the command that cures each. UNFIT (exit code 1): results would be wrong, or there
    would be none.
    """
    from ..collectors.doctor.table import examine

    plan = plan_from(plan_path, {}) if plan_path else None
    diagnosis = examine(facts_of(plan, root))
    if as_json:
        import msgspec

        sys.stdout.buffer.write(msgspec.json.encode(diagnosis) + b"\n")
        sys.stdout.buffer.flush()
    else:
        for line in described(diagnosis, show_all=show_all):
            click.echo(line)
    return UNFIT if diagnosis.state == "UNFIT" else 0


def facts_of(plan: Plan | None, root: Path) -> Facts:
    """Everything: the readings, and on this very machine a short watch, the targets, and the cores one after the other."""
    import msgspec

    from ..collectors.doctor.machine import Machine
    from ..collectors.doctor.needs import needs_of
    from ..collectors.doctor.reading import read_facts
    from ..collectors.doctor.timing import time_cores
    from ..collectors.doctor.window import read_counters, window_between
    from ..engine.runs.locality import core_warnings, local_servers, wants_real_time
    from ..engine.runs.reach import reach_targets
    from ..engine.wire.tap.filters import Server
    from ..engine.wire.tap.process import refusal

    machine = Machine(root)
    if not machine.has("proc/self/stat"):
        raise LensError(f"{root / 'proc'} is not there; this needs it (mount -t proc proc /proc)")
    if not machine.real:
        return read_facts(needs_of(plan), machine)
    reached, warnings, real_time = [], None, False
    begun = time.monotonic()
    first = read_counters(machine, needs_of(plan))
    if plan is not None:
        reached = reach_targets(plan, os.environ)
    servers = [each.server for each in reached if each.server]
    needs = needs_of(plan, servers)
    if plan is not None:
        families = (AF_INET6 if ":" in address else AF_INET for address, _ in servers)
        local = local_servers(Server(int(family), *server) for family, server in zip(families, servers, strict=True))
        warnings = tuple(core_warnings(local, needs.worker_cores if needs.pinned else ()))
        real_time = wants_real_time(plan, local)
    facts = read_facts(needs, machine, tap_refusal=refusal())
    time.sleep(max(0.0, WATCHED_S - (time.monotonic() - begun)))
    window = window_between(first, read_counters(machine, needs), needs)
    timing = time_cores(sorted({*needs.worker_cores}), real_time=real_time)
    return msgspec.structs.replace(facts, window=window, timing=timing, reached=tuple(reached), core_warnings=warnings)


def described(diagnosis: Diagnosis, *, show_all: bool) -> list[str]:
    """What people read: problems first, one line each with its cure; the rest in one line unless all is asked for."""
    order = list(MARKS)
    checks = sorted(diagnosis.checks, key=lambda check: order.index(check.state))
    count = {state: sum(check.state == state for check in checks) for state in order}
    shown = checks if show_all else [check for check in checks if check.state in ("fail", "warn")]
    lines = [
        f"{diagnosis.state}: {count['fail']} failed, {count['warn']} warnings, {count['ok']} ok, {count['unknown']} not shown here"
    ]
    for check in shown:
        value = check.value if check.value is not None else "not shown by this machine"
        cure = f" -> {check.cure}" if check.cure else ""
        lines.append(f"  {MARKS[check.state]:4}  {check.name}: {value} (wanted: {check.bound}){cure}")
        lines += [f"        {check.why}"] * show_all
    hidden = [check.name for check in checks if check.state == "unknown"]
    if hidden and not show_all:
        lines.append(f"  ?     not shown by this machine: {', '.join(hidden)}")
    return lines
