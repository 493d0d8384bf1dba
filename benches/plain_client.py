"""The client everybody writes: aiohttp, a line loop, json, a stamp after `await`. Prints one JSON object.

python -m benches.plain_client URL STREAMS SECONDS
"""

from __future__ import annotations

import asyncio
import json
import resource
import sys
from time import monotonic_ns, process_time_ns

import aiohttp

BODY = {"model": "m", "stream": True, "messages": [{"role": "user", "content": "How fast is light?"}]}


async def stream(session: aiohttp.ClientSession, url: str, ends_ns: int, errors: list[int]) -> None:
    while monotonic_ns() < ends_ns:
        async with session.post(f"{url}/chat/completions", json=BODY) as reply:
            async for line in reply.content:
                now = monotonic_ns()
                if line.startswith(b"data: ") and not line.startswith(b"data: [DONE]"):
                    errors.append(now - json.loads(line[6:])["sent_ns"])
                if now > ends_ns:
                    return


async def drive(url: str, streams: int, seconds: float, errors: list[int]) -> None:
    ends_ns = monotonic_ns() + int(seconds * 1e9)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        await asyncio.gather(*(stream(session, url, ends_ns, errors) for _ in range(streams)))


def main() -> None:
    url, streams, seconds = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
    errors: list[int] = []
    began, cpu = monotonic_ns(), process_time_ns()
    asyncio.run(drive(url, streams, seconds, errors))
    took, cpu = monotonic_ns() - began, process_time_ns() - cpu
    errors.sort()
    print(
        json.dumps(
            {
                "events": len(errors),
                "events_per_s": len(errors) / took * 1e9,
                "cpu_us_per_event": cpu / 1000 / max(1, len(errors)),
                "error_us_p50": errors[len(errors) // 2] / 1000 if errors else None,
                "error_us_p99": errors[len(errors) * 99 // 100] / 1000 if errors else None,
                "rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000,
            }
        )
    )


if __name__ == "__main__":
    main()
