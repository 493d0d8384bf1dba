"""The history of a probe: a folder of runs, one after the other. Follows the newest, tells any stretch of the past."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final

import msgspec

from llm_latency_lens.collectors.alerts import Values, Window
from llm_latency_lens.collectors.snapshot import SNAPSHOT_DECODER
from llm_latency_lens.exporters.hdrlog import INTERVALS, tag
from llm_latency_lens.exporters.tail import LOG

HISTORY: Final = "history"  # folder of the state directory


class Lines:
    """The complete lines that a growing file has got since the last look. A file that was cut is read anew."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0

    def new(self) -> Iterator[str]:
        try:
            with self._path.open("rb") as file:
                if file.seek(0, 2) < self._offset:
                    self._offset = 0
                file.seek(self._offset)
                for line in file:
                    if not line.endswith(b"\n"):
                        return
                    self._offset += len(line)
                    yield line.decode(errors="replace")
        except OSError:
            return


class Follower:
    """Carries the ticks of one run into a Window, and of its histograms those metrics that are wanted."""

    def __init__(self, run_dir: Path, window: Window, metrics: frozenset[str], targets: Iterable[str]) -> None:
        self._ticks = Lines(run_dir / LOG)
        self._histograms = Lines(run_dir / INTERVALS)
        self._window = window
        self._metrics = metrics
        self._names = {tag("", target)[1:]: target for target in targets}
        self._base_s = 0.0

    def follow(self) -> None:
        """Takes what is new."""
        for line in self._ticks.new():
            try:
                self._window.tick(SNAPSHOT_DECODER.decode(line))
            except msgspec.DecodeError:
                continue  # a damaged line; the report counts them
        for line in self._histograms.new() if self._metrics else ():
            if line.startswith("#[BaseTime: "):
                self._base_s = float(line.split()[1])
            elif line.startswith("Tag="):
                self._histogram(line)

    def _histogram(self, line: str) -> None:
        name, start_s, length_s, _, encoded = line.removeprefix("Tag=").rstrip("\n").split(",", 4)
        metric, _, target = name.partition("/")
        if metric in self._metrics:
            end_ns = int((self._base_s + float(start_s) + float(length_s)) * 1e9)
            self._window.values(Values(end_ns, self._names.get(target, target), metric, filled(encoded)))


def filled(encoded: str) -> list[tuple[float, int]]:
    """The filled buckets of an encoded histogram: the middle value of each, in histogram units, and its count."""
    from hdrh.histogram import HdrHistogram

    total: Any = HdrHistogram.decode(encoded)
    found = [(v.value_iterated_to, v.count_added_in_this_iter_step) for v in total.get_recorded_iterator()]
    return [((total.get_lowest_equivalent_value(v) + v) / 2, n) for v, n in found]
