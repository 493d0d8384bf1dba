"""The checkpoint file: what comes back after a SIGKILL at any byte of a write, and how long it gets."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_latency_lens.collectors import checkpoint as c
from llm_latency_lens.collectors.checkpoint import Checkpoint, Progress, SegmentState
from llm_latency_lens.collectors.series import Slab
from llm_latency_lens.engine.records.record import Outcome
from tests.support_collector import MS, START, fields, slab


def ticks(count: int) -> list[Slab]:
    return [slab(*(fields(end_ns=START + (100 + i + j) * MS) for j in range(3))) for i in range(count)]


def state(tick: int) -> Progress:
    return Progress(
        next_tick=tick,
        segments={"worker-0.1.ring": SegmentState(cursors=(tick, 2 * tick, 0), drops=[(0, 1, tick)])},
        counters={0: [tick] * 4},
        sinks=[[tick * 100], [1, 2, 3]],
        errors=[(0, int(Outcome.HTTP_SERVER), "boom", 500)],
    )


def written(path: Path, slabs: list[Slab], opened: dict[int, Slab]) -> Slab:
    """An incarnation of the collector that saved after each tick."""
    file, totals = Checkpoint(path), Slab()
    file.load()
    for number, closed in enumerate(slabs, 1):
        totals.add(closed)
        file.save(state(number), closed=closed, totals=totals, opened=opened)
    file.close()
    return totals


def same(left: Slab, right: Slab) -> bool:
    def counts(of: Slab) -> object:
        return {
            key: (s.tally.tolist(), {name: h.packed()[:3] for name, h in s.metrics.items()})
            for key, s in of.series.items()
        }

    return counts(left) == counts(right)


def test_without_a_file_there_is_nothing_to_come_back_to(tmp_path: Path) -> None:
    assert Checkpoint(tmp_path / "checkpoint").load() is None


@pytest.mark.parametrize("count", [1, 2, 7])
def test_the_last_save_comes_back_whole(tmp_path: Path, count: int) -> None:
    opened = {count + 1: slab(fields(), fields(outcome=Outcome.LOST))}
    totals = written(tmp_path / "checkpoint", ticks(count), opened)
    saved = Checkpoint(tmp_path / "checkpoint").load()
    assert saved is not None
    assert saved.state == state(count)
    assert same(saved.totals, totals)
    assert list(saved.open) == [count + 1]
    assert same(saved.open[count + 1], opened[count + 1])


@settings(max_examples=60, deadline=None)
@given(cut=st.floats(0, 1, exclude_max=True), garbage=st.binary(max_size=40))
def test_a_write_cut_short_leaves_the_frame_before_it_and_the_next_life_goes_on(
    tmp_path_factory: pytest.TempPathFactory, cut: float, garbage: bytes
) -> None:
    path = tmp_path_factory.mktemp("cut") / "checkpoint"
    slabs = ticks(3)
    written(path, slabs[:2], {})
    whole = path.stat().st_size
    written_by_next = Checkpoint(path)
    saved = written_by_next.load()
    assert saved is not None
    saved.totals.add(slabs[2])
    written_by_next.save(state(3), closed=slabs[2], totals=saved.totals, opened={})
    written_by_next.close()
    content = path.read_bytes()
    size = whole + int((len(content) - whole - 1) * cut)
    path.write_bytes(content[:size] + garbage if size < len(content) else content)

    again = Checkpoint(path)
    back = again.load()
    assert back is not None
    assert back.state.next_tick == 2
    back.totals.add(slabs[2])
    again.save(state(3), closed=slabs[2], totals=back.totals, opened={})
    again.close()
    last = Checkpoint(path).load()
    assert last is not None
    expected = Slab()
    for each in slabs:
        expected.add(each)
    assert same(last.totals, expected)


def test_deltas_that_outgrow_the_base_become_a_new_base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(c, "REBASE_BYTES", 4_000)
    path = tmp_path / "checkpoint"
    totals = written(path, ticks(200), {})
    saved = Checkpoint(path).load()
    assert saved is not None
    assert same(saved.totals, totals)
    one = tmp_path / "one"
    written(one, [totals], {})
    assert path.stat().st_size < 4_000 + 4 * one.stat().st_size
    assert [file.name for file in tmp_path.iterdir() if file.name.startswith(".")] == []


def test_a_save_that_fails_leaves_the_last_one_in_force(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint"
    written(path, ticks(2), {})
    file = Checkpoint(path)
    file.load()
    path.chmod(0o600)
    path.rename(tmp_path / "away")
    with pytest.raises(OSError, match="checkpoint"):
        file.save(state(3), closed=Slab(), totals=Slab(), opened={})
    (tmp_path / "away").rename(path)
    saved = Checkpoint(path).load()
    assert saved is not None
    assert saved.state.next_tick == 2
