"""How a report begins: what was measured, whether to believe it, the numbers people look for, objectives, phases."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from ...collectors.snapshot import Distribution, Report, Slo, TargetReport
from ...engine.metrics import METRICS
from .. import figures
from ..advice import explained, plain_state, waited
from ..headline import (
    LEVELS,
    error_rate,
    far_note,
    headline_metrics,
    informative,
    label,
    paced_by,
    scale_of,
    slo_state,
    totals,
)
from ..phase_rows import Row, phase_rows, step_rows
from ..setting import Setting, setting_lines
from .markup import NOTHING, Markup, card, details, element, joined, plain, row, table, text_cell


def opening(r: Report, setting: Setting) -> Iterator[Markup]:
    """Everything above the charts; of several targets the table side by side, without that of all together."""
    yield element("h1", r.run.name)
    yield element("p", " · ".join(_facts(r)), classes="soft small")
    facts = ((text_cell(name), text_cell(line)) for name, line in setting_lines(r, setting))
    yield card(table((), facts, classes="setting"), classes="scroll run")
    yield card(*_verdict(r, setting), classes="run")
    yield card(*_headline(r), classes="run")
    if len(r.targets) > 1:
        yield from _targets(r.targets)
    yield from _slos(r.slo)
    for title, rows in (("Phases", phase_rows(r, setting.plan)), ("Steps", step_rows(setting.steps))):
        if len(rows) > 1:
            yield from _phases(title, rows)


def _facts(r: Report) -> Iterator[str]:
    yield figures.moment(r.run.started_at)
    yield figures.clock(r.run.duration_s)
    yield f"{r.run.load.replace('_', ' ')} loop"
    yield f"seed {r.run.seed}"
    yield r.run.id
    yield f"LLM Latency Lens {r.run.version}"


def _verdict(r: Report, setting: Setting) -> Iterator[Markup]:
    v = r.verdict
    badge = element("span", v.state, classes=f"badge {v.state}")
    yield element("div", badge, element("span", plain_state(v)), classes="verdict")
    items = [
        element(
            "li", "note: " * reason.note, explained(reason), " ", element("span", reason.code, classes="soft small")
        )
        for reason in v.reasons
    ]
    if sentence := waited(r, setting.plan):
        items.append(element("li", f"note: {sentence}"))
    if items:
        yield element("ul", *items, classes="reasons")
    budget = [(name, plain(value)) for name, value in v.error_budget.items()]
    if budget:
        yield details("Error budget", table((), budget))


def _headline(r: Report) -> Iterator[Markup]:
    shown = headline_metrics(r.metrics) if len(r.targets) <= 1 else []
    if shown:
        yield element("div", *(_fact(name, d) for name, d in shown), classes="facts")
    state = slo_state(r.slo)
    facts = (
        element("div", element("b", n, classes=state if what.startswith("objective") else ""), element("span", what), classes="fact")
        for n, what in totals(r)
    )  # fmt: skip
    yield element("div", *facts, classes="facts")


def _fact(name: str, d: Distribution) -> Markup:
    """A latency's p50 and p99, each with its interval."""
    scale = scale_of(name, [d])
    levels = []
    for level in ("p50", "p99"):
        interval = scale.interval(d, level, name)
        levels.append(
            element(
                "div",
                element("b", f"{scale.value(getattr(d, level), name)} {scale.unit}"),
                element("span", f"{METRICS[name].label} {level} {interval}".strip()),
                classes="fact",
            )
        )
    return element("div", *levels, classes="pair")


def _targets(targets: Sequence[TargetReport]) -> Iterator[Markup]:
    """A row each, with the intervals of the headline latencies below their values."""
    metrics = ("ttft_ms", paced_by(max((t.metrics for t in targets), key=len)), "e2e_ms")
    scales = [(m, scale_of(m, [t.metrics.get(m, Distribution()) for t in targets])) for m in metrics]
    shown = [(m, scale) for m, scale in scales if any(t.metrics.get(m, Distribution()).count for t in targets)]
    models = any(t.model and t.model != t.name for t in targets)
    costs = any(t.cost.usd is not None for t in targets)
    head = ["target", *(["model"] if models else [])]
    head += [f"{label(m, scale)} {level}" for m, scale in shown for level in ("p50", "p99")]
    head += ["tok/s", "req/s", "failed", *(["cost"] if costs else [])]
    rows = []
    for t in targets:
        cells: list[Any] = [element("td", element("b", t.name)), *([t.model] if models else [])]
        for m, scale in shown:
            d = t.metrics.get(m, Distribution())
            for level in ("p50", "p99"):
                interval = element("small", scale.interval(d, level, m))
                cells.append(element("td", scale.value(getattr(d, level), m), interval))
        cells += [figures.rate(t.throughput.output_tokens_per_s), figures.rate(t.throughput.requests_per_s)]
        cells += [error_rate(t.requests), *([figures.money(t.cost.usd)] if costs else [])]
        rows.append(cells)
    note = element("p", "In brackets: 95 % confidence intervals.", classes="small soft")
    yield element("h2", "Targets side by side")
    yield card(table(head, rows), note)


def _slos(slos: Sequence[Slo]) -> Iterator[Markup]:
    if not slos:
        return
    intervals = any(figures.objective_interval(s) for s in slos)
    rows = [
        (
            text_cell(s.expression),
            figures.objective(s),
            *([figures.objective_interval(s) or figures.MISSING] if intervals else []),
            element("td", element("b", s.state), f" {figures.needs(s)}", classes=s.state),
        )
        for s in slos
    ]
    head = ("objective", "measured", *(["95 % CI"] if intervals else []), "state")
    yield element("h2", "Objectives")
    yield card(table(head, rows))


def _phases(title: str, rows: Sequence[Row]) -> Iterator[Markup]:
    head = ["phase", "load", "time", "req/s", "tok/s", "failed", *rows[0].levels]
    body = [
        row(
            (
                element("td", each.name, NOTHING if each.measured else element("small", "not measured")),
                *(each.load, each.span, figures.rate(each.requests_per_s), figures.rate(each.output_tokens_per_s)),
                *(each.failed, *each.levels.values()),
            )
        )
        for each in rows
    ]
    yield element("h2", title)
    yield card(table(head, body))


def all_metrics(r: Report) -> Markup:
    """Every metric that says something; a column of p99.9 only where a sample supports it."""
    shown = informative(r.metrics, r.run.load)
    if not shown:
        return element("p", "No request succeeded: there are no latencies to show.")
    intervals = any(figures.interval(d, "p99", name) for name, d in shown)
    far = any(d.p99_9 is not None for _, d in shown)
    head = ["metric", "count", "mean", *LEVELS, *(["p99.9"] if far else []), "max"]
    head += ["p99, 95 % CI"] if intervals else []
    rows = []
    for name, d in shown:
        scale = scale_of(name, [d])
        cells = [label(name, scale), figures.count(d.count)]
        cells += [scale.value(each, name) for each in (d.mean, d.p50, d.p90, d.p95, d.p99)]
        cells += [figures.MISSING if d.p99_9 is None else scale.value(d.p99_9, name)] if far else []
        cells += [scale.value(d.max, name)]
        if intervals:
            cells.append(scale.interval(d, "p99", name) or figures.MISSING)
        rows.append(row(cells, classes="key" if name in figures.HEADLINE else ""))
    return joined((table(head, rows), element("p", far_note(shown), classes="small soft")))
