"""The sum of the ticks of several hosts. Pure; lossless: counts are added cell by cell, moments by their exact formulas.

Works on the packed form: the cells of all hosts go into one array, so that a metric costs one pass and not one for each
host (benches/merge_hosts.py).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np

from ...engine.records.record import Outcome
from ..goodput import Key
from ..histogram import Histogram
from ..series import TALLIES, Series, Slab, Tally
from .tick import HostTick

Packed = tuple[Sequence[Any], int]  # Series.packed(), and what to add to the host's clock for the driver's


def merged(ticks: Sequence[tuple[HostTick, int]]) -> Slab:
    """The tick of all hosts together; each with what has to be added to its clock. Requests in flight at the tick's end
    are counted anew by the totals: a sum over hosts would count their ticks as well."""
    by_key: dict[Key, list[Packed]] = defaultdict(list)
    for tick, shift_ns in ticks:
        for key, packed in tick.slab:
            by_key[key[0], key[1]].append((packed, shift_ns))
    slab = Slab()
    for series_key, parts in by_key.items():
        slab.series[series_key] = _series(parts)
    return slab


def merged_live(ticks: Sequence[tuple[HostTick, int]]) -> dict[Key, dict[str, Histogram]]:
    """The distributions of what happened in the tick, by (phase, target)."""
    found: dict[Key, dict[str, list[Any]]] = defaultdict(lambda: defaultdict(list))
    for tick, _ in ticks:
        for phase, target, metrics in tick.live:
            for name, packed in metrics.items():
                found[phase, target][name].append(packed)
    return {key: {name: Histogram.summed(packs) for name, packs in each.items()} for key, each in found.items()}


def add_tallies(series: Series, tallies: Sequence[bytes], shifts_ns: Sequence[int]) -> None:
    """Adds the tallies of several Series.packed() in one pass, each of a clock to which a shift has to be added."""
    stacked = np.frombuffer(b"".join(tallies), np.int64).reshape(len(tallies), TALLIES)
    series.tally[: Tally.FIRST_END] += stacked[:, : Tally.FIRST_END].sum(axis=0)
    ends = stacked[:, [Tally.FIRST_END, Tally.LAST_END]].tolist()
    for (first, last), shift_ns in zip(ends, shifts_ns, strict=True):
        if last:
            series.extend(first + shift_ns, last + shift_ns)


def _series(parts: Sequence[Packed]) -> Series:
    made = Series()
    metrics: dict[str, list[Any]] = defaultdict(list)
    failures: dict[int, list[Any]] = defaultdict(list)
    add_tallies(made, [packed[0] for packed, _ in parts], [shift_ns for _, shift_ns in parts])
    for (_, each, failed, lines), _ in parts:
        for line, (met, sent) in lines.items():
            made.add_line(line, met, sent)
        for name, packed in each.items():
            metrics[name].append(packed)
        for outcome, packed in failed.items():
            failures[outcome].append(packed)
    made.tally[Tally.IN_FLIGHT_SUM] = made.tally[Tally.IN_FLIGHT_TICKS] = 0
    made.metrics = {name: Histogram.summed(packs) for name, packs in metrics.items()}
    made.failures = {Outcome(outcome): Histogram.summed(packs) for outcome, packs in failures.items()}
    return made
