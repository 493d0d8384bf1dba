"""What a server's counters say of the measured part of a run: their growth from its beginning to its end. Pure.

The histograms of vLLM, SGLang, TGI and llama.cpp are used by their sums and counts only: means. Their lowest buckets are
10 ms wide and more, and a percentile of them would be one of the bucket.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

import msgspec

from .snapshot import ServerTime, ServerWindow

PARTS: Final = ("ttft", "queue", "prefill", "decode")
STARTED: Final = "started"  # process_start_time_seconds: not a counter, but as good as one to see a restart
COUNTERS: Final = ("prefix_cache_queries", "prefix_cache_hits", "preemptions")


class PageWindow(msgspec.Struct, kw_only=True):
    """The growth of one page's counters over the measured spans of a run. Kept in the collector's checkpoint.

    `growth` is of the spans that are over. `problem` says in words why there is none, or not all of it.
    """

    open: bool = False  # a measured span goes on
    before: dict[str, float] | None = None  # the counters at its beginning
    began_ns: int = 0
    latest: dict[str, float] = {}
    growth: dict[str, float] = {}
    length_ns: int = 0
    problem: str = ""

    def begin(self, totals: Mapping[str, float] | None, now_ns: int) -> None:
        """A measured span begins; `totals` is None where the page could not be read."""
        self.open, self.began_ns = True, now_ns
        self.before = None if totals is None else dict(totals)
        self.latest = dict(totals or {})
        if totals is None:
            self.problem = "could not be read when the measured part began"

    def see(self, totals: Mapping[str, float]) -> None:
        """Any reading in between: counters that went back are those of another server process."""
        restarted = totals.get(STARTED) != self.latest.get(STARTED) if STARTED in self.latest else False
        if self.open and (restarted or any(totals.get(name, 0.0) < value for name, value in self.latest.items())):
            self.problem = "went back to 0: the server was restarted in the measured part"
        self.latest = dict(totals)

    def end(self, totals: Mapping[str, float] | None, now_ns: int) -> None:
        """The measured span is over."""
        if totals is None:
            self.problem = self.problem or "could not be read when the measured part ended"
        else:
            self.see(totals)
            self._add(totals)
        self.open = False
        self.length_ns += now_ns - self.began_ns

    def _add(self, totals: Mapping[str, float]) -> None:
        if self.before is None:
            return
        for name, value in totals.items():
            # A counter that the server makes with its first event was 0 before.
            self.growth[name] = self.growth.get(name, 0.0) + value - self.before.get(name, 0.0)


def window_of(pages: Iterable[PageWindow]) -> ServerWindow | None:
    """What the pages of one target say together; None while the measured part is not over."""
    windows = list(pages)
    if not windows or any(page.open for page in windows):
        return None
    counted = [page for page in windows if page.growth.keys() - {STARTED} or page.problem]
    length_ns = max(page.length_ns for page in windows)
    window = ServerWindow(window_s=length_ns / 1e9 if length_ns else None)
    problems = sorted({page.problem for page in counted if page.problem})
    if problems:
        window.reason = f"the server's counters {'; and '.join(problems)}"
        return window
    if not counted:
        window.reason = "the server's pages hold no counters that are known here"
        return window
    growth: dict[str, float] = {}
    for page in counted:
        for name, value in page.growth.items():
            growth[name] = growth.get(name, 0.0) + value
    for part in PARTS:
        setattr(window, part, _time(growth.get(f"{part}_sum"), growth.get(f"{part}_count")))
    for name in COUNTERS:
        if name in growth:
            setattr(window, name, round(growth[name]))
    if window.prefix_cache_queries and window.prefix_cache_hits is not None:
        window.prefix_cache_hit_share = window.prefix_cache_hits / window.prefix_cache_queries
    return window


def _time(sum_s: float | None, count: float | None) -> ServerTime:
    """To whole ns: differences of large sums have more digits than they know."""
    mean_ms = round(sum_s / count * 1e3, 6) if sum_s is not None and count else None
    sum_s = None if sum_s is None else round(sum_s, 9)
    return ServerTime(count=None if count is None else round(count), sum_s=sum_s, mean_ms=mean_ms)
