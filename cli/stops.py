"""The rules that end a run before its plan does: too many errors, a broken SLO, all goals of `until` reached.

Read from the latest snapshot and report, as the collector replaces them every tick.
"""

from __future__ import annotations

from collections import deque
from pathlib import Path

from ..collectors.snapshot import REPORT_DECODER, SNAPSHOT_DECODER, Report, Snapshot
from ..engine.files import UNDECODABLE
from ..engine.plan.plan import SECOND, Plan
from ..engine.runs.rundir import LIVE_REPORT, SNAPSHOT

SAMPLES_MIN = 10  # ended requests in the window before an error rate means anything


class StopRules:
    """Asked often, looks at each tick once. `reason()` is None while the run may go on."""

    def __init__(self, plan: Plan, segment_dir: Path) -> None:
        self._limits = plan.limits
        self._goals = bool(plan.until)
        self._watching = self._goals or plan.limits.max_error_rate is not None or plan.limits.stop_on_slo
        self._dir = segment_dir
        self._tick = -1
        self._window: deque[tuple[float, int, int]] = deque([(0.0, 0, 0)])  # (elapsed s, ok, failed), cumulative

    def reason(self) -> str | None:
        """`max_error_rate` or `slo` when a rule is broken, `until` when enough is known."""
        if not self._watching:
            return None
        try:
            snapshot = SNAPSHOT_DECODER.decode((self._dir / SNAPSHOT).read_bytes())
        except (FileNotFoundError, *UNDECODABLE):
            return None
        if snapshot.tick == self._tick:
            return None
        self._tick = snapshot.tick
        return self.judged(snapshot)

    def judged(self, snapshot: Snapshot) -> str | None:
        """The same of a tick that was not seen before."""
        self._window.append((snapshot.elapsed_s, snapshot.ok_total, snapshot.failed_total))
        if self._too_many_errors():
            return "max_error_rate"
        if self._limits.stop_on_slo and self._slo_broken():
            return "slo"
        return "until" if self._goals and snapshot.until and all(goal.reached for goal in snapshot.until) else None

    def _too_many_errors(self) -> bool:
        limit = self._limits.max_error_rate
        if limit is None:
            return False
        window, newest = self._window, self._window[-1]
        while len(window) > 2 and newest[0] - window[1][0] >= self._limits.error_window_ns / SECOND:
            window.popleft()
        ok, failed = newest[1] - window[0][1], newest[2] - window[0][2]
        return ok + failed >= SAMPLES_MIN and failed / (ok + failed) > limit

    def _slo_broken(self) -> bool:
        report = self.report()
        return report.requests.ok >= SAMPLES_MIN and any(slo.state == "FAIL" for slo in report.slo)

    def report(self) -> Report:
        """The numbers so far."""
        return REPORT_DECODER.decode((self._dir / LIVE_REPORT).read_bytes())
