"""What survives what: real processes are killed, stopped and robbed of their disk; the books are checked at the end.

`LENS_CHAOS_KILLS=100 pytest tests/test_chaos.py` kills more; `python -m tests.chaos --hours 8` goes on for hours.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from llm_latency_lens.collectors.reporting import RANGES_TOLD, ticks_told
from llm_latency_lens.engine.manifest import OUTAGES_KEPT, Manifest
from tests.chaos import storm
from tests.support_collector import SECOND
from tests.support_collector import plan as small_plan

KILLS = int(os.environ.get("LENS_CHAOS_KILLS", "30"))


@pytest.mark.timeout(120 + KILLS * 2)
def test_random_kills_of_workers_and_collector_lose_nothing_and_count_nothing_twice(tmp_path: Path) -> None:
    killed = storm(KILLS, 6, tmp_path)
    assert set(killed) == {"worker", "collector"}


OUTAGES = [
    ([], ""),
    ([(3.2, 3.9)], "ticks 3"),
    ([(3.2, 4.1)], "ticks 3-4"),
    ([(3.2, 3.4), (4.1, 4.2), (9.0, 9.1)], "ticks 3-4, 9"),  # neighbours are one range
    ([(9.0, 9.1), (3.2, 3.4)], "ticks 3, 9"),  # of two workers, in no order
    ([(-1.0, 0.5)], "ticks 0"),  # dead before the first slot
    (
        [(n * 2.0, n * 2.0) for n in range(RANGES_TOLD + 5)],
        "ticks 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, ... 4 more ..., 28",
    ),
]


@pytest.mark.parametrize(("spans", "told"), OUTAGES)
def test_outages_are_told_as_ticks(spans: list[tuple[float, float]], told: str) -> None:
    start = 100 * SECOND
    moments = [(start + int(a * SECOND), start + int(b * SECOND)) for a, b in spans]
    assert ticks_told(moments, start, SECOND) == told


def test_outages_that_touch_are_one_and_their_number_is_bounded() -> None:
    manifest = Manifest(
        run_id="r", run_dir="r", version="0", plan=small_plan(), plan_sha256="", workers=1, started_at=""
    )
    manifest.add_outage(10, 20)
    manifest.add_outage(15, 30)
    assert manifest.outages == [(10, 30)]
    for number in range(2 * OUTAGES_KEPT):
        manifest.add_outage(100 + 10 * number, 101 + 10 * number)
    assert len(manifest.outages) == OUTAGES_KEPT
    assert manifest.outages[-1][1] == 101 + 10 * (2 * OUTAGES_KEPT - 1)
