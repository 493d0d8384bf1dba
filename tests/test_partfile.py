"""A log in parts: rotation, compression, and readers and rewinds across them."""

from __future__ import annotations

import gzip
import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_latency_lens.collectors.snapshot import ENCODER
from llm_latency_lens.exporters.history import Lines
from llm_latency_lens.exporters.spool.parts import PartFile, lines_of, parts_of, view_at
from llm_latency_lens.exporters.spool.tail import Tail
from tests.support_runs import FakeRun


def line(n: int) -> bytes:
    return f"{n:06d} {'x' * (n % 40)}\n".encode()


def reported(path: Path) -> list[int]:
    return [int(each[:6]) for each in lines_of(path)]


def write(file: PartFile, numbers: range, *, seconds: float = 1.0) -> None:
    for n in numbers:
        file.turn(n * seconds)
        file.write(line(n))
        file.flush()


def test_full_parts_are_compressed_and_every_line_is_there_in_order(tmp_path: Path) -> None:
    path = tmp_path / "intervals.jsonl"
    file = PartFile(path, part_bytes=500)
    write(file, range(200))
    file.close()
    closed = parts_of(path)
    assert len(closed) > 5
    assert all(part.path.suffix == ".gz" for part in closed)
    assert [part.start for part in closed] == [0, *(part.end for part in closed[:-1])]
    assert reported(path) == list(range(200))
    assert file.failures == 0


def test_a_day_ends_a_part(tmp_path: Path) -> None:
    path = tmp_path / "intervals.jsonl"
    file = PartFile(path, part_s=100)
    write(file, range(250))
    file.close()
    assert len(parts_of(path)) == 2


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(st.integers(0, 1 << 30))
def test_a_rewind_after_any_kill_tells_everything_once(tmp_path_factory: pytest.TempPathFactory, seed: int) -> None:
    """The collector saves a position after each tick at best; what came later is exported again."""
    path = tmp_path_factory.mktemp("part") / "intervals.jsonl"
    dice = random.Random(seed)
    saved: tuple[list[int], int] = ([0, 0], 0)
    n = 0
    for _ in range(6):
        file = PartFile(path, part_bytes=300)
        file.rewind(saved[0])
        n = saved[1]
        for _ in range(dice.randrange(60)):
            write(file, range(n, n + 1))
            n += 1
            if dice.random() < 0.3:
                saved = (file.position(), n)
        file._file.close()
        file._wait()  # the kill comes before or after the packing; during it a plain part is left, see below
    file = PartFile(path, part_bytes=300)
    file.rewind(saved[0])
    file.close()
    assert reported(path) == list(range(saved[1]))


def test_a_part_that_a_kill_left_plain_is_read_and_compressed_later(tmp_path: Path) -> None:
    path = tmp_path / "intervals.jsonl"
    file = PartFile(path, part_bytes=300)
    write(file, range(100))
    file.close()
    part = parts_of(path)[1]
    plain = part.path.with_suffix("")
    plain.write_bytes(gzip.decompress(part.path.read_bytes()))
    assert reported(path) == list(range(100))  # both there: exported once
    part.path.unlink()
    assert reported(path) == list(range(100))
    again = PartFile(path, part_bytes=300)
    again.rewind(file.position())
    again.close()
    assert not plain.exists()
    assert reported(path) == list(range(100))


def test_followers_go_on_over_every_rotation(tmp_path: Path) -> None:
    path = tmp_path / "intervals.jsonl"
    run = FakeRun(ticks=60, targets=1)
    ticks = [ENCODER.encode(tick) + b"\n" for tick in run.snapshots()]
    file = PartFile(path, part_bytes=3 * len(ticks[0]))
    tail, slow = Tail(path, tmp_path / "cursor"), Tail(path, tmp_path / "slow")
    lines = Lines(path)
    heard: list[int] = []
    seen = 0
    for i, tick in enumerate(ticks):
        file.turn(i)
        file.write(tick)
        file.flush()
        heard += [each.tick for each in tail.read()]
        tail.advance()
        seen += len(list(lines.new()))
    file.close()
    assert len(parts_of(path)) > 5
    assert heard == list(range(60))
    assert seen == 60
    late: list[int] = []
    while found := slow.read(limit_bytes=1000):
        late += [each.tick for each in found]
        slow.advance()
        slow = Tail(path, tmp_path / "slow")  # as after a restart
    assert late == list(range(60))
    assert slow.pending_bytes() == 0
    assert not tail.rewound


def test_a_place_is_found_in_its_part(tmp_path: Path) -> None:
    path = tmp_path / "intervals.jsonl"
    file = PartFile(path, part_bytes=300)
    write(file, range(100))
    file.close()
    whole = b"".join(lines_of(path))
    for place in range(0, len(whole), 37):
        with view_at(path, place) as view:
            assert view.base <= place < view.size
            assert view.pread(5, place) == whole[place : place + 5][: view.size - place]
