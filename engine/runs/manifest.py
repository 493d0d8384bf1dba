"""The manifest of a live run: who it is, where its files are, when its phases began. One writer, the supervisor.

`run.json` in the segment directory is replaced atomically, so the collector, `lens recover` and other tools always
read a complete one, also after everything was killed. It holds no secrets: its plan is the stripped one.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Final

import msgspec

from ..files import replace
from ..plan.plan import Plan

FILE: Final = "run.json"
OUTAGES_KEPT: Final = 1000
# A service gets a tmpfs of its own that outlives its crash; /dev/shm is emptied of a dynamic user's files (systemd.exec).
SEGMENTS: Final = Path(os.environ.get("RUNTIME_DIRECTORY", "").partition(":")[0] or "/dev/shm") / "llm-latency-lens"


class PhaseTimes(msgspec.Struct, kw_only=True):
    """When a phase began and stopped issuing, CLOCK_MONOTONIC ns; 0 while it has not. `planned` slots, None if unknown."""

    start_ns: int = 0
    end_ns: int = 0
    planned: int | None = None


class Manifest(msgspec.Struct, kw_only=True):
    run_id: str
    run_dir: str
    version: str
    plan: Plan  # stripped: every secret is masked
    plan_sha256: str
    workers: int
    started_at: str  # ISO 8601, UTC
    anchor_mono_ns: int = 0  # one moment on both clocks, for wall times in files
    anchor_wall_ns: int = 0
    state: str = "starting"  # starting | running | draining | finished
    interrupted: bool = False
    # Why it ended before its plan did: budget_usd, max_error_rate, slo, interrupted, handed_over, died: ..., failed: ...
    stop_reason: str = ""
    phases: list[PhaseTimes] = msgspec.field(default_factory=list)
    proxied: list[str] = []  # names of the targets that are reached through a proxy
    pids: dict[str, int] = msgspec.field(default_factory=dict)  # supervisor, collector, worker-0, ...
    cores: dict[str, list[int]] = msgspec.field(default_factory=dict)
    restarts: int = 0
    outages: list[tuple[int, int]] = []  # a worker was dead from, to: CLOCK_MONOTONIC ns
    collector_restarts: int = 0
    exporter_restarts: int = 0
    host: dict[str, Any] = msgspec.field(default_factory=dict)

    def add_outage(self, start_ns: int, end_ns: int) -> None:
        """Records that a worker was dead. Those that touch become one; at most OUTAGES_KEPT, the last one then grows."""
        if self.outages and (start_ns <= self.outages[-1][1] or len(self.outages) >= OUTAGES_KEPT):
            first, last = self.outages.pop()
            start_ns, end_ns = min(first, start_ns), max(last, end_ns)
        self.outages.append((start_ns, end_ns))

    def end_phases(self, now_ns: int, *, countable: bool) -> None:
        """Ends what has not ended at `now_ns`; a phase that has not begun gets no length.

        `countable`: are the slots that were not sent still planned ones? Not after a failure, nor when the remaining
        ones are another run's: reported as unsent they would be counted twice.
        """
        for times in self.phases:
            if not times.end_ns or times.end_ns > now_ns:
                times.end_ns = now_ns if times.start_ns and times.start_ns < now_ns else times.start_ns
            if not countable:
                times.planned = None

    def write(self, segment_dir: Path) -> None:
        """Replaces run.json atomically. Raises OSError."""
        replace(segment_dir / FILE, msgspec.json.encode(self))


def read_manifest(segment_dir: Path) -> Manifest:
    """The manifest of the run whose segments are in `segment_dir`. Raises FileNotFoundError, msgspec.ValidationError."""
    return msgspec.json.decode((segment_dir / FILE).read_bytes(), type=Manifest)
