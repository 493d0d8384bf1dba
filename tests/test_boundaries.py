"""Where chunks and TLS records end in bytes that wait: the reads of a late worker stop exactly there."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from llm_latency_lens.engine.wire.boundaries import chunk_ends, record_ends

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
    assert chunk_ends(waiting, head=head) == [end for end in ends_of(parts) if end <= len(waiting)]


def test_extensions_trailers_and_upper_case_sizes_are_chunks_too() -> None:
    """RFC 9112 allows them; proxies send them."""
    stream = b"A;name=value\r\n0123456789\r\n" + b"0\r\nTrailer: x\r\n\r\n"
    assert chunk_ends(stream, head=False) == [26, len(stream)]


def test_a_body_without_chunks_has_no_ends_behind_its_head() -> None:
    """Content-Length and close-delimited bodies carry no boundaries: they are read at once, and counted as coalesced."""
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n"
    assert chunk_ends(head + b"5\r\nhello\r\n", head=True) == [len(head)]


def test_bytes_from_the_middle_of_a_chunk_have_no_ends() -> None:
    """A chunk may be split over segments: its rest looks like no chunk, and the ordinary read takes it."""
    assert chunk_ends(b'data: {"choices": []}\n\n\r\n1f\r\n', head=False) == []
    assert chunk_ends(b"\r\n5\r\nhello\r\n", head=False) == []


def record(body: bytes, kind: int = 23) -> bytes:
    return bytes([kind, 3, 3]) + len(body).to_bytes(2, "big") + body


@given(bodies=st.lists(st.binary(max_size=300), max_size=20), cut=st.integers(0, 7000))
def test_every_complete_tls_record_of_a_cut_stream_is_found_and_no_other(bodies: list[bytes], cut: int) -> None:
    """As for chunks: one record is what one write of the server became."""
    parts = [*map(record, bodies)]
    waiting = b"".join(parts)[:cut]
    assert record_ends(waiting) == [end for end in ends_of(parts) if end <= len(waiting)]


def test_bytes_that_are_no_record_have_no_ends() -> None:
    """The middle of a record, or a length that TLS does not allow."""
    assert record_ends(b"HTTP/1.1 200 OK\r\n") == []
    assert record_ends(bytes([23, 3, 3]) + (20_000).to_bytes(2, "big") + bytes(20_000)) == []
