"""A real systemd to test the units under: Debian's, booted by systemd-nspawn on an overlay of this machine's root.

Nothing reaches the machine itself: what is written lies in a tmpfs above `/`. The network is the host's, so that a
simulator on loopback is reached.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic, sleep

import psutil
import pytest

BOOT_S = 60.0
OFF_S = 30.0


def missing() -> str:
    """Why no systemd can be booted here; empty when it can."""
    if os.geteuid() != 0:
        return "systemd-nspawn needs root"
    if not shutil.which("systemd-nspawn"):
        return "systemd-nspawn is not installed (Debian: systemd-container)"
    if not Path("/usr/bin/python3").exists():
        return "the units need a Python outside home directories"
    return ""


class Machine:
    """One booted system. `root` is its file system as seen from here."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.root = folder / "root"
        self.process: subprocess.Popen[bytes] | None = None

    def mount(self) -> None:
        """Raises CalledProcessError where this kernel or sandbox does not allow it."""
        os.umask(0o022)  # services of other users must reach their files
        self.folder.mkdir(parents=True)
        subprocess.run(["mount", "-t", "tmpfs", "tmpfs", self.folder], check=True, capture_output=True)
        for name in ("upper", "work", "root"):
            (self.folder / name).mkdir()
        layers = f"lowerdir=/,upperdir={self.folder}/upper,workdir={self.folder}/work"
        subprocess.run(["mount", "-t", "overlay", "overlay", "-o", layers, self.root], check=True, capture_output=True)

    def boot(self) -> None:
        """Starts systemd and waits until it has reached its target."""
        console = (self.folder / "console.log").open("wb")
        self.process = subprocess.Popen(
            ["systemd-nspawn", "-D", str(self.root), "--register=no", "--keep-unit", "-b", "systemd.unit=basic.target"],
            stdin=subprocess.DEVNULL,
            stdout=console,
            stderr=console,
        )
        console.close()
        self.until(lambda: self.run("systemctl is-system-running").stdout.strip() in ("running", "degraded"), BOOT_S)

    def until(self, condition: Callable[[], bool], timeout_s: float, what: str = "") -> None:
        """Waits for the condition; the error holds the journal's end."""
        end = monotonic() + timeout_s
        while not condition():
            if monotonic() > end:
                raise AssertionError(f"not within {timeout_s:g} s: {what}\n{self.journal()[-4000:]}")
            sleep(0.2)

    def _leader(self) -> int:
        assert self.process is not None
        children = psutil.Process(self.process.pid).children()
        return children[0].pid if children else 0

    def run(self, command: str, *, check: bool = False) -> subprocess.CompletedProcess[str]:
        """Runs a shell command inside."""
        leader = self._leader()
        if not leader:
            return subprocess.CompletedProcess(command, 1, "", "not booted")
        enter = ["nsenter", "-t", str(leader), "-m", "-u", "-i", "-p", "-C", "--", "/bin/sh", "-c", command]
        done = subprocess.run(enter, capture_output=True, text=True)
        if check and done.returncode:
            raise AssertionError(
                f"{command}: exit code {done.returncode}\n{done.stdout}{done.stderr}{self.journal()[-3000:]}"
            )
        return done

    def write(self, path: str, content: str, mode: int = 0o644) -> None:
        """A file inside; `path` is absolute there."""
        target = self.root / path.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(content)
        target.chmod(mode)

    def journal(self, unit: str = "") -> str:
        """The journal of a unit, or of everything."""
        return self.run(f"journalctl --no-pager -o cat {f'-u {unit}' if unit else ''}").stdout

    def main_pid(self, unit: str) -> int:
        """The pid inside of the unit's main process; 0 if it has none."""
        return int(self.run(f"systemctl show -p MainPID --value {unit}").stdout.strip() or 0)

    def off(self) -> None:
        """Powers off and unmounts, whatever state it is in."""
        if self.process is not None:
            self.run("systemctl poweroff")
            try:
                self.process.wait(OFF_S)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        for path in (self.root, self.folder):
            subprocess.run(["umount", "-l", path], capture_output=True)
        self.folder.rmdir()


@contextmanager
def machine(folder: Path) -> Iterator[Machine]:
    """A mounted, not yet booted machine; powered off and unmounted in the end."""
    made = Machine(folder)
    try:
        try:
            made.mount()
        except subprocess.CalledProcessError as error:
            pytest.skip(f"no overlay can be mounted here: {error.stderr.decode().strip()}")
        yield made
    finally:
        made.off()
