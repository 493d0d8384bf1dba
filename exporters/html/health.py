"""The health strip: when this client was limited, and by what. Needs no script."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Final

from ...collectors.tick_health import LIMITS
from .. import figures
from .markup import Markup, card, element, table, text_cell
from .run import Run
from .timeline import Span

MEANING: Final = {limit.code: limit.when for limit in LIMITS}


def health_strip(run: Run, *, alone: bool) -> Markup:
    """A bar over the time of the run, and a row for each reason with when it held."""
    spans, client = run.timeline.spans, run.report.client
    title = "Health of this client" if alone else f"Health of this client: {run.report.run.name} {run.report.run.id}"
    if not any(span.limited for span in spans):
        ticks = "It was not limited in any tick." if spans else "No tick is known."
        return card(element("h3", title), *([_bar(spans)] if spans else []), element("p", ticks, classes="small soft"))
    codes = [code for code in MEANING if any(code in span.limited for span in spans)]
    rows = [
        (text_cell(code), text_cell(MEANING[code]), figures.count(client.limited_by.get(code, 0)), text_cell(_when(spans, code)))
        for code in codes
    ]  # fmt: skip
    share = f"It was limited in {figures.share(client.limited_share)} of the measured ticks."
    head = ("reason", "it held while", "measured ticks", "when")
    return card(element("h3", title), _bar(spans), element("p", share, classes="small soft"), table(head, rows))


def _bar(spans: Sequence[Span]) -> Markup:
    begin, end = spans[0].start_s, spans[-1].end_s
    length = (end - begin) or 1.0
    parts = (
        element(
            "i",
            title=f"{figures.clock(start)} to {figures.clock(stop)}: {', '.join(reasons) or 'clean'}",
            style=f"width:{100 * (stop - start) / length:.3f}%",
            classes="limited" if reasons else "",
        )
        for reasons, start, stop in _merged(spans)
    )
    return element("div", *parts, classes="strip")


def _merged(spans: Sequence[Span]) -> Iterator[tuple[list[str], float, float]]:
    """Neighbouring spans with equal reasons as one."""
    for reasons, group in groupby(spans, lambda span: sorted(span.limited)):
        members = list(group)
        yield reasons, members[0].start_s, members[-1].end_s


def _when(spans: Sequence[Span], code: str) -> str:
    """The times at which a reason held, the first ten."""
    held = [
        (members[0].start_s, members[-1].end_s)
        for holds, members in ((key, list(group)) for key, group in groupby(spans, lambda span: code in span.limited))
        if holds
    ]
    words = [f"{figures.clock(start)} to {figures.clock(stop)}" for start, stop in held[:10]]
    return ", ".join(words) + (f" and {len(held) - 10} more" if len(held) > 10 else "")
