"""The tap: segments that nobody reads keep a time stamp each, and only those of the servers that were named."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from time import monotonic, monotonic_ns, sleep

import pytest

from llm_latency_lens.engine.frames import frame, read_frame
from llm_latency_lens.engine.records.tap_status import read_tap_status
from llm_latency_lens.engine.wire.tap.filters import Server, program
from llm_latency_lens.engine.wire.tap.packets import HOLD_NS, PacketQueue
from llm_latency_lens.engine.wire.tap.process import Readiness, Servers
from tests.support_stamps import needs_tap

LOOPBACK = {socket.AF_INET: "127.0.0.1", socket.AF_INET6: "::1"}
SEGMENTS = 8  # below the initial congestion window of 10: the sender merges what it may not send yet
SEGMENT_BYTES = 200


pytestmark = needs_tap


class Stream:
    """A loopback connection whose client end asks for kernel stamps and is read late."""

    def __init__(self, family: int) -> None:
        with socket.socket(family) as listener:
            listener.bind((LOOPBACK[socket.AddressFamily(family)], 0))
            listener.listen()
            self.server = Server(family, LOOPBACK[socket.AddressFamily(family)], listener.getsockname()[1])
            self.client = socket.socket(family)
            self.client.setsockopt(socket.SOL_SOCKET, 35, 1)
            self.client.connect(listener.getsockname())
            self.far, _ = listener.accept()
        self.far.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while not self._stamped():  # the kernel switches stamping on a moment after the first socket asked
            pass
        self.client.setblocking(False)

    def _stamped(self) -> bool:
        self.far.send(b"x")
        return bool(self.client.recvmsg(1, 128)[1])

    def write(self, segments: int = SEGMENTS) -> None:
        for _ in range(segments):
            self.far.send(bytes(SEGMENT_BYTES))
            sleep(0.001)

    def stamps(self) -> list[bytes]:
        """One stamp for each read of exactly one segment."""
        found = []
        while True:
            try:
                _, ancillary, _, _ = self.client.recvmsg(SEGMENT_BYTES, 128)
            except BlockingIOError:
                return found
            found.append(ancillary[0][2])

    def close(self) -> None:
        self.client.close()
        self.far.close()


@contextmanager
def streams(*families: int) -> Iterator[list[Stream]]:
    with ExitStack() as stack:
        opened = [Stream(family) for family in families]
        for each in opened:
            stack.callback(each.close)
        yield opened


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_each_segment_of_a_named_server_keeps_its_own_stamp(family: int) -> None:
    """The promise: a reader that comes late still sees 8 different times. The unnamed server's are merged."""
    with streams(family, family) as (named, unnamed):
        queue = PacketQueue(family, [named.server])
        try:
            for _ in range(SEGMENTS):
                named.write(1)
                unnamed.write(1)
            assert len({*named.stamps()}) == SEGMENTS
            assert len({*unnamed.stamps()}) < SEGMENTS
            queue.tick(monotonic_ns())
            assert SEGMENTS <= queue.packets <= SEGMENTS + 5
            assert queue.dropped == 0
        finally:
            queue.close()


def test_what_is_older_than_the_hold_time_is_dropped_and_nothing_younger() -> None:
    """A queue that is never emptied would fill and then protect nothing."""
    with streams(socket.AF_INET) as (stream,):
        queue = PacketQueue(socket.AF_INET, [stream.server])
        try:
            now = monotonic_ns()
            queue.tick(now)
            stream.write(10)
            queue.tick(now + 1)
            assert queue.held() == 10
            stream.write(5)
            queue.tick(now + 2)
            queue.tick(now + 1 + HOLD_NS)
            assert queue.held() == 5
            queue.tick(now + 2 + HOLD_NS)
            assert queue.held() == 0
        finally:
            queue.close()


def test_a_full_queue_is_counted_and_the_hold_time_shrinks_until_nothing_is_lost() -> None:
    """A flood beyond the buffer costs protection, never a segment, and the tap recovers by holding for less long."""
    with streams(socket.AF_INET) as (stream,):
        queue = PacketQueue(socket.AF_INET, [stream.server], queue_bytes=1 << 14)
        try:
            now = monotonic_ns()
            for step in range(12):
                stream.write(30)
                stream.stamps()
                queue.tick(now + step * 50_000_000)
            assert queue.dropped > 0
            assert queue.hold_ns < HOLD_NS
        finally:
            queue.close()


def test_without_net_admin_the_clones_are_dealt_out_to_sockets_with_short_queues() -> None:
    """An ordinary container may not exceed net.core.rmem_max: one such queue holds 500 clones, 50 ms of 10k segments/s."""
    with streams(socket.AF_INET) as (stream,):
        queue = PacketQueue(socket.AF_INET, [stream.server], queue_bytes=64 << 20, force=False)
        try:
            now = monotonic_ns()
            for _ in range(3):
                stream.write()
                assert len({*stream.stamps()}) == SEGMENTS
            queue.tick(now)
            assert queue.held() == queue.packets
            assert queue.packets >= 3 * SEGMENTS
            assert queue.dropped == 0
            queue.tick(now + HOLD_NS)
            assert queue.held() == 0
        finally:
            queue.close()


def test_later_servers_replace_earlier_ones() -> None:
    """A DNS answer that changes brings new addresses."""
    with streams(socket.AF_INET, socket.AF_INET) as (first, second):
        queue = PacketQueue(socket.AF_INET, [first.server])
        try:
            queue.select([second.server])
            for _ in range(SEGMENTS):
                second.write(1)
            assert len({*second.stamps()}) == SEGMENTS
        finally:
            queue.close()


def test_more_servers_than_one_filter_holds_is_an_error_that_says_so() -> None:
    """BPF_MAXINSNS: better a clear refusal than a filter the kernel rejects with EINVAL."""
    servers = [Server(socket.AF_INET6, f"2001:db8::{i:x}", 443) for i in range(500)]
    with pytest.raises(ValueError, match="instructions for one packet filter"):
        program(socket.AF_INET6, servers)


def started(directory: Path, *, wrapper: list[str] | None = None) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "llm_latency_lens.engine.wire.tap", "--segment-dir", str(directory)]
    return subprocess.Popen([*(wrapper or []), *command], stdin=subprocess.PIPE, stdout=subprocess.PIPE)


def test_the_process_says_ready_writes_its_status_and_ends_with_its_stdin(tmp_path: Path) -> None:
    """The supervisor's end, however it comes, is the tap's end; the collector sees both in the status page."""
    with streams(socket.AF_INET) as (stream,), started(tmp_path) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert read_frame(process.stdout.fileno(), Readiness).state == "ready"
        process.stdin.write(frame(Servers([tuple(stream.server)])))
        process.stdin.flush()
        deadline = monotonic() + 5
        while True:  # the filter is in place when segments are seen
            stream.write(5)
            status = read_tap_status(tmp_path)
            assert status is not None
            if status.packets:
                break
            assert monotonic() < deadline
        assert status.protects(monotonic_ns())
        assert status.pid == process.pid
        process.stdin.close()
        assert process.wait(5) == 0
        ended = read_tap_status(tmp_path)
        assert ended is not None
        assert not ended.protects(monotonic_ns())


@pytest.mark.skipif(os.geteuid() != 0, reason="dropping a capability takes root")
def test_without_the_capability_it_says_what_is_missing_and_how_to_grant_it(tmp_path: Path) -> None:
    """Most users meet this first: the line has to name the capability and three ways to it."""
    wrapper = ["setpriv", "--bounding-set=-net_raw", "--inh-caps=-net_raw"]
    with started(tmp_path, wrapper=wrapper) as process:
        assert process.stdout is not None
        word = read_frame(process.stdout.fileno(), Readiness)
        assert word.state == "refused"
        assert "CAP_NET_RAW" in word.detail
        assert "--cap-add" in word.detail
        assert process.wait(5) == 0
