"""How near the search of a sweep comes to the capacity of servers that is known, and what it spends.

    python -m benches.sweep_accuracy [--seeds 100] [--only M/D/4,M/M/4]

The search and the rules of a point are the program's own (collectors.capacity, collectors.point); only time is virtual: a
point is judged at its looks and over at the first verdict, when its queue is seen to grow, or after 32,000 requests.
Printed per server:

    within 5 %   seeds whose answer is within 5 % of the true capacity
    covers       seeds whose interval holds it
    found        seeds with the state FOUND
    requests     mean of a sweep, over those of a fixed grid of the same precision with 32,000 requests a point
"""

from __future__ import annotations

import argparse
import math
from typing import Final, NamedTuple

import numpy as np

from llm_latency_lens.collectors.capacity import Range
from tests.support_servers import POINT_REQUESTS, SERVERS, Server, Sweep


class Spent(NamedTuple):
    near: bool
    covered: bool
    found: bool
    points: int
    requests: int


PRECISION: Final = 0.05


def swept(server: Server, seed: int) -> Spent:
    sweep = Sweep(server.latencies, server.bound_s, server.range_, seed, statistic=server.statistic)
    answer = sweep.run()
    low, high = answer.ci95
    near = answer.value is not None and abs(answer.value / server.capacity - 1) <= PRECISION
    covered = low is not None and high is not None and low <= server.capacity <= high
    return Spent(near, covered, answer.state == "FOUND", len(sweep.points), sweep.requests)


def grid_requests(range_: Range) -> float:
    """Of a geometric grid with the answer's precision."""
    return math.log(range_.high / range_.low) / (2 * math.log1p(PRECISION)) * POINT_REQUESTS


def line(name: str, server: Server, seeds: int) -> str:
    rows = [swept(server, seed) for seed in range(seeds)]
    near, covered, found = (sum(row[k] for row in rows) / seeds for k in range(3))
    points, requests = (float(np.mean([row[k] for row in rows])) for k in (3, 4))
    return (
        f"{name:12} capacity {server.capacity:6.2f}: within 5 % {near:5.1%}  covers {covered:5.1%}  found {found:5.1%}  "
        f"points {points:4.1f}  requests {requests:8,.0f} = {requests / grid_requests(server.range_):.2f} of a grid"
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=100)
    parser.add_argument("--only", default=",".join(SERVERS))
    given = parser.parse_args()
    for name in given.only.split(","):
        print(line(name, SERVERS[name], given.seeds), flush=True)


if __name__ == "__main__":
    main()
