"""The parts of a worker that need no socket: what is due when, which requests are too late, details of one request."""

from __future__ import annotations

import msgspec
import pytest

from llm_latency_lens.engine.dialects.openai import ChatReply
from llm_latency_lens.engine.load.phase_run import NEVER
from llm_latency_lens.engine.plan.plan import SECOND, Limits
from llm_latency_lens.engine.records.detail import Detail
from llm_latency_lens.engine.records.record import (
    FIELDS,
    RECORD,
    TOKEN_FIELDS,
    UNKNOWN,
    Outcome,
    Unsent,
    left_behind_values,
    unsent_values,
)
from llm_latency_lens.engine.records.ring import DETAIL_MAX
from llm_latency_lens.engine.wire.exchange import Exchange
from llm_latency_lens.engine.worker.deadlines import Deadlines
from llm_latency_lens.engine.worker.ledger import TEXT_PIECE_CHARS
from llm_latency_lens.engine.worker.timers import Timers

LIMITS = Limits(connect_timeout_ns=SECOND, first_token_timeout_ns=2 * SECOND, timeout_ns=5 * SECOND)


def test_calls_are_made_in_the_order_of_their_times_and_never_early() -> None:
    """A retry before its wait is over is what the server asked not to get."""
    made: list[str] = []
    timers = Timers()
    timers.at(30, made.append, "c")
    timers.at(10, made.append, "a")
    timers.at(10, made.append, "b")
    timers.run_due(9)
    assert (made, timers.next_ns()) == ([], 10)
    timers.run_due(29)
    assert (made, timers.next_ns()) == (["a", "b"], 30)


def test_what_a_due_call_adds_is_made_too_if_it_is_due() -> None:
    """A think time of 0 must not wait for the next wake-up."""
    made: list[int] = []
    timers = Timers()
    timers.at(1, lambda: timers.at(2, made.append, 2))
    timers.at(50, made.append, 50)
    timers.run_due(5)
    assert made == [2]


def test_the_calls_of_one_run_are_taken_out_and_no_others() -> None:
    """A phase that ends must not lose the think times of the next one."""
    one, other = object(), object()

    def turn(run: object, number: int) -> None:
        raise AssertionError("taken out")

    timers = Timers()
    for due, run in ((3, one), (1, one), (2, other)):
        timers.at(due, turn, run, due)
    assert timers.take_out(turn, one) == [(one, 1), (one, 3)]
    assert timers.next_ns() == 2
    assert timers.take_out(turn, one) == []


def waiting(deadlines: Deadlines, now_ns: int, **marks: int) -> Exchange:
    exchange = Exchange(0, 0, 0, 0, 0, b"")
    exchange.begin_attempt(ChatReply())
    for name, value in marks.items():
        setattr(exchange, name, value)
    limit_ns = deadlines.first_ns if exchange.last_send_ns else deadlines.connect_ns
    deadlines.watch(exchange, now_ns + limit_ns)
    return exchange


@pytest.mark.parametrize(
    ("marks", "after_ns", "outcome", "message"),
    [
        ({}, SECOND, Outcome.CONNECT_TIMEOUT, "no connection within 1 s"),
        ({"tcp_done_ns": 5}, SECOND, Outcome.CONNECT_TIMEOUT, "no TLS session within 1 s"),
        ({"last_send_ns": 1}, 2 * SECOND, Outcome.TIMEOUT_FIRST_TOKEN, "no first token within 2 s"),
        ({"last_send_ns": 1, "first_token_ns": 9}, 5 * SECOND + 1, Outcome.TIMEOUT_TOTAL, "not complete within 5 s"),
    ],
)
def test_a_request_is_too_late_for_what_it_has_not_reached(
    marks: dict[str, int], after_ns: int, outcome: Outcome, message: str
) -> None:
    """The outcome names the part that was slow: network, TLS, prefill or decode."""
    deadlines = Deadlines(LIMITS, seed=1, tls=[True])
    exchange = waiting(deadlines, 0, **marks)
    assert deadlines.sweep([exchange], after_ns - 1) == []
    assert deadlines.sweep_ns == after_ns
    assert deadlines.sweep([exchange], after_ns) == [(exchange, outcome, message)]
    assert (exchange.end_ns, deadlines.sweep_ns) == (after_ns, NEVER)


def test_only_an_earlier_deadline_asks_for_the_timer_to_be_set_anew() -> None:
    """Setting it for every request would cost each a system call."""
    deadlines = Deadlines(LIMITS, seed=1, tls=[False])
    exchange = Exchange(0, 0, 0, 0, 0, b"")
    assert [deadlines.watch(exchange, at) for at in (50, 60, 40)] == [True, False, True]


def test_the_same_requests_are_aborted_for_a_seed_and_about_the_share_of_the_plan() -> None:
    """A run repeated with its seed, or with more workers, has to abort the same ones."""
    deadlines = Deadlines(Limits(cancel_share=0.25), seed=7, tls=[False])
    again = Deadlines(Limits(cancel_share=0.25), seed=7, tls=[False])
    requests = [Exchange(number, 0, 0, 0, 0, b"") for number in range(2000)]
    chosen = [deadlines.cancels(exchange) for exchange in requests]
    assert chosen == [again.cancels(exchange) for exchange in requests]
    assert 400 < sum(chosen) < 600
    assert not any(Deadlines(Limits(), seed=7, tls=[False]).cancels(exchange) for exchange in requests)


def test_the_longest_piece_of_a_text_fits_a_detail() -> None:
    """A detail that is too long is dropped, and the reply's tokens could not be counted."""
    piece = "\U0001f40c" * TEXT_PIECE_CHARS
    detail = Detail((1 << 64) - 1, 0xFFFF, texts=[piece], pieces=0xFFFF_FFFF)
    assert len(msgspec.msgpack.encode(detail)) <= DETAIL_MAX


def test_details_of_one_request_join_into_one() -> None:
    """Texts in the order in which they were written; a later detail without a message does not remove it."""
    known = Detail(1, 0, message="no", request_id="r")
    for text in ("a", "b"):
        known.add(Detail(1, 0, texts=[text], pieces=2))
    assert (known.message, known.request_id, known.text, known.pieces) == ("no", "r", "ab", 2)
    assert Detail(1, 0).text is None


def test_records_of_requests_that_did_not_end_have_every_field() -> None:
    """They are made from few values: what is not known is 0, and token counts say so."""
    names = [name for name, _ in FIELDS]
    left = left_behind_values(request=3, intended_ns=4, send_ns=5, phase=1, target=2, worker=6, sent=True, dead=True)
    values = dict(zip(names, left, strict=True))
    assert {values[name] for name in TOKEN_FIELDS} == {UNKNOWN}
    assert (values["outcome"], values["attempts"], values["last_send_ns"]) == (Outcome.LOST, 1, 5)
    unsent = unsent_values(
        request=3, slots=9, intended_ns=4, dequeued_ns=5, target=0, phase=1, worker=6, reason=Unsent.BUDGET
    )
    values = dict(zip(names, unsent, strict=True))
    assert (values["outcome"], values["unsent"], values["slots"]) == (Outcome.UNSENT, Unsent.BUDGET, 9)
    assert len(RECORD.pack(*left)) == len(RECORD.pack(*unsent))
