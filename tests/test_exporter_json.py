"""The run directory's files: one line per tick, one map per request, over full disks, rotations and restarts."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgpack import Unpacker

from llm_latency_lens.collectors.batches import Reader
from llm_latency_lens.collectors.series import Slab
from llm_latency_lens.collectors.snapshot import SNAPSHOT_DECODER, Report, Run, Snapshot
from llm_latency_lens.engine.errors import OutputError
from llm_latency_lens.engine.records.detail import Detail
from llm_latency_lens.engine.records.record import NO_TARGET, Outcome, Unsent
from llm_latency_lens.exporters.json import IntervalLog, write_summary
from llm_latency_lens.exporters.msgpack import RequestLog, parts
from llm_latency_lens.exporters.spool import append as appendfile
from llm_latency_lens.exporters.spool.append import AppendFile
from tests.support_collector import START, batch, fields, manifest, plan, records, unsent
from tests.test_hdrlog import REPORT, snapshot

RUN = manifest("/nowhere", plan(targets=2))


def unpacked(content: bytes) -> Iterator[dict[str, Any]]:
    """By an independent reader: the reference implementation of MessagePack."""
    unpacker = Unpacker()
    unpacker.feed(content)
    yield from unpacker


def rows_of(directory: Path) -> list[dict[str, Any]]:
    return [row for path in [*parts(directory), directory / "requests.msgpack"] for row in unpacked(path.read_bytes())]


def requests(numbers: range) -> Any:
    return batch(*(fields(request=number) for number in numbers))


# --- rows -------------------------------------------------------------------------------------------------------------


def row(record: dict[str, int], tmp_path: Path, **detail: Any) -> dict[str, Any]:
    details = {(0, record["request"]): Detail(record["request"], 0, **detail)} if detail else {}
    made = Reader(2).batch(records(record), worker=0, details=details)
    log = RequestLog(tmp_path, max_bytes=1 << 20)
    log.rows(made, RUN)
    log.close(REPORT)
    [reported] = rows_of(tmp_path)
    return reported


def test_a_row_has_the_metrics_by_name_and_the_marks_in_ms_after_intended(tmp_path: Path) -> None:
    reported = row(fields(request=7, target=1), tmp_path)
    assert (reported["request"], reported["phase"], reported["target"], reported["outcome"]) == (
        7,
        "phase-0",
        "target-1",
        "ok",
    )
    assert (reported["ttft_ms"], reported["e2e_ms"], reported["tpot_ms"]) == (20.0, 130.0, 10.0)
    assert (reported["send_ms"], reported["first_token_ms"], reported["end_ms"]) == (1.0, 21.0, 131.0)
    assert reported["wall_time_ns"] == 1_700_000_000 * 10**9
    assert (reported["reused"], reported["user_clock"]) == (True, False)
    assert (reported["output_tokens"], reported["cached_tokens"], reported["cost_usd"]) == (
        11,
        None,
        None,
    )


def test_an_unsent_row_says_why_and_how_many_slots(tmp_path: Path) -> None:
    reported = row(unsent(Unsent.NO_CAPACITY, slots=4, target=NO_TARGET), tmp_path)
    assert (reported["outcome"], reported["unsent"], reported["slots"], reported["target"]) == (
        "unsent",
        "no_capacity",
        4,
        None,
    )
    assert reported["ttft_ms"] is None


def test_a_detail_stands_in_its_row(tmp_path: Path) -> None:
    reported = row(
        fields(request=3, outcome=Outcome.HTTP_SERVER, http_status=500), tmp_path, message="boom", request_id="x"
    )
    assert (reported["outcome"], reported["http_status"], reported["message"], reported["request_id"]) == (
        "http_server",
        500,
        "boom",
        "x",
    )


def test_all_rows_have_the_same_keys(tmp_path: Path) -> None:
    log = RequestLog(tmp_path, max_bytes=1 << 20)
    log.rows(batch(fields(), unsent(Unsent.BUDGET), fields(outcome=Outcome.CONNECT_REFUSED)), RUN)
    log.close(REPORT)
    assert len({tuple(each) for each in rows_of(tmp_path)}) == 1


# --- rotation ---------------------------------------------------------------------------------------------------------


def test_parts_rotate_and_the_oldest_rows_go_first_and_are_counted(tmp_path: Path) -> None:
    log = RequestLog(tmp_path, max_bytes=80_000)
    for tick in range(60):
        log.rows(requests(range(tick * 10, tick * 10 + 10)), RUN)
        log.tick(snapshot(tick), REPORT, Slab(), RUN)
    log.close(REPORT)
    numbers = [each["request"] for each in rows_of(tmp_path)]
    assert numbers == list(range(numbers[0], 600))
    assert log.dropped == numbers[0] > 0
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 100_000


@settings(max_examples=25, deadline=None)
@given(kills=st.lists(st.tuples(st.integers(1, 9), st.integers(0, 9)), min_size=1, max_size=4))
def test_a_second_life_tells_every_row_once_also_over_rotations(
    tmp_path_factory: pytest.TempPathFactory, kills: list[tuple[int, int]]
) -> None:
    """Each kill: so many ticks after the last checkpoint that it kept, and so many that it had written beyond it."""
    directory = tmp_path_factory.mktemp("rows")
    log, done = RequestLog(directory, max_bytes=1 << 20), 0
    log.part_bytes = 9_000
    position = log.position()
    for kept, beyond in kills:
        for tick in range(kept + beyond):
            log.rows(requests(range(10 * (done + tick), 10 * (done + tick + 1))), RUN)
            log.tick(snapshot(tick), REPORT, Slab(), RUN)
            if tick == kept - 1:
                position = log.position()
        done += kept
        log._file.close()
        log = RequestLog(directory, max_bytes=1 << 20)
        log.part_bytes = 9_000
        log.rewind(position)
    log.close(REPORT)
    assert [each["request"] for each in rows_of(directory)] == list(range(10 * done))
    assert log.dropped == 0


# --- a disk that refuses ----------------------------------------------------------------------------------------------


class Disk:
    """os.pwrite of a disk with so many bytes left."""

    def __init__(self, left: int) -> None:
        self.left = left

    def pwrite(self, file: int, block: Any, offset: int) -> int:
        if self.left <= 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        taken = min(self.left, len(block))
        self.left -= taken
        return REAL_PWRITE(file, block[:taken], offset)


REAL_PWRITE = os.pwrite


@pytest.mark.parametrize("left", [0, 1, 7, 10, 13])
def test_a_full_disk_is_counted_and_made_good_when_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, left: int
) -> None:
    disk = Disk(left)
    monkeypatch.setattr(appendfile.os, "pwrite", disk.pwrite)
    file = AppendFile(tmp_path / "f")
    written = [f"line {i}\n".encode() for i in range(4)]
    for block in written[:2]:
        file.write(block)
        file.flush()
    assert file.failures > 0
    disk.left = 1 << 20
    for block in written[2:]:
        file.write(block)
        assert file.flush()
    file.close()
    assert (tmp_path / "f").read_bytes() == b"".join(written)
    assert file.dropped == 0


def test_what_memory_cannot_hold_is_dropped_and_counted(tmp_path: Path) -> None:
    file = AppendFile(tmp_path / "gone" / "f", pending_max_bytes=25)
    for _ in range(5):
        file.write(b"0123456789", count=3)
        assert not file.flush()
    assert (file.waiting, file.dropped, file.failures) == (6, 9, 5)
    (tmp_path / "gone").mkdir()
    assert file.flush()
    file.close()
    assert (tmp_path / "gone" / "f").read_bytes() == b"0123456789" * 2


def test_a_file_that_somebody_cut_gets_no_hole_of_zeros(tmp_path: Path) -> None:
    file = AppendFile(tmp_path / "f")
    (tmp_path / "f").write_bytes(b"abc")
    file.rewind(100)
    file.write(b"def")
    file.flush()
    file.close()
    assert (tmp_path / "f").read_bytes() == b"abcdef"


# --- json -------------------------------------------------------------------------------------------------------------


def test_intervals_are_one_line_each_and_read_back_equal(tmp_path: Path) -> None:
    log = IntervalLog(tmp_path)
    reported: list[Snapshot] = [snapshot(tick) for tick in range(3)]
    for each in reported:
        log.tick(each, REPORT, Slab(), RUN)
    log.close(REPORT)
    lines = (tmp_path / "intervals.jsonl").read_bytes().splitlines()
    assert [SNAPSHOT_DECODER.decode(line) for line in lines] == reported


def test_the_summary_has_every_key_and_replaces_the_one_before(tmp_path: Path) -> None:
    (tmp_path / "summary.json").write_text("old")
    write_summary(tmp_path, REPORT)
    reported = json.loads((tmp_path / "summary.json").read_text())
    assert list(reported) == list(Report.__struct_fields__)
    assert list(reported["run"]) == list(Run.__struct_fields__)
    assert reported["client"]["loop_lag_us"] == {"p50": None, "p99": None, "max": None}
    assert msgspec.json.decode((tmp_path / "summary.json").read_bytes(), type=Report) == REPORT


def test_a_summary_that_cannot_be_written_is_an_output_error(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"summary\.json"):
        write_summary(tmp_path / "gone", REPORT)


def test_the_anchor_of_wall_times_is_the_manifests() -> None:
    assert RUN.anchor_mono_ns == START
