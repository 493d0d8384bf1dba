"""A file of any size costs the same memory, and nearly nothing is read before the first item."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

MIB = 1 << 20
SIZE = 200 * MIB

# What one worker does: make the source, take its first item, then all items of one pass over the file.
WORKER = """
import gc, sys
from itertools import islice
from llm_latency_lens.engine.plan.plan import Plan, Target, Workload
from llm_latency_lens.engine.workload import source_of

def peak():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]) << 10

def read_bytes():
    return int(next(line for line in open("/proc/self/io") if line.startswith("rchar")).split()[1])

path, kind, order, count, workers = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]), int(sys.argv[5])
targets = (Target(name="a", provider="openai", base_url="http://x"),)
plan = Plan(name="p", targets=targets, workload=Workload(kind=kind, path=path, order=order), phases=())
gc.collect(); gc.freeze(); gc.disable()
before, read_before = peak(), read_bytes()
source = source_of(plan, seed=1)
items = source.items(0, workers)
next(items)
start = read_bytes() - read_before
for _ in islice(items, count - 1):
    pass
print(peak() - before, start, read_bytes() - read_before)
"""


@pytest.fixture(scope="module")
def large() -> Iterator[tuple[Path, int]]:
    """Rows of 200 bytes to 40 kB on tmpfs, and how many they are."""
    path = Path(f"/dev/shm/llm-latency-lens-test-{id(object())}.jsonl")
    some = [b'{"prompt": "%d %s"}\n' % (i, b"word " * (8000 if i % 100 == 0 else 40)) for i in range(1000)]
    part = b"".join(some)
    count = 0
    try:
        with path.open("wb") as file:
            while file.tell() < SIZE:
                file.write(part)
                count += len(some)
        yield path, count
    finally:
        path.unlink()


def worker(path: Path, kind: str, order: str, count: int, workers: int) -> list[int]:
    """(peak memory above the start, bytes read for the first item, bytes read in all)."""
    arguments = [sys.executable, "-c", WORKER, str(path), kind, order, str(count), str(workers)]
    printed = subprocess.run(arguments, capture_output=True, text=True, check=True, timeout=60).stdout
    return [int(number) for number in printed.split()]


@pytest.mark.slow
@pytest.mark.parametrize("order", ["sequential", "shuffle"])
def test_a_large_file_is_passed_through_in_a_few_megabytes(order: str, large: tuple[Path, int]) -> None:
    """A worker that grows with its file is killed in the middle of a long run."""
    path, count = large
    used, first, read = worker(path, "file", order, count // 4, 4)
    assert used < 16 * MIB
    # A shuffle has to know where every record begins; a file read in its own order leaves after a block.
    assert first < (8 * MIB if order == "sequential" else 1.1 * SIZE)
    assert read > 0.9 * SIZE
    assert read < 1.7 * SIZE  # once for the index, and this worker's quarter of the records


def test_a_large_json_array_is_cut_in_a_few_megabytes(tmp_path: Path) -> None:
    """ShareGPT comes as one array of hundreds of MB."""
    path = tmp_path / "large.json"
    turns = '{"conversations": [{"from": "human", "value": "%s"}, {"from": "gpt", "value": "x"}]}' % ("q " * 500)
    count = 40_000
    with path.open("w") as file:
        file.write("[")
        for i in range(count):
            file.write("," * (i > 0) + turns)
        file.write("]")
    used, first, _ = worker(path, "sharegpt", "sequential", count // 4, 4)
    path.unlink()
    assert used < 16 * MIB
    assert first < 2 * MIB
