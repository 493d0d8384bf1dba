"""When each token event of a request arrived: `output.token_times`, for all requests, a share, or the slowest.

The worker's ring holds the gaps between token events of every ok request (engine/records/record.py). Added up from the
first token they are arrival times again. Gaps marked coalesced lie inside one read: their event has the time of the event
before it, and the mark.
"""

from __future__ import annotations

import heapq
import zlib
from collections.abc import Callable
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from ..collectors.series import Batch
from ..engine.records.record import GAP_COALESCED, GAP_MAX, TTFT_COALESCED, Outcome

HASHED: Final = 1 << 32
SLOWEST: Final = "slowest:"

Times = tuple[list[int], list[bool]]
Chooser = Callable[[Any], bool]


def chooser(setting: str, seed: int) -> Chooser | None:
    """Which records get times, by the plan's `output.token_times`; None for none.

    `slowest:N` has to decide when a request ends: a request is chosen if it is among the N slowest so far, so the N
    slowest of the run are among the chosen. A share is drawn by (seed, phase, request): the same requests for a seed.
    """
    if setting == "none":
        return None
    if setting == "all":
        return lambda _: True
    if setting.startswith(SLOWEST):
        return _Slowest(int(setting.removeprefix(SLOWEST)))
    share = float(setting.removesuffix("%")) / (100 if setting.endswith("%") else 1)

    def drawn(record: Any) -> bool:
        key = f"token_times/{seed}/{record['phase']}/{record['request']}".encode()
        return zlib.crc32(key) < share * HASHED

    return drawn


class _Slowest:
    def __init__(self, count: int) -> None:
        self._count = count
        self._longest: list[int] = []  # a heap of the N longest durations so far, ns

    def __call__(self, record: Any) -> bool:
        duration = int(record["end_ns"]) - int(record["send_ns"])
        if len(self._longest) < self._count:
            heapq.heappush(self._longest, duration)
            return True
        return duration > heapq.heappushpop(self._longest, duration)


def token_times(batch: Batch, chosen: Chooser) -> list[Times | None]:
    """For each record of the batch: arrivals in ns after `send` and their coalesced marks, or None.

    Only ok requests that had a token have times. `batch.gaps` and `batch.owners` are those of the drain.
    """
    found: list[Times | None] = [None] * len(batch.records)
    if batch.gaps is None or batch.owners is None:
        return found
    starts = np.searchsorted(batch.owners, np.arange(len(batch.records) + 1))
    for i, record in enumerate(batch.records):
        if record["outcome"] == Outcome.OK and record["first_token_ns"] and chosen(record):
            found[i] = _times(record, batch.gaps[starts[i] : starts[i + 1]])
    return found


def _times(record: Any, words: npt.NDArray[np.uint64]) -> Times:
    coalesced = (words & np.uint64(GAP_COALESCED)) != 0
    steps = np.where(coalesced, 0, (words & np.uint64(GAP_MAX)).astype(np.int64))
    first = int(record["first_token_ns"]) - int(record["send_ns"])
    arrivals = first + np.concatenate(([0], np.cumsum(steps)))
    return arrivals.tolist(), [bool(record["flags"] & TTFT_COALESCED), *coalesced.tolist()]
