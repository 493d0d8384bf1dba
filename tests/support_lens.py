"""Runs the real `lens` as a user does, and reads what it leaves behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from time import monotonic, sleep
from typing import Any, NamedTuple

LENS = [sys.executable, "-m", "llm_latency_lens.cli"]


class Ended(NamedTuple):
    """A finished `lens`: exit code, both outputs, and the summary if there is one."""

    code: int
    stdout: str
    stderr: str

    @property
    def summary(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.stdout)
        return found


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """This process's environment without keys and proxies of the machine."""
    hidden = ("_KEY", "_PROXY", "_proxy")
    return {k: v for k, v in os.environ.items() if not k.endswith(hidden)} | dict(extra or {})


def lens(*arguments: str, cwd: Path, env: Mapping[str, str] | None = None, timeout: float = 90) -> Ended:
    """`lens ARGUMENTS` in `cwd`, to its end."""
    done = subprocess.run(
        [*LENS, *arguments], cwd=cwd, env=environment(env), capture_output=True, text=True, timeout=timeout
    )
    return Ended(done.returncode, done.stdout, done.stderr)


def measured(*arguments: str, cwd: Path, env: Mapping[str, str] | None = None) -> dict[str, Any]:
    """The summary of `lens run --json ARGUMENTS`, which must go well."""
    ended = lens("run", "--json", *arguments, cwd=cwd, env=env)
    assert ended.code == 0, ended.stderr
    return ended.summary


def running(*arguments: str, cwd: Path, program: Sequence[str] = LENS) -> AbstractContextManager[subprocess.Popen[str]]:
    """`lens run --json ARGUMENTS` while it runs; `program` stands for `lens`."""
    return started(["run", "--json", *arguments], cwd=cwd, program=program)


@contextmanager
def started(arguments: Sequence[str], *, cwd: Path, program: Sequence[str] = LENS) -> Iterator[subprocess.Popen[str]]:
    """`lens ARGUMENTS` while it runs; `program` stands for `lens`."""
    process = subprocess.Popen(
        [*program, *arguments],
        cwd=cwd,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def finish(process: subprocess.Popen[str], timeout: float = 60) -> Ended:
    out, err = process.communicate(timeout=timeout)
    return Ended(process.returncode, out, err)


def manifest_of(cwd: Path, *, state: str = "running", timeout: float = 20) -> tuple[Path, dict[str, Any]]:
    """(segment directory, run.json) of the run that was started in `cwd`, as soon as it is in `state`."""
    end = monotonic() + timeout
    while monotonic() < end:
        for link in (cwd / "runs").glob("latest"):
            segments = (link / ".live").resolve()
            try:
                manifest = json.loads((segments / "run.json").read_text())
            except FileNotFoundError:
                continue
            if manifest["state"] == state:
                return segments, manifest
        sleep(0.02)
    raise AssertionError(f"no run in {cwd} came to state {state}")


def accounts(requests: Mapping[str, Any]) -> None:
    """The totals balance (METRICS: promise 5)."""
    ended = requests["ok"] + sum(requests["failed"].values()) + requests["cancelled"] + requests["in_flight_at_end"]
    assert requests["sent"] == ended
    assert requests["planned"] == requests["sent"] + sum(requests["unsent"].values())
