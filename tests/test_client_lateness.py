"""`client_lateness_ms`: of the time a request left late, only what is this client's fault may make a run INVALID."""

from __future__ import annotations

import socket
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import trustme

from llm_latency_lens.engine.dialects import Prompt
from llm_latency_lens.engine.load.feed import Feed, Prepared
from llm_latency_lens.engine.load.phase_run import OpenRun, PhaseRun
from llm_latency_lens.engine.plan.plan import SECOND, Load, Phase, Shape
from llm_latency_lens.engine.records.record import Unsent
from llm_latency_lens.engine.workload import Item
from tests.support_lens import measured
from tests.support_server import Script, scripted
from tests.support_simulator import simulator

FAR_S = 0.06  # what the handshake with a server on another continent takes
MS = 1_000_000


class Sender:
    """A dispatcher that keeps what it was given: (slot, waited for the cap or the budget in ms)."""

    def __init__(self) -> None:
        self.in_flight = 0
        self.last_now = 0
        self.sent: list[tuple[int, float]] = []
        self.rich = True

    def affordable(self, run: PhaseRun, prepared: Prepared) -> bool:
        return self.rich

    def dispatch(self, run: PhaseRun, prepared: Prepared, intended_ns: int, waited_ns: int = 0) -> None:
        self.in_flight += 1
        self.sent.append((prepared.slot, waited_ns / MS))

    def cancel_think_timers(self, run: PhaseRun) -> None:
        raise AssertionError("not stopped here")

    def unsent(self, run: PhaseRun, slot: int, slots: int, intended_ns: int, reason: Unsent) -> None:
        raise AssertionError("nothing is dropped here")

    def end(self, run: PhaseRun, at_ms: float) -> None:
        self.in_flight -= 1
        run.left(int(at_ms * MS))


def open_run(*, cap: int | None, slots: int = 6, gap_ms: int = 10) -> OpenRun:
    """A phase with a slot every `gap_ms`, from 0 on."""
    load = Load(model="open", shapes=(Shape(SECOND, 100.0, 100.0),), max_in_flight=cap)
    items = iter([Item(Prompt(({"role": "user", "content": "x"},)), 0, 10)] * slots)
    feed = Feed(iter([(i, i * gap_ms * MS) for i in range(slots)]), items, lambda _target, _prompt: b"")
    return OpenRun(0, Phase(name="p", load=load), feed, 0, cap or 100, SECOND)


def test_a_slot_waits_for_the_cap_until_a_request_ends_and_for_the_client_from_then_on() -> None:
    """The second slot was held until 35 ms; that it was looked at only at 50 ms is not the cap's fault."""
    run, sender = open_run(cap=1), Sender()
    run.issue(sender, 0)
    run.issue(sender, 12 * MS)  # the cap is reached
    sender.end(run, 35)
    run.issue(sender, 50 * MS)
    assert sender.sent == [(0, 0.0), (1, 25.0)]
    sender.end(run, 80)
    run.issue(sender, 80 * MS)
    assert sender.sent[2] == (2, 60.0)


def test_a_client_that_slept_while_permits_were_free_waited_for_nothing() -> None:
    """Else a stopped worker of a plan with a cap would be excused by its own plan."""
    run, sender = open_run(cap=8), Sender()
    run.issue(sender, 0)
    sender.end(run, 3)
    run.issue(sender, 1000 * MS)
    assert sender.sent == [(i, 0.0) for i in range(6)]


def test_requests_that_ended_while_the_client_slept_freed_their_permits_by_their_stamps() -> None:
    """Each end frees one slot, the earliest first: not all of them are excused until the last end."""
    run, sender = open_run(cap=2), Sender()
    run.issue(sender, 10 * MS)
    for at_ms in (40, 90):
        sender.end(run, at_ms)
    run.issue(sender, 500 * MS)
    assert sender.sent[2:] == [(2, 20.0), (3, 60.0)]


def test_without_a_cap_of_the_plan_nothing_is_excused() -> None:
    """What the descriptors of this process allow is this client's limit."""
    run, sender = open_run(cap=None), Sender()
    run.issue(sender, 0)
    sender.end(run, 30)
    run.issue(sender, 50 * MS)
    assert sender.sent == [(i, 0.0) for i in range(6)]


def test_a_slot_that_waits_for_money_in_flight_waited_for_the_budget() -> None:
    """A budget that is nearly used up slows the load down as the plan asked, not the client."""
    run, sender = open_run(cap=None), Sender()
    run.issue(sender, 0)
    sender.rich = False
    run.issue(sender, 10 * MS)
    sender.end(run, 32)
    sender.rich = True
    run.issue(sender, 33 * MS)
    assert sender.sent[1:] == [(1, 22.0), (2, 12.0), (3, 2.0)]


def far_away(port: int) -> Script:
    """Forwards each connection to `port`; the first bytes of either direction take FAR_S / 2."""

    def copy(source: socket.socket, sink: socket.socket) -> None:
        distance_s = FAR_S / 2  # the network's delay itself, not a wait for something
        with suppress(OSError):
            while piece := source.recv(1 << 16):
                time.sleep(distance_s)
                distance_s = 0
                sink.sendall(piece)
            sink.shutdown(socket.SHUT_WR)

    def forward(near: socket.socket, _number: int) -> None:
        with socket.create_connection(("127.0.0.1", port)) as far:
            up = threading.Thread(target=copy, args=(near, far), daemon=True)
            up.start()
            copy(far, near)
            up.join()

    return forward


def only_its_own_is_judged(summary: dict[str, Any]) -> None:
    """Not that it is small: on a machine with other load this client may well be late."""
    budget, reasons = summary["verdict"]["error_budget"], summary["verdict"]["reasons"]
    late = budget["client_lateness_p99_ms"] > budget["lateness_bound_ms"]
    assert ("lateness" in {reason["code"] for reason in reasons}) == late


def lateness_p99s(summary: dict[str, Any]) -> tuple[float, float]:
    """(all causes, this client's), ms."""
    metrics = summary["metrics"]
    assert metrics["client_lateness_ms"]["count"] == metrics["lateness_ms"]["count"]
    return metrics["lateness_ms"]["p99"], metrics["client_lateness_ms"]["p99"]


@pytest.mark.slow
def test_the_distance_to_the_server_does_not_make_a_run_invalid(tmp_path: Path) -> None:
    """60 ms of TLS handshake are what was measured, they are no disturbance by the client."""
    issued = trustme.CA().issue_cert("127.0.0.1")
    issued.private_key_pem.write_to_path(tmp_path / "key.pem")
    for pem in issued.cert_chain_pems:
        pem.write_to_path(tmp_path / "cert.pem", append=True)
    flags = ("--certfile", str(tmp_path / "cert.pem"), "--keyfile", str(tmp_path / "key.pem"))
    with simulator(flags=flags, ttft_ms=5, itl_ms=1, tokens=4, keep_alive=False) as server:
        with scripted(far_away(server.port)) as near:
            summary = measured(
                "--base-url", f"https://127.0.0.1:{near.port}/v1", "--insecure", "--model", "m",
                "--rate", "10", "--requests", "40", cwd=tmp_path,
            )  # fmt: skip
    everything, own = lateness_p99s(summary)
    assert everything > FAR_S * 900
    assert own < FAR_S * 500
    only_its_own_is_judged(summary)


@pytest.mark.slow
def test_a_cap_that_the_plan_asks_for_does_not_make_a_run_invalid(tmp_path: Path) -> None:
    """25/s with 8 in flight on a server that takes a second each: the plan's own queue grows, the client is on time."""
    with simulator(ttft_ms=900, itl_ms=25, tokens=4) as server:
        summary = measured(
            "--base-url", f"{server.base_url}/v1", "--model", "m", "--rate", "25", "--max-in-flight", "8",
            "--requests", "60", "--workers", "2", cwd=tmp_path,
        )  # fmt: skip
    everything, own = lateness_p99s(summary)
    assert everything > 2000
    assert own < 100
    only_its_own_is_judged(summary)
