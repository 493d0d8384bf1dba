"""Runs of several load hosts on this machine: their processes, their files, and ticks made by the real code of a host."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import psutil
import yaml
from hdrh.histogram import HdrHistogram

from llm_latency_lens.engine.hosts.driver import FOLDER
from llm_latency_lens.engine.plan.plan import Plan
from llm_latency_lens.engine.planfile.build import make_plan
from llm_latency_lens.engine.planfile.document import Source

LOCAL = ("--cluster", "local")


def made(text: str) -> Plan:
    """The plan of a YAML text."""
    return make_plan(yaml.safe_load(text), Source(), {})


def host_dirs(run_dir: Path) -> list[Path]:
    """The folders of the hosts in a driver's run directory."""
    return sorted((run_dir / FOLDER).iterdir())


def rows_of_hosts(run_dir: Path) -> list[dict[str, Any]]:
    """The request rows of all hosts."""
    rows: list[dict[str, Any]] = []
    for folder in host_dirs(run_dir):
        with (folder / "requests.msgpack").open("rb") as file:
            rows += msgpack.Unpacker(file)
    return rows


def counts_by_tag(log: Path) -> dict[str, Counter[int]]:
    """The filled cells of each tag of a HdrHistogram log, as the library reads them."""
    found: dict[str, Counter[int]] = {}
    for line in log.read_text().splitlines():
        if line.startswith("Tag="):
            tag, *_, encoded = line.split(",")
            counts = np.frombuffer(HdrHistogram.decode(encoded.encode()).counts, np.uint64)
            cells = {int(cell): int(counts[cell]) for cell in np.flatnonzero(counts)}
            found.setdefault(tag, Counter()).update(cells)
    return found


def agents_of(pid: int) -> list[psutil.Process]:
    """The agents of the hosts that process `pid` has started, in the order of their start."""
    children = psutil.Process(pid).children(recursive=True)
    return [child for child in children if child.cmdline()[-1:] == ["llm_latency_lens.cli.processes.part"]]


def descendants(processes: Sequence[psutil.Process]) -> list[psutil.Process]:
    """These processes and all that they have started."""
    return [each for process in processes for each in (process, *process.children(recursive=True))]


def events_of(run_dir: Path) -> Iterator[dict[str, Any]]:
    """The lines of log.jsonl."""
    for line in (run_dir / "log.jsonl").read_text().splitlines():
        yield json.loads(line)
