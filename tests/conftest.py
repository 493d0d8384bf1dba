"""What every test is held to: nothing it started or opened may be left behind, and no other run is touched."""

from __future__ import annotations

import gc
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from hypothesis import HealthCheck, settings

# Each test session keeps its segments in a directory of its own: other runs on this machine, and a second test session,
# are neither seen nor disturbed. Set before the package is imported, which reads it once.
RUNTIME = Path(tempfile.mkdtemp(prefix="lens-tests-", dir="/dev/shm"))
os.environ["RUNTIME_DIRECTORY"] = str(RUNTIME)
SEGMENTS = RUNTIME / "llm-latency-lens"
os.environ["XDG_STATE_HOME"] = str(RUNTIME / "state")  # what this host's calibration says is no part of a test

# A session that was started in the background ignores SIGINT, and so would all that it starts.
signal.signal(signal.SIGINT, signal.default_int_handler)

# How long an example takes depends on the machine's other load, and says nothing of the code under test.
settings.register_profile("busy", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy")


def pytest_unconfigure() -> None:
    """Removes the session's segments."""
    shutil.rmtree(RUNTIME, ignore_errors=True)


def _children() -> set[int]:
    """All living descendants, without those inside a machine that a module's tests have booted (support_nspawn)."""
    found: set[int] = set()
    # psutil reads the state of every process of the machine for it; most tests have no child, and the kernel says so.
    threads = list(Path("/proc/self/task").glob("*/children"))
    waiting = psutil.Process().children() if not threads or any(map(_text, threads)) else []
    while waiting:
        child = waiting.pop()
        with suppress(psutil.NoSuchProcess):
            if child.status() != psutil.STATUS_ZOMBIE:
                found.add(child.pid)
                if child.name() != "systemd-nspawn":
                    waiting += child.children()
    return found


def _text(path: Path) -> str:
    with suppress(OSError):  # a thread that has just ended
        return path.read_text()
    return ""


def _descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def _segments() -> set[str]:
    return {path.parent.name for path in SEGMENTS.glob("*/run.json")}


@pytest.fixture(autouse=True)
def _nothing_is_left_behind() -> Iterator[None]:
    """Child processes, file descriptors and tmpfs segments of a test are gone when it ends."""
    children, descriptors, segments = _children(), _descriptors(), _segments()
    umask = os.umask(0o022)
    yield
    os.umask(umask)  # a command that ran in this process has set its own
    left = _children() - children
    assert not left, f"child processes left behind: {left}"
    if _descriptors() > descriptors + 2:
        gc.collect()  # whole collections cost more than most tests: only in doubt
        assert _descriptors() <= descriptors + 2, "file descriptors left open"
    assert _segments() <= segments, f"segments left in {SEGMENTS}"
