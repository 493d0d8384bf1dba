"""A run as Markdown for a job's summary or a pull request, and as JUnit XML for a CI's test report. Pure."""

from __future__ import annotations

from typing import Final

from ..collectors.snapshot import Distribution, Report, Slo
from . import figures
from .account import account_lines
from .advice import plain_state
from .junit import Case, document
from .markdown import plain, table

_SHOWN: Final = ("ttft_ms", "itl_ms", "tpot_ms", "e2e_ms")
_HEADS: Final = ("", "p50", "p95", "p99", "95 % interval of p99")
_ALIGN: Final = ("---", "---:", "---:", "---:", "---:")
_MARKS: Final = {"PASS": "PASS", "FAIL": "**FAIL**", "UNDECIDED": "UNDECIDED"}
_IN_SUMMARY: Final = ("requests", "throughput", "goodput", "cost")


def headline(report: Report) -> str:
    """`VALID: the client stayed within its limits; ...; 1 of 2 objectives failed`."""
    failed = sum(slo.state == "FAIL" for slo in report.slo)
    undecided = sum(slo.state == "UNDECIDED" for slo in report.slo)
    parts = [f"{report.verdict.state}: {plain_state(report.verdict)}"]
    if failed:
        parts.append(f"{failed} of {len(report.slo)} objectives failed")
    if undecided:
        parts.append(f"{undecided} of {len(report.slo)} objectives undecided")
    return "; ".join(parts)


def markdown(report: Report) -> str:
    """The verdict, one table of latencies, the objectives, the totals, and what the verdict remarks."""
    rows = [_row(name, report.metrics[name]) for name in _SHOWN if name in report.metrics]
    lines = [f"**{plain(headline(report))}**", ""]
    shown = [row for row in rows if row]
    lines += [*table(_HEADS, _ALIGN, shown), ""] if shown else ["No request succeeded.", ""]
    lines += [f"- {_MARKS.get(slo.state, slo.state)} {plain(_objective(slo))}" for slo in report.slo]
    account = [(name, text) for name, text in account_lines(report) if name in _IN_SUMMARY]
    lines += [f"- {name}: {plain(text)}" for name, text in account]
    lines += [f"- {plain(_outcomes(report))}"] if figures.failed(report.requests) else []
    for reason in report.verdict.reasons:
        lines.append(f"- {'note: ' * reason.note}{plain(f'{reason.detail or reason.code} ({reason.code})')}")
    return "\n".join([*lines, "", f"<sub>{plain(_origin(report))}</sub>", ""])


def junit(report: Report, *, strict: bool) -> bytes:
    """A case for the verdict, one for the requests, one per objective, in agreement with the exit code.

    An INVALID verdict is an error: the run judged nothing. Too few samples and undecided objectives are skipped;
    `strict` makes an error and failures of them, as it makes exit code 4.
    """
    group = f"lens run {report.run.name}"
    cases = [_verdict_case(report, group, strict=strict), _requests_case(report, group)]
    cases += [_slo_case(slo, group, strict=strict) for slo in report.slo]
    return document("lens run", cases, [headline(report), *_reasons(report), _origin(report)])


def _row(metric: str, d: Distribution) -> tuple[str, ...]:
    if not d.count:
        return ()
    levels = [figures.value(each, metric) for each in (d.p50, d.p95, d.p99)]
    return (plain(figures.label(metric)), *levels, plain(figures.interval(d, "p99", metric) or figures.MISSING))


def _objective(slo: Slo) -> str:
    """`ttft_ms.p99 <= 500: 412 [400, 431]`, and what it needs where it is undecided."""
    interval, needs = figures.objective_interval(slo), figures.needs(slo)
    return " ".join(part for part in (f"{slo.expression}: {figures.objective(slo)}", interval, needs) if part)


def _outcomes(report: Report) -> str:
    return f"{figures.failed(report.requests):,} requests failed: {figures.parts(report.requests.failed)}"


def _origin(report: Report) -> str:
    run = report.run
    return f"lens {run.version}, run {run.id}, {figures.moment(run.started_at)}, {figures.clock(run.duration_s)}"


def _reasons(report: Report) -> list[str]:
    return [f"{'note ' * each.note}{each.code}: {each.detail}" for each in report.verdict.reasons]


def _verdict_case(report: Report, group: str, *, strict: bool) -> Case:
    state, text = report.verdict.state, plain_state(report.verdict)
    if state == "VALID":
        return Case(group, "verdict", "passed", f"VALID: {text}")
    severe = state == "INVALID" or strict
    return Case(group, "verdict", "error" if severe else "skipped", f"{state}: {text}", "\n".join(_reasons(report)))


def _requests_case(report: Report, group: str) -> Case:
    requests = report.requests
    if requests.sent and not requests.ok and not requests.cancelled:
        messages = [f"{each.target} {each.outcome}: {each.message}" for each in report.errors]
        return Case(group, "requests", "error", f"all {requests.sent:,} requests failed", "\n".join(messages))
    return Case(group, "requests", "passed", f"{requests.ok:,} of {requests.sent:,} requests succeeded")


def _slo_case(slo: Slo, group: str, *, strict: bool) -> Case:
    text = _objective(slo)
    if slo.state == "PASS":
        return Case(group, slo.expression, "passed", text)
    if slo.state == "FAIL" or strict:
        return Case(group, slo.expression, "failure", f"{slo.state}: {text}")
    return Case(group, slo.expression, "skipped", f"undecided: {text}")
