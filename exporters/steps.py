"""The steps of a load that changes in steps: rates from the ticks, latencies from the histograms of intervals.hlog.

A tick belongs to the step that it begins in. Ticks that are torn by a step's edge are at most one a step.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

from ..collectors.snapshot import Report
from ..engine.errors import OutputError
from ..engine.metrics import SCALES
from ..engine.plan.units import duration_ns
from .hdr.read import Sums, line_of
from .hdr.write import INTERVALS, tag
from .plan_words import phases_of
from .rundir import ticks
from .spool.parts import lines_of

STEPPED: Final = ("ttft_ms", "itl_ms", "e2e_ms")
STEPS_MAX: Final = 100  # in a table


class Step(NamedTuple):
    """`levels`: (p50, p99) of each metric of STEPPED that has values, in its unit."""

    phase: str
    load: str
    start_s: float
    end_s: float
    sent: int
    ok: int
    failed: int
    output_tokens: int
    levels: dict[str, tuple[float, float]]

    @property
    def seconds(self) -> float:
        return self.end_s - self.start_s


class Window(NamedTuple):
    """A step as planned: from and to in seconds since the start of the run."""

    phase: str
    load: str
    start_s: float
    end_s: float


def windows_of(report: Report, plan: dict[str, Any]) -> list[Window]:
    """The steps of all phases, as far as the run came; empty where no load has steps."""
    loads = {each.get("name"): each.get("load") for each in phases_of(plan)}
    found = []
    for phase in report.run.phases:
        load = loads.get(phase.name)
        for key, unit in (("rate", "/s"), ("concurrency", " at once")):
            course = load.get(key) if isinstance(load, dict) else None
            if not phase.measured or not isinstance(course, dict) or "steps" not in course:
                continue
            at = phase.start_s
            for value, length in course["steps"]:
                seconds = duration_ns(length) / 1e9
                if at < phase.start_s + phase.duration_s:
                    found.append(Window(phase.name, f"{value:g}{unit}", at, at + seconds))
                at += seconds
    return found[:STEPS_MAX]


def steps_of(run_dir: Path, report: Report, plan: dict[str, Any]) -> list[Step]:
    """What was measured in each step; empty where there are none, or no ticks to take them from."""
    windows = windows_of(report, plan)
    if len(windows) < 2:
        return []
    counts = [[0, 0, 0, 0] for _ in windows]
    try:
        for tick in ticks(run_dir):
            at = _position(windows, tick.elapsed_s - tick.seconds)
            if at is not None:
                for interval in tick.intervals:
                    if interval.phase == windows[at].phase:
                        q = interval.requests
                        more = (q.sent, q.ok, sum(q.failed.values()), interval.tokens.output or 0)
                        counts[at] = [a + b for a, b in zip(counts[at], more, strict=True)]
        sums = _sums(run_dir, report, windows)
    except (OutputError, OSError):
        return []
    return [
        Step(*window, counts[i][0], counts[i][1], counts[i][2], counts[i][3], dict(_levels(sums, i)))
        for i, window in enumerate(windows)
    ]


def _position(windows: list[Window], at_s: float) -> int | None:
    return next((i for i, each in enumerate(windows) if each.start_s <= at_s + 1e-6 < each.end_s), None)


def _sums(run_dir: Path, report: Report, windows: list[Window]) -> Sums:
    tags = {tag(metric, target.name): metric for metric in STEPPED for target in report.targets}
    sums = Sums()
    for raw in lines_of(run_dir / INTERVALS):
        text = raw.decode("utf-8", "replace")
        metric = tags.get(text[4 : text.find(",")])
        line = line_of(text) if metric else None
        at = _position(windows, line.start_s) if line else None
        if line is not None and at is not None:
            sums.add((at, metric), line.encoded)
    return sums


def _levels(sums: Sums, position: int) -> Iterator[tuple[str, tuple[float, float]]]:
    for metric in STEPPED:
        found = sums.histogram((position, metric)).percentiles((50.0, 99.0))
        if found:
            yield metric, (found[0] / SCALES[metric], found[1] / SCALES[metric])
