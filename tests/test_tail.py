from __future__ import annotations

import os
import random
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_latency_lens.collectors.snapshot import ENCODER, Report, Run, Snapshot
from llm_latency_lens.exporters.spool.tail import (
    Cursor,
    Destination,
    Pump,
    Rejected,
    Tail,
    Unavailable,
    cursor_path,
    cursors,
)


def tick(n: int, note: str = "") -> bytes:
    snapshot = Snapshot(
        run="r",
        tick=n,
        wall_time_ns=n,
        elapsed_s=n,
        seconds=1,
        state="running",
        phase=f"p{note}",
        in_flight=0,
        sent_total=n,
        ok_total=n,
        failed_total=0,
        unsent_total=0,
        planned_total=None,
    )
    return ENCODER.encode(snapshot) + b"\n"


LINE = len(tick(1))
SUMMARY = ENCODER.encode(Report(run=Run(id="r", name="n", version="0", started_at="2026-11-01T08:00:00.000+00:00")))


class Shelf(Destination):
    """A destination that keeps what it was given, and fails when the test says so."""

    name = "shelf"

    def __init__(self, faults: list[Exception] | None = None) -> None:
        self.ticks: list[int] = []
        self.writes: list[int] = []  # the number of ticks of each
        self.restarts = 0
        self.faults = faults or []
        self.late_faults: list[Exception] = []  # of the summary
        self.ended: list[str] = []  # the run, at each summary

    def write(self, ticks: list[Snapshot]) -> None:
        if self.faults:
            raise self.faults.pop(0)
        self.ticks += [t.tick for t in ticks]
        self.writes.append(len(ticks))

    def end(self, report: Report) -> None:
        if self.late_faults:
            raise self.late_faults.pop(0)
        self.ended.append(report.run.id)

    def restart(self) -> None:
        self.restarts += 1

    def close(self) -> None: ...


def drain(tail: Tail, limit: int = 1 << 20) -> list[int]:
    seen: list[int] = []
    while ticks := tail.read(limit):
        seen += [t.tick for t in ticks]
        tail.advance(delivered=len(ticks))
    return seen


def pump_of(folder: Path, shelf: Shelf, **more: Any) -> Pump:
    tail = Tail(folder / "intervals.jsonl", folder / "cursor.json")
    return Pump(tail, shelf, run_dir=folder, poll_s=0.01, backoff=lambda attempt: 0.001, **more)


def test_a_log_that_does_not_exist_yet_is_an_empty_one(tmp_path: Path) -> None:
    assert Tail(tmp_path / "none", None).read() == []


@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_a_log_written_in_any_pieces_is_read_line_by_line_exactly_once(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    log = tmp_path_factory.mktemp("log") / "intervals.jsonl"
    whole = b"".join(tick(n) for n in range(12))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=8)))
    tail, seen = Tail(log, None), []
    with log.open("wb", buffering=0) as file:
        for start, end in zip([0, *cuts], [*cuts, len(whole)], strict=True):
            file.write(whole[start:end])
            seen += drain(tail, data.draw(st.sampled_from([1, 50, LINE, 10 * LINE])))
    assert seen == list(range(12))


def test_the_cursor_survives_a_restart_and_what_was_not_confirmed_comes_again(tmp_path: Path) -> None:
    log, cursor = tmp_path / "intervals.jsonl", tmp_path / "cursor"
    log.write_bytes(b"".join(tick(n) for n in range(6)))
    first = Tail(log, cursor)
    assert [t.tick for t in first.read(LINE * 2)] == [0, 1]
    first.advance(delivered=2)
    assert [t.tick for t in first.read(LINE * 2)] == [2, 3]  # never confirmed: killed here
    second = Tail(log, cursor)
    assert drain(second) == [2, 3, 4, 5]
    assert second.cursor.delivered == 6


def test_a_torn_cursor_file_means_from_the_beginning(tmp_path: Path) -> None:
    (tmp_path / "cursor").write_bytes(b'{"offset": 12')
    assert Tail(tmp_path / "log", tmp_path / "cursor").cursor == Cursor()


@pytest.mark.parametrize("kept", [0, 1, 5, 7, 8])
def test_a_log_rewound_and_told_anew_is_read_again_from_where_it_changed(tmp_path: Path, kept: int) -> None:
    log = tmp_path / "intervals.jsonl"
    log.write_bytes(b"".join(tick(n) for n in range(8)))
    tail = Tail(log, None)
    drain(tail)
    os.truncate(log, kept * LINE)
    with log.open("ab") as file:
        file.write(b"".join(tick(n, "again") for n in range(kept, 10)))
    first = tail.read()
    assert tail.rewound is (kept < 8)
    assert [t.tick for t in first] == list(range(kept, 10))


def test_a_log_found_shorter_than_the_cursor_is_followed_from_there(tmp_path: Path) -> None:
    log = tmp_path / "intervals.jsonl"
    log.write_bytes(b"".join(tick(n) for n in range(5)))
    tail = Tail(log, None)
    drain(tail)
    os.truncate(log, 3 * LINE)
    assert drain(tail) == []
    with log.open("ab") as file:
        file.write(tick(3) + tick(4))
    assert drain(tail) == [3, 4]


def test_a_line_that_is_no_tick_is_counted_and_passed_over(tmp_path: Path) -> None:
    log = tmp_path / "intervals.jsonl"
    log.write_bytes(tick(0) + b"{broken\n\n" + tick(1) + b"junk\n")
    tail = Tail(log, None)
    assert drain(tail) == [0, 1]
    assert tail.cursor.unreadable == 3


def test_with_too_much_waiting_the_newest_are_given_up_and_counted_and_the_oldest_stay(tmp_path: Path) -> None:
    log = tmp_path / "intervals.jsonl"
    line = len(tick(100))
    with log.open("wb") as file:
        file.write(b"".join(tick(n) for n in range(100, 110)))
    tail = Tail(log, tmp_path / "cursor", max_pending_bytes=4 * line)
    assert [t.tick for t in tail.read(line)] == [100]
    tail.bound()  # the destination is down: nothing is confirmed
    assert tail.cursor.dropped == 6
    with log.open("ab") as file:
        file.write(b"".join(tick(n) for n in range(110, 115)))
    tail.bound()
    tail.bound()
    assert tail.cursor.dropped == 11
    again = Tail(log, tmp_path / "cursor")
    assert drain(again) == [100, 101, 102, 103]
    with log.open("ab") as file:
        file.write(tick(115))
    assert drain(again) == [115]
    assert again.cursor.skipped == []


def test_the_pump_ends_when_the_summary_is_there_and_everything_is_delivered(tmp_path: Path) -> None:
    shelf = Shelf()
    pump = pump_of(tmp_path, shelf)
    result: list[bool] = []
    thread = threading.Thread(target=lambda: result.append(pump.run()), daemon=True)
    thread.start()
    with (tmp_path / "intervals.jsonl").open("wb", buffering=0) as file:
        for n in range(30):
            file.write(tick(n))
    (tmp_path / "summary.json").write_bytes(SUMMARY)
    thread.join(10)
    assert result == [True]
    assert shelf.ticks == list(range(30))


def test_with_an_interval_ticks_wait_for_each_other_and_the_last_ones_for_nothing(tmp_path: Path) -> None:
    shelf = Shelf()
    pump = pump_of(tmp_path, shelf, interval_s=3_600)
    log = tmp_path / "intervals.jsonl"
    log.write_bytes(tick(0))
    thread = threading.Thread(target=pump.run, daemon=True)
    thread.start()
    while not pump.rest_until:  # it has written and found nothing waiting
        thread.join(0.01)
    with log.open("ab", buffering=0) as file:
        for n in range(1, 30):
            file.write(tick(n))
            thread.join(0.005)
    assert shelf.writes == [1]
    (tmp_path / "summary.json").write_bytes(SUMMARY)
    thread.join(10)
    assert shelf.writes == [1, 29]
    assert shelf.ticks == list(range(30))


def test_a_destination_that_fails_at_random_gets_every_tick_once_and_in_order(tmp_path: Path) -> None:
    rng = random.Random(5)
    (tmp_path / "intervals.jsonl").write_bytes(b"".join(tick(n) for n in range(40)))
    (tmp_path / "summary.json").write_bytes(SUMMARY)
    shelf = Shelf([Unavailable(f"down {rng.random()}") for _ in range(6)])
    lines: list[str] = []
    pump = pump_of(tmp_path, shelf, log=lines.append)
    assert pump.run()
    assert shelf.ticks == list(range(40))
    assert pump.tail.cursor.failures == 6
    assert lines[-1] == "shelf: back after 6 attempts"


def test_ticks_that_are_rejected_are_counted_and_do_not_stop_the_others(tmp_path: Path) -> None:
    (tmp_path / "intervals.jsonl").write_bytes(tick(0))
    (tmp_path / "summary.json").write_bytes(SUMMARY)
    shelf = Shelf([Rejected("bad point")])
    pump = pump_of(tmp_path, shelf)
    assert pump.run()
    assert (pump.tail.cursor.rejected, pump.tail.cursor.failures, pump.tail.cursor.error) == (1, 1, "bad point")


def test_after_the_runs_end_an_absent_destination_is_waited_for_only_so_long(tmp_path: Path) -> None:
    (tmp_path / "intervals.jsonl").write_bytes(tick(0))
    (tmp_path / "summary.json").write_bytes(SUMMARY)
    pump = pump_of(tmp_path, Shelf([Unavailable("down")] * 10_000), give_up_s=0.05)
    assert pump.run() is False
    assert pump.tail.cursor.offset == 0  # it can still be delivered later


def test_the_summary_follows_the_last_tick_once_it_is_taken(tmp_path: Path) -> None:
    """The intervals of a run are in its summary only: a database that was away for a moment must get them too."""
    (tmp_path / "intervals.jsonl").write_bytes(tick(0))
    (tmp_path / "summary.json").write_bytes(SUMMARY)
    shelf = Shelf()
    shelf.late_faults = [Unavailable("down")] * 3
    pump = pump_of(tmp_path, shelf)
    assert pump.run()
    assert (shelf.ticks, shelf.ended, pump.tail.cursor.failures) == ([0], ["r"], 3)


def test_a_damaged_summary_is_a_failure_that_ends_nothing(tmp_path: Path) -> None:
    """Its ticks were delivered; the exporter must not wait for what never comes."""
    (tmp_path / "intervals.jsonl").write_bytes(tick(0))
    (tmp_path / "summary.json").write_text("{}")
    shelf = Shelf()
    pump = pump_of(tmp_path, shelf)
    assert pump.run()
    assert (shelf.ticks, shelf.ended) == ([0], [])
    assert "damaged" in pump.tail.cursor.error


def test_a_rewound_log_makes_the_destination_forget_its_sums(tmp_path: Path) -> None:
    log = tmp_path / "intervals.jsonl"
    log.write_bytes(tick(0) + tick(1))
    (tmp_path / "summary.json").write_bytes(SUMMARY)
    shelf = Shelf()
    pump = pump_of(tmp_path, shelf)
    assert pump.run()
    log.write_bytes(tick(0) + tick(1, "other"))
    assert pump.run()
    assert (shelf.ticks, shelf.restarts) == ([0, 1, 1], 1)


def test_the_cursors_of_a_run_can_be_read_by_others(tmp_path: Path) -> None:
    path = cursor_path(tmp_path, 0, "influxdb")
    (tmp_path / "log").write_bytes(tick(0))
    tail = Tail(tmp_path / "log", path)
    tail.advance(delivered=len(tail.read()))
    assert cursors(tmp_path)[".export-0-influxdb.json"].delivered == 1
