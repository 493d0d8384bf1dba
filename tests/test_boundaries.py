"""Where chunks and TLS records end in bytes that wait: the reads of a late worker stop exactly there."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from llm_latency_lens.engine.wire.boundaries import chunks, records

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
LAST = b"0\r\n\r\n"


def chunk(body: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(body), body)


def ends_of(parts: list[bytes]) -> list[int]:
    total, ends = 0, []
    for part in parts:
        total += len(part)
        ends.append(total)
    return ends


@given(bodies=st.lists(st.binary(min_size=1, max_size=300), max_size=20), head=st.booleans(), cut=st.integers(0, 7000))
def test_every_complete_chunk_of_a_cut_stream_is_found_and_no_other(bodies: list[bytes], head: bool, cut: int) -> None:
    """Whatever has arrived so far: a read up to one of these ends never takes a byte of the next segment's event."""
    parts = [*([HEAD] if head else []), *map(chunk, bodies), LAST]
    waiting = b"".join(parts)[:cut]
    assert chunks(waiting, head=head).ends == [end for end in ends_of(parts) if end <= len(waiting)]


def test_extensions_trailers_and_upper_case_sizes_are_chunks_too() -> None:
    """RFC 9112 allows them; proxies send them."""
    stream = b"A;name=value\r\n0123456789\r\n" + b"0\r\nTrailer: x\r\n\r\n"
    assert chunks(stream).ends == [26, len(stream)]


def test_a_body_without_chunks_has_no_ends_behind_its_head() -> None:
    """Content-Length and close-delimited bodies carry no boundaries: they are read at once, and counted as coalesced."""
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n"
    assert chunks(head + b"5\r\nhello\r\n", head=True).ends == [len(head)]


def test_bytes_from_the_middle_of_a_chunk_have_no_ends() -> None:
    """A chunk may be split over segments: its rest looks like no chunk, and the ordinary read takes it."""
    assert chunks(b'data: {"choices": []}\n\n\r\n1f\r\n').ends == []
    assert chunks(b"\r\n5\r\nhello\r\n").ends == []


def record(body: bytes, kind: int = 23) -> bytes:
    return bytes([kind, 3, 3]) + len(body).to_bytes(2, "big") + body


@given(bodies=st.lists(st.binary(max_size=300), max_size=20), cut=st.integers(0, 7000))
def test_every_complete_tls_record_of_a_cut_stream_is_found_and_no_other(bodies: list[bytes], cut: int) -> None:
    """As for chunks: one record is what one write of the server became."""
    parts = [*map(record, bodies)]
    waiting = b"".join(parts)[:cut]
    assert records(waiting).ends == [end for end in ends_of(parts) if end <= len(waiting)]


def test_bytes_that_are_no_record_have_no_ends() -> None:
    """The middle of a record, or a length that TLS does not allow."""
    assert records(b"HTTP/1.1 200 OK\r\n").ends == []
    assert records(bytes([23, 3, 3]) + (20_000).to_bytes(2, "big") + bytes(20_000)).ends == []


@given(
    bodies=st.lists(st.binary(min_size=1, max_size=200), min_size=1, max_size=8),
    first=st.integers(0, 2000),
    tls=st.booleans(),
)
def test_a_unit_that_began_in_one_look_ends_in_the_next(bodies: list[bytes], first: int, tls: bool) -> None:
    """An event split over two segments: its rest must not be taken together with the event after it."""
    look = records if tls else chunks
    parts = [*map(record if tls else chunk, bodies)]
    stream = b"".join(parts)
    ends, missing = look(stream[:first])
    begun = stream[(ends or [0])[-1] : first]
    if begun and not missing:
        return  # too little of it has come to know its length
    again = look(stream[first:], missing=missing)
    assert [*ends, *(first + end for end in again.ends)] == ends_of(parts)
