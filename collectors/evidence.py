"""What an objective is judged by: the numbers of the part that it names, and the interval of its statistic.

Of the run, a target, a phase, or both; with `--steady` of the stationary windows only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import NamedTuple

from ..engine.metrics import SCALES
from ..engine.plan.plan import SECOND, Plan
from .confidence import Interval, assumed
from .goodput import Key
from .run_ladders import Chosen, RunLadders, View, Window
from .series import Series, Slab
from .statistics import interval_of


class Part(NamedTuple):
    """The series that an objective names, as one, over `seconds`."""

    series: Series
    view: View
    seconds: float

    def interval(self, metric: str, statistic: str) -> Interval | None:
        """In the metric's unit; None where the sample is too small for any."""
        histogram, known = self.series.metrics.get(metric), self.view.confidence(metric)
        if histogram is None or known is None:
            return None
        found = known.intervals.get(statistic)
        if found is None and (blocks := self.view.blocks(metric)) is not None:
            found = assumed(blocks).get(statistic)
        return interval_of(histogram, found, statistic, SCALES[metric])


class Layout(NamedTuple):
    """What the numbers in a series' key stand for."""

    phases: Sequence[tuple[str, bool]]  # name, whether it is measured
    targets: Sequence[str]
    tick_ns: int

    @classmethod
    def of(cls, plan: Plan) -> Layout:
        phases = [(phase.name, phase.measure) for phase in plan.phases]
        return cls(phases, [target.name for target in plan.targets], plan.output.tick_ns)


class Evidence:
    """The run at one moment. `seconds` of each phase's rates; `windows` of the measured phases with `--steady`."""

    def __init__(
        self,
        layout: Layout,
        totals: Slab,
        ladders: RunLadders,
        seconds: Mapping[int, float],
        windows: Mapping[int, Window] | None = None,
    ) -> None:
        self._layout = layout
        self._totals = totals
        self._ladders = ladders
        self._seconds = seconds
        self.windows = windows
        self.steady = windows is not None
        self.part: Callable[[str | None, str | None], Part] = cache(self._part)
        self._views: dict[frozenset[Key], View] = {}

    def view(self, chosen: Chosen) -> View:
        """The ladders of these series; those of the same series share what they have computed."""
        keys = frozenset(key for key in self._totals.series if chosen(key))
        return self._views.setdefault(keys, View(self._ladders, chosen, self.windows))

    def _part(self, target: str | None, phase: str | None) -> Part:
        """Of a target and of a phase by their names; None is all targets, all measured phases."""
        phases = {i for i, (name, measured) in enumerate(self._layout.phases) if (name == phase if phase else measured)}
        targets = {i for i, name in enumerate(self._layout.targets) if name == target}

        def chosen(key: Key) -> bool:
            return key[0] in phases and (target is None or key[1] in targets)

        view = self.view(chosen)
        series = self._totals.only(chosen) if self.windows is None else view.series()
        return Part(series, view, sum(self._length(i) for i in phases))

    def _length(self, phase: int) -> float:
        window = self.windows.get(phase) if self.windows is not None else None
        if window is None or not window.cut:
            return self._seconds.get(phase, 0.0)
        return (window.end - window.start) * self._layout.tick_ns / SECOND
