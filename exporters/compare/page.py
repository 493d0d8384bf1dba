"""A comparison as one HTML file that opens offline: the table, and by how much each percentile changed, as SVG."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np

from ...collectors.compare import Compared, Comparison, Observed, effect_of
from ...collectors.confidence import QUANTILES
from ...collectors.ladder import Floats
from ...engine.metrics import METRICS
from ..html.curves import Curve, exact_curves
from ..html.markup import NOTHING, Markup, card, document, element, escaped, joined
from .deltas import deltas
from .questions import BEYOND, LATENCIES, Pair, pairs_of
from .read import RunDirectory
from .run import Runs
from .words import change, described, sentence, sides

WIDTH, HEIGHT, LEFT, BOTTOM, TOP = 560, 260, 56, 26, 12
POINTS: Final = 160
_TICKS: Final = (0.0, 0.5, 0.9, 0.99, 0.999, 0.9999)


def page_of(compared: Compared, runs: Runs) -> str:
    """The page as text."""
    head, statistics = head_of(compared)
    body = (element("h1", "Comparison"), head, statistics, *_charts(compared, runs))
    return document(f"{compared.state} - LLM Latency Lens", *body)


def head_of(compared: Compared) -> tuple[Markup, Markup]:
    """The verdict with its notes, and the changes of all statistics."""
    state, _, rest = sentence(compared).partition(":")
    badge = element("span", state, classes=f"badge {state}")
    verdict = card(
        element("div", badge, element("span", rest), classes="verdict"),
        *(element("p", note.detail, classes="small") for note in compared.notes),
    )
    head = joined((element("p", sides(compared), classes="soft small"), verdict))
    return head, joined((element("h2", "Changes"), deltas(compared)))


def _charts(compared: Compared, runs: Runs) -> Iterator[Markup]:
    """A chart for every target and usual latency that all runs have histograms of."""
    drawn: list[Markup] = []
    for pair in pairs_of(runs.base, runs.candidate):
        before = [exact_curves(run.path, [pair.base]) for run in runs.base]
        after = [exact_curves(run.path, [pair.candidate]) for run in runs.candidate]
        for metric in LATENCIES:
            ones = [curves.get((pair.base, metric)) for curves in before]
            others = [curves.get((pair.candidate, metric)) for curves in after]
            known = [[each for each in side if each is not None] for side in (ones, others)]
            if len(known[0]) == len(ones) and len(known[1]) == len(others):
                marked = [c for c in compared.comparisons if (c.target, c.metric) == (pair.label, metric)]
                shares = _shares(_fewest(runs, pair, metric))
                chart = _svg(shares, _ratios(shares, *known), marked, compared.margin)
                drawn.append(card(element("h3", f"{METRICS[metric].label} of {pair.label}"), chart))
    if drawn:
        yield element("h2", "Change by percentile")
        text = "Candidate over base at each percentile. Grey: within the margin. Bars: 95 % intervals of the table."
        if len(runs.base) > 1 or len(runs.candidate) > 1:
            text += " Band: 95 % interval of each percentile by itself, from the spread between the runs."
        yield element("p", text, classes="small soft")
        yield element("div", *drawn, classes="grid")


def _fewest(runs: Runs, pair: Pair, metric: str) -> int:
    def counts(side: Sequence[RunDirectory], name: str) -> list[int]:
        found = [run.target(name) for run in side]
        return [each.metrics[metric].count for each in found if each and metric in each.metrics]

    return min((*counts(runs.base, pair.base), *counts(runs.candidate, pair.candidate)), default=0)


def _shares(count: int) -> Floats:
    """Percentiles in even steps of log 1/(1 - p), as far as the smallest sample supports them."""
    decades = np.log10(max(count / BEYOND, 2.0))
    shares: Floats = 1 - 10.0 ** -np.linspace(0, decades, POINTS)
    return shares


def _ratios(shares: Floats, base: Sequence[Curve], candidate: Sequence[Curve]) -> list[tuple[float, float, float]]:
    """(ratio, low, high) at each percentile; without a spread between runs the bounds are the ratio itself."""
    sides = [[np.interp(shares, curve.p, curve.v) for curve in side] for side in (base, candidate)]
    found = []
    for k in range(len(shares)):
        one, other = ([Observed(float(values[k])) for values in side] for side in sides)
        effect = effect_of(one, other)
        if effect is None:
            found.append((1.0, 1.0, 1.0))
            continue
        spread = len(base) > 1 or len(candidate) > 1
        low, high = (effect.low, effect.high) if spread else (effect.value, effect.value)
        found.append((float(np.exp(effect.value)), float(np.exp(low)), float(np.exp(high))))
    return found


def _svg(
    shares: Floats, ratios: list[tuple[float, float, float]], marked: Sequence[Comparison], margin: float
) -> Markup:
    points = [(c, QUANTILES[c.statistic]) for c in marked if c.statistic in QUANTILES and c.ratio is not None]
    lines = [ratio for ratio, _, _ in ratios]
    bounds = [bound for c, _ in points for bound in c.ci95 if bound is not None]
    top = max(*lines, 1 + 2 * margin, *(min(bound, 2 * max(lines)) for bound in bounds), 1.0)
    bottom = min(*lines, 1 - 2 * margin, *(max(bound, min(lines) / 2) for bound in bounds), 1.0)
    decades = -np.log10(1 - shares[-1])

    def x(share: float) -> float:
        return LEFT + (WIDTH - LEFT - 12) * float(-np.log10(1 - share) / decades)

    def y(ratio: float) -> float:
        return TOP + (HEIGHT - TOP - BOTTOM) * (top - min(max(ratio, bottom), top)) / (top - bottom)

    xs = [x(float(share)) for share in shares]
    band = [(a, y(low)) for a, (_, low, _) in zip(xs, ratios, strict=True)]
    band += [(a, y(high)) for a, (_, _, high) in reversed([*zip(xs, ratios, strict=True)])]
    edge = WIDTH - 12
    height = y(1 / (1 + margin)) - y(1 + margin)
    parts = [
        f'<rect x="{LEFT}" y="{y(1 + margin):.1f}" width="{edge - LEFT}" height="{height:.1f}" fill="var(--grid)"/>',
        f'<path d="M{LEFT} {y(1):.1f}H{edge}" stroke="var(--soft)" stroke-dasharray="4 3"/>',
        f'<polygon points="{_listed(band)}" fill="var(--c0)" opacity=".18"/>',
        f'<polyline points="{_listed([*zip(xs, map(y, lines), strict=True)])}" fill="none" stroke="var(--c0)" '
        'stroke-width="2"/>',
    ]
    for comparison, share in points:
        if share <= shares[-1] and comparison.ratio is not None:
            low, high = (
                y(b) if b is not None else e for b, e in zip(comparison.ci95, (y(bottom), y(top)), strict=True)
            )
            colour = {"worse": "var(--bad)", "better": "var(--good)"}.get(comparison.verdict, "var(--ink)")
            at = f"{x(share):.1f}"
            title = escaped(f"{described(comparison)}: {comparison.verdict}")
            parts.append(
                f'<g stroke="{colour}" stroke-width="2" fill="{colour}"><title>{title}</title>'
                f'<path d="M{at} {low:.1f}V{high:.1f}"/><circle cx="{at}" cy="{y(comparison.ratio):.1f}" r="3.5"/></g>'
            )
    parts += [
        f'<text x="{x(share):.1f}" y="{HEIGHT - 8}" text-anchor="middle">p{100 * share:g}</text>'
        for share in _TICKS
        if share <= shares[-1]
    ]
    parts += [
        f'<text x="{LEFT - 6}" y="{y(ratio) + 4:.1f}" text-anchor="end">{escaped(change(ratio))}</text>'
        for ratio in (bottom, 1.0, top)
    ]
    inner = Markup("".join(parts)) if ratios else NOTHING
    return Markup(
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{_said(marked)}" font-size="11" fill="var(--soft)" '
        f'style="width:100%;height:auto">{inner}</svg>'
    )


def _said(marked: Sequence[Comparison]) -> Markup:
    """The chart in words."""
    return escaped("Change by percentile. " + "; ".join(described(each) for each in marked))


def _listed(points: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{a:.1f},{b:.1f}" for a, b in points)
