"""log.jsonl: what happened in a run besides its numbers, one JSON object a line: `time` (UTC), `event`, and its details."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

FILE: Final = "log.jsonl"


def note(run_dir: Path, event: str, **details: Any) -> None:
    """Appends one event. A disk that does not take it does not stop the run."""
    line = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), "event": event} | details
    try:
        with (run_dir / FILE).open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
    except OSError:
        return


def last_line(path: Path) -> str:
    """The last line of a process's log that says something."""
    lines = [line for line in path.read_text(errors="replace").splitlines() if line.strip()] if path.exists() else []
    return lines[-1].strip() if lines else "it left no message"
