"""A stretch of a probe as the probe sees it: its plan, its process, its signs of life, what it left in the history."""

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
from ...engine.plan.plan import SECOND, Load, Phase, Plan, Shape
from ...engine.records.layout import Counter
from ...engine.records.reader import SegmentReader
from ...engine.runs.manifest import SEGMENTS, Manifest, read_manifest
from ...exporters.history import Follower
from ...exporters.spool.tail import LOG
from .epoch import MOMENT_BYTES, Stretch, framed

LEAD_NS: Final = 5 * SECOND  # a stretch is started this long before it begins, so that it is ready
START_NS: Final = 40 * SECOND  # a stretch that is not ready by then hangs
STOP_NS: Final = 45 * SECOND  # for everything to end, within the unit's TimeoutStopSec
LEVELS: Final = {"error": 3, "warning": 4, "notice": 5, "info": 6}


def say(level: str, text: str) -> None:
    """One line for the journal, with its priority; for people where stderr is not the journal."""
    mark = f"<{LEVELS[level]}>" if "JOURNAL_STREAM" in os.environ else "lens: "
    print(f"{mark}{text}", file=sys.stderr, flush=True)


class Epoch:
    """One stretch: its process, where its books are, and the last sign of its collector's progress."""

    def __init__(self, stretch: Stretch, ends_ns: int) -> None:
        self.plan = stretch.plan
        self.run_dir = Path(stretch.plan.output.dir) / stretch.run_id
        self.segments = SEGMENTS / stretch.run_id
        self.starts_ns = stretch.starts_wall_ns
        self.ends_ns = ends_ns
        self.born_ns = monotonic_ns()
        self.follower: Follower | None = None
        self.exporter: subprocess.Popen[bytes] | None = None
        self._tick = -1
        self._ticked_ns = self.born_ns
        self.process = subprocess.Popen(
            [sys.executable, "-m", "llm_latency_lens.cli.probe.epoch"], stdin=subprocess.PIPE, start_new_session=True
        )
        self._write(framed(stretch))

    def end_at(self, wall_ns: int) -> None:
        """Lets the stretch issue until `wall_ns`, drain, and close its books."""
        self.ends_ns = min(self.ends_ns, wall_ns)
        self._write(wall_ns.to_bytes(MOMENT_BYTES, "little"))

    def _write(self, content: bytes) -> None:
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(content)
            self.process.stdin.flush()

    def snapshot(self) -> Snapshot | None:
        """The latest tick; None before the first and after the end."""
        try:
            return SNAPSHOT_DECODER.decode((self.segments / "snapshot.json").read_bytes())
        except (OSError, msgspec.DecodeError):
            return None

    def hangs(self, now_ns: int, wall_ns: int, limit_ns: int) -> str:
        """Who makes no progress: `worker-0`, `the collector`, `the start`, `the end`; nobody as a rule."""
        manifest = self._manifest()
        if manifest is None or manifest.state == "starting":
            return "the start" if now_ns - self.born_ns > START_NS else ""
        if wall_ns > self.ends_ns + self.plan.limits.drain_ns + STOP_NS:
            return "the end"
        snapshot = self.snapshot()
        if snapshot is not None and snapshot.tick != self._tick:
            self._tick, self._ticked_ns = snapshot.tick, now_ns
        if manifest.state == "finished":
            return ""
        silent_ns = min(now_ns - self._ticked_ns, wall_ns - self.starts_ns)
        if silent_ns > limit_ns + 2 * self.plan.output.tick_ns:
            return "the collector"
        for index in range(manifest.workers):
            if now_ns - self._heartbeat(index, now_ns) > limit_ns:
                return f"worker-{index}"
        return ""

    def _manifest(self) -> Manifest | None:
        try:
            return read_manifest(self.segments)
        except (OSError, msgspec.DecodeError):
            return None

    def _heartbeat(self, index: int, now_ns: int) -> int:
        """When a worker last showed that its loop turns, CLOCK_MONOTONIC ns."""
        lives = sorted(self.segments.glob(f"worker-{index}.*.ring"), key=lambda path: int(path.suffixes[0][1:]))
        for path in reversed(lives):
            try:
                reader = SegmentReader.open(path)
            except (LensError, OSError):
                continue  # just being made, or just drained
            beat = int(reader.counters()[Counter.HEARTBEAT_NS])
            reader.close()
            return beat
        return now_ns


def stretch_plan(
    plan: Plan, history: Path, starts_ns: int, ends_ns: int, *, at_once: bool, budget_usd: float | None
) -> Plan:
    """The plan of one stretch: one measured phase from `starts_ns` to `ends_ns`, its books in the history."""
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
        seed += starts_ns // SECOND  # other arrivals and prompts in each stretch
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
    """Where a stretch that begins at `starts_ns` ends: the next whole multiple of `rotate_ns`, or local midnight."""
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
        return REPORT_DECODER.decode((run_dir / "summary.json").read_bytes()).cost.usd or 0.0
    except (OSError, msgspec.DecodeError):
        pass
    try:
        last = (run_dir / LOG).read_bytes().rstrip(b"\n").rpartition(b"\n")[2]
        return SNAPSHOT_DECODER.decode(last).cost_usd_total or 0.0
    except (OSError, msgspec.DecodeError):
        return 0.0


def recover(run_dir: Path) -> None:
    """`lens recover`, in a process of its own: it needs what the probe itself does not."""
    done = subprocess.run(
        [sys.executable, "-m", "llm_latency_lens.cli", "recover", str(run_dir)], capture_output=True, text=True
    )
    text = (done.stderr or done.stdout).strip().rpartition("\n")[2]
    say("notice" if done.returncode == 0 else "warning", f"recovered {text}" if done.returncode == 0 else text)
