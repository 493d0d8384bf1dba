"""A run of a probe as the probe sees it: its plan, its process, whether it makes progress, what it left in the history."""

from __future__ import annotations

import contextlib
import datetime
import os
import subprocess
import sys
from pathlib import Path
from time import localtime, mktime, monotonic_ns
from typing import Final

import msgspec

from ...collectors.snapshot import REPORT_DECODER, SNAPSHOT_DECODER, Snapshot
from ...engine.errors import LensError
from ...engine.files import UNDECODABLE
from ...engine.frames import frame
from ...engine.plan.plan import SECOND, Load, Phase, Plan, Shape
from ...engine.records.layout import Counter, State
from ...engine.records.reader import SegmentReader
from ...engine.runs.manifest import SEGMENTS, read_manifest
from ...engine.runs.rundir import INTERVALS, SNAPSHOT, SUMMARY
from ...exporters.history import Follower
from .run_process import MOMENT_BYTES, RunOrder

LEAD_NS: Final = 5 * SECOND  # a run is started this long before it begins, so that it is ready
START_NS: Final = 40 * SECOND  # a run that is not ready by then hangs
STOP_NS: Final = 45 * SECOND  # for everything to end, within the unit's TimeoutStopSec
LEVELS: Final = {"error": 3, "warning": 4, "notice": 5, "info": 6}


def say(level: str, text: str) -> None:
    """One line for the journal, with its priority; for people where stderr is not the journal."""
    mark = f"<{LEVELS[level]}>" if "JOURNAL_STREAM" in os.environ else "lens: "
    print(f"{mark}{text}", file=sys.stderr, flush=True)


class ProbeRun:
    """One run: its process, where its files are, and whether it makes progress."""

    def __init__(self, order: RunOrder, ends_ns: int) -> None:
        self.plan = order.plan
        self.run_dir = Path(order.plan.output.dir) / order.run_id
        self.segments = SEGMENTS / order.run_id
        self.starts_ns = order.starts_wall_ns
        self.ends_ns = ends_ns
        self.follower: Follower | None = None
        self.exporter: subprocess.Popen[bytes] | None = None
        self._progress = Progress(self.segments)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "llm_latency_lens.cli.probe.run_process"],
            stdin=subprocess.PIPE,
            start_new_session=True,
        )
        self._write(frame(order))

    def end_at(self, wall_ns: int) -> None:
        """Has the run send until `wall_ns`, drain, and write its summary."""
        self.ends_ns = min(self.ends_ns, wall_ns)
        self._write(wall_ns.to_bytes(MOMENT_BYTES, "little"))

    def _write(self, content: bytes) -> None:
        if self.process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self.process.stdin.write(content)
                self.process.stdin.flush()

    def close(self) -> None:
        """Closes the pipe of a process that has ended; before that its run would end."""
        if self.process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self.process.stdin.close()

    def snapshot(self) -> Snapshot | None:
        """The latest tick; None before the first and after the end."""
        return latest_tick(self.segments)

    def hangs(self, now_ns: int, wall_ns: int, limit_ns: int) -> str:
        """Who makes no progress: `worker-0`, `the collector`, `the start`, `the end`; empty as a rule."""
        if wall_ns > self.ends_ns + self.plan.limits.drain_ns + STOP_NS:
            return "the end"
        waiting_ns = wall_ns - self.starts_ns
        return self._progress.hangs(now_ns, limit_ns, tick_ns=self.plan.output.tick_ns, since_start_ns=waiting_ns)


class Progress:
    """When the workers and the collector of a run last showed that they go on, from what they write into its segments.

    A sign that is not there yet is not a missing one: the first heartbeat comes 100 ms after a ring was made, and a ring
    is not made yet when its worker is being replaced. Such a worker has as long as any other from when we saw it so.
    """

    def __init__(self, segments: Path) -> None:
        self._segments = segments
        self._started_ns = monotonic_ns()
        self._tick = -1
        self._ticked_ns = self._started_ns
        self._rings: dict[
            int, tuple[Path | None, int]
        ] = {}  # of each worker: its newest ring, and when we first saw it

    def hangs(self, now_ns: int, limit_ns: int, *, tick_ns: int, since_start_ns: int) -> str:
        """Who makes no progress: `worker-0`, `the collector`, `the start`; empty as a rule. Times are CLOCK_MONOTONIC;
        `since_start_ns` is how long ago the run's phase began."""
        try:
            manifest = read_manifest(self._segments)
        except (OSError, *UNDECODABLE):
            manifest = None
        if manifest is None or manifest.state == "starting":
            return "the start" if now_ns - self._started_ns > START_NS else ""
        snapshot = latest_tick(self._segments)
        if snapshot is not None and snapshot.tick != self._tick:
            self._tick, self._ticked_ns = snapshot.tick, now_ns
        if manifest.state == "finished":
            return ""
        if min(now_ns - self._ticked_ns, since_start_ns) > limit_ns + 2 * tick_ns:
            return "the collector"
        late = (each for each in range(manifest.workers) if now_ns - self._last_sign_ns(each, now_ns) > limit_ns)
        return next((f"worker-{index}" for index in late), "")

    def _last_sign_ns(self, index: int, now_ns: int) -> int:
        """When the worker last showed that its loop turns: a heartbeat, or that its ring was made."""
        rings = sorted(self._segments.glob(f"worker-{index}.*.ring"), key=lambda path: int(path.suffixes[0][1:]))
        newest = rings[-1] if rings else None
        if index not in self._rings or self._rings[index][0] != newest:
            self._rings[index] = newest, now_ns
        seen_ns = self._rings[index][1]
        if newest is None:
            return seen_ns
        try:
            reader = SegmentReader.open(newest)
        except (LensError, OSError):
            return seen_ns  # just being made, or just drained
        beat_ns = int(reader.counters()[Counter.HEARTBEAT_NS])
        done = reader.state == State.DONE
        reader.close()
        return now_ns if done else max(beat_ns, seen_ns)


def latest_tick(segments: Path) -> Snapshot | None:
    """The latest tick of a run; None before the first and after the end."""
    try:
        return SNAPSHOT_DECODER.decode((segments / SNAPSHOT).read_bytes())
    except (OSError, *UNDECODABLE):
        return None


def run_plan(
    plan: Plan, history: Path, starts_ns: int, ends_ns: int, *, at_once: bool, budget_usd: float | None
) -> Plan:
    """The plan of one run: one measured phase from `starts_ns` to `ends_ns`, its files in the history."""
    length = ends_ns - starts_ns
    tables = plan.probe.timetables
    load: Load = next(phase for phase in plan.phases if phase.measure).load
    seed = plan.seed
    if tables:
        rate = sum(SECOND / table.every_ns for table in tables)
        flat = (Shape(duration_ns=length, start=rate, end=rate),)
        load = Load(model="probe", shapes=flat, timetables=tables, origin_wall_ns=starts_ns, at_once=at_once)
    elif load.model != "replay":
        level = load.shapes[-1].end
        load = msgspec.structs.replace(load, shapes=(Shape(duration_ns=length, start=level, end=level),))
        seed += starts_ns // SECOND  # other arrivals and prompts in each run
    plan = msgspec.structs.replace(
        plan,
        phases=(Phase(name="probe", load=load, duration_ns=length),),
        output=msgspec.structs.replace(plan.output, dir=str(history)),
        seed=seed,
    )
    return plan if budget_usd is None else with_budget(plan, budget_usd)


def with_budget(plan: Plan, usd: float) -> Plan:
    """The plan with at most `usd` to spend."""
    budget = min(usd, plan.limits.budget_usd or usd)
    return msgspec.structs.replace(plan, limits=msgspec.structs.replace(plan.limits, budget_usd=budget))


def end_of(starts_ns: int, rotate_ns: int, *, daily: bool) -> int:
    """Where a run that begins at `starts_ns` ends: the next multiple of `rotate_ns`, or local midnight."""
    ends = (starts_ns // rotate_ns + 1) * rotate_ns
    if ends - starts_ns < 2 * LEAD_NS:  # too short to be worth a run
        ends += rotate_ns
    if not daily:
        return ends
    day = localtime(starts_ns // SECOND)
    midnight = int(mktime((day.tm_year, day.tm_mon, day.tm_mday + 1, 0, 0, 0, 0, 0, -1))) * SECOND
    return min(ends, midnight)


def day_of(wall_ns: int) -> str:
    """The local day, for budgets."""
    return datetime.datetime.fromtimestamp(wall_ns // SECOND).date().isoformat()


def begun_ns(run_dir: Path) -> int:
    """When a run of the history began, from its name; 0 if it is none."""
    try:
        moment = datetime.datetime.strptime(run_dir.name.partition("-")[0], "%Y%m%dT%H%M%SZ")
    except ValueError:
        return 0
    return int(moment.replace(tzinfo=datetime.UTC).timestamp()) * SECOND


def spent_in(run_dir: Path) -> float:
    """USD of a run: from its summary, or its last tick if it has none."""
    try:
        return REPORT_DECODER.decode((run_dir / SUMMARY).read_bytes()).cost.usd or 0.0
    except (OSError, *UNDECODABLE):
        pass
    try:
        last = (run_dir / INTERVALS).read_bytes().rstrip(b"\n").rpartition(b"\n")[2]
        return SNAPSHOT_DECODER.decode(last).cost_usd_total or 0.0
    except (OSError, *UNDECODABLE):
        return 0.0


def recover(run_dir: Path) -> None:
    """`lens recover`, in a process of its own: it needs what the probe itself does not."""
    done = subprocess.run(
        [sys.executable, "-m", "llm_latency_lens.cli", "recover", str(run_dir)], capture_output=True, text=True
    )
    text = (done.stderr or done.stdout).strip().rpartition("\n")[2]
    say("notice" if done.returncode == 0 else "warning", f"recovered {text}" if done.returncode == 0 else text)
