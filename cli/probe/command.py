"""`lens probe PLAN`: measures continuously at a low rate, for months, as a service.

The probe itself measures nothing. It cuts time into stretches, each a run of its own in the history (`cli.epoch`), and
hands over from one to the next without a gap: at the turn of every `rotate`, at local midnight (budgets are per day), and
when SIGHUP brought a new plan. A killed stretch is recovered into its books. Beside that it reports to the service
manager, judges alerts, feeds the exporters and keeps the history within its retention.
"""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import json
import os
import selectors
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from time import monotonic_ns, time_ns
from typing import Final

import click
import msgspec

from ...collectors.alerts import AlertBook, Change, Window, notification
from ...collectors.snapshot import REPORT_DECODER
from ...engine.errors import LensError, OutputError
from ...engine.plan.plan import SECOND, Plan
from ...engine.plan.slo import objective_of
from ...engine.runs.manifest import SEGMENTS, read_manifest
from ...engine.runs.notify import Notifier
from ...engine.runs.rundir import run_id_of
from ...exporters.history import HISTORY, Follower
from ...exporters.spool.tail import LOG
from ...exporters.webhook import Webhooks
from ..options import plan_from
from ..processes.export import exporter_of
from .epoch import Stretch
from .stretch import (
    LEAD_NS,
    STOP_NS,
    Epoch,
    begun_ns,
    day_of,
    end_of,
    recover,
    say,
    spent_in,
    stretch_plan,
    with_budget,
)

SPIN_UP_NS: Final = 3 * SECOND // 2  # from the start of the first stretch to its begin
BACKOFF_NS: Final = 60 * SECOND  # at most, between the starts of stretches that fail
HANG_NS: Final = 5 * SECOND  # without a sign of life
STATUS_NS: Final = 5 * SECOND
TIDY_NS: Final = 30 * SECOND
TURN_S: Final = 0.2
RESUME: Final = "alerts.json"


@click.command(short_help="Measure continuously at a low rate, as a service.")
@click.argument("plan_path", metavar="PLAN", type=click.Path())
@click.option(
    "--state-dir",
    type=click.Path(path_type=Path),
    envvar="STATE_DIRECTORY",
    help="Where history and state are kept.  [default: $STATE_DIRECTORY, or probe-NAME in the plan's output.dir]",
)
def probe(plan_path: str, state_dir: Path | None) -> int:
    """Probe the targets of PLAN until SIGTERM or Ctrl-C.

    Each target is asked once in every `probe.every` (default 30s), or as the plan's load says. SIGHUP reads the plan
    again: a wrong one is refused and the old one goes on. Under systemd: see systemd/README.md.
    """
    plan = checked_plan(plan_path)
    folder = (state_dir or Path(plan.output.dir) / f"probe-{plan.name}").absolute()
    with locked(folder):
        return Prober(plan_path, plan, folder, Notifier()).run()


def checked_plan(path: str) -> Plan:
    """The plan, with everything checked that does not need its targets to be up. Raises LensError."""
    from ...engine.runs.supervisor import geometry_of
    from ...engine.workload import source_of
    from ..processes.export import check_exports
    from ..run import budget_prices

    plan = plan_from(path, {})
    if plan.workers.count is None:  # one is plenty for a probe
        plan = msgspec.structs.replace(plan, workers=msgspec.structs.replace(plan.workers, count=1))
    if plan.probe.daily_budget_usd is not None:
        budget_prices(with_budget(plan, plan.probe.daily_budget_usd))
    next(iter(source_of(plan, seed=plan.seed).items(0, 1)))
    geometry_of(plan, plan.workers.count or 1)
    for warning in check_exports(plan, plan.name):
        say("warning", warning)
    return plan


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """The state directory, for this process alone. Raises OutputError."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with (folder / "lock").open("wb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield
    except BlockingIOError as error:
        raise OutputError(f"another probe works in {folder}; give each its own --state-dir") from error
    except PermissionError as error:
        raise OutputError(f"cannot write the state directory {folder}: {error.strerror}; see --state-dir") from error


class Prober:
    """The long-lived parent. `run()` blocks until a signal ends it; gives the exit code."""

    def __init__(self, plan_path: str, plan: Plan, folder: Path, notifier: Notifier) -> None:
        self.plan_path = plan_path
        self.plan = plan
        self.folder = folder
        self.history = folder / HISTORY
        self.notifier = notifier
        self.epochs: list[Epoch] = []  # the last one is, or will be, the current one
        self.signals: list[int] = []
        self.ready = False
        self.first = True
        self.spent: dict[str, float] = {}  # USD of finished stretches by local day
        self.not_before_ns = 0  # wall time; of the next start
        self.failures = 0
        self.hanging = ""
        self.webhooks = Webhooks(lambda text: say("warning", text))
        self.window, self.alerts = Window(0), AlertBook(())
        self.old_exporters: list[subprocess.Popen[bytes]] = []
        self.backlog: list[Path] = []
        self._due: dict[str, int] = {}
        self._wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    def run(self) -> int:
        self.history.mkdir(mode=0o700, exist_ok=True)
        watched = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        previous = {number: signal.signal(number, lambda n, _: self.signals.append(n)) for number in watched}
        wakeup = signal.set_wakeup_fd(self._wake[1], warn_on_full_buffer=False)
        try:
            self._resume()
            with selectors.DefaultSelector() as selector:
                selector.register(self._wake[0], selectors.EVENT_READ)
                while True:
                    if (number := self._signalled()) is not None:
                        return self._stop(selector, number)
                    self._turn()
                    if selector.select(TURN_S):
                        os.read(self._wake[0], 4096)
        finally:
            self._kill()
            signal.set_wakeup_fd(wakeup)
            for number, action in previous.items():
                signal.signal(number, action)
            os.close(self._wake[0])
            os.close(self._wake[1])

    def _signalled(self) -> int | None:
        """Serves SIGHUP; gives the signal that ends the probe."""
        while self.signals:
            number = self.signals.pop(0)
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
            self._judge(wall)
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

    # --- stretches ------------------------------------------------------------------------------------------------

    def _hand_over(self, wall: int) -> None:
        """Starts the next stretch in time for it to begin where the current one ends."""
        current = self.epochs[-1] if self.epochs else None
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
            if not self.epochs:
                self._pause(starts_ns)
            return
        ends_ns = end_of(starts_ns, plan.probe.rotate_ns, daily=budget is not None)
        plan = stretch_plan(plan, self.history, starts_ns, ends_ns, at_once=self.first, budget_usd=left)
        self.epochs.append(Epoch(Stretch(plan, run_id_of(plan.name), starts_ns), ends_ns))
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
        for epoch in [each for each in self.epochs if each.process.poll() is not None]:
            self.epochs.remove(epoch)
            self._ended(epoch, wall)

    def _ended(self, epoch: Epoch, wall: int) -> None:
        assert epoch.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            epoch.process.stdin.close()
        if epoch.follower:
            epoch.follower.follow()
        summary = epoch.run_dir / "summary.json"
        if not summary.exists():
            recover(epoch.run_dir)
        if epoch.exporter is not None:
            self.old_exporters.append(epoch.exporter)
        day = day_of(epoch.starts_ns)
        self.spent[day] = self.spent.get(day, 0.0) + spent_in(epoch.run_dir)
        if epoch.process.returncode == 0:
            self.failures = 0
            if not self.epochs and "budget" in REPORT_DECODER.decode(summary.read_bytes()).requests.unsent:
                self._pause(wall)
            return
        self.failures += 1
        pause = min(BACKOFF_NS, SECOND << min(self.failures, 6))
        self.not_before_ns = wall + pause
        say("error", f"a stretch ended with exit code {epoch.process.returncode}; the next in {pause / SECOND:g} s")

    def _spent_on(self, wall: int) -> float:
        """USD spent on the local day of `wall`, by finished and running stretches."""
        day = day_of(wall)
        running = (each.snapshot() for each in self.epochs if day_of(each.starts_ns) == day)
        return self.spent.get(day, 0.0) + sum(each.cost_usd_total or 0.0 for each in running if each)

    def _in_flight_usd(self) -> float:
        """What the running stretch may still spend until it has handed over, at its dearest request so far."""
        total = 0.0
        for epoch in self.epochs:
            with contextlib.suppress(OSError, msgspec.DecodeError):
                report = REPORT_DECODER.decode((epoch.segments / "report.json").read_bytes())
                dearest = report.metrics["cost_usd"].max if "cost_usd" in report.metrics else None
                rate = (report.requests.sent / report.run.duration_s) if report.run.duration_s else 0.0
                total += (dearest or 0.0) * (report.requests.in_flight_at_end + rate * LEAD_NS / SECOND + 1)
        return total

    def _succeeded(self) -> bool:
        """Has a probe succeeded, or is there none to wait for?"""
        snapshots = [snapshot for epoch in self.epochs if (snapshot := epoch.snapshot())]
        return any(snapshot.ok_total for snapshot in snapshots) or (bool(snapshots) and self._quiet())

    def _quiet(self) -> bool:
        from ...engine.load.timetable import is_quiet

        tables = self.plan.probe.timetables
        return bool(tables) and all(is_quiet(table, time_ns()) for table in tables)

    # --- reload, stop -----------------------------------------------------------------------------------------------

    def _reload(self) -> None:
        """A new plan takes over where the old one stops; a wrong one is refused."""
        self.notifier.reloading()
        try:
            plan = checked_plan(self.plan_path)
        except LensError as error:
            say("error", f"the new plan is refused, the old one goes on: {error}")
            self.notifier.status(f"reload refused: {error}")
            self._due["status"] = monotonic_ns() + 12 * STATUS_NS
        else:
            self.plan = plan
            self._watch_alerts()
            turn = time_ns() + LEAD_NS
            while self.epochs and self.epochs[-1].starts_ns >= turn:  # it has not begun: it never will
                self.epochs.pop().process.kill()
            for epoch in self.epochs:
                epoch.end_at(turn)
            self.not_before_ns = 0
            say("notice", "the new plan takes over" if self.epochs else "the new plan starts")
        if self.ready:
            self.notifier.ready()

    def _stop(self, selector: selectors.BaseSelector, number: int) -> int:
        """Ends the stretches with their books closed; what does not end in time is killed and recovered next time."""
        self.notifier.stopping()
        for epoch in self.epochs:
            epoch.end_at(time_ns())
        end = monotonic_ns() + min(STOP_NS, self.plan.limits.drain_ns + STOP_NS // 3)
        while self.epochs and monotonic_ns() < end and not self.signals:
            self._reap(time_ns())
            if self._is_due("watch", SECOND):
                self.notifier.alive()
            if selector.select(TURN_S):
                os.read(self._wake[0], 4096)
        self._judge(time_ns())
        self.webhooks.close(2.0)
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
        for epoch in self.epochs:
            epoch.process.kill()
            epoch.process.wait()
            if epoch.process.stdin is not None:
                with contextlib.suppress(BrokenPipeError):
                    epoch.process.stdin.close()
        for process in [*self.old_exporters, *(e.exporter for e in self.epochs if e.exporter)]:
            process.terminate()
            process.wait()

    # --- what survives a restart ------------------------------------------------------------------------------------

    def _resume(self) -> None:
        """Finishes the books of stretches that died with an earlier probe; finds today's spend and the alerts."""
        self._recover_dead()
        today = day_of(time_ns())
        for run_dir in self._runs():
            if day_of(begun_ns(run_dir)) == today:
                self.spent[today] = self.spent.get(today, 0.0) + spent_in(run_dir)
        self.backlog = self._runs() if self.plan.export else []
        self._watch_alerts()

    def _recover_dead(self) -> None:
        for path in SEGMENTS.glob("*/run.json"):
            with contextlib.suppress(OSError, msgspec.DecodeError):
                run_dir = Path(read_manifest(path.parent).run_dir)
                if run_dir.parent == self.history and run_dir not in [epoch.run_dir for epoch in self.epochs]:
                    recover(run_dir)

    def _runs(self) -> list[Path]:
        """The runs of the history, oldest first."""
        return sorted(path for path in self.history.iterdir() if path.is_dir() and not path.is_symlink())

    def _tidy(self, wall: int) -> None:
        self._recover_dead()
        oldest = wall - self.plan.probe.retention_ns
        current = {epoch.run_dir for epoch in self.epochs}
        for run_dir in self._runs():
            if run_dir not in current and run_dir.stat().st_mtime_ns < oldest:
                shutil.rmtree(run_dir, ignore_errors=True)

    # --- alerts -------------------------------------------------------------------------------------------------------

    def _watch_alerts(self) -> None:
        """The plan's alerts, with what of the past they look at read from the history."""
        firing = self.alerts.firing
        if not firing:
            with contextlib.suppress(OSError, ValueError):
                firing = json.loads((self.folder / RESUME).read_bytes())
        self.alerts = AlertBook(self.plan.probe.alerts, firing)
        self.window = Window(self.alerts.keep_ns)
        since = time_ns() - self.alerts.keep_ns
        for run_dir in self._runs() if self.plan.probe.alerts else ():
            if run_dir.stat().st_mtime_ns >= since and run_dir not in [epoch.run_dir for epoch in self.epochs]:
                self._follower(run_dir).follow()
        for epoch in self.epochs:
            epoch.follower = None

    def _follower(self, run_dir: Path) -> Follower:
        wanted = {objective_of(alert.when) for alert in self.plan.probe.alerts}
        metrics = frozenset(objective.metric for objective in wanted if objective.statistic)
        return Follower(run_dir, self.window, metrics, [target.name for target in self.plan.targets])

    def _judge(self, wall: int) -> None:
        if not self.plan.probe.alerts:
            return
        for epoch in self.epochs:
            epoch.follower = epoch.follower or self._follower(epoch.run_dir)
            epoch.follower.follow()
        self.window.forget(wall)
        changes = self.alerts.judge(self.window.value, wall)
        for change in changes:
            self._tell(change)
        if changes:
            temporary = self.folder / f".{RESUME}"
            temporary.write_text(json.dumps(self.alerts.firing))
            temporary.replace(self.folder / RESUME)

    def _tell(self, change: Change) -> None:
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
            self.webhooks.send(alert.webhook, notification(change, moment, self.plan.name))

    # --- exporters --------------------------------------------------------------------------------------------------

    def _export(self) -> None:
        """One exporter for each running stretch; those of the past one at a time."""
        if not self.plan.export:
            return
        for epoch in self.epochs:
            wanted = (epoch.run_dir / LOG).exists() and (epoch.exporter is None or epoch.exporter.poll())
            if wanted and self._is_due(f"export {epoch.run_dir}", STATUS_NS):
                epoch.exporter = exporter_of(epoch.plan, epoch.run_dir)
        self.old_exporters = [process for process in self.old_exporters if process.poll() is None]
        if self.backlog and not self.old_exporters:
            self.old_exporters.append(exporter_of(self.plan, self.backlog.pop(0)))

    # --- service manager ----------------------------------------------------------------------------------------------

    def _watch(self, wall: int, limit_ns: int) -> None:
        """A sign of life, only while everybody makes progress."""
        now = monotonic_ns()
        hanging = next((who for epoch in self.epochs if (who := epoch.hangs(now, wall, limit_ns))), "")
        if hanging and hanging != self.hanging:
            say("error", f"{hanging} makes no progress; the watchdog is left to bark")
        self.hanging = hanging
        if not hanging:
            self.notifier.alive()

    def _status(self, wall: int) -> str:
        if self.hanging:
            return f"{self.hanging} makes no progress"
        if not self.epochs:
            return f"waiting until {datetime.datetime.fromtimestamp(self.not_before_ns / 1e9):%H:%M:%S}"
        snapshot = self.epochs[-1].snapshot() or (self.epochs[0].snapshot() if len(self.epochs) > 1 else None)
        if snapshot is None:
            return "starting"
        parts = [f"{len(self.plan.targets)} targets", f"{snapshot.ok_total} ok, {snapshot.failed_total} failed"]
        if snapshot.cost_usd_total is not None:
            parts.append(f"{self._spent_on(wall):.4f} USD today")
        if self.alerts.firing:
            parts.append(f"firing: {', '.join(sorted(self.alerts.firing))}")
        return "; ".join(parts)
