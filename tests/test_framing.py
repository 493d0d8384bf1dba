"""How bodies are cut into events: lines, pieces, the objects of an array; the same however the body is cut."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_latency_lens.engine.errors import ProtocolError
from llm_latency_lens.engine.wire.framing import FRAMINGS, framing_of
from llm_latency_lens.engine.wire.sse import EVENT_BYTES_MAX

NDJSON: list[tuple[str, bytes, list[bytes]]] = [
    ("one line", b'{"a":1}\n', [b'{"a":1}']),
    ("CRLF", b'{"a":1}\r\n{"b":2}\r\n', [b'{"a":1}', b'{"b":2}']),
    ("blank lines are nothing", b"\n\r\n  \n1\n\n2\n", [b"1", b"2"]),
    ("blanks around a line", b"  1 \n", [b"1"]),
    ("no line end at the end", b"1\n2", [b"1", b"2"]),
    ("blanks at the end", b"1\n  ", [b"1"]),
    ("nothing", b"", []),
    ("an escaped line end is no line end", b'"a\\nb"\n', [b'"a\\nb"']),
]
ARRAYS: list[tuple[str, bytes, list[bytes]]] = [
    ("an array of objects", b'[{"a":1},\n{"b":2}]', [b'{"a":1}', b'{"b":2}']),
    ("objects within", b'[{"a":{"b":{}}}]', [b'{"a":{"b":{}}}']),
    ("arrays within", b'[{"a":[{"b":1},[2]]}]', [b'{"a":[{"b":1},[2]]}']),
    ("braces in a text", b'[{"a":"}{]["}]', [b'{"a":"}{]["}']),
    ("an escaped quote", b'[{"a":"\\"}"}]', [b'{"a":"\\"}"}']),
    ("an escaped backslash", b'[{"a":"\\\\"},{"b":1}]', [b'{"a":"\\\\"}', b'{"b":1}']),
    ("a single object", b' {"a":1} ', [b'{"a":1}']),
    ("an empty array", b"[]", []),
    ("an empty object", b"[{}]", [b"{}"]),
    ("the last object cut short is what is left", b'[{"a":1},{"b":', [b'{"a":1}', b'{"b":']),
    ("a closing brace too many", b'}[{"a":1}]', [b'{"a":1}']),
]
CASES = [("ndjson", *row) for row in NDJSON] + [("json", *row) for row in ARRAYS]


def read(kind: str, pieces: list[bytes], event_bytes_max: int = EVENT_BYTES_MAX) -> list[tuple[bytes, bytes]]:
    framing = framing_of(kind, event_bytes_max)
    events = [event for piece in pieces for event in framing.feed(piece)]
    return events + framing.flush()


@pytest.mark.parametrize(("kind", "why", "wire", "texts"), CASES, ids=[f"{case[0]}: {case[1]}" for case in CASES])
def test_a_body_gives_the_same_events_however_it_is_cut(kind: str, why: str, wire: bytes, texts: list[bytes]) -> None:
    """TCP cuts anywhere: events and their number must not depend on it."""
    events = [(b"", text) for text in texts]
    assert read(kind, [wire]) == events
    for cut in range(len(wire) + 1):
        assert read(kind, [wire[:cut], wire[cut:]]) == events, cut
    assert read(kind, [wire[i : i + 1] for i in range(len(wire))]) == events


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


@given(
    st.lists(st.dictionaries(st.text(max_size=4), VALUES, max_size=3), max_size=4),
    st.sampled_from([None, 2]),
    st.booleans(),
    st.integers(1, 9),
)
def test_any_objects_come_out_of_any_array(
    objects: list[dict[str, Any]], indent: int | None, ascii_only: bool, step: int
) -> None:
    """Braces and quotes inside strings must not end an object."""
    wire = json.dumps(objects, indent=indent, ensure_ascii=ascii_only).encode()
    events = read("json", [wire[i : i + step] for i in range(0, len(wire), step)])
    assert [json.loads(text) for _, text in events] == objects


@given(st.lists(VALUES, max_size=5), st.sampled_from([b"\n", b"\r\n"]), st.integers(1, 9))
def test_any_values_come_out_of_lines(values: list[Any], end: bytes, step: int) -> None:
    """NDJSON values come out unchanged, whatever they hold."""
    wire = b"".join(json.dumps(value).encode() + end for value in values)
    events = read("ndjson", [wire[i : i + step] for i in range(0, len(wire), step)])
    assert [json.loads(text) for _, text in events] == values


def test_a_piece_is_an_event_where_the_body_has_no_frames() -> None:
    """Raw streams have no other unit than what arrived together."""
    assert read("chunks", [b"a", b"", b"b\n\n", b"\x00"]) == [(b"", b"a"), (b"", b"b\n\n"), (b"", b"\x00")]


PENDING: list[tuple[str, str, bytes, bool]] = [
    ("ndjson", "a whole line", b"1\n", False),
    ("ndjson", "half a line", b"1\n2", True),
    ("json", "between objects", b"[{},", False),
    ("json", "inside an object", b'[{},{"a"', True),
    ("json", "inside a text that closes it", b'[{"a":"}', True),
    ("chunks", "a piece", b"1", False),
    ("sse", "a whole event", b"data: 1\n\n", False),
    ("sse", "half an event", b"data: 1\n", True),
]


@pytest.mark.parametrize(("kind", "why", "piece", "pending"), PENDING, ids=[f"{r[0]}: {r[1]}" for r in PENDING])
def test_pending_says_whether_a_piece_ended_inside_an_event(kind: str, why: str, piece: bytes, pending: bool) -> None:
    """It decides whether a token's time is exact or an upper bound."""
    framing = framing_of(kind)
    assert not framing.pending
    framing.feed(piece)
    assert framing.pending is pending


@pytest.mark.parametrize(
    ("kind", "piece", "message"),
    [("ndjson", b"a" * 100, "a line is larger"), ("json", b'{"' + b"a" * 98, "an object is larger")],
)
def test_an_event_without_end_is_refused(kind: str, piece: bytes, message: str) -> None:
    """Memory is bounded whatever a server sends without end."""
    with pytest.raises(ProtocolError, match=message):
        read(kind, [piece] * 12, event_bytes_max=1000)


def test_json_nested_without_end_is_refused() -> None:
    """Depth is bounded, or the parser behind it would recurse without end."""
    with pytest.raises(ProtocolError, match="deeper than 128"):
        read("json", [b'{"a":' * 129])


def test_a_line_in_very_many_pieces_costs_no_more_than_its_size() -> None:
    """Quadratic cost would let one hostile reply stop the worker."""
    framing = framing_of("ndjson")
    for _ in range(200_000):  # hours if quadratic
        framing.feed(b"a" * 40)
    assert [len(text) for _, text in framing.flush()] == [8_000_000]


@given(st.sampled_from(sorted(FRAMINGS)), st.lists(st.binary(max_size=20), max_size=5))
def test_any_bytes_are_events_or_a_protocol_error(kind: str, pieces: list[bytes]) -> None:
    """Any other exception would end the worker, and with it every other request."""
    for name, text in read(kind, pieces):
        assert isinstance(name, bytes)
        assert text or kind == "sse"


def test_framings_are_known_by_the_names_that_plans_use() -> None:
    """The names stand in plan files: one that is gone breaks users' plans."""
    assert set(FRAMINGS) == {"sse", "ndjson", "chunks", "json"}
    with pytest.raises(KeyError):
        framing_of("none")  # a whole body has no framing
