"""The manifest of a live run: who it is, where its files are, when its phases began. One writer, the supervisor.

`run.json` in the segment directory is replaced atomically, so the collector, `lens recover` and other tools always
read a complete one, also after everything was killed. It holds no secrets: its plan is the stripped one.
"""

from __future__ import annotations

import os
from pathlib import Path
from time import monotonic_ns, time_ns
from typing import Any, Final, Literal

import msgspec

from ..clock import bracket
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


class HostState(msgspec.Struct, kw_only=True):
    """One load host of a run of several, as the driver knows it. Times are CLOCK_MONOTONIC ns."""

    name: str
    workers: int = 0
    first_worker: int = 0  # its workers are first_worker..first_worker + workers - 1 of all
    state: Literal["starting", "running", "done", "lost"] = "starting"
    why: str = ""  # it was lost, or failed
    start_ns: int = 0  # the start of the run on the host's own clock
    offset_ns: int = 0  # the host's clock minus the driver's, as the start was set by
    clock_bound_ns: int | None = None  # how far its tick edges may be from the driver's
    start_skew_ns: int | None = None  # how late it saw its start, on the driver's clock
    last_tick: int = -1  # the last tick that came from it
    lost_ns: int = 0  # when the driver gave it up, on the driver's clock
    ended_early: bool = False  # it ended by itself before the run did


class Manifest(msgspec.Struct, kw_only=True):
    run_id: str
    run_dir: str
    version: str
    plan: Plan  # stripped: every secret is masked
    plan_sha256: str
    workers: int
    started_at: str  # ISO 8601, UTC
    first_worker: int = 0  # of a host: the number of its first worker among those of all hosts
    workers_total: int = 0  # of a host: the workers of all hosts; 0 for a run on this machine alone
    hosts: list[HostState] = msgspec.field(default_factory=list)  # of a driver
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

    def set_anchor(self) -> None:
        """Notes this moment on both clocks. Of a bracket: two plain readings may have a preemption between them, and all
        wall times would be off by it."""
        self.anchor_mono_ns = monotonic_ns()
        self.anchor_wall_ns = self.anchor_mono_ns + bracket(monotonic_ns, time_ns)[0]

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
