"""The long-lived parent of `lens probe`. It measures nothing itself.

It cuts time into runs, each with a directory of its own in the history (`probe_run`), and hands over from one to the next
without a gap: at the turn of every `rotate`, at local midnight (budgets are per day), and when SIGHUP brought a new plan.
A killed run is recovered. Beside that it reports to the service manager, judges alerts, feeds the exporters and keeps the
history within its retention.
"""

from __future__ import annotations

import contextlib
import datetime
import select
import shutil
import signal
import subprocess
from pathlib import Path
from time import monotonic_ns, time_ns
from typing import Final

import msgspec

from ...collectors.snapshot import REPORT_DECODER
from ...engine.errors import LensError, PlanError
from ...engine.files import UNDECODABLE
from ...engine.load.timetable import is_quiet
from ...engine.plan.plan import SECOND, Plan
from ...engine.runs.interrupts import Interrupts
from ...engine.runs.manifest import SEGMENTS, read_manifest
from ...engine.runs.notify import Notifier
from ...engine.runs.placement import geometry_of
from ...engine.runs.rundir import INTERVALS, LIVE_REPORT, SUMMARY, run_id_of
from ...engine.workload import source_of
from ...exporters.backoff import backoff_s
from ...exporters.history import HISTORY
from ..launch import budget_prices
from ..options import plan_from
from ..processes.export import check_exports, exporter_of
from .alerts import AlertWatch
from .probe_run import (
    LEAD_NS,
    STOP_NS,
    ProbeRun,
    begun_ns,
    day_of,
    end_of,
    recover,
    run_plan,
    say,
    spent_in,
    with_budget,
)
from .run_process import RunOrder

SPIN_UP_NS: Final = 3 * SECOND // 2  # from the start of the first run to its begin
BACKOFF_MAX_S: Final = 60.0  # between the starts of runs that fail
HANG_NS: Final = 5 * SECOND  # without progress
STATUS_NS: Final = 5 * SECOND
TIDY_NS: Final = 30 * SECOND
TURN_S: Final = 0.2


def checked_plan(path: str, running: Plan | None = None) -> Plan:
    """The plan, with everything checked that does not need its targets to be up. Raises LensError.

    `running`: the plan that it is to replace, whose exporters hold their ports now.
    """
    plan = plan_from(path, {})
    if plan.workers.count is None:  # one is plenty for a probe
        plan = msgspec.structs.replace(plan, workers=msgspec.structs.replace(plan.workers, count=1))
    daily_usd = plan.probe.daily_budget_usd
    budget_prices(plan if daily_usd is None else with_budget(plan, daily_usd))
    next(iter(source_of(plan, seed=plan.seed).items(0, 1)))
    if plan.hosts.count:
        raise PlanError("lens probe asks from one machine; leave `hosts` out, or start it on each of them")
    geometry_of(plan, plan.workers.count or 1)
    for warning in check_exports(plan, plan.name, running=running):
        say("warning", warning)
    return plan


class Prober:
    """`run()` blocks until a signal ends it; returns the exit code."""

    def __init__(self, plan_path: str, plan: Plan, folder: Path, interrupts: Interrupts) -> None:
        self.plan_path = plan_path
        self.plan = plan
        self.history = folder / HISTORY
        self.interrupts = interrupts
        self.signals_seen = 0
        self.notifier = Notifier()
        self.alerts = AlertWatch(folder)
        self.running: list[ProbeRun] = []  # the last one is, or will be, the current one
        self.ready = False
        self.first = True
        self.spent: dict[str, float] = {}  # USD of finished runs by local day
        self.not_before_ns = 0  # wall time of the next start
        self.failures = 0
        self.hanging = ""
        self.old_exporters: list[subprocess.Popen[bytes]] = []
        self.backlog: list[Path] = []
        self._due: dict[str, int] = {}

    def run(self) -> int:
        self.history.mkdir(mode=0o700, exist_ok=True)
        try:
            self._resume()
            while True:
                if (number := self._signalled()) is not None:
                    return self._stop(number)
                self._turn()
                self._sleep()
        finally:
            self._kill()

    def _sleep(self) -> None:
        """Until the next turn, or a signal."""
        if select.select([self.interrupts.fd], [], [], TURN_S)[0]:
            self.interrupts.clear()

    def _signalled(self) -> int | None:
        """Serves SIGHUP; returns the signal that ends the probe."""
        while self.signals_seen < len(self.interrupts.numbers):
            number = self.interrupts.numbers[self.signals_seen]
            self.signals_seen += 1
            if number != signal.SIGHUP:
                return number
            self._reload()
        return None

    def _turn(self) -> None:
        wall = time_ns()
        self._reap(wall)
        self._hand_over(wall)
        self._export()
        if not self.ready and self._succeeded():
            self.ready = True
            self.notifier.ready()
            say("notice", f"probing {', '.join(target.name for target in self.plan.targets)}")
        if self._is_due("judge", SECOND):
            self.alerts.judge(self.running, wall)
        limit = min(HANG_NS, max(SECOND, self.notifier.watchdog_ns // 2 or HANG_NS))
        if self._is_due("watch", min(SECOND, self.notifier.watchdog_ns // 4 or SECOND)):
            self._watch(wall, limit)
        if self._is_due("status", STATUS_NS):
            self.notifier.status(self._status(wall))
        if self._is_due("tidy", TIDY_NS):
            self._tidy(wall)

    def _is_due(self, what: str, every_ns: int) -> bool:
        now = monotonic_ns()
        if now < self._due.get(what, 0):
            return False
        self._due[what] = now + every_ns
        return True

    # --- runs -----------------------------------------------------------------------------------------------------

    def _hand_over(self, wall: int) -> None:
        """Starts the next run in time for it to begin where the current one ends."""
        current = self.running[-1] if self.running else None
        if wall < self.not_before_ns:
            return
        if current is None:
            self._start(wall + SPIN_UP_NS)
        elif wall >= current.ends_ns - LEAD_NS:
            self._start(current.ends_ns)

    def _start(self, starts_ns: int) -> None:
        plan = self.plan
        budget = plan.probe.daily_budget_usd
        left = None if budget is None else budget - self._spent_on(starts_ns) - self._in_flight_usd()
        if left is not None and left <= 0:
            if not self.running:
                self._pause(starts_ns)
            return
        ends_ns = end_of(starts_ns, plan.probe.rotate_ns, daily=budget is not None)
        plan = run_plan(plan, self.history, starts_ns, ends_ns, at_once=self.first, budget_usd=left)
        self.running.append(ProbeRun(RunOrder(plan, run_id_of(plan.name), starts_ns), ends_ns))
        self.first = False

    def _pause(self, wall: int) -> None:
        self.not_before_ns = end_of(wall, 1 << 62, daily=True)
        say("notice", f"today's budget of {self.plan.probe.daily_budget_usd:g} USD is spent; going on at midnight")
        self._be_ready()

    def _be_ready(self) -> None:
        """There is nothing to probe now, and that is in order."""
        if not self.ready:
            self.ready = True
            self.notifier.ready()

    def _reap(self, wall: int) -> None:
        for each in [each for each in self.running if each.process.poll() is not None]:
            self.running.remove(each)
            self._ended(each, wall)

    def _ended(self, run: ProbeRun, wall: int) -> None:
        run.close()
        if run.follower:
            run.follower.follow()
        summary = run.run_dir / SUMMARY
        if run.run_dir.exists() and not summary.exists():  # a run that never began has removed its directory
            recover(run.run_dir)
        if run.exporter is not None:
            self.old_exporters.append(run.exporter)
        day = day_of(run.starts_ns)
        self.spent[day] = self.spent.get(day, 0.0) + spent_in(run.run_dir)
        if run.process.returncode == 0:
            self.failures = 0
            if not self.running and "budget" in REPORT_DECODER.decode(summary.read_bytes()).requests.unsent:
                self._pause(wall)
            return
        self.failures += 1
        pause_s = backoff_s(self.failures, first_s=2.0, most_s=BACKOFF_MAX_S)
        self.not_before_ns = wall + round(pause_s * SECOND)
        say("error", f"a run ended with exit code {run.process.returncode}; the next in {pause_s:.1f} s")

    def _spent_on(self, wall: int) -> float:
        """USD spent on the local day of `wall`, by finished and running runs."""
        day = day_of(wall)
        running = (each.snapshot() for each in self.running if day_of(each.starts_ns) == day)
        return self.spent.get(day, 0.0) + sum(each.cost_usd_total or 0.0 for each in running if each)

    def _in_flight_usd(self) -> float:
        """What the current run may still spend until it has handed over, at its dearest request so far."""
        total = 0.0
        for each in self.running:
            with contextlib.suppress(OSError, *UNDECODABLE):
                report = REPORT_DECODER.decode((each.segments / LIVE_REPORT).read_bytes())
                dearest = report.metrics["cost_usd"].max if "cost_usd" in report.metrics else None
                rate = (report.requests.sent / report.run.duration_s) if report.run.duration_s else 0.0
                total += (dearest or 0.0) * (report.requests.in_flight_at_end + rate * LEAD_NS / SECOND + 1)
        return total

    def _succeeded(self) -> bool:
        """Has a probe succeeded, or is there none to wait for?"""
        snapshots = [snapshot for each in self.running if (snapshot := each.snapshot())]
        return any(snapshot.ok_total for snapshot in snapshots) or (bool(snapshots) and self._quiet())

    def _quiet(self) -> bool:
        tables = self.plan.probe.timetables
        return bool(tables) and all(is_quiet(table, time_ns()) for table in tables)

    # --- reload, stop -----------------------------------------------------------------------------------------------

    def _reload(self) -> None:
        """A new plan takes over where the old one stops; a wrong one is refused.

        Only a plan that was read completely replaces the old one: whatever else comes of reading it, also an error in
        this program or a library, is no reason to end a measurement of months.
        """
        self.notifier.reloading()
        try:
            plan = checked_plan(self.plan_path, running=self.plan)
        except Exception as error:
            reason = str(error) if isinstance(error, LensError) else f"{type(error).__name__}: {error}"
            say("error", f"the new plan is refused, the old one goes on: {reason}")
            self.notifier.status(f"reload refused: {reason}")
            self._due["status"] = monotonic_ns() + 12 * STATUS_NS
        else:
            self.plan = plan
            self._begin_alerts()
            turn = time_ns() + LEAD_NS
            for each in self.running:
                each.end_at(turn)
            self.not_before_ns = 0
            say("notice", "the new plan takes over" if self.running else "the new plan starts")
        if self.ready:
            self.notifier.ready()

    def _stop(self, number: int) -> int:
        """Ends the runs with their summaries written; what does not end in time is killed and recovered next time."""
        self.notifier.stopping()
        for each in self.running:
            each.end_at(time_ns())
        end = monotonic_ns() + min(STOP_NS, self.plan.limits.drain_ns + STOP_NS // 3)
        while self.running and monotonic_ns() < end and self.signals_seen == len(self.interrupts.numbers):
            self._reap(time_ns())
            if self._is_due("watch", SECOND):
                self.notifier.alive()
            self._sleep()
        self.alerts.judge(self.running, time_ns())
        self.alerts.close()
        self._end_exporters()
        return 0 if number == signal.SIGTERM else 130

    def _end_exporters(self) -> None:
        """A moment to deliver the last ticks; the rest follows after the next start."""
        for process in self.old_exporters:
            try:
                process.wait(3.0)
            except subprocess.TimeoutExpired:
                process.terminate()

    def _kill(self) -> None:
        for each in self.running:
            each.process.kill()
            each.process.wait()
            each.close()
        for process in [*self.old_exporters, *(e.exporter for e in self.running if e.exporter)]:
            process.terminate()
            process.wait()

    # --- what survives a restart ------------------------------------------------------------------------------------

    def _resume(self) -> None:
        """Recovers runs that died with an earlier probe; finds today's spend and the alerts."""
        self._recover_dead()
        today = day_of(time_ns())
        for run_dir in self._runs():
            if day_of(begun_ns(run_dir)) == today:
                self.spent[today] = self.spent.get(today, 0.0) + spent_in(run_dir)
        self.backlog = self._runs() if self.plan.export else []
        self._begin_alerts()

    def _begin_alerts(self) -> None:
        running = [each.run_dir for each in self.running]
        self.alerts.begin(self.plan, [run_dir for run_dir in self._runs() if run_dir not in running], self.running)

    def _recover_dead(self) -> None:
        for path in SEGMENTS.glob("*/run.json"):
            with contextlib.suppress(OSError, *UNDECODABLE):
                run_dir = Path(read_manifest(path.parent).run_dir)
                if run_dir.parent == self.history and run_dir not in [each.run_dir for each in self.running]:
                    recover(run_dir)

    def _runs(self) -> list[Path]:
        """The runs of the history, oldest first."""
        return sorted(path for path in self.history.iterdir() if path.is_dir() and not path.is_symlink())

    def _tidy(self, wall: int) -> None:
        self._recover_dead()
        oldest = wall - self.plan.probe.retention_ns
        current = {each.run_dir for each in self.running}
        for run_dir in self._runs():
            if run_dir not in current and run_dir.stat().st_mtime_ns < oldest:
                shutil.rmtree(run_dir, ignore_errors=True)

    # --- exporters --------------------------------------------------------------------------------------------------

    def _export(self) -> None:
        """One exporter for each current run; those of the past one at a time."""
        if not self.plan.export:
            return
        for each in self.running:
            wanted = (each.run_dir / INTERVALS).exists() and (each.exporter is None or each.exporter.poll())
            if wanted and self._is_due(f"export {each.run_dir}", STATUS_NS):
                each.exporter = exporter_of(each.plan, each.run_dir)
        self.old_exporters = [process for process in self.old_exporters if process.poll() is None]
        if self.backlog and not self.old_exporters:
            self.old_exporters.append(exporter_of(self.plan, self.backlog.pop(0)))

    # --- service manager ----------------------------------------------------------------------------------------------

    def _watch(self, wall: int, limit_ns: int) -> None:
        """Notifies the watchdog, only while every worker and collector makes progress."""
        now = monotonic_ns()
        hanging = next((who for each in self.running if (who := each.hangs(now, wall, limit_ns))), "")
        if hanging and hanging != self.hanging:
            say("error", f"{hanging} makes no progress; not notifying the watchdog, systemd will restart the service")
        self.hanging = hanging
        if not hanging:
            self.notifier.alive()

    def _status(self, wall: int) -> str:
        if self.hanging:
            return f"{self.hanging} makes no progress"
        if not self.running:
            return f"waiting until {datetime.datetime.fromtimestamp(self.not_before_ns / 1e9):%H:%M:%S}"
        snapshot = self.running[-1].snapshot() or (self.running[0].snapshot() if len(self.running) > 1 else None)
        if snapshot is None:
            return "starting"
        parts = [f"{len(self.plan.targets)} targets", f"{snapshot.ok_total} ok, {snapshot.failed_total} failed"]
        if snapshot.cost_usd_total is not None:
            parts.append(f"{self._spent_on(wall):.4f} USD today")
        if self.alerts.firing:
            parts.append(f"firing: {', '.join(self.alerts.firing)}")
        return "; ".join(parts)
