"""The load models by name: what each means for schedules, limits, sizes and words. All that asks `which model` asks here.

A model answers for a plan's Load; it holds no state. A new one is a class here and its name in `plan.Load.model`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final, Protocol

import msgspec

from ..plan.plan import Load, Phase, Plan
from .schedule import Chance, Closed, Constant, Replay, Schedule, Times
from .timetable import Timetables

CLOSED_PEAK_PER_S: Final = 10_000.0  # of one worker: a closed loop is as fast as the server lets it be
TRACE_COUNTED_BYTES: Final = 256 << 20  # a larger trace is not read through only to know how many requests it holds


class LoadModel(Protocol):
    """What a load model must answer."""

    label: str  # for people: "closed loop"
    is_open: bool  # requests are due at times of their own, whatever the server does
    all_timed: bool  # every request is: not only the first of a session
    has_level: bool  # `shapes` of the load say how much; a replay's come with its trace
    ends_by_itself: bool  # needs neither a duration nor a number of requests

    def schedule(self, phase: Phase, seed: int, index: int, timestamps: Times | None) -> Schedule:
        """The slots of phase `index`. `timestamps` returns the times of a trace from the beginning, for a replay."""

    def planned(self, plan: Plan, index: int) -> int | None:
        """How many requests phase `index` has over all workers, None if that cannot be known before."""

    def in_flight_max(self, load: Load) -> int | None:
        """The most requests in flight over all workers; None where only descriptors limit them."""

    def peak_per_s(self, load: Load, workers: int) -> float:
        """The most requests per second that one worker is expected to send."""

    def describe(self, load: Load) -> str:
        """The load in words."""


def level_max(load: Load) -> float:
    """The highest value of the load's shapes."""
    return max(max(shape.start, shape.end) for shape in load.shapes)


class OpenLoad:
    """A rate: requests, or sessions, are due whatever the server does."""

    is_open = True
    has_level = True
    ends_by_itself = False

    def __init__(self, label: str = "open loop", unit: str = "/s", *, all_timed: bool = True) -> None:
        self.label = label
        self.all_timed = all_timed
        self._unit = unit

    def schedule(self, phase: Phase, seed: int, index: int, timestamps: Times | None) -> Schedule:
        return Constant(phase) if phase.load.arrivals == "constant" else Chance(phase, seed, index)

    def planned(self, plan: Plan, index: int) -> int | None:
        return self.schedule(plan.phases[index], plan.seed, index, None).planned

    def in_flight_max(self, load: Load) -> int | None:
        return load.max_in_flight

    def peak_per_s(self, load: Load, workers: int) -> float:
        return level_max(load) / workers

    def describe(self, load: Load) -> str:
        return f"{_levels(load)}{self._unit} {load.arrivals} ({self.label})"


class ClosedLoad(OpenLoad):
    """So many requests in flight: the next one starts when another ends."""

    is_open = False

    def __init__(self) -> None:
        super().__init__("closed loop", " in flight", all_timed=False)

    def schedule(self, phase: Phase, seed: int, index: int, timestamps: Times | None) -> Schedule:
        return Closed(phase)

    def in_flight_max(self, load: Load) -> int | None:
        return int(level_max(load))

    def peak_per_s(self, load: Load, workers: int) -> float:
        return CLOSED_PEAK_PER_S

    def describe(self, load: Load) -> str:
        return f"{_levels(load)}{self._unit} ({self.label})"


class ReplayLoad(OpenLoad):
    """The times of a trace."""

    has_level = False
    ends_by_itself = True

    def schedule(self, phase: Phase, seed: int, index: int, timestamps: Times | None) -> Schedule:
        return Replay(phase, timestamps)

    def planned(self, plan: Plan, index: int) -> int | None:
        from ..workload import source_of  # only a replay needs all of the workload

        path = Path(plan.workload.path)
        if path.is_file() and path.stat().st_size > TRACE_COUNTED_BYTES:
            return None
        plain = msgspec.structs.replace(plan.workload, tokenizer=None)  # times need no texts
        source = source_of(msgspec.structs.replace(plan, workload=plain), seed=plan.seed)
        return Replay(plan.phases[index], source.timestamps).counted()

    def describe(self, load: Load) -> str:
        return "replayed timestamps"


class ProbeLoad(OpenLoad):
    """Each target on its own grid of wall time."""

    def schedule(self, phase: Phase, seed: int, index: int, timestamps: Times | None) -> Schedule:
        return Timetables(phase, seed)


MODELS: Final[dict[str, LoadModel]] = {
    "closed": ClosedLoad(),
    "open": OpenLoad(),
    "partly_open": OpenLoad("partly open loop", " sessions/s", all_timed=False),
    "replay": ReplayLoad("replay loop"),
    "probe": ProbeLoad("probe loop"),
}


def model_of(load: Load) -> LoadModel:
    """The model of a load."""
    return MODELS[load.model]


def schedule_of(phase: Phase, *, seed: int, index: int, timestamps: Times | None = None) -> Schedule:
    """The schedule of phase `index`. `timestamps` returns the times of a trace from the beginning, for a replay."""
    return model_of(phase.load).schedule(phase, seed, index, timestamps)


def planned_slots(plan: Plan, index: int) -> int | None:
    """How many requests phase `index` has over all workers, None if that cannot be known before.

    It cannot for sessions, whose replies decide on their turns, nor where only time ends a closed loop. A trace of up
    to TRACE_COUNTED_BYTES is read for it. Raises PlanError where the trace cannot be read.
    """
    if plan.workload.kind == "sessions":
        return None
    return model_of(plan.phases[index].load).planned(plan, index)


def _levels(load: Load) -> str:
    return " then ".join(f"{s.start:g}" if s.start == s.end else f"{s.start:g} to {s.end:g}" for s in load.shapes)
