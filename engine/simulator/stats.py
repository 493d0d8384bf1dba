"""Counters of all processes of one simulator, in shared anonymous memory: any process can answer for all."""

from __future__ import annotations

import mmap
from typing import Any, Final

from .faults import FAULTS

REASONS: Final = (
    "rpm",
    "tpm",
    "queue_full",
    "bad_key",
    "bad_request",
    "not_found",
    "bad_method",
)  # refused, not by a fault
STATUSES: Final = (0, 200, 400, 401, 403, 404, 405, 429, 500, 503, 529)
TOTALS: Final = (
    "requests", "completed", "client_closed", "streams", "events", "token_events", "tokens", "prompt_tokens", "writes",
    "late_writes", "bytes_received", "bytes_sent", "connections", "connections_open", "broken_requests", "running",
    "waiting", "freezes", "cpu_ns", "log_rows",
)  # fmt: skip
LATENESS_SHIFT: Final = 13  # a lateness bucket is 8.2 us wide
LATENESS_BUCKETS: Final = 4096  # up to 33 ms; the last one holds all above
LATENESS_TOP_NS: Final = LATENESS_BUCKETS << LATENESS_SHIFT

_KEYS: Final = (
    *TOTALS,
    "lateness_max_ns",
    *(f"status {status}" for status in STATUSES),
    *(f"fault {name}" for name in (*FAULTS, *REASONS)),
)
SLOT: Final = {name: index for index, name in enumerate(_KEYS)}
LATENESS: Final = len(_KEYS)
ROW: Final = LATENESS + LATENESS_BUCKETS


class Stats:
    """One row of u64 counters per process: the owner adds to `mine`, everybody reads the sums."""

    __slots__ = ("_all", "mine", "processes")

    def __init__(self, processes: int = 1) -> None:
        self.processes = processes
        self._all = memoryview(mmap.mmap(-1, processes * ROW * 8)).cast("Q")
        self.mine = self._all[:ROW]

    def own(self, rank: int) -> None:
        """This process counts in row `rank` from now on."""
        self.mine = self._all[rank * ROW : (rank + 1) * ROW]

    def total(self, name: str) -> int:
        return sum(self._all[rank * ROW + SLOT[name]] for rank in range(self.processes))

    def lateness_us(self, quantile: float) -> float | None:
        """How late token writes were behind their schedule, upper bound of the bucket; None before the first."""
        counts = [
            sum(self._all[rank * ROW + LATENESS + bucket] for rank in range(self.processes))
            for bucket in range(LATENESS_BUCKETS)
        ]
        wanted = quantile * sum(counts)
        seen = 0
        for bucket, count in enumerate(counts):
            seen += count
            if count and seen >= wanted:
                return ((bucket + 1) << LATENESS_SHIFT) / 1000
        return None

    def totals(self) -> dict[str, Any]:
        """What /stats answers."""
        page: dict[str, Any] = {name: self.total(name) for name in TOTALS}
        page["by_status"] = {str(status): count for status in STATUSES if (count := self.total(f"status {status}"))}
        page["by_fault"] = {name: count for name in (*FAULTS, *REASONS) if (count := self.total(f"fault {name}"))}
        highest = max(self._all[rank * ROW + SLOT["lateness_max_ns"]] for rank in range(self.processes))
        page["lateness_us"] = {"p50": self.lateness_us(0.5), "p99": self.lateness_us(0.99), "max": highest / 1000}
        page["processes"] = self.processes
        return page
