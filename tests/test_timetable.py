"""The times of probes: one grid for every worker, every restart and every run of probes."""

from __future__ import annotations

import time
from datetime import datetime
from itertools import islice, pairwise, takewhile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_latency_lens.engine.load.timetable import Timetables, is_quiet, times
from llm_latency_lens.engine.plan.plan import SECOND, Load, Phase, Timetable

NOW = 1_790_000_000 * SECOND


def phase(*tables: Timetable, origin_ns: int = NOW, seconds: float = 600, at_once: bool = False) -> Phase:
    load = Load(model="probe", shapes=(), timetables=tables, origin_wall_ns=origin_ns, at_once=at_once)
    return Phase(name="probe", load=load, duration_ns=int(seconds * SECOND))


def table(name: str = "a", every_s: float = 30, jitter_s: float = 0, **more: object) -> Timetable:
    return Timetable(target=name, every_ns=int(every_s * SECOND), jitter_ns=int(jitter_s * SECOND), **more)  # type: ignore[arg-type]


@given(st.integers(1, 5), st.integers(0, 40), st.integers(0, 1 << 32), st.floats(0, 1))
def test_the_union_over_the_workers_is_one_schedule(workers: int, first: int, seed: int, jitter: float) -> None:
    schedule = Timetables(phase(table("a", 10, 10 * jitter), table("b", 7, 7 * jitter)), seed)
    whole = list(enumerate(schedule.due()))
    shared = [
        (slot, (offset, target))
        for worker in range(workers)
        for (slot, offset), target in zip(
            schedule.share(worker, workers, first), schedule.targets(worker, workers, first), strict=True
        )
    ]
    assert sorted(shared) == [each for each in whole if each[0] >= first]
    assert schedule.planned == len(whole)


@given(st.integers(0, 1 << 32), st.integers(0, 3600), st.floats(0, 1))
def test_a_run_that_begins_later_has_the_same_probes(seed: int, later_s: int, jitter: float) -> None:
    """What a restart, or a hand-over, must find: no probe twice, none left out."""
    one = table("a", 13, 13 * jitter)
    later_ns = NOW + later_s * SECOND
    of_all = [at for at in islice(times(one, seed, NOW), 400) if at >= later_ns]
    assert of_all == list(islice(times(one, seed, later_ns), len(of_all)))


@given(st.integers(0, 1 << 32), st.floats(0, 1))
def test_each_period_has_one_probe_within_its_jitter(seed: int, jitter: float) -> None:
    found = list(islice(times(table("a", 30, 30 * jitter), seed, NOW), 100))
    gaps = [b - a for a, b in pairwise(found)]
    assert found == sorted(found)
    assert all(abs(gap - 30 * SECOND) <= 30 * SECOND * jitter + 1 for gap in gaps)


def test_targets_with_one_period_do_not_fire_together() -> None:
    offsets = {next(times(table(name), 0, NOW)) for name in "abcdef"}
    assert len(offsets) == 6


def test_with_at_once_every_target_is_asked_at_the_start_too() -> None:
    schedule = Timetables(phase(table("a"), table("b"), at_once=True), 0)
    assert sorted(islice(schedule.due(), 2)) == [(0, 0), (0, 1)]


@pytest.mark.parametrize(
    ("hours", "moment", "quiet"),
    [
        ((22 * 60, 6 * 60), "23:30", True),  # over midnight
        ((22 * 60, 6 * 60), "05:59", True),
        ((22 * 60, 6 * 60), "06:00", False),  # the end is outside
        ((22 * 60, 6 * 60), "12:00", False),
        ((9 * 60, 17 * 60), "09:00", True),  # the begin is inside
        ((9 * 60, 17 * 60), "17:00", False),
    ],
)
def test_quiet_hours_are_hours_of_the_local_day(hours: tuple[int, int], moment: str, quiet: bool) -> None:
    at = datetime.fromisoformat(f"2026-07-01T{moment}").timestamp()
    assert is_quiet(table(quiet=(hours,)), int(at) * SECOND) is quiet


def test_no_probe_falls_into_the_quiet_hours() -> None:
    one = table(every_s=600, jitter_s=600, quiet=((60, 23 * 60),))
    day = takewhile(lambda at: at < NOW + 86_400 * SECOND, times(one, 3, NOW))
    hours = {time.localtime(at // SECOND).tm_hour for at in day}
    assert hours <= {0, 23}
    assert hours
