"""Where a run's books live: the run directory people keep and the segment directory in tmpfs that the run works in."""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import re
import secrets
import shutil
from pathlib import Path
from time import time
from typing import Final

from llm_latency_lens.engine.errors import OutputError
from llm_latency_lens.engine.manifest import SEGMENTS
from llm_latency_lens.engine.plan import Plan, masked

LIVE: Final = ".live"  # in the run directory, a link to its segment directory


def run_id_of(name: str) -> str:
    """`<utc-time>-<name>-<4 hex>`, safe as a directory name."""
    moment = datetime.datetime.fromtimestamp(time(), datetime.UTC).strftime("%Y%m%dT%H%M%SZ")
    slug = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.") or "run"
    return f"{moment}-{slug[:60]}-{secrets.token_hex(2)}"


def make_run_dir(plan: Plan, run_id: str) -> Path:
    """Creates the run directory with plan.json (secrets masked) and moves the `latest` link. Raises OutputError."""
    root = Path(plan.output.dir)
    path = root / run_id
    try:
        root.mkdir(parents=True, exist_ok=True)
        path.mkdir(mode=0o700 if plan.workload.keep_replies else 0o755)
        (path / "plan.json").write_text(json.dumps(masked(plan), indent=1) + "\n")
    except OSError as error:
        raise OutputError(
            f"cannot write the output directory {path}: {error.strerror}; choose another with --out DIR"
        ) from error
    link = root / f".latest-{os.getpid()}"
    try:
        link.symlink_to(run_id)
        link.replace(root / "latest")
    except OSError:
        link.unlink(missing_ok=True)  # a file system without links: the run does not depend on it
    return path


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


def remove_segments(run_dir: Path, segment_dir: Path) -> None:
    """Removes what a finished run needs no longer."""
    shutil.rmtree(segment_dir, ignore_errors=True)
    with contextlib.suppress(OSError):
        (run_dir / LIVE).unlink(missing_ok=True)
