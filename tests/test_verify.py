"""`lens verify`: a run against tcpdump's capture of it, and TCP put together as a receiver does."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import dpkt
import msgspec
import pytest
from dpkt import pcap, pcapng
from hypothesis import given
from hypothesis import strategies as st

from llm_latency_lens.cli.verify.compare import verify
from llm_latency_lens.cli.verify.packets import Segment, segments
from llm_latency_lens.cli.verify.streams import Stream, connections
from llm_latency_lens.engine.errors import LensError
from llm_latency_lens.exporters.rundir import requests
from tests.support_lens import lens
from tests.support_simulator import simulator
from tests.support_stamps import needs_tap

# --- TCP ------------------------------------------------------------------------------------------------------------


def stream_of(pieces: list[tuple[int, bytes, int]], syn: int = 999) -> Stream:
    stream = Stream()
    stream.begin(syn)
    for seq, payload, time_ns in pieces:
        stream.add(seq % (1 << 32), payload, time_ns)
    return stream


def test_a_byte_counts_from_when_all_before_it_had_come() -> None:
    """The segment that overtook a lost one was there early and could be read late: its own capture time is no truth."""
    stream = stream_of([(1000, b"ab", 1), (1004, b"ef", 2), (1002, b"cd", 9), (1000, b"ab", 10)])
    assert bytes(stream.content) == b"abcdef"
    assert [stream.readable_ns(end) for end in (1, 2, 3, 6)] == [1, 1, 9, 9]
    assert not stream.incomplete


def test_a_retransmission_that_brings_more_than_was_lost_adds_only_what_is_new() -> None:
    """Segments are cut anew when they are sent again."""
    stream = stream_of([(1000, b"abc", 1), (1001, b"bcde", 5), (1000, b"ab", 6)])
    assert (bytes(stream.content), stream.ends, stream.times_ns) == (b"abcde", [3, 5], [1, 5])


def test_a_hole_that_is_never_filled_is_seen() -> None:
    """The capture lost a packet that the client had: what follows it cannot be judged."""
    assert stream_of([(1000, b"ab", 1), (1004, b"ef", 2)]).incomplete


def test_sequence_numbers_wrap() -> None:
    """They do every 4 GiB, and begin anywhere."""
    top = (1 << 32) - 2
    stream = stream_of([(top, b"abcd", 1), (top + 4, b"ef", 2)], syn=top - 1)
    assert bytes(stream.content) == b"abcdef"


@given(st.binary(min_size=1, max_size=60), st.data())
def test_any_order_of_segments_makes_the_same_stream(content: bytes, data: st.DataObject) -> None:
    """Reordered, sent twice, cut anew: the receiver's bytes are the sender's."""
    cuts = sorted({0, len(content), *data.draw(st.lists(st.integers(0, len(content)), max_size=6))})
    pieces = [(1000 + low, content[low:high], 0) for low, high in pairwise(cuts)]
    again = data.draw(st.lists(st.sampled_from(pieces), max_size=4))
    order = data.draw(st.permutations(pieces + again))
    stream = stream_of([(seq, piece, time) for time, (seq, piece, _) in enumerate(order)])
    assert bytes(stream.content) == content
    assert stream.times_ns == sorted(stream.times_ns)


def test_a_clients_port_that_is_used_again_is_another_connection() -> None:
    """Short connections of a long run come back to the same port."""
    client, server = ("127.0.0.1", 5000), ("127.0.0.1", 80)

    def said(seq: int, payload: bytes, *, syn: bool = False) -> Segment:
        return Segment(seq, client, server, seq, syn, not syn, payload, 0)

    sent = [said(10, b"", syn=True), said(11, b"one"), said(900, b"", syn=True), said(901, b"two")]
    found = connections(sent, [server])[server]
    assert [bytes(each.request.content) for each in found] == [b"one", b"two"]


# --- a real capture -------------------------------------------------------------------------------------------------


@contextmanager
def tcpdump(path: Path, port: int, *flags: str) -> Iterator[None]:
    """tcpdump on lo, listening when the block begins; all packets are in the file after it."""
    command = ["tcpdump", "-i", "lo", "-U", "-Z", "root", "--time-stamp-precision=nano", "-w", str(path), *flags]
    process = subprocess.Popen([*command, "tcp", "port", str(port)], stderr=subprocess.PIPE, text=True)
    assert process.stderr
    try:
        while "listening on" not in (line := process.stderr.readline()):
            assert line, "tcpdump ended"
        yield
        size, deadline = -1, monotonic() + 10  # a block of packets reaches the file up to a second late
        while (path.stat().st_size if path.exists() else 0) != size and monotonic() < deadline:
            size = path.stat().st_size if path.exists() else 0
            sleep(1.2)
    finally:
        process.terminate()
        process.communicate(timeout=10)


@pytest.fixture(scope="module", params=["tcp", "tls"])
def captured(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(capture, run directory) of a run of 20 requests of 10 tokens with token times."""
    folder = tmp_path_factory.mktemp("verify")
    flags = ("--tls",) if request.param == "tls" else ()
    with simulator(ttft_ms=20, itl_ms=10, tokens=10, flags=flags) as sim:
        plan = {
            "targets": [
                {"name": "sim", "base_url": f"{sim.base_url}/v1", "model": "m", "verify_tls": False, "proxy": ""}
            ],
            "phases": [{"name": "main", "requests": 20, "load": {"concurrency": 4}}],
            "workers": {"count": 1},
            "output": {"dir": str(folder), "token_times": "all"},
        }
        (folder / "plan.json").write_text(json.dumps(plan))
        with tcpdump(folder / "capture.pcap", sim.port):
            assert lens("run", "plan.json", "--quiet", cwd=folder).code == 0
    return folder / "capture.pcap", (folder / "latest").resolve()


@needs_tap
@pytest.mark.slow
def test_a_run_agrees_with_tcpdump(captured: tuple[Path, Path], tmp_path: Path) -> None:
    """An independent witness: 20 us is what the stamps promise, here with room for a busy machine."""
    ended = lens("verify", "--pcap", str(captured[0]), str(captured[1]), "--json", cwd=tmp_path)
    assert ended.code == 0, ended.stderr
    found = json.loads(ended.stdout)
    assert found["requests"]["compared"] == 20
    assert found["gaps"] >= 20 * 9 * 0.8
    assert found["ttft_error_us"]["p50"] < 200
    assert found["gap_error_us"]["p50"] < 50
    shown = lens("verify", "--pcap", str(captured[0]), str(captured[1]), cwd=tmp_path)
    assert "20 requests" in shown.stdout


@needs_tap
@pytest.mark.slow
def test_every_form_of_capture_shows_the_same(captured: tuple[Path, Path], tmp_path: Path) -> None:
    """Cooked captures of `-i any`, BSD loopback, raw IP and pcapng are the same packets in other envelopes."""
    capture, run_dir = captured
    truth = verify(capture, run_dir)
    with capture.open("rb") as file:
        packets = [(moment, packet) for moment, packet in pcap.Reader(file)]
    envelopes: dict[int, bytes] = {
        pcap.DLT_LINUX_SLL: b"\0\0\x03\x04\0\6\0\0\0\0\0\0\0\0\x08\0",
        pcap.DLT_LINUX_SLL2: b"\x08\0\0\0\0\0\0\1\x03\x04\0\6\0\0\0\0\0\0\0\0",
        pcap.DLT_NULL: b"\2\0\0\0",
        101: b"",
    }
    for link, head in envelopes.items():
        path = tmp_path / f"{link}.pcap"
        with path.open("wb") as file:
            writer = pcap.Writer(file, linktype=link, nano=True)
            for moment, packet in packets:
                writer.writepkt(head + packet[14:], moment)
        again = verify(path, run_dir)
        assert (again.requests, again.gaps) == (truth.requests, truth.gaps), link
        assert again.ttft_error_us.p99 == pytest.approx(truth.ttft_error_us.p99, abs=0.01)
    with (tmp_path / "x.pcapng").open("wb") as file:
        ng = pcapng.Writer(file)
        for moment, packet in packets:
            ng.writepkt(packet, float(moment))
    assert verify(tmp_path / "x.pcapng", run_dir).requests == truth.requests


@needs_tap
@pytest.mark.slow
def test_what_cannot_be_compared_is_said_with_the_way_out(captured: tuple[Path, Path], tmp_path: Path) -> None:
    """A capture goes wrong in a few usual ways, and each has its own cure."""
    capture, run_dir = captured
    with capture.open("rb") as file:
        packets = [(moment, packet) for moment, packet in pcap.Reader(file)]

    def written(name: str, made: list[tuple[Any, bytes]]) -> Path:
        path = tmp_path / name
        with path.open("wb") as file:
            writer = pcap.Writer(file, nano=True)
            for moment, packet in made:
                writer.writepkt(packet, moment)
        return path

    bad = {
        "short snap length": written("cut.pcap", [(moment, packet[:80]) for moment, packet in packets]),
        "another host": written("shifted.pcap", [(moment + 1, packet) for moment, packet in packets]),
        "clock": written("later.pcap", [(moment + 3600, packet) for moment, packet in packets]),
        "no connection of the run": written("empty.pcap", []),
        "no packet capture": run_dir / "plan.json",
        "cannot be read": tmp_path / "nowhere",
    }
    if "http:" not in (run_dir / "plan.json").read_text():  # sealed requests are found by time alone
        del bad["another host"]
    for said, path in bad.items():
        with pytest.raises(LensError, match=said):
            verify(path, run_dir)
    plain = tmp_path / "plain"  # the same run without token times, which is the default
    shutil.copytree(run_dir, plain)
    rows = [row | {"token_ns": None, "token_coalesced": None} for row in requests(run_dir)]
    (plain / "requests.msgpack").write_bytes(b"".join(map(msgspec.msgpack.encode, rows)))
    with pytest.raises(LensError, match="token_times: all"):
        verify(capture, plain)
    half = tmp_path / "half.pcap"
    half.write_bytes(capture.read_bytes()[: capture.stat().st_size // 2 + 7])
    assert 0 < verify(half, run_dir).requests.compared < 20
    ended = lens("verify", "--pcap", str(bad["cannot be read"]), str(run_dir), cwd=tmp_path)
    assert (ended.code, len(ended.stderr.splitlines())) == (1, 1)


def test_packets_that_are_not_tcp_are_no_segments(tmp_path: Path) -> None:
    """A capture without a filter has ARP, ICMP and UDP."""
    path = tmp_path / "other.pcap"
    with path.open("wb") as file:
        writer = pcap.Writer(file)
        writer.writepkt(bytes(dpkt.ethernet.Ethernet(type=dpkt.ethernet.ETH_TYPE_ARP, data=b"\0" * 28)), 1.0)
        udp = dpkt.ip.IP(p=dpkt.ip.IP_PROTO_UDP, data=dpkt.udp.UDP(sport=53, dport=53, data=b"x"))
        writer.writepkt(bytes(dpkt.ethernet.Ethernet(data=udp)), 2.0)
        writer.writepkt(b"\0\1", 3.0)
    assert list(segments(path)) == []
