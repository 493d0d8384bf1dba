"""The directory of a sweep: what it was asked for, its run directories, sweep.json. What is known is what lies there."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec

from ...collectors.snapshot import Report
from ...collectors.sweep import Measured, Spent, Wanted, spent_of
from ...engine.errors import LensError, OutputError, PlanError
from ...engine.files import UNDECODABLE, lock_of, replace
from ...engine.plan.plan import Plan
from ...engine.plan.written import masked
from ...engine.runs.rundir import PLAN, SUMMARY, run_id_of
from ...exporters.rundir import damage_named, read_report, ticks
from ..recover import recover_run

DIRECTORY: Final = "sweeps"
SETTINGS: Final = "settings.json"
LOCK: Final = "lock"
COMPLETE: Final = ("until", "slo", "error_rate", "duration", "requests")  # ways in which a point's run may end


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """settings.json: what `--resume` needs beside the plan."""

    wanted: Wanted
    max_time_s: float | None = None
    simulate: bool = False
    plan_sha256: str = ""  # of the plan that was given, before anything of the sweep was put into it


class Known(msgspec.Struct):
    """What the run directories of a sweep hold. `spent` counts runs that were cut short, too."""

    measured: list[Measured]
    spent: Spent


def make_folder(plan: Plan, settings: Settings) -> Path:
    """Creates `sweeps/<utc-time>-<name>-<4 hex>/` with plan.json and settings.json. Raises OutputError."""
    root = Path(plan.output.dir)
    folder = root / run_id_of(plan.name)
    try:
        root.mkdir(parents=True, exist_ok=True)
        folder.mkdir(mode=0o700)
        (folder / PLAN).write_text(json.dumps(masked(plan), indent=1) + "\n")
        replace(folder / SETTINGS, msgspec.json.encode(settings))
    except OSError as error:
        raise OutputError(
            f"cannot write the sweep's directory {folder}: {error.strerror}; choose another with --out DIR"
        ) from error
    return folder


def read_settings(folder: Path) -> Settings:
    """Raises PlanError for what is no directory of a sweep."""
    try:
        return msgspec.json.decode((folder / SETTINGS).read_bytes(), type=Settings)
    except OSError:
        raise PlanError(f"{folder} is not the directory of a sweep: it has no {SETTINGS}; see sweeps/") from None
    except UNDECODABLE as error:
        raise OutputError(f"{folder / SETTINGS} is damaged: {error}") from None


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """The directory for this process alone. Raises OutputError."""
    try:
        lock = lock_of(folder / LOCK)
    except BlockingIOError as error:
        raise OutputError(f"{folder} is still being written by another `lens sweep`; stop it first") from error
    except OSError as error:
        raise OutputError(f"cannot write the sweep's directory {folder}: {error.strerror}") from error
    with lock:
        yield


def known_of(folder: Path, over: str) -> Known:
    """Reads the finished runs of a sweep, in the order in which they were made. Raises OutputError."""
    found: list[Measured] = []
    reports: list[Report] = []
    for run_dir in run_dirs(folder, SUMMARY):
        with damage_named(run_dir):
            report = read_report(run_dir)
            reports.append(report)
            if report.run.ended_by in COMPLETE:
                found.append(Measured(_load_of(run_dir, over), run_dir.name, report, watts_of(run_dir)))
    found.sort(key=lambda each: each.report.run.started_at)
    return Known(found, spent_of(reports))


def run_dirs(folder: Path, holding: str) -> list[Path]:
    """The run directories that hold a file of this name, each once: `latest` is a link to one of them."""
    return sorted(path.parent for path in folder.glob(f"*/{holding}") if not path.parent.is_symlink())


def _load_of(run_dir: Path, over: str) -> float:
    try:
        return float(json.loads((run_dir / PLAN).read_bytes())["phases"][-1]["load"][over])
    except (OSError, ValueError) as error:
        raise OutputError(f"{run_dir / PLAN} cannot be read: {error}") from None


def watts_of(run_dir: Path) -> float | None:
    """Mean power of the server's GPUs together over the measured ticks of a run; None where no page says."""
    read = (run_dir / PLAN).read_bytes()
    if b'"metrics_url"' not in read:
        return None
    powers = [
        sum(known)
        for tick in ticks(run_dir)
        if any(interval.measured for interval in tick.intervals)
        and (known := {each.gpu_power_watts for each in tick.servers.values() if each.gpu_power_watts is not None})
    ]
    return sum(powers) / len(powers) if powers else None


def recover_killed(folder: Path) -> None:
    """Completes what a killed sweep left of its last run, so that it holds no memory. The run is no point."""
    for run_dir in run_dirs(folder, PLAN):
        if not (run_dir / SUMMARY).exists():
            with contextlib.suppress(LensError):  # it died before it had begun: nothing is left of it
                recover_run(run_dir)


def umask() -> None:
    """Rows may hold prompts and replies: the files are for this user alone."""
    os.umask(0o077)
