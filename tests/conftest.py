"""What every test is held to: nothing it started or opened may be left behind."""

from __future__ import annotations

import gc
import json
import os
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

SEGMENTS = Path("/dev/shm/llm-latency-lens")


def _children() -> set[int]:
    return {child.pid for child in psutil.Process().children(recursive=True) if child.status() != psutil.STATUS_ZOMBIE}


def _descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def _segments() -> set[str]:
    """The runs in tmpfs that nobody carries on: a run of another process on this machine is not ours to judge."""
    found = set()
    for path in SEGMENTS.glob("*/run.json"):
        try:
            supervisor = json.loads(path.read_bytes())["pids"].get("supervisor", 0)
        except (OSError, ValueError):
            continue
        if not psutil.pid_exists(supervisor):
            found.add(path.parent.name)
    return found


@pytest.fixture(autouse=True)
def _nothing_is_left_behind() -> Iterator[None]:
    """Child processes, file descriptors and tmpfs segments of a test are gone when it ends."""
    children, descriptors, segments = _children(), _descriptors(), _segments()
    yield
    left = _children() - children
    assert not left, f"child processes left behind: {left}"
    if _descriptors() > descriptors + 2:
        gc.collect()  # whole collections cost more than most tests: only in doubt
        assert _descriptors() <= descriptors + 2, "file descriptors left open"
    assert _segments() <= segments, "segments left in /dev/shm"
