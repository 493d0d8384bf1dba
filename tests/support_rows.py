"""Rows of requests.msgpack as the collector writes them, from drawn times."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from llm_latency_lens.engine.runs.rundir import REQUESTS
from llm_latency_lens.exporters.msgpack import KEYS, Row
from tests.support_runs import START_NS

BATCH = 20_000


def row(**values: Any) -> bytes:
    """One row; what is not named is nil."""
    return msgspec.msgpack.encode(Row(**(dict.fromkeys(KEYS) | values)))


def drawn(number: int, start_s: float, ttft_ms: float, gaps_ms: list[float], **values: Any) -> bytes:
    """An ok request that waited 1 ms for its turn and 0.5 ms for its connection; `gaps_ms` lie between its tokens."""
    first = 1.5 + ttft_ms
    end = first + sum(gaps_ms)
    times = {
        "wall_time_ns": START_NS + round(start_s * 1e9),
        "connect_start_ms": 1.0,
        "tcp_done_ms": 1.5,
        "send_ms": 1.5,
        "first_token_ms": first,
        "last_token_ms": end,
        "end_ms": end,
        "ttft_ms": ttft_ms,
        "e2e_ms": end - 1.5,
        "output_tokens": len(gaps_ms) + 1,
    }
    return row(**({"request": number, "phase": "steady", "target": "target-0", "outcome": "ok"} | times | values))


def failed(number: int, start_s: float, end_ms: float, **values: Any) -> bytes:
    """A request that was answered with an error after `end_ms`."""
    times = {"wall_time_ns": START_NS + round(start_s * 1e9), "send_ms": 0.1, "end_ms": end_ms}
    names = {"request": number, "phase": "steady", "target": "target-0", "outcome": "http_server"}
    return row(**(names | times | values))


def write_rows(folder: Path, count: int, *, targets: int = 1, seconds: float = 60.0, seed: int = 1) -> None:
    """`count` requests spread over `seconds`: TTFT grows with the input tokens, E2E with the output tokens; 1 in 100 fails."""
    rng = np.random.default_rng(seed)
    with (folder / REQUESTS).open("wb") as file:
        for start in range(0, count, BATCH):
            n = min(BATCH, count - start)
            tokens = rng.lognormal(5.5, 0.6, n).astype(int) + 1
            replies = rng.integers(10, 200, n)
            ttft = 20 + 0.1 * tokens * rng.lognormal(0, 0.2, n)
            for i in range(n):
                number = start + i
                at_s = seconds * number / count
                common = {"target": f"target-{number % targets}", "input_tokens": int(tokens[i])}
                if number % 100 == 99:
                    file.write(failed(number, at_s, 5.0, **common))
                else:
                    common["output_tokens"] = int(replies[i])
                    file.write(drawn(number, at_s, float(ttft[i]), [20.0 * float(replies[i])], **common))
