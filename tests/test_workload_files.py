"""Files of records: every split of the bytes gives the same records, and every fault has its file and line."""

from __future__ import annotations

import csv
import io
import json
import os
import random
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llm_latency_lens.engine.errors import PlanError
from llm_latency_lens.engine.workload.index import BLOCK_BYTES, Dataset, open_records

TMPFS = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=40)


@pytest.fixture(params=[1, 7])
def blocks(request: pytest.FixtureRequest) -> int:
    """Files are read in blocks of so many bytes."""
    size: int = request.param
    return size


def read(path: Path, content: bytes | str, block_bytes: int = BLOCK_BYTES) -> list[dict[str, Any]]:
    """The file's rows, of one pass; each is the same when it is read by its offset."""
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    records = open_records(str(path), "workload.path", block_bytes=block_bytes)
    found = list(records.scan())
    assert [records.read(offset) for offset, _ in found] == [raw for _, raw in found]
    return [records.columns(raw) for _, raw in found]


def read_all(path: str) -> None:
    """As its users read a file."""
    records = open_records(path, "workload.path")
    for offset, raw in records.scan():
        try:
            records.columns(raw)
        except ValueError as error:
            raise PlanError(f"{records.file.where(offset)}: {error}") from error


LINES = [
    (b'{"a": 1}\n{"a": 2}\n', 2, "plain"),
    (b'{"a": 1}\n{"a": 2}', 2, "no line end at the end of the file"),
    (b'{"a": 1}\r\n{"a": 2}\r\n', 2, "CRLF"),
    (b'\xef\xbb\xbf{"a": 1}\n{"a": 2}\n', 2, "byte order mark"),
    (b'\n\n{"a": 1}\n  \n\r\n{"a": 2}\n\n\n', 2, "blank lines are no records"),
    (b'{"a": 1, "b": "' + b"x" * 300 + b'"}\n{"a": 2}\n', 2, "a line over many blocks"),
    ('{"a": 1, "b": "\u2028 is no line end"}\n{"a": 2}\n'.encode(), 2, "Unicode line separators are text"),
]


@pytest.mark.parametrize(("content", "count", "why"), LINES, ids=[why for *_, why in LINES])
def test_lines_are_the_same_in_blocks_of_any_size(
    content: bytes, count: int, why: str, blocks: int, tmp_path: Path
) -> None:
    """Where a block ends must not show in the records."""
    rows = read(tmp_path / "x.jsonl", content, blocks)
    assert [row["a"] for row in rows] == list(range(1, count + 1))


@TMPFS
@given(lines=st.lists(st.text("ab \r\u20ac", max_size=12), max_size=12), end=st.booleans(), block=st.integers(1, 30))
def test_any_text_is_split_as_python_splits_it(lines: list[str], end: bool, block: int, tmp_path: Path) -> None:
    """Against an implementation that is known to be right."""
    content = "\n".join(lines) + ("\n" if end else "")
    wanted = [line.rstrip("\r") for line in content.split("\n") if line.strip()]
    if content:
        assert [row["prompt"] for row in read(tmp_path / "x.txt", content, block)] == wanted


def test_where_names_the_line_that_a_record_begins_on(tmp_path: Path, blocks: int) -> None:
    """An error without its line is of no use in a file of a million."""
    path = tmp_path / "x.txt"
    path.write_text("\none\n\ntwo\nthree")
    records = open_records(str(path), "workload.path", block_bytes=blocks)
    assert [records.file.where(offset) for offset, _ in records.scan()] == [f"{path} line {n}" for n in (2, 4, 5)]


def numbers_of(dataset: Dataset, count: int) -> list[int]:
    return [int(raw[:6]) for _, _, raw in islice(dataset.select(0, 1, 0, 0), count)]


def test_a_shuffled_pass_over_a_large_file_is_an_exact_permutation_of_it(tmp_path: Path) -> None:
    """A buffer of bounded size that mixed only neighbours would leave the start of the file at the start of the run."""
    path = tmp_path / "x.txt"
    path.write_text("".join(f"{i:06}{'.' * (i % 90)}\n" for i in range(30_000)))
    records = open_records(str(path), "workload.path")
    order, again = (numbers_of(Dataset(records, "shuffle", 3), 30_000) for _ in range(2))
    other = numbers_of(Dataset(records, "shuffle", 4), 30_000)
    assert sorted(order) == list(range(30_000))
    assert order == again != other
    assert sum(abs(a - b) == 1 for a, b in pairwise(order)) < 20  # of 30,000; 2 are expected by chance
    assert max(order[:1000]) > 28_000


@pytest.mark.parametrize(("name", "content"), [("x.csv", b'a,b\n1,2\n1,"never closed\n'), ("x.json", b'[{"a": 1}, 7]')])
def test_a_damaged_file_is_an_error_each_time_it_is_come_to(name: str, content: bytes, tmp_path: Path) -> None:
    """The end of what could be read must not pass for the end of the file: the run would go on with half the rows."""
    path = tmp_path / name
    path.write_bytes(content)
    dataset = Dataset(open_records(str(path), "workload.path"), "sequential", 1)
    for _ in range(2):
        with pytest.raises(PlanError, match=f"{path} line"):
            list(islice(dataset.select(0, 1, 0, 0), 5))


TABLE = 'a,b\r\n1,"two, and ""three"""\r\n2,"line one\nline two"\r\n\r\n3,\u20ac\r\n'


def test_tables_keep_quotes_commas_and_line_ends_in_cells(tmp_path: Path, blocks: int) -> None:
    """Prompts hold all of these."""
    assert read(tmp_path / "x.csv", TABLE, blocks) == [
        {"a": "1", "b": 'two, and "three"'},
        {"a": "2", "b": "line one\nline two"},
        {"a": "3", "b": "\u20ac"},
    ]


@TMPFS
@given(
    rows=st.lists(st.tuples(st.text('ab,"\n\u20ac ', max_size=8), st.text("x\r\n,", max_size=5)), max_size=6),
    block=st.integers(1, 20),
)
def test_any_table_the_csv_module_writes_comes_back(rows: list[tuple[str, str]], block: int, tmp_path: Path) -> None:
    """Also by offset, from the middle of the file."""
    written = io.StringIO()
    csv.writer(written, quoting=csv.QUOTE_ALL).writerows([("p", "q"), *rows])
    assert read(tmp_path / "x.csv", written.getvalue(), block) == [{"p": p, "q": q} for p, q in rows]


def test_a_cell_may_be_longer_than_the_csv_module_allows(tmp_path: Path) -> None:
    """Its limit of 128 KiB is shorter than a long-context prompt."""
    long = "x" * 300_000
    assert read(tmp_path / "x.csv", f"prompt,n\n{long},1\n") == [{"prompt": long, "n": "1"}]


def test_tables_may_have_tabs_and_a_byte_order_mark(tmp_path: Path) -> None:
    """As spreadsheets write them."""
    assert read(tmp_path / "x.tsv", "\ufeffa\tb\n1\t2,3\n") == [{"a": "1", "b": "2,3"}]


ARRAYS = [
    '[{"a": 1}]',
    '[\n  {"a": 1, "b": "}],[{\\" \\\\"},\n\n  {"a": 2, "b": [{"c": {}}]}\n]\n',
    "\ufeff [ ] ",
    "[]",
]


@pytest.mark.parametrize("content", ARRAYS)
def test_arrays_are_cut_into_their_objects_in_blocks_of_any_size(content: str, tmp_path: Path, blocks: int) -> None:
    """An array is never held as one, so it is cut anywhere."""
    assert read(tmp_path / "x.json", content, blocks) == json.loads(content.lstrip("\ufeff"))


def test_where_names_the_line_that_an_object_of_an_array_begins_on(tmp_path: Path, blocks: int) -> None:
    """Offsets are of bytes, also where the text is not ASCII."""
    path = tmp_path / "x.json"
    path.write_text('[\n{"a":\n1},\n\n{"b": 2}, {"c": 3}\n]')
    records = open_records(str(path), "workload.path", block_bytes=blocks)
    assert [records.file.where(offset) for offset, _ in records.scan()] == [f"{path} line {n}" for n in (2, 5, 5)]


FAULTS: list[tuple[str, bytes, str]] = [
    ("x.jsonl", b'{"a": 1}\n{"a": \n', "line 2: not JSON"),
    ("x.jsonl", b'{"a": 1}\n[1]\n', "line 2: not a JSON object"),
    ("x.jsonl", b'{"a": "\xff"}\n', "line 1: .*utf-8"),
    ("x.txt", b"fine\nnot \xff fine\n", "line 2: .*utf-8"),
    ("x.csv", b"a,b\n1,2\n1,2,3\n", "line 3: 3 cells, but the header names 2"),
    ("x.csv", b"a,b\n1,2\n\n7\n", "line 4: 1 cells"),
    ("x.csv", b"a,a\n1,2\n", "line 1 must name every column once"),
    ("x.csv", b"a,\n1,2\n", "line 1 must name every column once"),
    ("x.csv", b'a,b\n1,"never closed\n2,3\n', "line 3: unexpected end"),
    ("x.csv", b"a,b\n1,\xff\n", "utf-8"),
    ("x.json", b'[{"a": 1}, {"a": ', "line 1: not a complete JSON object"),
    ("x.json", b'[{"a": 1}\n{"a": 2}]', "line 2: expected ']', got '{'"),
    ("x.json", b'[{"a": 1},\n7]', "line 2: expected an object"),
    ("x.json", b'[{"a": 1}', "expected ']', got the end of the file"),
    ("x.json", b'[{"a": 1}] x', "text after the array's end"),
    ("x.json", b'[{"a": 1,}]', "line 1: not a complete JSON object"),
]


def test_a_fault_is_reported_with_file_and_line(tmp_path: Path) -> None:
    """A damaged data set is mended by its owner, who needs to find the place."""
    for name, content, what in FAULTS:
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(PlanError, match=what) as caught:
            read_all(str(path))
        assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("content", "what"), [(b"", "is empty"), (b"\x1f\x8b\x08\x00", "gzip-compressed: unpack it first")]
)
def test_a_file_that_holds_nothing_to_read_is_refused(content: bytes, what: str, tmp_path: Path) -> None:
    """Before the run, and with the reason."""
    path = tmp_path / "x.jsonl"
    path.write_bytes(content)
    with pytest.raises(PlanError, match=what):
        open_records(str(path), "workload.path")


def test_a_missing_file_or_a_folder_is_named(tmp_path: Path) -> None:
    """A folder opens, and fails only when it is read."""
    for path in (tmp_path / "none.jsonl", tmp_path):
        with pytest.raises(PlanError, match=rf"cannot read {path}.*\(workload.path\)"):
            open_records(str(path), "workload.path")


def test_a_line_without_end_is_refused_instead_of_read_into_memory(tmp_path: Path) -> None:
    """A binary file by mistake would otherwise be one record of its size."""
    path = tmp_path / "x.txt"
    path.write_bytes(b"one\n" + b"x" * (3 << 20))
    with pytest.raises(PlanError, match="line 2 is longer than 1 MiB"):
        list(open_records(str(path), "workload.path", record_bytes_max=1 << 20).scan())


def test_the_kind_of_a_file_without_a_telling_name_is_seen_from_its_first_character(tmp_path: Path) -> None:
    """Data sets come without suffixes."""
    assert read(tmp_path / "a", '{"a": 1}\n') == [{"a": 1}]
    assert read(tmp_path / "b", '[{"a": 1}]') == [{"a": 1}]
    assert read(tmp_path / "c", "hello [you]\n") == [{"prompt": "hello [you]"}]
    assert read(tmp_path / "d.txt", "[hello]\n{you}\n") == [{"prompt": "[hello]"}, {"prompt": "{you}"}]


def test_passes_side_by_side_do_not_disturb_each_other(tmp_path: Path) -> None:
    """Phases that overlap read the same file at different offsets."""
    path = tmp_path / "x.jsonl"
    path.write_text("".join(f'{{"a": {i}}}\n' for i in range(50_000)))
    records = open_records(str(path), "workload.path")
    wanted = list(records.scan())
    passes = [records.scan() for _ in range(3)]
    found: list[list[Any]] = [[], [], []]
    chance = random.Random(1)
    while any(len(rows) < len(wanted) for rows in found):
        i = chance.randrange(3)
        found[i] += [next(passes[i]) for _ in range(min(1000, len(wanted) - len(found[i])))]
    assert found == [wanted] * 3


def test_files_are_closed_with_their_last_user(tmp_path: Path) -> None:
    """A sweep opens its file once a run."""
    path = tmp_path / "x.jsonl"
    path.write_text('{"a": 1}\n')
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        list(open_records(str(path), "workload.path").scan())
    assert len(os.listdir("/proc/self/fd")) <= before + 1
