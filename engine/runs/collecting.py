"""The manifest and the collector of a run: what its supervisor keeps, be it one of workers or one of hosts."""

from __future__ import annotations

import selectors
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from time import monotonic_ns
from typing import Final

from ..errors import LensError
from .child import Child, ended
from .manifest import FILE as MANIFEST
from .manifest import Manifest
from .rundir import COLLECTOR_LOG
from .runlog import last_line, note

COLLECTOR_TIMEOUT_S: Final = 60.0
FAILURES_MAX: Final = 5  # a collector that fails so often in a row is given up; a SIGKILL is no failure


class Collecting:
    """Publishes the manifest, and starts the collector again after each death. `failure` says why it gave up."""

    def __init__(
        self,
        selector: selectors.BaseSelector,
        manifest: Manifest,
        segment_dir: Path,
        command: Sequence[str],
        *,
        cores: list[int],
        environ: Mapping[str, str],
    ) -> None:
        self.child = Child(selector, cores)
        self.failure: LensError | None = None
        self._manifest = manifest
        self._segment_dir = segment_dir
        self._run_dir = Path(manifest.run_dir)
        self._command = command
        self._environ = environ
        self._failures = 0
        self._unpublished = False

    def publish(self) -> None:
        """Writes run.json, also into a segment directory that was removed; a full tmpfs waits for publish_again()."""
        try:
            self._segment_dir.mkdir(mode=0o700, exist_ok=True)
            self._manifest.write(self._segment_dir)
            self._unpublished = False
        except OSError:
            self._unpublished = True

    def publish_again(self) -> None:
        """Once a turn: writes a manifest that could not be written, or that somebody removed."""
        if self._unpublished or not (self._segment_dir / MANIFEST).exists():
            self.publish()

    def start(self) -> None:
        self.publish()
        with (self._segment_dir / COLLECTOR_LOG).open("ab") as log:
            self.child.start(self._command, self._died, environ=self._environ, output=log)
        self._manifest.pids["collector"] = self.child.pid
        self._manifest.cores["collector"] = self.child.cores
        self.publish()

    def wait(self, turn: Callable[[], None]) -> None:
        """Returns when the collector of a finished run has written summary.json; `turn` serves everything meanwhile."""
        end = monotonic_ns() + int(COLLECTOR_TIMEOUT_S * 1e9)
        while self.child.running:
            if monotonic_ns() > end:
                raise LensError(f"the collector did not finish within {COLLECTOR_TIMEOUT_S:g} s: {self._way_out()}")
            turn()

    def _died(self) -> None:
        code = self.child.reap()
        if code == 0 and self._manifest.state == "finished":
            return
        self._manifest.collector_restarts += 1
        note(self._run_dir, "collector_died", how=ended(code))
        self._failures = self._failures + 1 if code > 0 else 0
        if self._failures > FAILURES_MAX:
            self.failure = LensError(f"the collector keeps failing: {self._way_out()}")
            return
        self.start()

    def _way_out(self) -> str:
        """The collector's last words, and the command that finishes the run's files without it."""
        why = last_line(self._segment_dir / COLLECTOR_LOG).removeprefix("lens: ")
        return f"{why}; `lens recover {self._manifest.run_dir}` finishes the run's files"
