"""All that a report needs of one run directory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

from ...collectors.snapshot import Report
from ..rundir import read_report
from ..setting import Lengths, Setting, read_plan, read_setting
from .curves import Curves, exact_curves, rough_curves
from .requests import Pictures, pictures_of
from .timeline import HEATED, LATENCIES, POINTS, Timeline, read_timeline


class Run(NamedTuple):
    """`exact`: the curves come from histograms and not from bucket counts. `pictures`: None while the run goes on."""

    report: Report
    plan: str
    setting: Setting
    timeline: Timeline
    curves: Curves
    exact: bool
    pictures: Pictures | None

    @property
    def targets(self) -> list[str]:
        return [target.name for target in self.report.targets]


def read_run(run_dir: Path, *, points: int = POINTS) -> Run:
    """Raises OutputError for a directory that holds no finished run."""
    report = read_report(run_dir)
    targets = [target.name for target in report.targets]
    curves = exact_curves(run_dir, targets)
    exact = bool(curves)
    timeline = Timeline(HEATED if exact else LATENCIES, points=points)
    read_timeline(run_dir / "intervals.jsonl", timeline)
    return ended_run(run_dir, report, timeline, curves)


def ended_run(run_dir: Path, report: Report, timeline: Timeline, curves: Curves) -> Run:
    """A run with its summary, whose ticks `timeline` has; `curves` are exact, or empty."""
    setting = read_setting(run_dir, report)
    pictures = pictures_of(
        run_dir,
        targets=[target.name for target in report.targets],
        measured=[phase.name for phase in report.run.phases if phase.measured],
        edges=timeline.edges(),
        start_wall_ns=timeline.start_wall_ns,
    )
    run = Run(report, _plan(setting), setting, timeline, curves, bool(curves), pictures)
    return run if run.exact else run._replace(curves=rough_curves(timeline, run.targets))


def run_so_far(run_dir: Path, report: Report, timeline: Timeline) -> Run:
    """A run that goes on, whose ticks `timeline` has. Without curves, and without what would be read from all of its rows
    and ticks again at each tick: lengths, steps, pictures."""
    setting = Setting(read_plan(run_dir), Lengths())
    return Run(report, _plan(setting), setting, timeline, {}, exact=False, pictures=None)


def _plan(setting: Setting) -> str:
    return json.dumps(setting.plan, indent=2, ensure_ascii=False) if setting.plan else ""
