"""What an item costs a worker, ahead of its slot, and what a large file costs before its first item.

A worker at 10,000 requests/s has 100 us for a request; its item is one part of it.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from llm_latency_lens.engine.plan.plan import Length
from llm_latency_lens.engine.workload.index import BLOCK_BYTES, open_records
from tests.support_workload import fixed, source, target

ITEMS = 5000
NORMAL = Length(kind="normal", mean=550, stddev=150)
GIB = 1 << 30


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("workload")
    text = "word " * 100
    with (folder / "rows.jsonl").open("w") as file:
        file.writelines(json.dumps({"prompt": f"{i} {text}", "max_tokens": 64}) + "\n" for i in range(40_000))
    at, chance = 0.0, random.Random(1)
    with (folder / "burst.csv").open("w") as file:
        file.write("Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n")
        for _ in range(40_000):
            at += chance.expovariate(50)
            file.write(f"{at:.6f},ChatGPT,{chance.randrange(1, 2000)},{chance.randrange(500)},0,API log\n")
    with (folder / "mooncake.jsonl").open("w") as file:
        for i in range(10_000):
            blocks = {"input_length": 27 * 512, "output_length": 300, "hash_ids": [0, *range(26 * i, 26 * i + 26)]}
            file.write(json.dumps({"timestamp": i * 10, **blocks}) + "\n")
    return folder


@pytest.fixture(scope="module")
def gigabyte() -> Iterator[Path]:
    path = Path("/dev/shm/llm-latency-lens-bench.jsonl")
    rows = b"".join(b'{"prompt": "%d %s"}\n' % (i, b"word " * 200) for i in range(1000))
    with path.open("wb") as file:
        while file.tell() < GIB:
            file.write(rows)
    yield path
    path.unlink()


KINDS: dict[str, dict[str, Any]] = {
    "prompt": {},
    "prompt, unique prefix": {"prefix": "unique"},
    "synthetic 550 tokens": {"kind": "synthetic", "input_tokens": NORMAL, "output_tokens": NORMAL},
    "synthetic 10000 tokens": {"kind": "synthetic", "input_tokens": fixed(10_000)},
    "rows, streamed": {"kind": "file", "path": "rows.jsonl"},
    "rows, shuffled": {"kind": "file", "path": "rows.jsonl", "order": "shuffle"},
    "trace, BurstGPT": {"kind": "trace", "path": "burst.csv"},
    "trace, Mooncake 13824 tokens": {"kind": "trace", "path": "mooncake.jsonl"},
}


@pytest.mark.parametrize("workers", [1, 8])
@pytest.mark.parametrize("kind", KINDS)
def test_items(benchmark: Any, kind: str, workers: int, folder: Path) -> None:
    """Of one worker alone, and of one of eight: what it pays to pass over the others' rows."""
    keys = dict(KINDS[kind])
    if "path" in keys:
        keys["path"] = str(folder / keys["path"])
    made = source((target("a"), target("b")), **keys)
    items = made.items(0, workers)
    benchmark.pedantic(lambda: list(islice(items, ITEMS // workers)), rounds=5)
    benchmark.extra_info["us_per_item"] = round(benchmark.stats["median"] / (ITEMS // workers) * 1e6, 1)


@pytest.mark.parametrize("order", ["sequential", "shuffle"])
def test_the_first_item_of_a_gigabyte(benchmark: Any, order: str, gigabyte: Path) -> None:
    """Promised within 2 s."""
    benchmark.pedantic(
        lambda: next(source(kind="file", path=str(gigabyte), order=order).items(0, 4)), rounds=5, iterations=1
    )


def test_passing_over_a_gigabyte(benchmark: Any, gigabyte: Path) -> None:
    records = open_records(str(gigabyte), "path")
    blocks = 2000
    rows = records.scan()
    benchmark.pedantic(lambda: sum(1 for _ in islice(rows, blocks * BLOCK_BYTES // 1020)), rounds=5)
    benchmark.extra_info["gb_per_s"] = round(blocks * BLOCK_BYTES / benchmark.stats["median"] / 1e9, 2)
