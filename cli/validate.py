"""`lens validate PLAN`: checks a plan as `lens run` would, says what it will do, and sends nothing."""

from __future__ import annotations

import json

import click

from ..engine.plan.plan import SECOND, Phase, Plan
from ..engine.plan.units import written_duration
from ..engine.plan.written import masked
from ..engine.planfile.build import plan_sha256
from .options import plan_from


@click.command()
@click.argument("plan_path", metavar="PLAN", type=click.Path())
@click.option("--json", "as_json", is_flag=True, help="Print the resolved plan as JSON, secrets masked.")
def validate(plan_path: str, as_json: bool) -> None:
    """Check a plan and show what it will do.

    Everything is checked that can be without asking a server: keys, values, environment variables, files, prices.
    """
    from ..engine.runs.placement import geometry_of, worker_count
    from ..engine.workload import cautions, source_of
    from .launch import budget_prices

    plan = plan_from(plan_path, {})
    budget_prices(plan)
    next(iter(source_of(plan, seed=plan.seed).items(0, 1)))
    workers = worker_count(plan)
    geometry_of(plan, workers)
    if as_json:
        click.echo(json.dumps({"plan": masked(plan), "plan_sha256": plan_sha256(plan), "workers": workers}, indent=1))
        return
    for line in [*description(plan, workers), *(f"  warning: {each}" for each in cautions(plan))]:
        click.echo(line)


def description(plan: Plan, workers: int) -> list[str]:
    """What a run of the plan will do, a line each."""
    from ..engine.load.models import model_of, planned_slots

    makers = f"{workers} worker{'s' * (workers > 1)}"
    if plan.hosts.count:
        each = f"{plan.workers.count} workers each" if plan.workers.count else "workers by the cores of each"
        makers = f"{plan.hosts.count} load hosts ({plan.hosts.cluster}), {each}"
    lines = [f"{plan.name}: {makers}, seed {plan.seed}"]
    for target in plan.targets:
        key = "with a key" if target.api_key else "without a key"
        lines.append(f"  target {target.name}: {target.provider} {target.model} at {target.base_url}, {key}")
    probed = plan.probe.given and bool(plan.probe.timetables)
    lines += _probe(plan) if probed else []
    for index, phase in enumerate(() if probed else plan.phases):
        slots = planned_slots(plan, index)
        count = "as many requests as it makes" if slots is None else f"{slots:,} requests"
        lines.append(
            f"  phase {phase.name}: {model_of(phase.load).describe(phase.load)}, {_length(phase)}, {count}"
            + ", not measured" * (not phase.measure)
        )
    lines += [f"  slo {expression}" for expression in plan.slo]
    lines += [f"  export to {export.kind}" for export in plan.export]
    return lines


def _probe(plan: Plan) -> list[str]:
    """When `lens probe` asks each target, and what it keeps and reports."""
    probe = plan.probe
    lines = []
    for table in probe.timetables:
        jitter = f", up to {written_duration(table.jitter_ns)} later" if table.jitter_ns else ""
        quiet = ", ".join(f"{a // 60:02}:{a % 60:02}-{b // 60:02}:{b % 60:02}" for a, b in table.quiet)
        hours = f", not {quiet}" if quiet else ""
        lines.append(f"  probe {table.target}: one request every {written_duration(table.every_ns)}{jitter}{hours}")
    budget = "" if probe.daily_budget_usd is None else f", at most {probe.daily_budget_usd:g} USD a day"
    rotate, kept = written_duration(probe.rotate_ns), written_duration(probe.retention_ns)
    lines.append(f"  history: a run every {rotate}, kept {kept}{budget}")
    return [*lines, *(f"  alert {alert.name}: {alert.when}" for alert in probe.alerts)]


def _length(phase: Phase) -> str:
    if phase.duration_ns is None:
        return "no time limit"
    return f"{phase.duration_ns / SECOND:g} s"
