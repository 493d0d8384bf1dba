"""What ends a point of a sweep: its objectives are decided, its queue grows, its requests fail, or it is known well enough."""

from __future__ import annotations

from pathlib import Path

from ...collectors.point import CLIENT_CODES, LOOK_FIRST_S, Looks, Queue, against_of, decided, failing, hopeless
from ...collectors.snapshot import Report, Snapshot
from ...engine.plan.plan import SECOND, Plan
from ..stops import StopRules


class PointRules(StopRules):
    """The rules of every run, and those of a point. Its plan has goals of `until` on its objectives' statistics.

    `climbing`: no load is known yet that fails, so that a point that will stay undecided is left for a higher load.
    """

    def __init__(self, plan: Plan, segment_dir: Path, *, climbing: bool = False) -> None:
        super().__init__(plan, segment_dir)
        measured = plan.phases[-1]
        self._climbing = climbing
        self._ends_s = (measured.duration_ns or 0) / SECOND
        self._glance_s = LOOK_FIRST_S  # when `hopeless` is asked next
        self._slos = plan.slo
        load = measured.load
        self._queue = None if load.model == "closed" else Queue(load.shapes[0].start, cap=load.max_in_flight)
        self._before_s = sum(phase.duration_ns or 0 for phase in plan.phases[:-1]) / SECOND
        self._looks = Looks()
        self._limited = False  # at the last look
        self._held = False

    def judged(self, snapshot: Snapshot) -> str | None:
        """`slo` where the load is not borne, `until` where it is, or where nothing more can be learned here."""
        growing = self._queue is not None and self._queue.add(snapshot.in_flight, snapshot.seconds)
        elapsed_s = snapshot.elapsed_s - self._before_s
        if elapsed_s <= 0:
            return None
        report = self.report()
        if self._looks.due(report.requests.ok, elapsed_s):
            reason = self._look(report)
            if reason:
                return reason
        if failing(report, self._slos):
            return "slo"
        if self._climbing and self._ends_s and elapsed_s >= self._glance_s:
            self._glance_s = 2 * elapsed_s
            if hopeless(report, self._ends_s - elapsed_s):
                return "until"
        return "slo" if growing and not self._held else super().judged(snapshot)

    def _look(self, report: Report) -> str | None:
        limited = any(reason.code in CLIENT_CODES and not reason.note for reason in report.verdict.reasons)
        state = decided([(slo.state, against_of(slo)) for slo in report.slo], report.requests.ok)
        twice, self._limited = limited and self._limited, limited
        self._held = state == "PASS"
        if limited:  # a disturbance at the start may still become a small part of the run
            return "until" if twice else None
        return "slo" if state == "FAIL" else "until" if self._held else None
