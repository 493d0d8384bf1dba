"""The runs, sweeps, repeated runs and probes below a directory: a line of facts of each, read once per change of its file.

Nothing outside the directory is ever named: links are not followed, and a page is asked for by an entry's path among
those that were found, not by a path that is joined to anything.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal

import msgspec

from ...collectors.snapshot import Distribution, Requests, Throughput
from ...engine.files import UNDECODABLE
from ...engine.runs.rundir import INTERVALS, LIVE, LIVE_REPORT, PLAN, REPEAT, SUMMARY
from ..history import HISTORY
from ..sweep.files import SWEEP

DEPTH_MAX: Final = 3  # of directories that are none of these themselves
ENTRIES_MAX: Final = 20_000
STATEFUL: Final = ("salt", "keep_replies", "calibration", "count_tokens")  # of a workload: nothing of what is sent
ELSEWHERE: Final = ("base_url", "resolve", "metrics_urls", "metrics_url", "api_key", "price")  # of a target

Kind = Literal["run", "sweep", "repeated runs", "probe"]
State = Literal["done", "running", "damaged", "unfinished"]


class RunLine(msgspec.Struct):
    name: str
    started_at: str
    duration_s: float = 0.0
    load: str = ""


class VerdictLine(msgspec.Struct):
    state: str = ""


class TargetLine(msgspec.Struct):
    name: str
    provider: str = ""
    model: str = ""


class SummaryLine(msgspec.Struct):
    """The part of summary.json that a list shows: the rest is not decoded."""

    run: RunLine
    verdict: VerdictLine
    requests: Requests
    throughput: Throughput
    metrics: dict[str, Distribution]
    targets: list[TargetLine] = []


class Answer(msgspec.Struct):
    value: float | None = None
    state: str = ""


class SweepLine(msgspec.Struct):
    """The part of sweep.json that a list shows."""

    over: str
    answer: Answer
    points: list[msgspec.Raw] = []


class RepeatLine(msgspec.Struct):
    """The part of repeat.json that a list shows."""

    name: str
    started_at: str
    base: str | None
    candidate: str
    runs: list[msgspec.Raw] = []


class Entry(msgspec.Struct, kw_only=True):
    """One directory. `path` is relative to the library's, `.` for itself; `problem` is what is wrong with it."""

    path: str
    kind: Kind
    name: str
    started_at: str = ""
    state: State = "done"
    problem: str = ""
    detail: str = ""  # of a sweep its answer, of repeated runs their sides
    family: str = ""  # runs with an equal one differ in load and seed alone, and perhaps in where the server is
    addresses: str = ""  # where that is
    summary: SummaryLine | None = None


_SUMMARY: Final = msgspec.json.Decoder(SummaryLine)
_SWEEP: Final = msgspec.json.Decoder(SweepLine)
_REPEAT: Final = msgspec.json.Decoder(RepeatLine)

Stamp = tuple[int, int, int]  # of a file: inode, mtime in ns, size


class Library:
    """The entries below `folder`. Not for two threads at once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._known: dict[str, tuple[tuple[Stamp | None, ...], Entry]] = {}

    def entries(self) -> dict[str, Entry]:
        """All of them by their path, the newest first. Only what has changed since the last call is read."""
        found: dict[str, Entry] = {}
        for path, kind in self._directories(self.folder, 0):
            found[path] = self._entry(path, kind)
            if len(found) >= ENTRIES_MAX:
                break
        self._known = {path: self._known[path] for path in found}
        newest = sorted(found.values(), key=lambda each: (each.started_at, each.path), reverse=True)
        return {each.path: each for each in newest}

    def _directories(self, folder: Path, depth: int) -> Iterator[tuple[str, Kind]]:
        try:
            with os.scandir(folder) as scan:
                inside = {each.name: each.is_dir(follow_symlinks=False) for each in scan}
        except OSError:
            return
        kind = _kind(inside)
        if kind is not None:
            yield str(folder.relative_to(self.folder)), kind
            if kind == "run":
                return
        if kind is None and depth >= DEPTH_MAX:
            return
        below = [HISTORY] if kind == "probe" else sorted(name for name, directory in inside.items() if directory)
        for name in below:
            if not name.startswith("."):
                yield from self._directories(folder / name, depth if kind else depth + 1)

    def _entry(self, path: str, kind: Kind) -> Entry:
        folder = self.folder / path
        watched = {
            "run": (SUMMARY, PLAN, f"{LIVE}/{LIVE_REPORT}"),
            "sweep": (SWEEP,),
            "repeated runs": (REPEAT,),
            "probe": (HISTORY,),
        }
        stamps = tuple(_stamp(folder / name) for name in watched[kind])
        known = self._known.get(path)
        if known is None or known[0] != stamps:
            known = self._known[path] = stamps, _read(folder, path, kind)
        return known[1]


def _kind(inside: Mapping[str, bool]) -> Kind | None:
    """What a directory with these names is; the values say which of them are directories."""
    if SWEEP in inside:
        return "sweep"
    if REPEAT in inside:
        return "repeated runs"
    if inside.get(HISTORY) and "lock" in inside:
        return "probe"
    return "run" if {SUMMARY, INTERVALS} & inside.keys() or (PLAN in inside and LIVE in inside) else None


def _stamp(path: Path) -> Stamp | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size


def _read(folder: Path, path: str, kind: Kind) -> Entry:
    entry = Entry(path=path, kind=kind, name=folder.resolve().name, started_at=_moment_of(folder.name))
    try:
        if kind == "run":
            _read_run(folder, entry)
        elif kind == "sweep":
            sweep = _SWEEP.decode(_content(folder / SWEEP))
            value = "" if sweep.answer.value is None else f" {sweep.answer.value:.4g}"
            entry.detail = f"{sweep.over}{value}, {sweep.answer.state}, {len(sweep.points)} points"
        elif kind == "repeated runs":
            repeat = _REPEAT.decode(_content(folder / REPEAT))
            entry.name, entry.started_at = repeat.name, repeat.started_at
            against = "" if repeat.base is None else f" against {repeat.base}"
            entry.detail = f"{len(repeat.runs)} runs of {repeat.candidate}{against}"
    except OSError as error:
        entry.state, entry.problem = "damaged", f"cannot be read: {error.strerror}"
    except (RecursionError, *UNDECODABLE) as error:
        entry.state, entry.problem = "damaged", f"is damaged: {error}"
    return entry


def _read_run(folder: Path, entry: Entry) -> None:
    """Raises OSError and UNDECODABLE."""
    try:
        content = _content(folder / SUMMARY)
    except FileNotFoundError:
        entry.state = "unfinished"
        try:
            content = _content(folder / LIVE / LIVE_REPORT)
        except FileNotFoundError:
            entry.problem = f"has no {SUMMARY}; if its run was killed: lens recover {folder}"
            return
        entry.state = "running"
    entry.summary = _SUMMARY.decode(content)
    entry.name, entry.started_at = entry.summary.run.name, entry.summary.run.started_at
    try:
        plan = json.loads(_content(folder / PLAN))
        entry.family, entry.addresses = family_of(plan), addresses_of(plan)
    except (OSError, ValueError, RecursionError):
        entry.problem = f"{PLAN} is missing or damaged"


def _content(path: Path) -> bytes:
    """Raises OSError, also for what is no file: a read of a pipe would never end."""
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, f"{path.name} is not a file")
    return path.read_bytes()


def family_of(plan: Any) -> str:
    """A digest of a plan's name, targets and workload; empty for what is no plan. Where the targets are is left out: the
    curve keeps the addresses apart."""
    if not isinstance(plan, dict):
        return ""
    targets = [_without(each, ELSEWHERE) for each in plan["targets"]] if isinstance(plan.get("targets"), list) else None
    text = json.dumps([plan.get("name"), targets, _without(plan.get("workload"), STATEFUL)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def addresses_of(plan: Any) -> str:
    """The base URLs of a plan's targets."""
    targets = plan.get("targets") if isinstance(plan, dict) else None
    known = [each for each in targets if isinstance(each, dict)] if isinstance(targets, list) else []
    return ", ".join(dict.fromkeys(str(each.get("base_url", "")) for each in known))


def _without(part: Any, keys: Sequence[str]) -> Any:
    return {key: each for key, each in part.items() if key not in keys} if isinstance(part, dict) else part


def _moment_of(name: str) -> str:
    """When a run began, from its directory's name (rundir.run_id_of); empty if it does not say."""
    digits = name[:15]
    if len(name) < 16 or name[15] != "Z" or digits[8] != "T" or not (digits[:8] + digits[9:]).isdecimal():
        return ""
    return f"{digits[:4]}-{digits[4:6]}-{digits[6:8]}T{digits[9:11]}:{digits[11:13]}:{digits[13:15]}Z"
