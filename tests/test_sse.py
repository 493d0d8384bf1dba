"""Server-sent events: any line end, any cut, and the fast way equal to the general one."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_latency_lens.engine.errors import ProtocolError
from llm_latency_lens.engine.wire.sse import BOM, EVENT_BYTES_MAX, Event, SseFraming

LINE_ENDS = {"LF": b"\n", "CRLF": b"\r\n", "CR": b"\r"}

# Written with LF; each row is read again with CRLF and with CR.
STREAMS: list[tuple[str, bytes, list[Event]]] = [
    ("one event", b"data: a\n\n", [(b"", b"a")]),
    ("without the space", b"data:a\n\n", [(b"", b"a")]),
    ("only one space is taken off", b"data:  a \n\n", [(b"", b" a ")]),
    ("several data lines join with LF", b"data: a\ndata:\ndata: b\n\n", [(b"", b"a\n\nb")]),
    ("a field without colon is an empty one", b"data\n\n", [(b"", b"")]),
    ("data that begins like a field", b"data: data: a\n\ndata: data: b\n\n", [(b"", b"data: a"), (b"", b"data: b")]),
    ("a colon in the data", b"data: a: b\n\n", [(b"", b"a: b")]),
    ("an event's name", b"event: ping\ndata: a\n\n", [(b"ping", b"a")]),
    ("the name after the data", b"data: a\nevent: ping\n\n", [(b"ping", b"a")]),
    ("the last name counts", b"event: x\nevent: y\ndata: a\n\n", [(b"y", b"a")]),
    ("a name without data is no event", b"event: ping\n\ndata: a\n\n", [(b"", b"a")]),
    ("a name is forgotten after its event", b"event: x\ndata: a\n\ndata: b\n\n", [(b"x", b"a"), (b"", b"b")]),
    ("comments are no events", b": ping\n\n:\ndata: a\n:x\n\n", [(b"", b"a")]),
    ("id, retry and unknown fields are skipped", b"id: 1\nretry: 5\nfoo: b\ndata: a\n\n", [(b"", b"a")]),
    ("names know case", b"Data: a\nDATA: b\n\n", []),
    ("a blank before the name is another name", b" data: a\n\n", []),
    ("blank lines alone", b"\n\n\n", []),
    ("an empty stream", b"", []),
    ("a byte order mark", BOM + b"data: a\n\n", [(b"", b"a")]),
    ("a second mark is part of a name", BOM + BOM + b"data: a\n\ndata: b\n\n", [(b"", b"b")]),
    ("a mark later is data", b"data: a\n\ndata: " + BOM + b"\n\n", [(b"", b"a"), (b"", BOM)]),
    ("UTF-8 in pieces", "data: \u00e9\u20ac\U0001f600\n\n".encode(), [(b"", "\u00e9\u20ac\U0001f600".encode())]),
    (
        "other line ends of Unicode are data",
        "data: a\u2028b\x0bc\x85\n\n".encode(),
        [(b"", "a\u2028b\x0bc\x85".encode())],
    ),
    ("several events", b"data: a\n\ndata: b\n\ndata: [DONE]\n\n", [(b"", b"a"), (b"", b"b"), (b"", b"[DONE]")]),
    ("more blank lines than needed", b"data: a\n\n\n\ndata: b\n\n", [(b"", b"a"), (b"", b"b")]),
    ("two data lines in a later event", b"data: a\n\ndata: b\ndata: c\n\n", [(b"", b"a"), (b"", b"b\nc")]),
    ("an event named in a later block", b"data: a\n\nevent: x\ndata: b\n\n", [(b"", b"a"), (b"x", b"b")]),
    ("no blank line at the end", b"data: a\n\ndata: b\n", [(b"", b"a"), (b"", b"b")]),
    ("no line end at the end", b"data: a\n\ndata: b", [(b"", b"a"), (b"", b"b")]),
    ("a comment at the end", b"data: a\n\n: bye", [(b"", b"a")]),
]
CASES = [
    (f"{why}, {end}", wire.replace(b"\n", LINE_ENDS[end]), events) for why, wire, events in STREAMS for end in LINE_ENDS
]


def read(pieces: list[bytes], event_bytes_max: int = EVENT_BYTES_MAX) -> list[Event]:
    framing = SseFraming(event_bytes_max)
    events = [event for piece in pieces for event in framing.feed(piece)]
    return events + framing.flush()


def by_the_standard(wire: bytes) -> list[Event]:
    """The interpretation as the standard words it, without any care for speed; the end dispatches what is left."""
    events: list[Event] = []
    name, lines = b"", list[bytes]()
    for line in [*re.split(rb"\r\n|\n|\r", wire.removeprefix(BOM)), b""]:
        if not line:
            if lines:
                events.append((name, b"\n".join(lines)))
            name, lines = b"", []
            continue
        field, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if field == b"data":
            lines.append(value)
        elif field == b"event":
            name = value
    return events


@pytest.mark.parametrize(("why", "wire", "events"), CASES, ids=[case[0] for case in CASES])
def test_a_stream_gives_the_same_events_however_it_is_cut(why: str, wire: bytes, events: list[Event]) -> None:
    """TCP cuts anywhere: events and their number must not depend on it."""
    assert by_the_standard(wire) == events, "the table and the standard"
    assert read([wire]) == events
    for cut in range(len(wire) + 1):
        assert read([wire[:cut], wire[cut:]]) == events, cut
    assert read([wire[i : i + 1] for i in range(len(wire))]) == events
    assert read([b"", wire, b""]) == events


FRAGMENTS = st.sampled_from(
    [b"data: ", b"data:", b"data", b"event: ", b": c", b"\n", b"\r", b"\r\n", b"\n\n", b"a", b"b: ", BOM, b" ", b"id"]
)


@given(st.lists(st.lists(FRAGMENTS | st.binary(max_size=3), max_size=8).map(b"".join), max_size=8))
def test_any_bytes_in_any_pieces_read_as_the_standard_says(pieces: list[bytes]) -> None:
    """The fast way must be indistinguishable from the standard's wording."""
    assert read(pieces) == by_the_standard(b"".join(pieces))


@given(
    st.lists(st.lists(st.sampled_from([b"data: x\n\n", b"data: \n\n", b"data: y\n", b"\n"]), max_size=5), max_size=4)
)
def test_whole_events_in_a_piece_read_as_the_standard_says(pieces: list[list[bytes]]) -> None:
    """The common reads, where the fast way is taken, checked against the standard."""
    joined = [b"".join(piece) for piece in pieces]
    assert read(joined) == by_the_standard(b"".join(joined))


@pytest.mark.parametrize(("end", "missing"), [(b"\n\n", b""), (b"\r\r", b""), (b"\r\n\r\n", b"\n")])
def test_an_event_comes_out_with_the_byte_that_ends_it(end: bytes, missing: bytes) -> None:
    """An event held back until the next read would get the next read's time."""
    framing = SseFraming()
    wire = (b"data: a" + end).removesuffix(missing)  # a CR ends the line, the LF after it may be late
    assert [framing.feed(wire[i : i + 1]) for i in range(len(wire))] == [[]] * (len(wire) - 1) + [[(b"", b"a")]]
    assert framing.feed(missing) == []


PENDING: list[tuple[str, bytes, bool]] = [
    ("whole events", b"data: a\n\n", False),
    ("a line without its end", b"data: a\n\ndata: b", True),
    ("an event without its blank line", b"data: a\n", True),
    ("half a comment", b"data: a\n\n: pi", True),
    ("a whole comment", b"data: a\n\n: ping\n", False),
]


@pytest.mark.parametrize(("why", "piece", "pending"), PENDING, ids=[row[0] for row in PENDING])
def test_pending_says_whether_a_piece_ended_inside_an_event(why: str, piece: bytes, pending: bool) -> None:
    """It decides whether a token's time is exact or an upper bound."""
    framing = SseFraming()
    framing.feed(piece)
    assert framing.pending is pending
    framing.feed(b"\n\n\n")
    assert not framing.pending


def test_comments_are_counted() -> None:
    """Keep-alive comments are no tokens, and people ask how many came."""
    framing = SseFraming()
    for piece in (b": a\n\n", b":\n", b": half", b" and half\r", b"\ndata: x\n: in an event\n\n"):
        framing.feed(piece)
    assert framing.comments == 4


ENDLESS: list[tuple[str, bytes]] = [
    ("a line", b"a" * 100),
    ("data lines", b"data: " + b"a" * 93 + b"\n"),
    ("empty data lines", b"data: \n" * 100),
    ("data lines that end in CR", b"data:" + b"a" * 100 + b"\r"),
    ("a name", b"event:" + b"a" * 100),
    ("a comment", b":" * 100),
]


@pytest.mark.parametrize(("why", "piece"), ENDLESS, ids=[row[0] for row in ENDLESS])
def test_an_event_without_end_is_refused(why: str, piece: bytes) -> None:
    """Memory is bounded whatever a server sends without end."""
    with pytest.raises(ProtocolError, match="larger than 1000 bytes"):
        read([piece] * 12, event_bytes_max=1000)


def test_an_event_in_very_many_pieces_costs_no_more_than_its_size() -> None:
    """Quadratic cost would let one hostile reply stop the worker."""
    for piece, count in ((b"data:\n", 200_000), (b"data: " + b"a" * 10, 200_000)):  # hours if quadratic
        framing = SseFraming()
        for _ in range(count):
            framing.feed(piece)
        assert framing.pending


def test_large_events_within_the_bound_go_through() -> None:
    """The bound is one of an event, not of a stream."""
    event = b"data: " + b"a" * 900 + b"\n\n"
    assert read([event] * 5, event_bytes_max=1000) == [(b"", b"a" * 900)] * 5
    assert read([event[:500], event[500:]] * 5, event_bytes_max=1000) == [(b"", b"a" * 900)] * 5
