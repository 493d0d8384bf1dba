"""What exact reads cost a worker that is on time: `Connection` and `ExactConnection` in turn, in one process.

    python -m benches.exact_reads [--streams 64] [--rounds 400]

Each round sends one event to every stream over loopback TCP and measures the CPU time of the reactor's turn that reads
them: as found by a worker that is on time (`fresh`), and by one whose last turn lies 10 ms back (`old`: FIONREAD is
asked first). Printed are medians of ns per event over the rounds, and the difference.
"""

from __future__ import annotations

import argparse
import gc
import socket
import statistics
from time import monotonic_ns, thread_time_ns
from typing import Final

from llm_latency_lens.engine.clock import SO_TIMESTAMPNS, StampClock
from llm_latency_lens.engine.dialects.openai import ChatReply
from llm_latency_lens.engine.records.lag import LAG_BUCKETS
from llm_latency_lens.engine.wire.connection import Connection, Context
from llm_latency_lens.engine.wire.exact import ExactConnection
from llm_latency_lens.engine.wire.exchange import Exchange
from llm_latency_lens.engine.wire.reactor import READ, Reactor

HEAD: Final = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
EVENT: Final = (
    b'data: {"id":"c","object":"chat.completion.chunk","choices":[{"index":0,"delta":{"content":" word"}}]}\n\n'
)
CHUNK: Final = b"%x\r\n%b\r\n" % (len(EVENT), EVENT)
SETTLING: Final = 20  # rounds before the measured ones


def streams(reactor: Reactor, kind: type[Connection], count: int) -> list[socket.socket]:
    """The servers' ends of so many connections with a request under way."""
    context = Context(
        reactor,
        "bench",
        True,
        (),
        lambda exchange: None,
        lambda stamp, now: (stamp, True),
        lambda connection, exchange, end: None,
        lambda connection: None,
        lambda connection: None,
    )
    ends = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        for number in range(count):
            near = socket.create_connection(listener.getsockname())
            far, _ = listener.accept()
            far.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            near.setblocking(False)
            near.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
            connection = kind(context, near, None, monotonic_ns())
            reactor.watch(near.fileno(), READ, connection._idle)
            exchange = Exchange(number, 0, 0, 0, 0, b"POST / HTTP/1.1\r\n\r\n")
            exchange.begin_attempt(ChatReply())
            connection.send(exchange)
            far.recv(1 << 16)
            far.send(HEAD)
            ends.append(far)
    return ends


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=400)
    options = parser.parse_args()
    reactors = {}
    for kind in (Connection, ExactConnection):
        reactor = Reactor(StampClock(), memoryview(bytearray(LAG_BUCKETS * 8)).cast("Q"))
        reactors[kind] = reactor, streams(reactor, kind, options.streams)
        reactor.turn()
    gc.freeze()
    gc.disable()
    spent: dict[tuple[type[Connection], bool], list[float]] = {
        (kind, old): [] for kind in reactors for old in (False, True)
    }
    for number in range(2 * (options.rounds + SETTLING)):
        old = bool(number % 2)
        for kind in list(reactors)[:: 1 if number % 4 < 2 else -1]:
            reactor, ends = reactors[kind]
            for end in ends:
                end.send(CHUNK)
            reactor.turn_ns = monotonic_ns() - old * 10_000_000
            begin = thread_time_ns()
            reactor.turn()
            duration = thread_time_ns() - begin
            if number >= 2 * SETTLING:
                spent[kind, old].append(duration / len(ends))
    for old, label in ((False, "fresh"), (True, "old")):
        plain, exact = (statistics.median(spent[kind, old]) for kind in (Connection, ExactConnection))
        print(
            f"{label:6} Connection {plain:7.0f} ns   ExactConnection {exact:7.0f} ns   {exact - plain:+.0f} ns per event"
        )


if __name__ == "__main__":
    main()
