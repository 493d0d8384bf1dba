"""What all replies of one process share: script, draws, counters, pacer, service slots, rate limits, log.

A value that is handed down: admission and replies use it and it knows neither. No sockets, and no clock but the one
read when a waiting reply begins.
"""

from __future__ import annotations

import time
from typing import Final

from ..framing import FRAMINGS, head_of
from ..log import RequestLog, Row
from ..providers.provider import Provider
from ..script import Draws, Script
from ..stats import SLOT, Stats
from .client import Client, Ongoing
from .limits import Bucket, Slots
from .pacer import Pacer

HEADS_KEPT: Final = 4096


class Service:
    """One process's share of the simulated service; `rank` is its number among `stats.processes`."""

    def __init__(
        self,
        script: Script,
        stats: Stats,
        pacer: Pacer,
        *,
        rank: int = 0,
        log: RequestLog | None = None,
        log_tokens: bool = False,
    ) -> None:
        processes = stats.processes
        self.script = script
        self.stats = stats
        self.pacer = pacer
        self.rank = rank
        self.log_tokens = log_tokens
        self.draws = Draws(script)
        self.slots: Slots[Ongoing] = Slots(
            _share(script.concurrency, rank, processes), _share(script.queue, rank, processes)
        )
        self._rpm = Bucket(script.rpm / processes, burst_s=script.limit_burst_s) if script.rpm else None
        self._tpm = Bucket(script.tpm / processes, burst_s=script.limit_burst_s) if script.tpm else None
        self._log = log
        self._heads: dict[tuple[object, ...], bytes] = {}

    def over_limit(self, tokens: int, now_ns: int) -> tuple[float, str]:
        """(seconds to wait, which limit), or (0, "") where the request was taken."""
        for bucket, units, name in ((self._rpm, 1, "rpm"), (self._tpm, tokens, "tpm")):
            if bucket is not None and (wait_s := bucket.take(units, now_ns)):
                return wait_s, name
        return 0.0, ""

    def limit_headers(self) -> str:
        """The x-ratelimit lines of the limits that the script has."""
        lines = ""
        for bucket, name in ((self._rpm, "requests"), (self._tpm, "tokens")):
            if bucket is not None:
                lines += f"x-ratelimit-limit-{name}: {bucket.per_minute:g}\r\n"
                lines += f"x-ratelimit-remaining-{name}: {bucket.remaining}\r\n"
                lines += f"x-ratelimit-reset-{name}: {bucket.full_in_s:.3f}s\r\n"
        return lines

    def head(self, row: Row, provider: Provider, *, keep_alive: bool, length: int | None = None) -> bytes:
        """The head of a 200 reply; without a length the body is chunked."""
        row.status = 200
        key = (provider.name, keep_alive, length)
        head = self._heads.get(key)
        if head is None:
            content_type = FRAMINGS[provider.framing][1] if length is None else "application/json"
            head = head_of(200, content_type, keep_alive=keep_alive, length=length)
            if len(self._heads) < HEADS_KEPT:
                self._heads[key] = head
        extra = self.limit_headers() if self._rpm or self._tpm else ""
        return head + f"{provider.id_header}: {row.id}\r\n{extra}\r\n".encode()

    def enter(self, reply: Ongoing) -> bool | None:
        """True: in service. False: waits. None: refused, the queue is full."""
        entered = self.slots.enter(reply)
        self._count_load()
        return entered

    def leave(self, reply: Ongoing, row: Row, client: Client) -> None:
        """A reply is over, completed or not: its slot goes to the first that waits."""
        self.record(row, client)
        if row.service_ns is None:
            self.slots.forget(reply)
        elif (waiter := self.slots.leave()) is not None:
            waiter.begin(time.monotonic_ns())
        self._count_load()

    def record(self, row: Row, client: Client) -> None:
        """Counts a request that is over and writes its row."""
        row.sent_bytes, row.late_writes = client.sent_bytes, client.late_writes
        mine = self.stats.mine
        for name in ("events", "token_events", "tokens", "prompt_tokens", "completed", "client_closed"):
            mine[SLOT[name]] += getattr(row, name)
        mine[SLOT["bytes_sent"]] += row.sent_bytes
        mine[SLOT["streams"]] += row.stream and row.status == 200
        mine[SLOT[f"status {row.status}"]] += 1
        mine[SLOT[f"fault {row.fault}"]] += 1
        if self._log:
            self._log.add(row)
            mine[SLOT["log_rows"]] += 1

    def _count_load(self) -> None:
        self.stats.mine[SLOT["running"]] = self.slots.running
        self.stats.mine[SLOT["waiting"]] = len(self.slots.waiting)


def _share(total: int | None, rank: int, processes: int) -> int | None:
    """One process's exact share of a limit."""
    return None if total is None else total // processes + (rank < total % processes)
