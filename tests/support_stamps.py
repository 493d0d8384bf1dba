"""A worker kept from its core, and the server's log as the truth about what it should have measured."""

from __future__ import annotations

import socket
import subprocess
from time import monotonic, sleep
from typing import Any

import numpy as np
import psutil
import pytest

from llm_latency_lens.cli.calibrate.measure import stopped
from tests.support_simulator import Simulator

STOP_S, PERIOD_S = 0.3, 0.5


def _permitted() -> bool:
    try:
        socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, 0).close()
    except OSError:
        return False
    return True


needs_tap = pytest.mark.skipif(not _permitted(), reason="packet sockets need CAP_NET_RAW")


def children(process: psutil.Process, module: str) -> list[psutil.Process]:
    """The run's processes that execute a module."""
    return [each for each in process.children(recursive=True) if module in " ".join(each.cmdline())]


def found(run: subprocess.Popen[str], module: str) -> psutil.Process:
    """The one process of the run that executes `module`, as soon as it is there."""
    deadline = monotonic() + 20
    while monotonic() < deadline:
        processes = children(psutil.Process(run.pid), module)
        if processes:
            return processes[0]
        sleep(0.01)
    raise AssertionError(f"no process executes {module}")


def stop_again_and_again(run: subprocess.Popen[str], worker: psutil.Process) -> None:
    """SIGSTOP for STOP_S in every PERIOD_S until the run is over; its worker ends a moment before."""
    while run.poll() is None:
        with stopped(worker.pid):
            sleep(STOP_S)
        sleep(PERIOD_S - STOP_S)


def truths(sim: Simulator, requests: int) -> tuple[np.ndarray, np.ndarray]:
    """TTFT and gaps as the server logged them, ms."""
    log = [row for row in sim.log(requests) if row["status"] == 200]
    ttft = np.array([row["first_token_sent_ns"] - row["arrival_ns"] for row in log]) / 1e6
    return ttft, np.concatenate([np.diff(row["token_sent_ns"]) for row in log]) / 1e6


def agrees(distribution: dict[str, Any], truth: np.ndarray, tolerance_ms: float) -> bool:
    """p50, p90 and p99 within the tolerance and the histogram's resolution."""
    points = {"p50": 50, "p90": 90, "p99": 99}
    expected = {name: float(np.percentile(truth, q, method="inverted_cdf")) for name, q in points.items()}
    return all(abs(distribution[name] - value) <= tolerance_ms + value / 1000 for name, value in expected.items())
