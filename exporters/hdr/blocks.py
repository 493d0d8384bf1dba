"""The blocks of a run's metrics over time, from its intervals.hlog: what intervals, steady windows and compare rest on."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from ...collectors.ladder import Ladder
from ..spool.parts import lines_of
from .read import cells_of, line_of
from .write import INTERVALS


class Timed(NamedTuple):
    """A metric's ladder; its ticks are counted from the start of the run, `tick_s` each."""

    ladder: Ladder
    tick_s: float


def ladders_of(run_dir: Path, wanted: Iterable[str]) -> dict[str, Timed]:
    """The ladder of each wanted tag that has values; damaged lines are passed over. Raises FileNotFoundError."""
    tags = set(wanted)
    found: dict[str, Timed] = {}
    for raw in lines_of(run_dir / INTERVALS):
        text = raw.decode("utf-8", "replace")
        if text[4 : text.find(",")] not in tags:
            continue
        line = line_of(text)
        if line is None or line.length_s <= 0:
            continue
        cells, counts = cells_of(line.encoded)
        timed = found.setdefault(line.tag, Timed(Ladder(), line.length_s))
        timed.ladder.add(round(line.start_s / timed.tick_s), cells, counts)
    return found
