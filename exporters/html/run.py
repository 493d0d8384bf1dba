"""All that a report needs of one run directory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

from ...collectors.snapshot import Report
from ..rundir import read_report
from ..setting import Setting, read_setting
from .curves import Curves, exact_curves, rough_curves
from .requests import Pictures, pictures_of
from .timeline import HEATED, LATENCIES, POINTS, Timeline, read_timeline


class Run(NamedTuple):
    """`exact`: the curves come from histograms and not from bucket counts."""

    report: Report
    plan: str
    setting: Setting
    timeline: Timeline
    curves: Curves
    exact: bool
    pictures: Pictures

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
    setting = read_setting(run_dir, report)
    plan = json.dumps(setting.plan, indent=2, ensure_ascii=False) if setting.plan else ""
    pictures = pictures_of(
        run_dir,
        targets=targets,
        measured=[phase.name for phase in report.run.phases if phase.measured],
        edges=timeline.edges(),
        start_wall_ns=timeline.start_wall_ns,
    )
    return Run(report, plan, setting, timeline, curves or rough_curves(timeline, targets), exact, pictures)
