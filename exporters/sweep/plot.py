"""A chart as SVG: axes with ticks, curves with bands, points, lines across. Pure: numbers in, markup out."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Final, NamedTuple

from ..html.markup import Markup, escaped

WIDTH, HEIGHT = 560, 320
LEFT, RIGHT, TOP, BOTTOM = 58, 14, 14, 40
DECADES: Final = (1, 2, 5)
_TICKS: Final = 5


class Mark(NamedTuple):
    """A point of a curve. `low` and `high` bound it; `kind` is full, hollow or crossed; `text` is its tooltip."""

    x: float
    y: float
    low: float | None = None
    high: float | None = None
    kind: str = "full"
    text: str = ""


class Curve(NamedTuple):
    """Points from left to right. `colour` is a CSS colour, `dash` an SVG dash pattern; `path` joins the points."""

    label: str
    marks: Sequence[Mark]
    colour: str
    dash: str = ""
    joined: bool = True


class Rule(NamedTuple):
    """A line across the chart at a value of x or y, with the span of its interval where it has one."""

    at: float
    label: str
    colour: str
    across: bool = False  # at a value of y
    low: float | None = None
    high: float | None = None


def chart(curves: Sequence[Curve], rules: Sequence[Rule], *, x_label: str, y_label: str, log_y: bool = False) -> Markup:
    """The chart; empty where no curve has a point."""
    marks = [mark for curve in curves for mark in curve.marks]
    if not marks:
        return Markup()
    xs = [mark.x for mark in marks] + [rule.at for rule in rules if not rule.across]
    values = [mark.y for mark in marks] + [rule.at for rule in rules if rule.across]
    tops = [mark.high for mark in marks if mark.high is not None and mark.high <= 4 * max(values)]
    log_y = log_y and min(values) > 0 and max(values) / min(values) > 5
    low_y, high_y = (min(values) / 1.3 if log_y else 0.0), max([*values, *tops]) * (1.3 if log_y else 1.08)
    right = max(xs) * 1.05 or 1.0

    def x(value: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * min(max(value / right, 0.0), 1.0)

    def y(value: float) -> float:
        value = min(max(value, low_y), high_y)
        share = (
            math.log(value / low_y) / math.log(high_y / low_y) if log_y else (value - low_y) / ((high_y - low_y) or 1)
        )
        return TOP + (HEIGHT - TOP - BOTTOM) * (1 - share)

    parts = [*_axes(x, y, right, low_y, high_y, log_y, x_label, y_label)]
    parts += [part for rule in rules for part in _rule(rule, x, y)]
    parts += [part for curve in curves for part in _curve(curve, x, y)]
    return Markup(
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" width="100%" role="img" font-size="11" fill="var(--soft)">{"".join(parts)}</svg>'
    )


Scale = Callable[[float], float]


def _axes(
    x: Scale, y: Scale, right: float, low: float, high: float, log_y: bool, x_label: str, y_label: str
) -> Iterator[str]:
    for value in steps(0.0, right):
        yield f'<text x="{x(value):.1f}" y="{HEIGHT - BOTTOM + 15}" text-anchor="middle">{value:g}</text>'
    for value in decades(low, high) if log_y else steps(low, high):
        yield f'<path d="M{LEFT} {y(value):.1f}H{WIDTH - RIGHT}" stroke="var(--grid)"/>'
        yield f'<text x="{LEFT - 6}" y="{y(value) + 4:.1f}" text-anchor="end">{value:g}</text>'
    yield f'<path d="M{LEFT} {HEIGHT - BOTTOM}H{WIDTH - RIGHT}" stroke="var(--line)"/>'
    yield f'<text x="{(LEFT + WIDTH) / 2:.0f}" y="{HEIGHT - 6}" text-anchor="middle">{escaped(x_label)}</text>'
    yield (
        f'<text transform="translate(12 {(HEIGHT - BOTTOM) / 2:.0f}) rotate(-90)" text-anchor="middle">{escaped(y_label)}'
        "</text>"
    )


def _rule(rule: Rule, x: Scale, y: Scale) -> Iterator[str]:
    if rule.across:
        at = y(rule.at)
        yield f'<path d="M{LEFT} {at:.1f}H{WIDTH - RIGHT}" stroke="{rule.colour}" stroke-dasharray="2 3"/>'
        yield f'<text x="{WIDTH - RIGHT}" y="{at - 4:.1f}" text-anchor="end" fill="{rule.colour}">{escaped(rule.label)}</text>'
        return
    at = x(rule.at)
    if rule.low is not None and rule.high is not None:
        width = max(x(rule.high) - x(rule.low), 1.0)
        yield (
            f'<rect x="{x(rule.low):.1f}" y="{TOP}" width="{width:.1f}" height="{HEIGHT - TOP - BOTTOM}" '
            f'fill="{rule.colour}" opacity=".12"/>'
        )
    yield f'<path d="M{at:.1f} {TOP}V{HEIGHT - BOTTOM}" stroke="{rule.colour}" stroke-dasharray="2 3"/>'
    yield (
        f'<text transform="translate({at - 4:.1f} {TOP + 4}) rotate(-90)" text-anchor="end" fill="{rule.colour}">'
        f"{escaped(rule.label)}</text>"
    )


def _curve(curve: Curve, x: Scale, y: Scale) -> Iterator[str]:
    bounded = [mark for mark in curve.marks if mark.low is not None]
    if curve.joined and len(bounded) > 1:
        above = [f"{x(m.x):.1f} {y(m.y if m.high is None else m.high):.1f}" for m in bounded]
        under = [f"{x(m.x):.1f} {y(m.y if m.low is None else m.low):.1f}" for m in reversed(bounded)]
        yield f'<path d="M{"L".join([*above, *under])}Z" fill="{curve.colour}" opacity=".13"/>'
    if curve.joined and len(curve.marks) > 1:
        line = "L".join(f"{x(mark.x):.1f} {y(mark.y):.1f}" for mark in curve.marks)
        dash = f' stroke-dasharray="{curve.dash}"' if curve.dash else ""
        yield f'<path d="M{line}" fill="none" stroke="{curve.colour}" stroke-width="1.6"{dash}/>'
    for mark in curve.marks:
        yield from _mark(mark, curve.colour, x, y)


def _mark(mark: Mark, colour: str, x: Scale, y: Scale) -> Iterator[str]:
    at, level = x(mark.x), y(mark.y)
    if mark.low is not None:
        ends = y(mark.low), (TOP if mark.high is None else y(mark.high))
        faint = ' opacity=".35"' if mark.high is None else ""  # no upper bound is known
        yield f'<path d="M{at:.1f} {ends[0]:.1f}V{ends[1]:.1f}" stroke="{colour}"{faint}/>'
    title = f"<title>{escaped(mark.text)}</title>"
    if mark.kind == "crossed":
        arms = f"M{at - 4:.1f} {level - 4:.1f}l8 8m0 -8l-8 8"
        yield f'<path d="{arms}" stroke="{colour}" stroke-width="1.6">{title}</path>'
        return
    fill = "var(--card)" if mark.kind == "hollow" else colour
    yield f'<circle cx="{at:.1f}" cy="{level:.1f}" r="4" fill="{fill}" stroke="{colour}" stroke-width="1.6">{title}</circle>'


def steps(low: float, high: float) -> list[float]:
    """About five round values from low to high."""
    raw = (high - low) / _TICKS
    if raw <= 0:
        return [low]
    size = 10.0 ** math.floor(math.log10(raw))
    step = next(size * each for each in (1, 2, 5, 10) if size * each >= raw)
    first = math.ceil(low / step)
    return [float(f"{k * step:.6g}") for k in range(first, math.floor(high / step) + 1)]


def decades(low: float, high: float) -> list[float]:
    """1, 2 and 5 times the powers of ten between low and high."""
    found = [m * 10.0**k for k in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1) for m in DECADES]
    return [float(f"{each:.6g}") for each in found if low <= each <= high]
