"""The built-in provider as a process beside a command: for `lens run --simulate` and `lens calibrate`."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from typing import NamedTuple

import msgspec

from ..engine.errors import LensError


class Simulated(NamedTuple):
    """A simulator that listens. `base_url` without a path."""

    base_url: str
    pid: int


@contextlib.contextmanager
def simulator(*flags: str) -> Iterator[Simulated]:
    """A simulator on a free loopback port, with these flags of its command, until the end of the `with` block; what it
    logs is complete then. Raises LensError if it does not start."""
    process = subprocess.Popen(
        [sys.executable, "-m", "llm_latency_lens.engine.simulator", "--port", "0", "--die-with-parent", *flags],
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        line = process.stdout.readline() if process.stdout else b""
        if not line:
            raise LensError(f"the simulator ended with exit code {process.wait()} before it listened")
        ready = msgspec.json.decode(line)
        yield Simulated(ready["base_url"], process.pid)
    finally:
        process.terminate()
        process.wait()
        if process.stdout:
            process.stdout.close()
