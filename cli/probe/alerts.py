"""The probe's alerts: judges them once a second over the ticks of all runs, prints changes, and sends them to webhooks."""

from __future__ import annotations

import contextlib
import datetime
import json
from collections.abc import Iterable
from pathlib import Path
from time import time_ns
from typing import Final

from ...collectors.alerts import AlertBook, Change, Window, notification
from ...engine.files import replace
from ...engine.plan.plan import SECOND, Plan
from ...engine.plan.slo import objective_of
from ...exporters.history import Follower
from ...exporters.webhook import Webhooks
from .probe_run import ProbeRun, say

STATE: Final = "alerts.json"  # in the state directory: what fires, over a restart


class AlertWatch:
    """Follows the ticks of running and past runs. `firing` survives a restart of the probe, and a new plan."""

    def __init__(self, folder: Path) -> None:
        self._state = folder / STATE
        self._webhooks = Webhooks(lambda text: say("warning", text))
        self._window, self._book = Window(0), AlertBook(())
        self._plan: Plan | None = None

    @property
    def firing(self) -> list[str]:
        """The names of the alerts that fire, sorted."""
        return sorted(self._book.firing)

    def begin(self, plan: Plan, past: Iterable[Path], running: Iterable[ProbeRun]) -> None:
        """Watches the plan's alerts from now on; what they look at of the past is read from the `past` run directories."""
        firing = self._book.firing
        if not firing:
            with contextlib.suppress(OSError, ValueError):
                firing = json.loads(self._state.read_bytes())
        self._plan = plan
        self._book = AlertBook(plan.probe.alerts, firing)
        self._window = Window(self._book.keep_ns)
        since = time_ns() - self._book.keep_ns
        for run_dir in past if plan.probe.alerts else ():
            if run_dir.stat().st_mtime_ns >= since:
                self._follower(plan, run_dir).follow()
        for run in running:
            run.follower = None

    def judge(self, running: Iterable[ProbeRun], wall_ns: int) -> None:
        """Reads what is new and reports every change."""
        plan = self._plan
        if plan is None or not plan.probe.alerts:
            return
        for run in running:
            run.follower = run.follower or self._follower(plan, run.run_dir)
            run.follower.follow()
        self._window.forget(wall_ns)
        changes = self._book.judge(self._window.value, wall_ns)
        for change in changes:
            self._report(plan, change)
        if changes:
            with contextlib.suppress(OSError):  # full disk: after a restart it may be reported again
                replace(self._state, json.dumps(self._book.firing).encode())

    def close(self) -> None:
        """Waits a moment for the webhooks under way."""
        self._webhooks.close(2.0)

    def _follower(self, plan: Plan, run_dir: Path) -> Follower:
        wanted = {objective_of(alert.when) for alert in plan.probe.alerts}
        metrics = frozenset(objective.metric for objective in wanted if objective.statistic)
        return Follower(run_dir, self._window, metrics, [target.name for target in plan.targets])

    def _report(self, plan: Plan, change: Change) -> None:
        alert = change.alert
        state = "firing" if change.firing else "resolved"
        of = f" of {alert.target}" if alert.target else ""
        say(
            "warning" if change.firing else "notice",
            f"alert {alert.name} is {state}: {alert.when}{of} over {alert.over_ns / SECOND:g} s, "
            f"now {change.value:.6g} ({change.samples} requests)",
        )
        if alert.webhook is not None:
            moment = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
            self._webhooks.send(alert.webhook, notification(change, moment, plan.name))
