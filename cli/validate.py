"""`lens validate PLAN`: checks a plan as `lens run` would, says what it will do, and sends nothing."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final

import click

from ..engine.plan.plan import SECOND, Length, Limits, Plan, Workload
from ..engine.plan.units import written_duration
from ..engine.plan.written import masked
from ..engine.planfile.build import plan_sha256
from .options import plan_from

if TYPE_CHECKING:
    from ..collectors.forecast import Forecast, PhaseForecast

PROMPT_SHOWN: Final = 60
FILES: Final = {
    "file": "rows of {path}, {order}",
    "sharegpt": "conversations of {path}, {order}",
    "trace": "the trace {path}",
    "sessions": "sessions of several turns from {path}",
}


@click.command()
@click.argument("plan_path", metavar="PLAN", type=click.Path())
@click.option("--json", "as_json", is_flag=True, help="Print the resolved plan as JSON, secrets masked.")
def validate(plan_path: str, as_json: bool) -> None:
    """Check a plan and show what it will do: requests, tokens, duration, cost, limits.

    Everything is checked that can be without asking a server: keys, values, environment variables, files, prices.
    """
    from ..collectors.forecast import forecast
    from ..engine.runs.placement import geometry_of, worker_count
    from ..engine.workload import cautions
    from .launch import budget_prices

    plan = plan_from(plan_path, {})
    budget_prices(plan)
    expected = forecast(plan)
    workers = worker_count(plan)
    geometry_of(plan, workers)
    if as_json:
        import msgspec

        found = {"plan": masked(plan), "plan_sha256": plan_sha256(plan), "workers": workers}
        click.echo(json.dumps(found | {"forecast": msgspec.to_builtins(expected)}, indent=1))
        return
    for line in [*description(plan, workers, expected), *(f"  warning: {each}" for each in cautions(plan))]:
        click.echo(line)


def description(plan: Plan, workers: int, expected: Forecast) -> list[str]:
    """What a run of the plan will do, a line each."""
    makers = f"{workers} worker{'s' * (workers > 1)}"
    if plan.hosts.count:
        each = f"{plan.workers.count} workers each" if plan.workers.count else "workers by the cores of each"
        makers = f"{plan.hosts.count} load hosts ({plan.hosts.cluster}), {each}"
    lines = [f"{plan.name}: {makers}, seed {plan.seed}"]
    total = sum(target.weight for target in plan.targets)
    for target in plan.targets:
        key = "with a key" if target.api_key else "without a key"
        share = f", {target.weight / total:.0%} of the requests" if len(plan.targets) > 1 else ""
        lines.append(f"  target {target.name}: {target.provider} {target.model} at {target.base_url}, {key}{share}")
    lines.append(f"  workload: {_workload(plan.workload)}")
    lines += _probe(plan) if expected.per == "day" else _phases(plan, expected)
    lines += _expected(plan, expected)
    lines.append(f"  limits: {_limits(plan.limits)}")
    if plan.retry.attempts > 1:
        lines.append(f"  retry: up to {plan.retry.attempts} attempts of a request that may be repeated")
    lines += [f"  until {expression}" for expression in plan.until]
    lines += [f"  slo {expression}" for expression in plan.slo]
    lines += [f"  export to {export.kind}" for export in plan.export]
    if expected.per == "run":
        rows = f", request rows up to {_bytes(plan.output.records_max_bytes)}" if plan.output.records else ""
        lines.append(f"  output: a run directory in {plan.output.dir}{rows}")
    return lines


def _phases(plan: Plan, expected: Forecast) -> list[str]:
    from ..engine.load.models import model_of

    return [
        f"  phase {phase.name}: {model_of(phase.load).describe(phase.load)}, {_length(each)}, {_slots(each)}"
        + ", not measured" * (not phase.measure)
        for phase, each in zip(plan.phases, expected.phases, strict=True)
    ]


def _length(phase: PhaseForecast) -> str:
    return "no time limit" if phase.duration_s is None else f"{phase.duration_s:g} s"


def _slots(phase: PhaseForecast) -> str:
    return "as many requests as it makes" if phase.requests is None else f"{phase.requests:,} requests"


def _workload(workload: Workload) -> str:
    if workload.kind == "prompt":
        text = " ".join(workload.prompt.split())
        what = f"one prompt for all, {text if len(text) <= PROMPT_SHOWN else text[: PROMPT_SHOWN - 3] + '...'!r}"
    elif workload.kind == "synthetic":
        what = "made-up prompts" + (f" of {_lengths(workload.input_tokens)} tokens" if workload.input_tokens else "")
    else:
        what = FILES[workload.kind].format(path=workload.path, order=workload.order)
    if workload.prefix != "none":
        what += f", after a {workload.prefix} prefix of {workload.prefix_tokens:,} tokens"
    if workload.output_tokens is not None:
        what += f"; at most {_lengths(workload.output_tokens)} output tokens"
    return what


def _lengths(length: Length) -> str:
    """`150`, `about 550 (normal, stddev 150)`, `100 to 400`."""
    if length.kind == "uniform":
        return f"{length.low:,} to {length.high or 0:,}"
    if length.kind == "empirical":
        return f"{min(length.values):,} to {max(length.values):,}"
    if length.kind == "fixed":
        return f"{length.mean:,.0f}"
    return f"about {length.mean:,.0f} ({length.kind}, stddev {length.stddev:,.0f})"


def _expected(plan: Plan, expected: Forecast) -> list[str]:
    """Requests, tokens, cost and duration, a line each."""
    from ..exporters import figures

    asked, per = expected.request, " a day" * (expected.per == "day")
    most = "at most " if asked.output_limited else ""
    each = f"about {asked.input_tokens:,.0f} in, {most}{asked.output_tokens:,.0f} out"
    if not asked.output_limited:
        each += " assumed, which nothing limits"
    if expected.requests is None:
        sessions = plan.workload.kind == "sessions"
        lines = [f"  requests: as many as {'the sessions have turns' if sessions else 'the server answers'}"]
        lines.append(f"  tokens: {each}, of each {'first turn' if sessions else 'request'}")
    else:
        total = f"about {expected.input_tokens:,} in, {most}{expected.output_tokens:,} out{per}"
        lines = [f"  requests: {expected.requests:,}{per}", f"  tokens: {total} (of each request: {each})"]
    if asked.cost_usd is None:
        lines.append("  cost: unknown, no price is known for a target; give it a price")
    else:
        prices = f" (prices: {asked.price_date})" if asked.price_date else ""
        thousand = f"{most}about {figures.money(asked.cost_usd * 1000)} per 1,000 requests"
        cost = f"{most}about {figures.money(expected.cost_usd)}{per}, " if expected.cost_usd is not None else ""
        lines.append(f"  cost: {cost}{thousand}{prices}")
    if expected.per == "run":
        lines.append(f"  duration: {_duration(expected)}, then up to {written_duration(plan.limits.drain_ns)} to drain")
    return lines


def _duration(expected: Forecast) -> str:
    from ..exporters import figures

    known = sum(phase.duration_s or 0 for phase in expected.phases)
    open_ = [phase.name for phase in expected.phases if phase.duration_s is None]
    parts = [figures.clock(known)] if known else []
    parts += [f"until the requests of {', '.join(open_)} are done"] if open_ else []
    return " and ".join(parts)


def _limits(limits: Limits) -> str:
    parts = [
        f"{written_duration(limits.timeout_ns)} a request",
        f"{written_duration(limits.connect_timeout_ns)} to connect",
    ]
    if limits.first_token_timeout_ns is not None:
        parts.append(f"{written_duration(limits.first_token_timeout_ns)} to the first token")
    for value, unit in ((limits.rpm, "requests"), (limits.tpm, "tokens")):
        if value is not None:
            parts.append(f"{value:,.0f} {unit} a minute")
    if limits.budget_usd is not None:
        parts.append(f"a budget of {limits.budget_usd:g} USD")
    if limits.max_error_rate is not None:
        window = written_duration(limits.error_window_ns)
        parts.append(f"ends when over {limits.max_error_rate:.0%} fail within {window}")
    if limits.stop_on_slo:
        parts.append("ends when an objective has failed")
    if limits.cancel_share:
        parts.append(f"aborts {limits.cancel_share:.0%} of the requests after {limits.cancel_after_ns / SECOND:g} s")
    return ", ".join(parts)


def _bytes(size: int) -> str:
    return f"{size / (1 << 20):,.0f} MiB" if size >= 1 << 20 else f"{size:,} bytes"


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
