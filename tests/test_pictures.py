"""Rows of requests as pictures: exact where it is promised, in bounded memory, whatever the file looks like."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest

from llm_latency_lens.exporters import request_rows
from llm_latency_lens.exporters.html.density import Density
from llm_latency_lens.exporters.html.marks import asked
from llm_latency_lens.exporters.html.requests import KEPT_MAX, PER_CELL, Pictures, pictures_of
from tests.support_rows import drawn, failed, row, write_rows
from tests.support_runs import START_NS, FakeRun


class Few(msgspec.Struct):
    request: int
    text: str | None = None


def pictures(folder: Path, *, edges: list[float] | None = None, targets: tuple[str, ...] = ("target-0",)) -> Pictures:
    columns = [0.0, 20.0, 40.0, 60.0] if edges is None else edges
    return pictures_of(folder, targets=targets, measured=["steady"], edges=columns, start_wall_ns=START_NS)


def test_every_row_is_read_once_over_all_parts_and_blocks(tmp_path: Path) -> None:
    """A row lost or doubled at the edge of a block or a part would be one of thousands that nobody misses."""
    texts = ["x" * length for length in (0, 10, 3_000_000, 5, request_rows.BLOCK_BYTES)]
    made = [row(request=i, text=texts[i % 5]) for i in range(25)]
    (tmp_path / "requests.000000000000.msgpack").write_bytes(b"".join(made[:7]))
    (tmp_path / "requests.msgpack").write_bytes(b"".join(made[7:]))
    assert [(each.request, len(each.text or "")) for each in request_rows.rows(tmp_path, Few)] == [
        (i, len(texts[i % 5])) for i in range(25)
    ]


@pytest.mark.parametrize("text", ["request", "\u07a7request", "\xa7request \u00de", "\x00\xa7request"])
def test_a_reply_that_looks_like_a_row_is_not_taken_for_one(tmp_path: Path, text: str) -> None:
    """Replies and messages are strangers' text."""
    (tmp_path / "requests.msgpack").write_bytes(b"".join(row(request=i, text=text) for i in range(5)))
    assert [each.request for each in request_rows.rows(tmp_path, Few)] == [0, 1, 2, 3, 4]


def test_a_torn_or_damaged_row_costs_only_itself(tmp_path: Path) -> None:
    """A killed run ends in the middle of a row."""
    made = [row(request=i) for i in range(6)]
    made[2] = made[2][:40] + b"\xc1" * (len(made[2]) - 40)
    (tmp_path / "requests.msgpack").write_bytes(b"".join(made)[:-20])
    assert [each.request for each in request_rows.rows(tmp_path, Few)] == [0, 1, 3, 4]
    (tmp_path / "requests.msgpack").write_bytes(b"")
    assert list(request_rows.rows(tmp_path, Few)) == []


def test_a_sample_is_even_over_the_file_and_of_the_size_asked_for(tmp_path: Path) -> None:
    """The first rows of a run are those of a cold server."""
    write_rows(tmp_path, 30_000)
    numbers = np.array([each.request for each in request_rows.sample(tmp_path, Few, 2000)])
    assert 1500 <= len(numbers) <= 2500
    assert len(set(numbers)) == len(numbers)
    assert np.mean(numbers) == pytest.approx(15_000, rel=0.05)
    assert len(list(request_rows.sample(tmp_path, Few, 29_000))) == 30_000


def test_the_lines_of_a_density_are_the_percentiles_of_its_columns() -> None:
    """They are read as facts, and so they must not come from cells that are coarse enough to draw."""
    rng = np.random.default_rng(5)
    tokens = rng.integers(50, 2000, 40_000)
    ms = 10 + 0.2 * tokens * rng.lognormal(0, 0.3, len(tokens))
    density = Density()
    for pair in zip(tokens.tolist(), ms.tolist(), strict=True):
        density.add(*pair)
    chart = density.chart(target="t", title="", x_label="", y_label="")
    assert chart is not None
    assert sum(n for _, _, n in chart.cells) == chart.count == len(tokens)
    for i, line in enumerate(chart.lines):
        inside = ms[(tokens >= chart.columns[i] * 0.9999) & (tokens < chart.columns[i + 1] * 0.9999)]
        if len(inside) >= 500:
            assert line[1:] == pytest.approx(np.quantile(inside, [0.5, 0.9, 0.99]).tolist(), rel=0.06)


def test_one_length_for_all_requests_is_no_picture() -> None:
    """A single column would suggest a dependence that was not measured."""
    density = Density()
    for k in range(100):
        density.add(128, 10.0 + k)
    assert density.chart(target="t", title="", x_label="", y_label="") is None


def test_what_a_run_keeps_of_its_requests_does_not_grow_with_it(tmp_path: Path) -> None:
    """A page of a day must open like one of a minute, and every cell needs a request to show."""
    write_rows(tmp_path, 20_000)
    found = pictures(tmp_path)
    assert found.rows == 20_000
    by_cell: dict[tuple[int, int], int] = {}
    for shown in found.requests:
        by_cell[shown.column, shown.bucket] = by_cell.get((shown.column, shown.bucket), 0) + 1
    assert max(by_cell.values()) == PER_CELL
    assert len(found.requests) < 3 * 25 * PER_CELL < KEPT_MAX
    assert {column for column, bucket in by_cell if bucket == -1} == {0, 1, 2}
    assert {each.outcome for each in found.requests if each.bucket == -1} == {"http_server"}


def test_a_request_stands_in_the_cell_of_its_first_token(tmp_path: Path) -> None:
    """The heat map counts it there; the click must find it there."""
    content = [drawn(0, 19.99, 30.0, [5.0]), drawn(1, 45.0, 80.0, [5.0]), failed(2, 59.0, 7.0)]
    (tmp_path / "requests.msgpack").write_bytes(b"".join(content))
    found = pictures(tmp_path).requests
    assert [(each.column, each.outcome) for each in found] == [(1, "ok"), (2, "ok"), (2, "http_server")]
    assert found[0].connect == 1.0
    assert found[0].send == 1.5


def test_a_stall_is_one_and_a_coalesced_token_is_marked(tmp_path: Path) -> None:
    """The timeline is looked at to find exactly these."""
    gaps = [10.0] * 5 + [120.0] + [10.0] * 5 + [0.0]
    ns = [50_000_000 + round(1e6 * sum(gaps[:k])) for k in range(len(gaps) + 1)]
    marks = [False] * (len(ns) - 1) + [True]
    times = {"token_ns": ns, "token_coalesced": marks}
    plain = {"token_ns": [50_000_000 + 10_000_000 * k for k in range(10)], "token_coalesced": [False] * 10}
    content = [drawn(0, 1.0, 50.0, gaps, **times)]
    content += [drawn(k, 2.0, 50.0, [10.0 + k / 100] * 9, **plain) for k in range(1, 12)]
    (tmp_path / "requests.msgpack").write_bytes(b"".join(content))
    slowest, *others = pictures(tmp_path).tokens
    assert (slowest.title, slowest.request, slowest.stalls, slowest.coalesced) == ("slowest", 0, [6], [12])
    assert slowest.times[6] - slowest.times[5] == pytest.approx(120)
    assert [each.title for each in others] == ["slowest but 1", "slowest but 2", "of median duration"]
    assert all(not each.stalls for each in others)
    assert 3 <= (others[-1].request or 0) <= 7


def test_a_run_without_rows_has_no_pictures_and_no_error(tmp_path: Path) -> None:
    """output.records: false is a choice."""
    found = pictures(tmp_path, edges=[])
    assert (found.rows, found.densities, found.requests, found.tokens, found.timed) == (0, [], [], [], False)


@pytest.mark.parametrize(
    ("load", "expected"),
    [
        (20.0, [20, 20, 20, None]),
        ({"from": 0, "to": 40, "curve": "linear"}, [0, 20, 30, None]),
        ({"from": 1, "to": 16, "curve": "exponential"}, [1, 4, 8, None]),
        ({"steps": [[5, "2s"], [9, "2s"]]}, [5, 9, 9, None]),
    ],
)
def test_the_offered_rate_follows_the_plan_until_its_planned_end(load: object, expected: list[float | None]) -> None:
    """The last replies of a phase come after its end; nothing is offered then."""
    run = FakeRun(ticks=6, targets=1)
    list(run.snapshots())
    plan = {"phases": [{"name": "steady", "duration": "4s", "load": {"rate": load}}]}
    assert asked(run.report(), plan, [0.0, 2.0, 3.0, 5.0], "rate") == pytest.approx(expected)
    assert asked(run.report(), plan, [0.0], "concurrency") == [None]


def test_a_ramp_that_goes_on_has_the_slope_of_its_plan() -> None:
    """Of a run that goes on or was interrupted only a part is in the report: its end is not the end of the ramp."""
    run = FakeRun(ticks=2, targets=1)
    list(run.snapshots())
    load = {"rate": {"from": 0, "to": 40, "curve": "linear"}}
    plan = {"phases": [{"name": "steady", "duration": "4s", "load": load}]}
    assert asked(run.report(), plan, [0.5, 1.5, 2.5], "rate") == pytest.approx([5, 15, None])
