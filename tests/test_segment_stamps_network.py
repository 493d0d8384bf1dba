"""Segment stamps between two hosts: over a cable, and over a link with delay that loses and reorders packets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import msgpack
import numpy as np
import pytest

from tests.support_lens import LENS, running
from tests.support_netns import Host, delay_link, needs_namespaces, needs_tun, veth_pair
from tests.support_simulator import simulator
from tests.support_stamps import agrees, found, needs_tap, stop_again_and_again, truths

pytestmark = pytest.mark.slow

STREAMS, REQUESTS, TOKENS = 50, 150, 50
SCRIPT: dict[str, Any] = {"ttft_ms": "lognormal:50:0.1", "itl_ms": 20, "tokens": TOKENS}
DELAY_MS = 20
ROUND_TRIP_MS = 2 * DELAY_MS


class Measured(NamedTuple):
    """What a run said, and what the server's log says of the same requests, ms.

    `first_late` and `last_late`: by how much each request's first and last token came later, from its sending on, than
    the server sent it after the request's arrival: two one-way delays if nothing was lost.
    """

    summary: dict[str, Any]
    ttft: np.ndarray
    gaps: np.ndarray
    first_late: np.ndarray
    last_late: np.ndarray


def measured_between(server: Host, client: Host, *, cwd: Path) -> Measured:
    """A run from one host against the simulator on the other, whose worker is stopped 300 ms in every 500."""
    with simulator(flags=("--log-tokens", "--host", server.address), wrapper=server.wrapper, **SCRIPT) as sim:
        arguments = ["--base-url", f"{sim.base_url}/v1", "--model", "m", "--workers", "1", "--stamps", "segment"]
        load = ["--concurrency", str(STREAMS), "--requests", str(REQUESTS)]
        with running(*arguments, *load, cwd=cwd, program=[*client.wrapper, *LENS]) as run:
            stop_again_and_again(run, found(run, "engine.worker"))
            assert run.stdout is not None
            summary = json.loads(run.stdout.read())
        assert summary["requests"]["ok"] == REQUESTS
        log = {row["id"].rpartition("-")[2]: row for row in sim.log(REQUESTS)}
        ttft, gaps = truths(sim, REQUESTS)
    (path,) = cwd.glob("runs/2*/requests.msgpack")
    first, last = [], []
    with path.open("rb") as file:
        for row in msgpack.Unpacker(file):
            truth = log[row["request_id"].rpartition("-")[2]]
            for found_late, mark in ((first, "first_token"), (last, "last_token")):
                sent_ms = (truth[f"{mark}_sent_ns"] - truth["arrival_ns"]) / 1e6
                found_late.append(row[f"{mark}_ms"] - row["send_ms"] - sent_ms)
    return Measured(summary, ttft, gaps, np.array(first), np.array(last))


@needs_tap
@needs_namespaces
def test_a_stopped_worker_changes_no_latency_between_two_hosts(tmp_path: Path) -> None:
    """A network device is where segments really come from: each keeps its own stamp there as on loopback."""
    with veth_pair() as (server, client):
        run = measured_between(server, client, cwd=tmp_path)
    assert run.summary["client"]["stamps"] == "segment"
    assert run.summary["client"]["itl_coalesced_share"] < 0.005
    assert run.summary["client"]["ttft_coalesced_share"] == 0
    assert agrees(run.summary["metrics"]["ttft_ms"], run.ttft, 0.5), run.summary["metrics"]["ttft_ms"]
    assert agrees(run.summary["metrics"]["itl_ms"], run.gaps, 0.5), run.summary["metrics"]["itl_ms"]


@needs_tap
@needs_tun
def test_a_stopped_worker_measures_the_links_delay_and_nothing_else(tmp_path: Path) -> None:
    """20 ms each way: TTFT is the server's plus the round trip, and the gaps are the server's."""
    with delay_link(delay_ms=DELAY_MS) as (server, client):
        run = measured_between(server, client, cwd=tmp_path)
    assert run.summary["client"]["itl_coalesced_share"] < 0.005
    assert run.summary["client"]["ttft_coalesced_share"] == 0
    assert agrees(run.summary["metrics"]["ttft_ms"], run.ttft + ROUND_TRIP_MS, 1), run.summary["metrics"]["ttft_ms"]
    assert agrees(run.summary["metrics"]["itl_ms"], run.gaps, 1), run.summary["metrics"]["itl_ms"]


@needs_tap
@needs_tun
@pytest.mark.parametrize("link", [{"loss": 0.005}, {"loss": 0.03}, {"jitter_ms": 15.0}], ids=str)
def test_no_event_is_stamped_before_the_segment_that_completed_it(link: dict[str, float], tmp_path: Path) -> None:
    """Segments that overtake a lost one wait for it in the kernel, with a stamp older than the one they complete: read
    one by one, their gaps would be negative. They ended the worker once."""
    with delay_link(delay_ms=DELAY_MS, **link) as (server, client):
        run = measured_between(server, client, cwd=tmp_path)
    assert run.summary["client"]["stamps"] == "segment"
    for late in (run.first_late, run.last_late):
        assert late.min() > ROUND_TRIP_MS - 0.1
        assert np.percentile(late, 25) < ROUND_TRIP_MS + 1 + 2 * link.get("jitter_ms", 0)
    if link.get("loss") == 0.005:  # most of it is as if nothing were lost, the rest waited for a retransmission
        assert np.percentile(run.first_late, 75) < ROUND_TRIP_MS + 1
        itl = run.summary["metrics"]["itl_ms"]
        assert itl["p50"] == pytest.approx(np.percentile(run.gaps, 50), abs=0.5)
        assert itl["p90"] == pytest.approx(np.percentile(run.gaps, 90), abs=2)
        assert 0 < run.summary["client"]["itl_coalesced_share"] < 0.1
