"""A probe under a service manager's eyes: `lens probe` with a notify socket, and what it said there."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic
from typing import Any

import psutil

from tests.support_lens import LENS, environment

DEADLINE_S = 40.0


class Manager:
    """Plays systemd: owns the notify socket, hears, sends signals."""

    def __init__(self, folder: Path, plan: Path, *, watchdog_s: float = 4.0) -> None:
        self.folder = folder
        self.state = folder / "state"
        self.heard: list[tuple[float, str]] = []
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        address = folder / "notify"
        address.unlink(missing_ok=True)
        self.socket.bind(str(address))
        self.errors = (folder / "stderr").open("ab")
        environ = {"NOTIFY_SOCKET": str(address), "WATCHDOG_USEC": str(int(watchdog_s * 1e6)), "JOURNAL_STREAM": "8:1"}
        self.process = subprocess.Popen(
            [*LENS, "probe", str(plan), "--state-dir", str(self.state)],
            env=environment(environ),
            stderr=self.errors,
        )

    def listen(self, seconds: float) -> str:
        """The next message within `seconds`; empty if there is none."""
        self.socket.settimeout(max(seconds, 0.001))
        try:
            message = self.socket.recv(65536).decode()
        except TimeoutError:
            return ""
        self.heard.append((monotonic(), message))
        return message

    def until(self, wanted: str) -> None:
        """Listens until a message has `wanted` in it."""
        end = monotonic() + DEADLINE_S
        while monotonic() < end:
            if wanted in self.listen(0.2):
                return
            assert self.process.poll() is None or wanted == "", f"the probe ended: {self.journal()}"
        raise AssertionError(f"{wanted!r} was not heard; heard {[m for _, m in self.heard]}; {self.journal()}")

    def wait_for(self, what: Callable[[], Any]) -> Any:
        """Listens until `what()` is true, and gives it."""
        end = monotonic() + DEADLINE_S
        while not (found := what()):
            assert monotonic() < end, self.journal()
            self.listen(0.1)
        return found

    def said(self, wanted: str) -> bool:
        return any(wanted in message for _, message in self.heard)

    def journal(self) -> str:
        return (self.folder / "stderr").read_text()

    def stop(self) -> int:
        """SIGTERM, as `systemctl stop`; gives the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(DEADLINE_S)

    def runs(self) -> list[Path]:
        """The runs of the history, oldest first."""
        return sorted(path for path in (self.state / "history").glob("2*") if not path.is_symlink())

    def reports(self) -> list[dict[str, Any]]:
        return [json.loads((run / "summary.json").read_bytes()) for run in self.runs()]

    def of_role(self, module: str) -> list[psutil.Process]:
        """The probe's processes that run `module`."""
        return [
            each
            for each in psutil.Process(self.process.pid).children(recursive=True)
            if any(module in word for word in each.cmdline())
        ]


@contextmanager
def managed(folder: Path, plan: Path, *, watchdog_s: float = 4.0) -> Iterator[Manager]:
    """A probe that is gone, with all its processes, when the block ends."""
    manager = Manager(folder, plan, watchdog_s=watchdog_s)
    try:
        yield manager
    finally:
        if manager.process.poll() is None:
            for each in [
                *psutil.Process(manager.process.pid).children(recursive=True),
                psutil.Process(manager.process.pid),
            ]:
                try:
                    os.kill(each.pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
            manager.process.wait()
        manager.socket.close()
        manager.errors.close()
