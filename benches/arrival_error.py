"""How far the lens' arrival stamps are from the server's send times, event by event: the worker's own reactor, pool and
connections against a simulator whose chunks carry `sent_ns`. Prints one JSON object.

    python -m benches.arrival_error URL STREAMS SECONDS
"""

from __future__ import annotations

import asyncio
import gc
import json
import resource
import sys
from time import monotonic_ns, process_time_ns
from typing import ClassVar

import msgspec
import uvloop

from llm_latency_lens.engine.clock import StampClock, keep_stamps_on
from llm_latency_lens.engine.dialects import Prompt, Reply
from llm_latency_lens.engine.dialects.openai import ChatReply, OpenAIChat
from llm_latency_lens.engine.plan.plan import Target
from llm_latency_lens.engine.records.lag import LAG_BUCKETS, lag_value
from llm_latency_lens.engine.wire.endpoint import Endpoint
from llm_latency_lens.engine.wire.exchange import Exchange
from llm_latency_lens.engine.wire.pool import Pool
from llm_latency_lens.engine.wire.reactor import Reactor


class Sent(msgspec.Struct):
    sent_ns: int = 0


_sent = msgspec.json.Decoder(Sent).decode


class Traced(Exchange):
    """Keeps stamp - sent_ns of every event that came alone in its read, and counts the others."""

    __slots__ = ()
    errors: ClassVar[list[int]] = []
    shared = 0
    total = 0

    def take(self, events: list[tuple[bytes, bytes]], stamp_ns: int, kernel: bool, complete: bool) -> int:
        Traced.total += len(events)
        Traced.shared += len(events)
        return super().take(events, stamp_ns, kernel, complete)

    def take_one(self, event: tuple[bytes, bytes], stamp_ns: int, kernel: bool) -> int:
        Traced.total += 1
        if event[1] != b"[DONE]":
            Traced.errors.append(stamp_ns - _sent(event[1]).sent_ns)
        return super().take_one(event, stamp_ns, kernel)


class Driver:
    """Keeps `streams` requests in flight until the time is over."""

    def __init__(self, url: str, streams: int, seconds: float) -> None:
        target = Target(name="bench", provider="openai", base_url=url, model="m")
        self.lag = memoryview(bytearray(LAG_BUCKETS * 8)).cast("Q")
        self.reactor = Reactor(StampClock(), self.lag)
        self.pool = Pool(
            self.reactor,
            target,
            OpenAIChat(),
            Endpoint(target, {}),
            sending=self.sending,
            done=self.done,
            suspect=self.suspect,
        )
        self.wire = self.pool.endpoint.encode(
            self.pool.dialect.request(target, Prompt(({"role": "user", "content": "How fast is light?"},)))
        )
        self.streams = streams
        self.ends_ns = monotonic_ns() + int(seconds * 1e9)
        self.open = 0
        self.done_count = 0
        self.reply: Reply

    def start(self) -> None:
        now = monotonic_ns()
        exchange = Traced(0, now, 0, 0, 0, self.wire)
        exchange.begin_attempt(ChatReply())
        self.open += 1
        self.pool.send(exchange)

    def sending(self, exchange: Exchange) -> None:
        """Nothing to record."""

    def suspect(self, stamp_ns: int, now_ns: int) -> tuple[int, bool]:
        return stamp_ns, True

    def done(self, exchange: Exchange) -> None:
        self.open -= 1
        self.done_count += 1
        if monotonic_ns() < self.ends_ns:
            asyncio.get_running_loop().call_soon(self.start)


async def drive(driver: Driver) -> None:
    asyncio.get_running_loop().add_reader(driver.reactor.epoll.fileno(), driver.reactor.turn)
    for _ in range(driver.streams):
        driver.start()
    while monotonic_ns() < driver.ends_ns:
        await asyncio.sleep(0.05)


def percentile(values: list[int], share: float) -> float:
    return values[min(len(values) - 1, int(len(values) * share))] / 1000 if values else float("nan")


def main() -> None:
    url, streams, seconds = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
    stamps = keep_stamps_on()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    driver = Driver(url, streams, seconds)
    gc.collect()
    gc.freeze()
    gc.disable()
    began, cpu = monotonic_ns(), process_time_ns()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(drive(driver))
    took, cpu = monotonic_ns() - began, process_time_ns() - cpu
    stamps.close()
    errors = sorted(Traced.errors)
    reads = sum(driver.lag)
    seen = 0
    lag_p50 = 0.0
    for bucket, count in enumerate(driver.lag):
        seen += count
        if seen >= reads / 2:
            lag_p50 = lag_value(bucket) / 1000
            break
    print(
        json.dumps(
            {
                "events": Traced.total,
                "events_per_s": Traced.total / took * 1e9,
                "cpu_us_per_event": cpu / 1000 / max(1, Traced.total),
                "error_us_p50": percentile(errors, 0.5),
                "error_us_p99": percentile(errors, 0.99),
                "coalesced_share": Traced.shared / max(1, Traced.total),
                "loop_lag_us_p50": lag_p50,
                "rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000,
            }
        )
    )


if __name__ == "__main__":
    main()
