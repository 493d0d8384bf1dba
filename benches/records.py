"""A million request records written, exported and read again: seconds, size and the most memory of each step.

    python -m benches.records [--records 1000000] [--dir DIR]

Every step is a process of its own, so that its memory is its own. JSON is one object per request and line.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from time import monotonic
from typing import Any

import msgspec
import numpy as np

from llm_latency_lens.collectors.batches import Reader
from llm_latency_lens.collectors.series import Slab
from llm_latency_lens.engine.runs.manifest import Manifest
from llm_latency_lens.engine.runs.rundir import REQUESTS
from llm_latency_lens.exporters import csv, rundir
from llm_latency_lens.exporters.msgpack import RequestLog
from tests.support_collector import MS, START, fields, manifest, plan, records

BATCH = 2_000  # what a collector drains at once


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    options.add_argument("--records", type=int, default=1_000_000)
    options.add_argument("--dir", type=Path, help="keep the files here [default: a temporary directory]")
    given = options.parse_args()
    with tempfile.TemporaryDirectory(dir="/var/tmp") as temporary:
        folder = given.dir or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        print(f"{given.records:,} records\n{'':14}{'s':>8}{'MB':>10}{'bytes each':>12}{'peak MB':>10}")
        for name, step, path in STEPS:
            with multiprocessing.get_context("spawn").Pool(1) as process:
                seconds, peak_bytes = process.apply(measured, (step, folder, given.records))
            size = (folder / path).stat().st_size
            print(f"{name:14}{seconds:8.1f}{size / 1e6:10.1f}{size / given.records:12.0f}{peak_bytes / 1e6:10.0f}")


def measured(step: Callable[[Path, int], None], folder: Path, count: int) -> tuple[float, int]:
    """Seconds of the step, and the most memory that this process held, in bytes."""
    began = monotonic()
    step(folder, count)
    return monotonic() - began, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def write(folder: Path, count: int) -> None:
    """requests.msgpack by the sink of the collector, out of records as they leave the ring."""
    book = manifest(str(folder), plan(targets=5))
    log = RequestLog(folder, max_bytes=1 << 40)
    for batch in batches(count, book):
        log.rows(batch, book)
        log.tick(None, None, Slab(), book)  # type: ignore[arg-type]  # it looks at none of them
    log.close(None)  # type: ignore[arg-type]


def batches(count: int, book: Manifest) -> Iterator[Any]:
    reader, chance = Reader(len(book.plan.targets)), np.random.default_rng(7)
    plain = np.repeat(records(fields()), BATCH)
    for first in range(0, count, BATCH):
        made = plain[: min(BATCH, count - first)].copy()
        late = chance.lognormal(np.log(20 * MS), 0.6, len(made)).astype(np.uint64)
        made["request"] = np.arange(first, first + len(made))
        made["intended_ns"] = made["dequeued_ns"] = START + made["request"] * MS
        made["send_ns"] = made["last_send_ns"] = made["intended_ns"] + late // 200
        made["headers_ns"], made["first_event_ns"] = made["send_ns"] + late // 2, made["send_ns"] + late // 2
        made["first_token_ns"] = made["first_output_ns"] = made["send_ns"] + late
        made["last_token_ns"], made["end_ns"] = made["send_ns"] + 5 * late, made["send_ns"] + 6 * late
        made["target"] = made["request"] % len(book.plan.targets)
        yield reader.batch(made, worker=0, details={})


def read(folder: Path, count: int) -> None:
    """Every record as a mapping, as exporters and people read them."""
    assert sum(1 for _ in rundir.requests(folder)) == count


def to_csv(folder: Path, count: int) -> None:
    assert csv.write_requests(folder, folder / "requests.csv") == count


def to_json(folder: Path, count: int) -> None:
    encode = msgspec.json.Encoder().encode
    with (folder / "requests.jsonl").open("wb") as file:
        for row in rundir.requests(folder):
            file.write(encode(row) + b"\n")


STEPS = (
    ("write msgpack", write, REQUESTS),
    ("read msgpack", read, REQUESTS),
    ("to CSV", to_csv, "requests.csv"),
    ("to JSON", to_json, "requests.jsonl"),
)

if __name__ == "__main__":
    main()
