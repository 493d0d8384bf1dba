"""Traces: times to the ns, lengths to the token, shared prefixes where the trace shares them."""

from __future__ import annotations

import random
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llm_latency_lens.engine.errors import PlanError
from llm_latency_lens.engine.plan.plan import Workload
from llm_latency_lens.engine.workload.text import Prose
from llm_latency_lens.engine.workload.trace import BLOCK_TOKENS, Trace, seconds_ns, utc_ns
from tests.support_workload import asked, jsonl, source, texts

MS = 1_000_000
AZURE = """TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:15:46.6805900,374,44
2023-11-16 18:15:50.9951690,396,109
2023-11-16 18:15:51.2224670,879,55
"""
BURST = """Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type
5,ChatGPT,472,18,490,Conversation log
45.5,ChatGPT,1087,0,1087,Conversation log
118.000000001,GPT-4,417,276,693,API log
"""
BURST_3 = """Timestamp,Session ID,Elapsed time,Model,Request tokens,Response tokens,Total tokens,Log Type
0.5,a,1.5,ChatGPT,0,18,490,Conversation log
"""


def mooncake(path: Path, rows: Iterable[tuple[float, int, int, list[int]]], **keys: Any) -> Any:
    names = ("timestamp", "input_length", "output_length", "hash_ids")
    return source(kind="trace", path=jsonl(path, (dict(zip(names, row, strict=True)) for row in rows)), **keys)


def traced(path: Path, rows: Iterable[tuple[float, int, int, list[int]]], window: int) -> Trace:
    """A Mooncake trace that is sorted through a window of so many rows."""
    names = ("timestamp", "input_length", "output_length", "hash_ids")
    written = jsonl(path, (dict(zip(names, row, strict=True)) for row in rows))
    return Trace(Workload(kind="trace", path=written), 7, Prose(), window=window)


def table(path: Path, content: str, **keys: Any) -> Any:
    path.write_text(content)
    return source(kind="trace", path=str(path), **keys)


def lengths(made: Any, count: int) -> list[tuple[int, int]]:
    return [(len(asked(item).split()), item.prompt.max_tokens) for item in islice(made.items(0, 1), count)]


def test_mooncake_times_and_lengths(tmp_path: Path) -> None:
    made = mooncake(tmp_path / "x.jsonl", [(1000, 600, 52, [0, 1]), (1000, 10, 1, [5]), (4000.5, 1500, 7, [0, 1, 2])])
    assert list(made.timestamps()) == [0, 0, 3_000_500_000]
    assert lengths(made, 4) == [(600, 52), (10, 1), (1500, 7), (600, 52)]
    assert [item.estimate_tokens for item in islice(made.items(0, 1), 2)] == [652, 11]


def test_azure_times_and_lengths_keep_all_seven_digits(tmp_path: Path) -> None:
    made = table(tmp_path / "x.csv", AZURE)
    assert list(made.timestamps()) == [0, 4_314_579_000, 4_541_877_000]
    assert lengths(made, 3) == [(374, 44), (396, 109), (879, 55)]


def test_burstgpt_keeps_failed_requests_as_arrivals_and_knows_both_of_its_headers(tmp_path: Path) -> None:
    made = table(tmp_path / "x.csv", BURST)
    assert list(made.timestamps()) == [0, 40_500_000_000, 113_000_000_001]
    assert lengths(made, 3) == [(472, 18), (1087, 1), (417, 276)]
    assert lengths(table(tmp_path / "y.csv", BURST_3), 1) == [(1, 18)]


@pytest.mark.parametrize(("scale", "due"), [(2.0, [0, 6 * MS, 20 * MS]), (0.1, [0, 300_000, MS])])
def test_times_are_scaled(scale: float, due: list[int], tmp_path: Path) -> None:
    made = mooncake(tmp_path / "x.jsonl", [(5, 1, 1, []), (8, 1, 1, []), (15, 1, 1, [])], time_scale=scale)
    assert list(made.timestamps()) == due


def test_equal_hash_ids_are_equal_text_and_others_are_not(tmp_path: Path) -> None:
    rows = [
        (0, 3 * BLOCK_TOKENS, 1, [7, 8, 9]),
        (1, 2 * BLOCK_TOKENS + 100, 1, [7, 8, 9]),  # the last block is cut
        (2, 3 * BLOCK_TOKENS, 1, [7, 5, 9]),
        (3, BLOCK_TOKENS + 50, 1, [7]),  # the tail has no hash id: nobody shares it
        (4, BLOCK_TOKENS + 50, 1, [7]),
        (5, 600, 1, []),
        (6, 600, 1, []),
    ]
    words = [text.split() for text in texts(mooncake(tmp_path / "x.jsonl", rows), len(rows))]
    assert [len(prompt) for prompt in words] == [row[1] for row in rows]
    block = BLOCK_TOKENS
    assert words[1] == words[0][: 2 * block + 100]
    assert words[2][:block] == words[0][:block]
    assert words[2][block : block + 8] != words[0][block : block + 8]
    assert words[2][2 * block :] == words[0][2 * block :]
    assert words[3][:block] == words[4][:block] == words[0][:block]
    assert words[3][block : block + 8] != words[4][block : block + 8]
    assert words[5][:8] != words[6][:8]


def test_a_shared_block_is_the_same_in_every_phase_and_a_tail_is_not(tmp_path: Path) -> None:
    made = mooncake(tmp_path / "x.jsonl", [(0, 600, 1, [1])])
    first, second = texts(made, 1)[0].split(), texts(made, 1, phase=1)[0].split()
    assert first[:512] == second[:512]
    assert first[512:520] != second[512:520]


def test_a_unique_prefix_shares_nothing_and_costs_no_tokens(tmp_path: Path) -> None:
    made = mooncake(tmp_path / "x.jsonl", [(0, 600, 1, [1]), (1, 600, 1, [1])], prefix="unique")
    first, second = (text.split() for text in texts(made, 2))
    assert len(first) == len(second) == 600
    assert first[:8] != second[:8]


def test_prompts_are_exact_by_a_tokenizer_over_the_joints_of_blocks(tmp_path: Path) -> None:
    pytest.importorskip("toktok")
    rows = [(0, 5 * BLOCK_TOKENS + 17, 1, [1, 2, 3, 4, 5, 6]), (1, 700, 1, [1])]
    made = mooncake(tmp_path / "x.jsonl", rows, tokenizer="o200k_base", prefix="shared", prefix_tokens=40)
    assert [made.prose.count(text) for text in texts(made, 2)] == [5 * BLOCK_TOKENS + 57, 740]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=40)
@given(
    times=st.lists(st.integers(0, 50), min_size=1, max_size=40),
    workers=st.integers(1, 4),
    window=st.integers(1, 60),
)
def test_rows_out_of_order_are_sorted_and_prompts_stay_with_their_times(
    times: list[int], workers: int, window: int, tmp_path: Path
) -> None:
    rows = [(at, 1 + i, 1, []) for i, at in enumerate(times)]
    ranked = sorted(enumerate(times), key=lambda row: row[1])
    # The window reaches if no row has more than that many rows before it that belong after it.
    reaches = all(sum(t > at for t in times[:i]) <= window for i, at in enumerate(times))
    try:
        made = traced(tmp_path / "x.jsonl", rows, window)
    except PlanError:
        assert not reaches
        return
    assert list(made.timestamps()) == [(at - ranked[0][1]) * MS for _, at in ranked]
    for worker in range(workers):
        wanted = [1 + i for i, _ in ranked][worker::workers]
        assert [ask.tokens for ask in islice(made.asks(worker, workers, 0, 0), len(wanted))] == wanted


def test_a_row_too_far_out_of_order_is_reported_by_line(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=r"x.jsonl line 6: .*more than 3 rows earlier; sort the trace"):
        traced(tmp_path / "x.jsonl", [(at, 1, 1, []) for at in (10, 20, 30, 40, 50, 5)], 3)


@pytest.mark.slow
def test_every_slot_of_a_long_trace_is_accounted_for(tmp_path: Path) -> None:
    chance = random.Random(4)
    count = 100_000
    path = tmp_path / "x.csv"
    at = 0.0
    with path.open("w") as file:
        file.write("Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n")
        for i in range(count):
            at += chance.expovariate(100)
            file.write(f"{at:.6f},m,{i % 50 + 1},{i % 7},9,x\n")
    made = source(kind="trace", path=str(path))
    due = list(made.timestamps())
    assert len(due) == count
    assert due == sorted(due)
    shares = [islice(made.items(worker, 4), count // 4) for worker in range(4)]
    asked_tokens = sum(item.estimate_tokens for share in shares for item in share)
    assert asked_tokens == sum(i % 50 + 1 + max(i % 7, 1) for i in range(count))


WALL_TIMES: list[tuple[str, int]] = [
    ("1970-01-01 00:00:00", 0),
    ("1970-01-01 00:00:01.5", 1_500_000_000),
    ("1970-01-01T00:00:00.123456789123Z", 123_456_789),
    ("2024-05-10 00:00:00.009930+00:00", 1_715_299_200_009_930_000),
    ("2024-05-10 02:00:00.0099300+02:00", 1_715_299_200_009_930_000),
]


def test_wall_times_are_read_to_the_ns() -> None:
    for text, ns in WALL_TIMES:
        assert utc_ns(text) == ns


@pytest.mark.parametrize(
    ("text", "ns"),
    [("0", 0), ("12.5", 12_500_000_000), ("10000000.000000001", 10**16 + 1), ("1e3", 10**12), (" .5", 500_000_000)],
)
def test_seconds_are_read_to_the_ns(text: str, ns: int) -> None:
    assert seconds_ns(text) == ns


BAD_TRACES: list[tuple[str, str, str]] = [
    ("x.csv", "time,prompt\n1,2\n", "is no trace that is known.*ContextTokens.*got"),
    ("x.csv", AZURE + "yesterday,1,1\n", "line 5: "),
    ("x.csv", AZURE + "2023-11-16 18:15:52,many,1\n", "line 5: .*'many'"),
    ("x.csv", AZURE + "2023-11-16 18:15:52,-3,1\n", "line 5: not a number of tokens: '-3'"),
    ("x.csv", AZURE + "2023-11-16 18:15:52,3\n", "line 5: 2 cells"),
    ("x.csv", AZURE.splitlines()[0] + "\n", "holds no requests"),
    ("x.jsonl", '{"timestamp": 0, "input_length": 1}\n', "line 1: .*output_length"),
    ("x.jsonl", '{"timestamp": "0", "input_length": 1, "output_length": 1}\n', "line 1: .*timestamp"),
    ("x.jsonl", '{"input_length": 1, "output_length": 1}\n', "line 1: .*timestamp"),
    ("x.jsonl", '{"timestamp": 0, "input_length": -1, "output_length": 1}\n', "line 1: a length is < 0"),
]


def test_a_bad_trace_is_told_by_file_and_line(tmp_path: Path) -> None:
    for name, content, what in BAD_TRACES:
        (tmp_path / name).write_text(content)
        with pytest.raises(PlanError, match=what):
            source(kind="trace", path=str(tmp_path / name))


@pytest.mark.parametrize("keys", [{"order": "shuffle"}, {"order": "random"}])
def test_a_trace_cannot_be_shuffled(keys: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=f"workload.{next(iter(keys))}"):
        mooncake(tmp_path / "x.jsonl", [(0, 1, 1, [])], **keys)
