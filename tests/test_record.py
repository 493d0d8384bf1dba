"""The record's layout: struct and numpy say the same, nothing overlaps, and the worker needs no numpy for it."""

from __future__ import annotations

import struct
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_latency_lens.engine.records import record
from llm_latency_lens.engine.records.record import (
    FAILURES,
    FIELDS,
    GAP_BITS,
    GAP_COALESCED,
    GAP_MAX,
    GAP_REASONING,
    GAP_USER_CLOCK,
    PAYLOAD_BYTES,
    RECORD,
    SERIES_MAX,
    SERIES_SHIFT,
    SLOT_BYTES,
    Outcome,
    Unsent,
    record_dtype,
)
from tests.support_ring import NAMES, WIDTHS

# METRICS: outcomes and not-sent reasons; `unsent` and `in_flight` are the record's own
OUTCOMES = [
    "ok",
    *(f"connect_{why}" for why in ("dns", "refused", "timeout", "tls", "reset")),
    *("timeout_first_token", "timeout_total"),
    *(f"http_{why}" for why in ("auth", "rate_limited", "invalid", "overloaded", "server", "other")),
    *("stream_error", "stream_truncated", "stream_malformed"),
    *("content_filtered", "cancelled", "lost"),
]
REASONS = ["no_capacity", "budget", "stopped", "worker_down"]
FLAGS = [
    record.REUSED,
    record.USER_CLOCK,
    record.CLOCK_STEPPED,
    record.TLS,
    record.STREAMED,
    record.TTFT_COALESCED,
    record.STALE_RESENT,
    record.ABORT_PLANNED,
    record.FRAMED_ONCE,
    record.LOCAL_TOKENS,
]
any_record = st.tuples(*(st.integers(0, (1 << WIDTHS[code]) - 1) for _, code in FIELDS))


@given(any_record)
def test_what_the_struct_packs_numpy_reads_field_for_field(values: tuple[int, ...]) -> None:
    """Worker and collector use different libraries for one layout."""
    read = np.frombuffer(RECORD.pack(*values), record_dtype())
    assert read.shape == (1,)
    assert tuple(int(read[name][0]) for name in NAMES) == values


@given(any_record)
def test_what_numpy_writes_the_struct_reads(values: tuple[int, ...]) -> None:
    """And in the other direction, for the records the collector makes."""
    made = np.zeros(1, record_dtype())
    for name, value in zip(NAMES, values, strict=True):
        made[name] = value
    assert RECORD.unpack(made.tobytes()) == values


def test_a_slot_is_a_commit_word_and_a_payload() -> None:
    """The ring's slot arithmetic depends on these sizes."""
    assert RECORD.size == record_dtype().itemsize == PAYLOAD_BYTES == SLOT_BYTES - 8


def test_every_field_is_aligned_to_its_size() -> None:
    """Of a slot that begins on a page; a CPU or numpy may want it so."""
    offset = 8
    for name, code in FIELDS:
        assert offset % struct.calcsize(f"<{code}") == 0, name
        offset += struct.calcsize(f"<{code}")


def test_names_are_unique_and_times_are_u64_nanoseconds() -> None:
    """A narrower time would wrap during a long run."""
    assert len(set(NAMES)) == len(NAMES)
    assert {code for name, code in FIELDS if name.endswith("_ns")} == {"Q"}


@pytest.mark.parametrize("too_much", [-1, 1 << 64])
def test_a_value_that_does_not_fit_is_an_error_not_another_value(too_much: int) -> None:
    """Silent truncation would be wrong data."""
    with pytest.raises(struct.error):
        RECORD.pack(too_much, *[0] * (len(FIELDS) - 1))


@given(
    st.integers(0, GAP_MAX),
    st.integers(0, SERIES_MAX - 1),
    st.sets(st.sampled_from([GAP_COALESCED, GAP_USER_CLOCK, GAP_REASONING])),
)
def test_the_parts_of_a_gap_word_do_not_touch(gap_ns: int, series: int, flags: set[int]) -> None:
    """A gap that ran into the series bits would count for another target."""
    word = gap_ns | series << SERIES_SHIFT | sum(flags)
    assert word & GAP_MAX == gap_ns
    assert word >> SERIES_SHIFT & SERIES_MAX - 1 == series
    assert {flag for flag in (GAP_COALESCED, GAP_USER_CLOCK, GAP_REASONING) if word & flag} == flags
    assert word >> 55 == 0
    assert GAP_MAX == (1 << GAP_BITS) - 1


def test_the_longest_gap_is_longer_than_an_hour() -> None:
    """The histogram ends at 1 h: what saturates the word is clamped there anyway."""
    assert GAP_MAX > 3_600_000_000_000


def test_outcomes_and_reasons_are_those_of_the_contract_in_its_order() -> None:
    """Their numbers stand in files of earlier versions."""
    names = [outcome.name.lower() for outcome in Outcome]
    assert names == ["unsent", *OUTCOMES, "in_flight"]
    assert [reason.name.lower() for reason in Unsent] == ["none", *REASONS]
    assert [outcome.value for outcome in Outcome] == list(range(len(Outcome)))


def test_failures_are_what_is_neither_ok_nor_cancelled_nor_undecided() -> None:
    """The failure rate, and with it exit codes, is computed from this list."""
    others = {Outcome.UNSENT, Outcome.OK, Outcome.CANCELLED, Outcome.IN_FLIGHT}
    assert set(FAILURES) == set(Outcome) - others
    assert len(FAILURES) == len(set(FAILURES))


def test_flags_are_single_bits_that_fit_their_field() -> None:
    """Two flags on one bit would switch each other on."""
    assert all(flag.bit_count() == 1 for flag in FLAGS)
    assert len(set(FLAGS)) == len(FLAGS)
    assert max(FLAGS) < 1 << 32


def test_what_a_worker_imports_brings_no_numpy() -> None:
    """numpy costs memory and start-up time that a worker does not have."""
    program = (
        "import sys; from llm_latency_lens.engine import clock; from llm_latency_lens.engine.records import layout, record, resume, writer;"
        "print(sorted({'numpy', 'aiohttp', 'rich', 'click', 'msgspec', 'asyncio'} & set(sys.modules)))"
    )
    reported = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert reported.stdout.strip() == "[]"
