"""Servers that cheat, cache or count wrong are seen, and honest ones are not suspected."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from llm_latency_lens.collectors.conduct import REPLIES_KEPT, ReplyComparison
from llm_latency_lens.collectors.measures import conduct, measures
from llm_latency_lens.engine.dialects.outcomes import finish_flag
from llm_latency_lens.engine.metrics import SCALES
from llm_latency_lens.engine.records.detail import Detail
from llm_latency_lens.engine.records.record import (
    FINISH_LENGTH,
    FINISH_OTHER,
    FINISH_STOP,
    FRAMED_ONCE,
    IDENTICAL_REPLY,
    REPEATED_PROMPT,
    REPLY_COMPARED,
    STREAMED,
    UNKNOWN,
)
from llm_latency_lens.engine.worker.ledger import body_crc
from tests.support_cheats import CHEATS, HONEST, Case, notes_on
from tests.support_collector import fields, plan, records

Asked = tuple[int, int, int, int]  # phase, prompt's checksum, reply's checksum, output tokens


def marked(*asked: Asked, comparison: ReplyComparison | None = None) -> list[int]:
    """The flags that the comparison sets for these requests, the first phase being the warm-up."""
    rows = records(
        *(
            fields(phase=phase, request=i, output_tokens=tokens, flags=0)
            for i, (phase, _, _, tokens) in enumerate(asked)
        )
    )
    details = {
        (phase, i): Detail(i, phase, prompt_crc=prompt, reply_crc=reply)
        for i, (phase, prompt, reply, _) in enumerate(asked)
    }
    (comparison or ReplyComparison(plan(phases=2, warmup=True).phases)).mark(rows, details)
    return [int(flags) for flags in rows["flags"]]


def test_an_equal_reply_counts_only_to_another_prompt_and_with_as_many_tokens() -> None:
    """A server at temperature 0 says the same to the same prompt, and two replies may begin alike."""
    assert marked((1, 1, 7, 40), (1, 1, 7, 40), (1, 2, 7, 41), (1, 3, 7, 40)) == [
        REPLY_COMPARED,
        REPLY_COMPARED,
        REPLY_COMPARED,
        REPLY_COMPARED | IDENTICAL_REPLY,
    ]


def test_short_replies_and_those_without_text_are_not_compared() -> None:
    """`Yes.` is an honest answer to many prompts, and a tool call has no text."""
    assert marked((1, 1, 7, 15), (1, 2, 7, 15), (1, 3, 0, 40), (1, 4, 0, 40)) == [0, 0, 0, 0]


def test_a_prompt_of_the_warm_up_is_a_repeated_one_in_a_measured_phase_only() -> None:
    """Prompts that repeat within the measurement are the plan's own workload."""
    flags = marked((0, 1, 7, 40), (0, 1, 7, 40), (1, 1, 7, 40), (1, 2, 8, 40), (1, 2, 8, 40))
    assert [bool(each & REPEATED_PROMPT) for each in flags] == [False, False, True, False, False]


def test_the_comparison_does_not_grow_with_the_run() -> None:
    """A run of a week has hundreds of millions of replies; those that were first are still looked up."""
    comparison = ReplyComparison(plan(phases=2).phases)
    marked(*((1, i, i, 40) for i in range(1, REPLIES_KEPT + 1)), comparison=comparison)
    assert marked((1, 1 << 31, REPLIES_KEPT + 1, 40), comparison=comparison) == [REPLY_COMPARED]
    assert marked((1, 1 << 30, REPLIES_KEPT + 1, 40), comparison=comparison) == [REPLY_COMPARED]
    assert marked((1, 1 << 30, 1, 40), comparison=comparison) == [REPLY_COMPARED | IDENTICAL_REPLY]


def test_a_request_has_the_checksum_of_its_body_whatever_its_headers_say() -> None:
    """A trace id in the headers would make every prompt a different one."""
    assert body_crc(b"POST / HTTP/1.1\r\nA: 1\r\n\r\nbody") == body_crc(b"POST / HTTP/1.1\r\nA: 22\r\n\r\nbody")
    assert body_crc(b"POST / HTTP/1.1\r\n\r\nbody") != body_crc(b"POST / HTTP/1.1\r\n\r\nbodY")


@pytest.mark.parametrize(
    ("word", "flag"),
    [("stop", FINISH_STOP), ("end_turn", FINISH_STOP), ("STOP", FINISH_STOP), ("length", FINISH_LENGTH),
     ("MAX_TOKENS", FINISH_LENGTH), ("tool_calls", FINISH_OTHER)],
)  # fmt: skip
def test_each_providers_word_for_the_end_is_understood(word: str, flag: int) -> None:
    assert finish_flag(word) == flag


def test_lengths_are_compared_reply_by_reply() -> None:
    """Long ones must not make up for short ones, as they do in a mean."""
    said = conduct(
        records(
            *(fields(asked_output_tokens=100, output_tokens=tokens, token_events=1, flags=FINISH_LENGTH) for tokens in (89, 90, 110, 111)),
            fields(asked_output_tokens=0, output_tokens=5, token_events=1),
            fields(asked_output_tokens=100, output_tokens=UNKNOWN),
        )
    )  # fmt: skip
    assert said["LENGTH_ASKED"].tolist() == [True] * 4 + [False] * 2
    assert said["SHORTER"].tolist() == said["CUT_SHORT"].tolist() == [True] + [False] * 5
    assert said["LONGER"].tolist() == [False] * 3 + [True] + [False] * 2


def test_fewer_tokens_than_events_cannot_be_true() -> None:
    """An event carries at least one token; more than one is what speculative decoding does."""
    rows = (fields(output_tokens=tokens, token_events=20) for tokens in (17, 18, 20, 60, UNKNOWN))
    assert conduct(records(*rows))["USAGE_UNDER_EVENTS"].tolist() == [True, False, False, False, False]


def test_tokens_per_event_are_of_streams_and_tpot_counts_all_tokens() -> None:
    """Where an event carries three tokens, the time per token is a third of the time between events."""
    columns = measures(
        records(
            fields(output_tokens=33, token_events=11, flags=STREAMED),
            fields(output_tokens=33, token_events=1, flags=STREAMED | FRAMED_ONCE),
            fields(output_tokens=UNKNOWN, token_events=11, flags=STREAMED),
        )
    )
    has, value = columns["tokens_per_event"]
    assert has.tolist() == [True, False, False]
    assert value[0] == 3 * SCALES["tokens_per_event"]
    assert columns["tpot_ms"][1][0] / SCALES["tpot_ms"] == 100 / 32


def notes_on_all(cases: Sequence[Case], folder: Path) -> list[dict[str, str]]:
    folders = [folder / str(i) for i in range(len(cases))]
    for each in folders:
        each.mkdir()
    with ThreadPoolExecutor(4) as pool:
        return list(pool.map(notes_on, cases, folders))


@pytest.mark.slow
def test_servers_that_cheat_are_seen_with_numbers(tmp_path: Path) -> None:
    """A cached or shortened reply is fast: without a note it is reported as a fast server."""
    for case, notes in zip(CHEATS, notes_on_all(CHEATS, tmp_path), strict=True):
        assert case.codes <= notes.keys(), (case.name, notes)
        assert any(case.words in notes[code] for code in case.codes), (case.name, notes)
        assert all(any(character.isdigit() for character in note) for note in notes.values()), (case.name, notes)


@pytest.mark.slow
def test_honest_servers_are_not_suspected(tmp_path: Path) -> None:
    """A note that accuses an honest server makes people ignore those that do not."""
    for case, notes in zip(HONEST, notes_on_all(HONEST, tmp_path), strict=True):
        assert notes.keys() == case.codes, (case.name, notes)
