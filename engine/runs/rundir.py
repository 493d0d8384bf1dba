"""A run's two directories: the run directory that people keep, and the segment directory in tmpfs that the run works in.

The names of the files in both stand here, once. Reading them is `exporters.rundir`: what is in them is the collectors'.
"""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from time import time
from typing import Final, NamedTuple

import msgspec
import psutil

from ..errors import OutputError
from ..files import UNDECODABLE
from ..plan.plan import Plan
from ..plan.written import masked
from .manifest import FILE as MANIFEST
from .manifest import SEGMENTS

# In the run directory:
PLAN: Final = "plan.json"
SUMMARY: Final = "summary.json"  # the final report; a run without one is going on, or was killed
INTERVALS: Final = "intervals.jsonl"  # a tick a line
REQUESTS: Final = "requests.msgpack"
SPANS: Final = "spans.jsonl"  # the requests that become spans, where an export of the plan has some
HTML: Final = "report.html"
EXPORT_LOG: Final = "export.log"
LIVE: Final = ".live"  # a link to the segment directory while the run goes on
# In the segment directory, beside run.json and the rings:
LOCK: Final = "collector.lock"  # held by the collector
COLLECTOR_LOG: Final = "collector.log"
SNAPSHOT: Final = "snapshot.json"  # the latest tick
LIVE_REPORT: Final = "report.json"  # the report so far
REPEAT: Final = "repeat.json"  # in a directory that holds the run directories of `lens run --repeat`
LATEST: Final = "latest"  # beside the run directories, a link to the newest
SETTLING_S: Final = 60.0  # a segment directory gets its run.json within this time, or its run died before


class Head(msgspec.Struct):
    """What every version of `lens` can read of a run's manifest."""

    run_dir: str
    version: str
    started_at: str
    pids: dict[str, int]


class Leftover(NamedTuple):
    """A segment directory in tmpfs. `head` is None if it died before it had a manifest: nothing can be recovered."""

    directory: Path
    head: Head | None
    alive: bool

    @property
    def run_id(self) -> str:
        return self.directory.name

    def bytes(self) -> int:
        """What it takes of the tmpfs."""
        total = 0
        for path in self.directory.iterdir():
            with contextlib.suppress(OSError):
                total += path.stat().st_blocks * 512
        return total


def run_id_of(name: str) -> str:
    """`<utc-time>-<name>-<4 hex>`, safe as a directory name."""
    moment = datetime.datetime.fromtimestamp(time(), datetime.UTC).strftime("%Y%m%dT%H%M%SZ")
    slug = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.") or "run"
    return f"{moment}-{slug[:60]}-{secrets.token_hex(2)}"


def make_run_dir(plan: Plan, run_id: str) -> Path:
    """Creates the run directory with plan.json (secrets masked) and moves the `latest` link. Raises OutputError.

    Nobody else may read it: the rows may hold prompts and replies.
    """
    root = Path(plan.output.dir)
    path = root / run_id
    try:
        root.mkdir(parents=True, exist_ok=True)
        path.mkdir(mode=0o700)
        (path / PLAN).write_text(json.dumps(masked(plan), indent=1) + "\n")
    except OSError as error:
        raise OutputError(
            f"cannot write the output directory {path}: {error.strerror}; choose another with --out DIR"
        ) from error
    link_latest(root, run_id)
    return path


def link_latest(root: Path, run_id: str) -> None:
    """Points `latest` to a run. On a file system without links there is none: the run does not depend on it."""
    link = root / f".{LATEST}-{os.getpid()}"
    try:
        link.symlink_to(run_id)
        link.replace(root / LATEST)
    except OSError:
        link.unlink(missing_ok=True)


def latest_of(root: Path) -> str:
    """The run that `latest` points to; empty if there is none."""
    try:
        return os.readlink(root / LATEST)
    except OSError:
        return ""


def discard_run_dir(run_dir: Path, previous: str) -> None:
    """Removes the directory of a run that never began; `latest` points to the `previous` run again, if there was one."""
    if latest_of(run_dir.parent) == run_dir.name:
        (run_dir.parent / LATEST).unlink(missing_ok=True)
        if previous:
            link_latest(run_dir.parent, previous)
    shutil.rmtree(run_dir, ignore_errors=True)


def make_segment_dir(run_dir: Path, root: Path = SEGMENTS) -> Path:
    """Creates the run's private directory in tmpfs, with a link to it in the run directory. Raises OutputError."""
    path = root / run_dir.name
    try:
        if not root.exists():
            root.mkdir(parents=True)
            root.chmod(0o1777)  # everybody's, whatever the umask is
        path.mkdir(mode=0o700)
    except OSError as error:
        raise OutputError(f"cannot make the segment directory {path}: {error.strerror}; is it on a tmpfs?") from error
    with contextlib.suppress(OSError):
        (run_dir / LIVE).symlink_to(path)
    return path


def leftovers(root: Path = SEGMENTS) -> list[Leftover]:
    """The segment directories of this user, of runs that go on and of dead ones, oldest first."""
    return sorted(_leftovers(root), key=lambda each: each.run_id)


def _leftovers(root: Path) -> Iterator[Leftover]:
    with contextlib.suppress(FileNotFoundError):
        for directory in root.iterdir():
            with contextlib.suppress(OSError):  # another user's, or gone again
                status = directory.stat()
                if not directory.is_dir() or status.st_uid != os.getuid():
                    continue
                head = _head(directory)
                goes_on = bool(alive(head.pids)) if head else time() - status.st_mtime < SETTLING_S
                yield Leftover(directory, head, goes_on or _collected(directory))


def _head(directory: Path) -> Head | None:
    try:
        return msgspec.json.decode((directory / MANIFEST).read_bytes(), type=Head)
    except (FileNotFoundError, *UNDECODABLE):
        return None


def _collected(directory: Path) -> bool:
    """Whether a collector works on it, perhaps one in a container that shares the tmpfs and not the pids."""
    try:
        with (directory / LOCK).open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def alive(pids: Mapping[str, int]) -> list[tuple[str, int]]:
    """(role, pid) of a run's processes that still are. A pid that now belongs to another program does not count."""
    return [(role, pid) for role, pid in pids.items() if _is_ours(pid)]


def _is_ours(pid: int) -> bool:
    try:
        process = psutil.Process(pid)
        ours = any("llm_latency_lens" in word or "lens" in Path(word).name for word in process.cmdline())
        return ours and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def remove_segments(run_dir: Path, segment_dir: Path) -> None:
    """Removes what a finished run no longer needs."""
    shutil.rmtree(segment_dir, ignore_errors=True)
    with contextlib.suppress(OSError):
        (run_dir / LIVE).unlink(missing_ok=True)
