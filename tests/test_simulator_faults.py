"""Each fault does what it says, is logged as what it was, and loses nothing that it should not lose."""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Iterator
from email.utils import parsedate_to_datetime

import pytest

from llm_latency_lens.engine.simulator.faults import FAULTS
from llm_latency_lens.engine.simulator.providers.provider import text_of
from tests.support_simulator import CHAT, FAST, Simulator, ask, content_of, events_of, post, raw, row_of, simulator


@pytest.fixture(scope="module")
def fast() -> Iterator[Simulator]:
    with simulator(flags=("--log-tokens",), **FAST) as running:
        yield running


REFUSED = [
    ("429", 429),
    ("400", 400),
    ("401", 401),
    ("403", 403),
    ("404", 404),
    ("500", 500),
    ("503", 503),
    ("529", 529),
]


@pytest.mark.parametrize(("fault", "status"), REFUSED)
def test_a_refusing_fault_answers_with_its_status(fast: Simulator, fault: str, status: int) -> None:
    got, headers, body = post(fast, ask(fast), headers={"x-sim-fault": fault})
    row = row_of(fast, headers)
    assert (got, row["status"], row["fault"], row["tokens"], row["completed"]) == (status, status, fault, 0, True)
    assert json.loads(body)["error"]["message"]


def test_retry_after_comes_in_all_its_forms(fast: Simulator) -> None:
    _, seconds, _ = post(fast, ask(fast), headers={"x-sim-fault": "429"})
    _, date, _ = post(fast, ask(fast), headers={"x-sim-fault": "429_date"})
    _, milliseconds, _ = post(fast, ask(fast), headers={"x-sim-fault": "429_ms"})
    assert seconds["retry-after"] == "1"
    assert abs(parsedate_to_datetime(date["retry-after"]).timestamp() - time.time()) < 10
    assert milliseconds["retry-after-ms"] == "1000"


# fault, how the connection ends, is the body whole HTTP, has it [DONE], token events before the fault
BROKEN = [
    ("error_event", "closed", True, False, 3),
    ("truncate", "closed", True, False, 3),
    ("cut", "closed", False, False, 3),
    ("reset", "reset", False, False, 3),
    ("malformed_json", "closed", True, True, 6),
    ("empty", "closed", False, False, 0),
    ("bad_http", "closed", False, False, 0),
]


@pytest.mark.parametrize(("fault", "ending", "whole", "done", "tokens"), BROKEN)
def test_a_breaking_fault_ends_the_reply_its_own_way(
    fast: Simulator, fault: str, ending: str, whole: bool, done: bool, tokens: int
) -> None:
    received, ended = raw(fast, ask(fast), headers=f"x-sim-fault: {fault}\r\n")
    row = next(row for row in reversed(fast.log()) if row["fault"] == fault)
    assert (ended, row["token_events"]) == (ending, tokens)
    assert received.endswith(b"0\r\n\r\n") == whole
    if ending != "reset":  # what was under way may be lost with a reset
        assert (b"[DONE]" in received) == done
        assert received.count(b'"delta":{"content":" ') == tokens


WHOLE = ["ok", "keep_alive_lie", "split", "one_chunk", "no_usage", "comments", "slow_head", "crlf", "content_filter"]


@pytest.mark.parametrize("fault", WHOLE)
def test_a_quirk_loses_no_text(fast: Simulator, fault: str) -> None:
    status, headers, body = post(fast, ask(fast, max_tokens=4), headers={"x-sim-fault": fault})
    row = row_of(fast, headers)
    assert (status, row["tokens"], row["completed"], row["fault"]) == (200, 4, True, fault)
    assert content_of(body.replace(b"\r\n", b"\n")) == text_of(4)
    assert row["events"] == len(events_of(body.replace(b"\r\n", b"\n")))
    assert (b"\r\n" in body) == (fault == "crlf")
    assert (b'"usage"' in body) == (fault != "no_usage")
    assert (b"\n: " in body) == (fault == "comments")
    assert row["token_events"] == (1 if fault == "one_chunk" else 4)
    assert (b"content_filter" in body) == (fault == "content_filter")
    if fault == "slow_head":
        assert row["head_sent_ns"] - row["arrival_ns"] >= 500_000_000


def test_every_byte_of_a_split_reply_is_a_write_of_its_own(fast: Simulator) -> None:
    before = fast.stats()["writes"]
    _, headers, _ = post(fast, ask(fast), headers={"x-sim-fault": "split"})
    row = row_of(fast, headers)
    assert fast.stats()["writes"] - before >= row["sent_bytes"]
    assert row["tokens"] == 4


def test_a_keep_alive_lie_announces_what_it_does_not_keep(fast: Simulator) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", fast.port, timeout=20)
    connection.request("POST", CHAT, json.dumps(ask(fast)), {"x-sim-fault": "keep_alive_lie"})
    reply = connection.getresponse()
    assert reply.getheader("connection") == "keep-alive"
    assert reply.read()
    assert connection.sock
    assert connection.sock.recv(1) == b""
    connection.close()


MID_BODY = [("reset", "reset"), ("truncate", "closed"), ("cut", "closed")]


@pytest.mark.parametrize(("fault", "ending"), MID_BODY)
def test_a_reply_that_is_no_stream_breaks_in_mid_body(fast: Simulator, fault: str, ending: str) -> None:
    received, ended = raw(fast, ask(fast, stream=False), headers=f"x-sim-fault: {fault}\r\n")
    head, _, body = received.partition(b"\r\n\r\n")
    announced = int(head.partition(b"content-length: ")[2].split(b"\r\n")[0])
    assert (ended, len(body)) == (ending, announced // 2)


def test_probabilities_are_met_and_no_request_has_two_faults() -> None:
    faults = {"500": 0.2, "truncate": 0.1}
    with simulator(ttft_ms=0, itl_ms=0, tokens=1, seed=7, faults=faults) as running:
        connection = http.client.HTTPConnection("127.0.0.1", running.port, timeout=20)
        for _ in range(400):
            connection.request("POST", CHAT, json.dumps(ask(running)))
            connection.getresponse().read()
        connection.close()
        by_fault = running.stats()["by_fault"]
    assert sum(by_fault.values()) == 400
    assert set(by_fault) == {"ok", "500", "truncate"}
    assert 50 <= by_fault["500"] <= 110
    assert 18 <= by_fault["truncate"] <= 65


def test_a_sequence_of_faults_is_repeated_in_order() -> None:
    with simulator(sequence=["ok", "500", "no_usage"], **FAST) as running:
        for _ in range(6):
            post(running, ask(running))
        assert [row["fault"] for row in running.log()] == ["ok", "500", "no_usage"] * 2


def test_every_fault_is_tested_here() -> None:
    tested = {fault for fault, _ in REFUSED} | {row[0] for row in BROKEN} | set(WHOLE) | {"429_date", "429_ms", "stall"}
    assert tested == set(FAULTS)
