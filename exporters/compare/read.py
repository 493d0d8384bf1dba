"""The run directories of a comparison, and why they may not be comparable."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from ...collectors.host import identity
from ...collectors.snapshot import Report, TargetReport
from ...engine.errors import OutputError, PlanError
from ...engine.runs.rundir import LIVE, PLAN
from ..rundir import finished, read_report

# Keys of a plan's workload that change nothing about the requests that are sent.
_NO_WORKLOAD: Final = ("salt", "keep_replies", "calibration", "count_tokens")
_OF_TARGETS: Final = ("parameters", "stream", "system")
_SHOWN: Final = 4  # differences named in one message


class RunDirectory(NamedTuple):
    """A finished run: its summary and its plan as plan.json has it."""

    path: Path
    report: Report
    plan: Mapping[str, Any]

    def target(self, name: str) -> TargetReport | None:
        return next((each for each in self.report.targets if each.name == name), None)


def read_run(path: Path) -> RunDirectory:
    """Raises PlanError for what is no run directory, OutputError for a run that is not finished or is damaged."""
    if (path / "sweep.json").exists():
        raise PlanError(
            f"{path} is the directory of a sweep; both sides must be sweeps, or two of their run directories"
        )
    if not path.is_dir():
        raise PlanError(f"{path} is not a directory; give run directories, such as runs/latest")
    if not finished(path) and (path / LIVE).is_symlink():
        raise OutputError(f"{path} is not finished; wait for its end, or if it was killed: lens recover {path}")
    report = read_report(path)
    try:
        plan = json.loads((path / PLAN).read_bytes())
    except (OSError, ValueError) as error:
        raise OutputError(f"{path / 'plan.json'} cannot be read: {error}") from None
    if not isinstance(plan, dict):
        raise OutputError(f"{path / 'plan.json'} is damaged: it holds no plan")
    if not report.requests.ok:
        raise OutputError(f"{path} has no successful request: there is nothing to compare")
    return RunDirectory(path, report, plan)


def differences(runs: Sequence[RunDirectory]) -> list[str]:
    """What of load, workload and host differs between the first run and any other; empty if they are comparable."""
    found: dict[str, str] = {}
    first = _traits(runs[0])
    for run in runs[1:]:
        other = _traits(run)
        for name in (*first, *(name for name in other if name not in first)):
            if first.get(name) != other.get(name) and name not in found:
                here, there = _shown(first.get(name)), _shown(other.get(name))
                found[name] = f"{name}: {here} in {runs[0].path.name}, {there} in {run.path.name}"
    lines = list(found.values())
    return lines if len(lines) <= _SHOWN else [*lines[:_SHOWN], f"and {len(lines) - _SHOWN} more"]


def _traits(run: RunDirectory) -> dict[str, Any]:
    """What has to be equal, by a name for people."""
    plan = run.plan
    traits: dict[str, Any] = {"load model": run.report.run.load}
    measured = [phase for phase in _list(plan.get("phases")) if phase.get("measure", True)]
    for index, phase in enumerate(measured, 1):
        which = f" of phase {index}" if len(measured) > 1 else ""
        traits |= {f"load {name}{which}": value for name, value in _leaves(phase.get("load"))}
    workload = plan.get("workload")
    kept = {key: value for key, value in workload.items() if key not in _NO_WORKLOAD} if workload else {}
    traits |= {f"workload {name}": value for name, value in _leaves(kept)}
    for index, target in enumerate(_list(plan.get("targets")), 1):
        for key in _OF_TARGETS:
            traits |= {f"target {index} {name}": value for name, value in _leaves(target.get(key), key)}
    return traits | {f"host {name}": value for name, value in identity(run.report.run.host).items()}


def _list(part: Any) -> list[dict[str, Any]]:
    return [each for each in part if isinstance(each, dict)] if isinstance(part, list) else []


def _leaves(part: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """The values of nested mappings by their dotted keys."""
    if isinstance(part, dict):
        for key, value in part.items():
            yield from _leaves(value, f"{name}.{key}" if name else str(key))
    elif part is not None:
        yield name, part


def _shown(value: Any) -> str:
    if value is None:
        return "none"
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."


def invalid(runs: Iterable[RunDirectory]) -> list[str]:
    """Runs whose own verdict is INVALID, with the reasons."""
    return [
        f"{run.path.name} ({', '.join(reason.code for reason in run.report.verdict.reasons)})"
        for run in runs
        if run.report.verdict.state == "INVALID"
    ]
