"""The changes of a comparison as a table whose rows draw them: each change with its interval, on one axis."""

from __future__ import annotations

from math import exp, log
from typing import Final

from ...collectors.compare import Compared, Comparison
from ..html.markup import Markup, card, element, escaped, joined, row, table, text_cell
from .words import HEADS, cells, change, described

LEAST: Final = 0.05  # the axis shows at least this share of change on both sides
MOST: Final = 3.0  # and at most this many times less or more
_COLOURS: Final = {"worse": "var(--bad)", "better": "var(--good)", "undecided": "var(--warn)", "same": "var(--soft)"}
_STYLES: Final = {"worse": "FAIL", "better": "PASS", "undecided": "UNDECIDED"}


def deltas(compared: Compared) -> Markup:
    """A row per comparison, in their order, and what the axis and the marks mean."""
    reach = _reach(compared)
    several = len({each.target for each in compared.comparisons}) > 1
    skipped = 0 if several else 1  # one target's name says nothing in every row
    heads = [*HEADS[skipped:5], _axis(reach), *HEADS[5:]]
    rows = [_row(each, reach, compared.margin, skipped) for each in compared.comparisons]
    note = element(
        "p",
        f"Candidate against base; the line is the 95 % interval. Grey: within the margin of {compared.margin:.1%}, the same.",
        classes="small soft",
    )
    return card(table(heads, rows, classes="deltas"), note)


def _reach(compared: Compared) -> float:
    """How far the axis goes from no change, as a logarithm."""
    bounds = [each.ratio for each in compared.comparisons] + [b for each in compared.comparisons for b in each.ci95]
    known = [abs(log(bound)) for bound in bounds if bound is not None and bound > 0]
    return 1.1 * min(log(MOST), max([log(1 + LEAST), 2 * log(1 + compared.margin), *known]))


def _axis(reach: float) -> Markup:
    ends = (change(exp(-reach)), "0 %", change(exp(reach)))
    return element("div", *(element("span", text) for text in ends), classes="axis")


def _row(each: Comparison, reach: float, margin: float, skipped: int) -> Markup:
    target, metric, base, candidate, changed, interval, verdict = cells(each)
    shown = (element("td", target), text_cell(metric), base, candidate, element("td", element("b", changed)))
    picture = element("td", _picture(each, reach, margin), classes="picture")
    last = element("td", element("b", verdict), classes=_STYLES.get(verdict, ""))
    return row((*shown[skipped:], picture, interval, last))


def _picture(each: Comparison, reach: float, margin: float) -> Markup:
    """Positions are shares of the cell's width: it may have any."""

    def x(ratio: float) -> float:
        return 100 * (min(max(log(ratio) / reach, -1.0), 1.0) + 1) / 2 if ratio > 0 else 0.0

    left, right = x(1 / (1 + margin)), x(1 + margin)
    parts = [
        f'<rect x="{left:.2f}%" y="0" width="{right - left:.2f}%" height="22" fill="var(--grid)"/>',
        '<line x1="50%" x2="50%" y1="0" y2="22" stroke="var(--soft)" stroke-dasharray="2 3"/>',
    ]
    if each.ratio is not None:
        colour = _COLOURS.get(each.verdict, "var(--ink)")
        low, high = each.ci95
        ends = (0.0 if low is None else x(low), 100.0 if high is None else x(high))
        if low is not None or high is not None:
            parts.append(
                f'<line x1="{ends[0]:.2f}%" x2="{ends[1]:.2f}%" y1="11" y2="11" stroke="{colour}" stroke-width="3"/>'
            )
        parts.append(f'<circle cx="{x(each.ratio):.2f}%" cy="11" r="5" fill="{colour}"/>')
    text = escaped(f"{described(each)}: {each.verdict}")
    return joined((Markup(f'<svg role="img" aria-label="{text}" width="100%" height="22">{"".join(parts)}</svg>'),))
