"""One sweep, or several over one another, as an HTML file that opens offline: answer, curves, points."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np

from ...collectors.confidence import QUANTILES
from ...collectors.point import latency_metric
from ...collectors.snapshot import Distribution
from ...collectors.sweep import SweepPoint, SweepReport
from ...engine.metrics import METRICS
from ...engine.plan.slo import Objective, parse_slo
from .. import figures
from ..html.markup import Markup, card, document, element, row, table, text_cell
from .plot import Curve, Mark, Rule, chart
from .words import GPU_HEADS, UNITS, cells, facts, gpu_cells, gpu_points, heads, load, saturated, sentence

Named = tuple[str, SweepReport]

COLOURS: Final = ("var(--c0)", "var(--c1)", "var(--c2)", "var(--c3)")
ANSWER, KNEE, OBJECTIVE = "var(--good)", "var(--warn)", "var(--bad)"
LEVELS: Final = {"p50": "", "p99": "6 4"}
_BADGES: Final = {"FOUND": "PASS", "ABOVE_RANGE": "PASS", "BELOW_RANGE": "FAIL", "CLIENT_LIMITED": "UNDECIDED"}


def page_of(sweeps: Sequence[Named]) -> str:
    """The page as text."""
    name, first = sweeps[0]
    title = name if len(sweeps) == 1 else "Sweeps"
    body = [element("h1", title), element("p", "objectives: " + "; ".join(first.slo), classes="soft small")]
    for each, report in sweeps:
        state, _, rest = sentence(report).partition(":")
        badge = element("span", state, classes=f"badge {_BADGES.get(state, state)}")
        label = [element("b", each)] if len(sweeps) > 1 else []
        body.append(
            card(
                element("div", *label, badge, element("span", rest), classes="verdict"),
                *(element("p", line, classes="small") for line in facts(report)),
                classes="run",
            )
        )
    body += [*curves(sweeps)]
    for each, report in sweeps:
        body.append(element("h2", "Points" if len(sweeps) == 1 else f"Points of {each}"))
        body.append(card(_points(report)))
    return document(f"{first.answer.state} - LLM Latency Lens", *body)


def curves(sweeps: Sequence[Named]) -> Iterator[Markup]:
    """The charts with their legend."""
    metric = latency_metric(sweeps[0][1].slo)
    charts = [
        (f"{METRICS[metric].label} against throughput", latency_chart(sweeps, metric)),
        ("Goodput against load", goodput_chart(sweeps)),
        ("Speed of one user against throughput", pareto_chart(sweeps)),
        ("Price of a token against load", price_chart(sweeps)),
    ]
    yield element("h2", "Curves")
    yield element("p", *_legend(sweeps), classes="small soft")
    drawn = [card(element("h3", title), svg, classes="") for title, svg in charts if svg]
    yield element("div", *drawn, classes="grid")


def _legend(sweeps: Sequence[Named]) -> Iterator[object]:
    if len(sweeps) > 1:
        for (name, _), colour in zip(sweeps, COLOURS, strict=False):
            yield element("b", f"{name} ", style=f"color:{colour}")
    yield (
        "Solid: p50, dashed: p99, dash-dotted: another percentile that is an objective's, dotted across: objective. Bands "
        "and bars: 95 % intervals. Hollow: the load was not borne. Crossed: this client was the limit."
    )


def _points(report: SweepReport) -> Markup:
    gpus = gpu_points(report)

    def line(point: SweepPoint) -> Markup:
        found = [*cells(report, point), *(gpu_cells(gpus[point.run]) if gpus else [])]
        state = element("td", element("b", point.state), classes=_BADGES.get(point.state, point.state))
        return row([found[0], state, *found[2:], text_cell(point.run)])

    return table([*heads(report), *(GPU_HEADS if gpus else ()), "run"], (line(each) for each in by_load(report)))


def by_load(report: SweepReport) -> list[SweepPoint]:
    return sorted(report.points, key=lambda each: each.value)


def drawn_points(report: SweepReport) -> list[SweepPoint]:
    """One point of each load, by load: its longest that this client did not limit, if there is one."""
    order = sorted(report.points, key=lambda each: (each.state != "CLIENT_LIMITED", each.requests.ok))
    return sorted({each.value: each for each in order}.values(), key=lambda each: each.value)


def levels_of(report: SweepReport, metric: str) -> dict[str, str]:
    """The percentiles of the curve with their dashes: p50, p99, and those that an objective bounds."""
    parsed = [parse_slo(each) for each in report.slo]
    bounded = [each.statistic for each in parsed if isinstance(each, Objective) and each.metric == metric]
    return LEVELS | {each: "10 3 2 3" for each in bounded if each in QUANTILES and each not in LEVELS}


def _kind(point: SweepPoint, hollow: set[str]) -> str:
    return "crossed" if point.state == "CLIENT_LIMITED" else "hollow" if point.run in hollow else "full"


def latency_chart(sweeps: Sequence[Named], metric: str) -> Markup:
    """p50 and p99 over the throughput that was reached; objective, answer and knee marked."""
    drawn: list[Curve] = []
    rules: list[Rule] = []
    for (name, report), colour in zip(sweeps, COLOURS, strict=False):
        hollow = saturated(report.points, report.over)
        for level, dash in levels_of(report, metric).items():
            marks = []
            for point in drawn_points(report):
                d = point.metrics.get(metric, Distribution())
                y, x = getattr(d, level), point.throughput.requests_per_s
                if y is not None and x is not None:
                    low, high = getattr(d.ci95, level) if d.ci95 else (None, None)
                    text = f"{name} {load(point.value)} {UNITS[report.over]}: {level} {figures.value(y, metric)} {figures.interval(d, level, metric)}"
                    marks.append(Mark(x, y, low, high, _kind(point, hollow), text))
            drawn.append(Curve(f"{name} {level}", marks, colour, dash))
        mine = f" of {name}" * (len(sweeps) > 1)
        rules += _marks_of(report, mine, colour if mine else "")
    for expression in sweeps[0][1].slo:
        parsed = parse_slo(expression)
        if isinstance(parsed, Objective) and parsed.metric == metric:
            rules.append(Rule(parsed.bound, expression, OBJECTIVE, across=True))
    label = f"{METRICS[metric].label} ({METRICS[metric].unit})"
    return chart(drawn, rules, x_label="requests/s", y_label=label, log_y=True)


def _marks_of(report: SweepReport, suffix: str, colour: str) -> Iterator[Rule]:
    """Answer and knee, at the throughput that their loads reach."""
    answer, knee = report.answer, report.knee
    if answer.value is not None:
        low, high = (None if each is None else throughput_at(report, each) for each in answer.ci95)
        text = f"answer{suffix} {load(answer.value)}"
        yield Rule(throughput_at(report, answer.value), text, colour or ANSWER, low=low, high=high)
    if knee is not None:
        yield Rule(throughput_at(report, knee.value), f"knee{suffix} {load(knee.value)}", colour or KNEE)


def throughput_at(report: SweepReport, value: float) -> float:
    """Requests per second at a load, between those that were measured."""
    points = [point for point in drawn_points(report) if point.throughput.requests_per_s is not None]
    if not points:
        return value
    loads = [point.value for point in points]
    return float(np.interp(value, loads, [point.throughput.requests_per_s or 0.0 for point in points]))


def goodput_chart(sweeps: Sequence[Named]) -> Markup:
    """Requests per second that met the objectives: by `request` lines, else all ok ones of a load that passes."""
    drawn: list[Curve] = []
    rules: list[Rule] = []
    for (name, report), colour in zip(sweeps, COLOURS, strict=False):
        hollow = saturated(report.points, report.over)
        marks = []
        for point in drawn_points(report):
            good = good_of(point)
            if good is not None:
                text = f"{name} {load(point.value)}: {figures.rate(good)} good requests/s"
                marks.append(Mark(point.value, good, kind=_kind(point, hollow), text=text))
        drawn.append(Curve(name, marks, colour))
        if report.answer.value is not None:
            low, high = report.answer.ci95
            rules.append(
                Rule(report.answer.value, "answer", ANSWER if len(sweeps) == 1 else colour, low=low, high=high)
            )
    return chart(drawn, rules, x_label=UNITS[sweeps[0][1].over], y_label="good requests/s")


def good_of(point: SweepPoint) -> float | None:
    if point.throughput.goodput_per_s is not None:
        return point.throughput.goodput_per_s
    reached = point.throughput.requests_per_s
    return reached if point.state == "PASS" else 0.0 if point.state == "FAIL" else None


def pareto_chart(sweeps: Sequence[Named]) -> Markup:
    """What a user gets against what all get: median output tokens/s of a reply over total output tokens/s, per GPU where
    the plan says how many there are."""
    drawn = []
    per_gpu = all(gpu_points(report) for _, report in sweeps)
    for (name, report), colour in zip(sweeps, COLOURS, strict=False):
        hollow, gpus = saturated(report.points, report.over), gpu_points(report)
        marks = []
        for point in drawn_points(report):
            each = gpus.get(point.run)
            total = each.output_tokens_per_s if per_gpu and each else point.throughput.output_tokens_per_s
            user = point.metrics.get("decode_tps", Distribution())
            if total is not None and user.p50 is not None:
                low, high = user.ci95.p50 if user.ci95 else (None, None)
                text = (
                    f"{name} {load(point.value)}: {figures.rate(user.p50)} tok/s per user, {figures.rate(total)} in all"
                )
                marks.append(Mark(total, user.p50, low, high, _kind(point, hollow), text))
        drawn.append(Curve(name, marks, colour))
    label = "output tokens/s per GPU" if per_gpu else "output tokens/s"
    return chart(drawn, (), x_label=label, y_label="tokens/s per user (median)")


def price_chart(sweeps: Sequence[Named]) -> Markup:
    """USD per million output tokens; empty where no plan says what its GPUs cost."""
    drawn = []
    for (name, report), colour in zip(sweeps, COLOURS, strict=False):
        gpus, hollow = gpu_points(report), saturated(report.points, report.over)
        marks = []
        for point in drawn_points(report):
            each = gpus.get(point.run)
            if each and each.usd_per_million_output_tokens is not None:
                usd = each.usd_per_million_output_tokens
                marks.append(Mark(point.value, usd, kind=_kind(point, hollow), text=f"{name}: {figures.money(usd)}"))
        drawn.append(Curve(name, marks, colour))
    return chart(drawn, (), x_label=UNITS[sweeps[0][1].over], y_label="USD per million output tokens", log_y=True)
