"""Files on hosts: the plan's own, which every host must have, and where a host keeps those of its part of a run."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from ..errors import PlanError
from ..plan.plan import Plan


def plan_files(plan: Plan) -> list[str]:
    """The files that workers and collectors of the plan read."""
    workload = plan.workload
    named = [workload.path, plan.price_table, *(target.ca_file for target in plan.targets)]
    tokenizer = workload.tokenizer or ""
    if "/" in tokenizer or tokenizer.endswith(".json"):
        named.append(tokenizer)
    return sorted({path for path in named if path and Path(path).is_file()})


def digests(paths: Iterable[str]) -> dict[str, str]:
    """The SHA-256 of each file, by its path. Raises PlanError for one that cannot be read."""
    found = {}
    for path in paths:
        try:
            with open(path, "rb") as file:
                found[path] = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise PlanError(f"cannot read {path}: {error.strerror}") from error
    return found


def check_files(expected: Mapping[str, str]) -> None:
    """Raises PlanError if a file is missing here, or is another than the driver's."""
    for path, digest in expected.items():
        if not Path(path).is_file():
            raise PlanError(f"{path} is not on this host; put the driver's file at the same path on every host")
        if digests([path])[path] != digest:
            raise PlanError(f"{path} is not the driver's file; put the same file at this path on every host")


def own_runs() -> Path:
    """Where a host keeps the files of its parts of runs until the driver has them."""
    state = os.environ.get("XDG_STATE_HOME") or str(Path.home() / ".local" / "state")
    return Path(state) / "llm-latency-lens" / "hosts"


def own_run(run_id: str, name: str) -> str:
    """The name of the run directory, and of the segment directory, of host `name`."""
    return f"{run_id}.{name}"
