"""What a wake-up costs: the nested epoll object beside a loop handle per socket; and the parts of one read."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import uvloop

from llm_latency_lens.engine.clock import StampClock
from llm_latency_lens.engine.dialects import Reply
from llm_latency_lens.engine.dialects.openai import ChatReply
from llm_latency_lens.engine.records.lag import LAG_BUCKETS, lag_bucket
from llm_latency_lens.engine.wire.exchange import FIRST, Exchange
from llm_latency_lens.engine.wire.reactor import READ, Reactor
from llm_latency_lens.engine.wire.tcp_info import TcpPath

SOCKETS = 64
ROUNDS = 200
EVENT = (b"", b'{"choices":[{"index":0,"delta":{"content":" word"}}]}')
TAKES = 1000
STAMPS = range(1 << 20, (1 << 20) * (TAKES + 1), 1 << 20)  # a gap of 1 ms each
LAGS = range(20_000, 21_000)


@pytest.fixture
def pairs() -> Iterator[list[tuple[socket.socket, socket.socket]]]:
    made = [socket.socketpair() for _ in range(SOCKETS)]
    for pair in made:
        for sock in pair:
            sock.setblocking(False)
    yield made
    for pair in made:
        for sock in pair:
            sock.close()


def served(pairs: list[tuple[socket.socket, socket.socket]], ready: int, *, nested: bool) -> Callable[[], None]:
    """A run of ROUNDS wake-ups in which `ready` of the sockets have a byte to be read."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        reactor = Reactor(StampClock(), memoryview(bytearray(LAG_BUCKETS * 8)).cast("Q"))
        finished = loop.create_future()
        left = ROUNDS * ready

        def owner(sock: socket.socket) -> Callable[..., None]:
            def read(*_mask: int) -> None:
                nonlocal left
                sock.recv(16)
                left -= 1
                if not left:
                    finished.set_result(None)
                elif left % ready == 0:
                    wake()

            return read

        def wake() -> None:
            for _, far in pairs[:ready]:
                far.send(b"x")

        for near, _ in pairs:
            if nested:
                reactor.watch(near.fileno(), READ, owner(near))
            else:
                loop.add_reader(near.fileno(), owner(near))
        if nested:
            loop.add_reader(reactor.epoll.fileno(), reactor.turn)
        wake()
        await finished
        if nested:
            loop.remove_reader(reactor.epoll.fileno())
        else:
            for near, _ in pairs:
                loop.remove_reader(near.fileno())
        reactor.close()

    def run() -> None:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(main())

    return run


@pytest.mark.parametrize("ready", [1, 8, SOCKETS])
@pytest.mark.parametrize("nested", [True, False], ids=["nested epoll", "loop handles"])
def test_wake_ups(benchmark: Any, pairs: list[tuple[socket.socket, socket.socket]], ready: int, nested: bool) -> None:
    """200 wake-ups with 1, 8 or all of 64 sockets ready, each read once."""
    benchmark(served(pairs, ready, nested=nested))


def by_call(counts: memoryview) -> None:
    for lag in LAGS:
        counts[lag_bucket(lag)] += 1


def written_out(counts: memoryview) -> None:
    for lag in LAGS:
        bits = lag.bit_length()
        counts[bits - 4 << 4 | lag >> bits - 5 & 15] += 1


@pytest.mark.parametrize("count", [by_call, written_out])
def test_lag_bucket(benchmark: Any, count: Callable[[memoryview], None]) -> None:
    """us per 1000 lags are ns per read: by lag_bucket(), and as `Connection._read` has it."""
    benchmark(count, memoryview(bytearray(LAG_BUCKETS * 8)).cast("Q"))


class Known(Reply):
    """A reply whose events cost nothing, so that only what the exchange does is measured."""

    __slots__ = ("bits",)

    def __init__(self) -> None:
        super().__init__()
        self.bits = ChatReply().event(EVENT[1])

    def event(self, text: bytes, name: bytes = b"") -> int:
        return self.bits

    def body(self, text: bytes) -> int:
        return 0


@pytest.mark.parametrize("alone", [True, False], ids=["take_one", "take"])
def test_one_event(benchmark: Any, alone: bool) -> None:
    """us per 1000 events are ns per event: the exchange's part of a read that brought one complete event."""

    def run() -> None:
        exchange = Exchange(0, 0, 0, 0, 0, b"")
        exchange.begin_attempt(Known())
        exchange.last_send_ns = 1
        if alone:
            take_one = exchange.take_one
            for at in STAMPS:
                take_one(EVENT, at, True)
        else:
            take = exchange.take
            for at in STAMPS:
                take([EVENT], at, True, True)

    benchmark(run)


@pytest.mark.parametrize("asked", [True, False], ids=["asked", "not asked"])
def test_round_trip_time(benchmark: Any, asked: bool) -> None:
    """1000 requests from their attempt to their first token: with one question to the kernel for the round-trip time
    (wire/tcp_info.py), and without. The difference in us is ns per request."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        near = socket.create_connection(listener.getsockname())
        far, _ = listener.accept()
    with near, far:
        exchange = Exchange(0, 0, 0, 0, 0, b"")
        path = TcpPath(near)

        def run() -> None:
            for stamp in STAMPS:
                exchange.begin_attempt(Known())
                if exchange.take_one(EVENT, stamp, True) & FIRST and asked:
                    path.note(exchange)

        benchmark(run)
        assert (exchange.tcp_retransmits == 0) == asked
