"""The retry law, row by row, with the clock and the chance passed in; once for real."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from email.utils import formatdate
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_latency_lens.engine.load.retry import DAY_NS, retry_after_ns, retry_delay_ns
from llm_latency_lens.engine.plan.plan import SECOND, Retry
from llm_latency_lens.engine.records.record import Outcome
from tests.support_lens import accounts, lens
from tests.support_simulator import simulator

NOW = 1_800_000_000 * SECOND + 123_456_789
MS = 1_000_000
PLAIN = Retry(attempts=5, backoff_ns=SECOND, backoff_max_ns=10 * SECOND, factor=2.0, jitter=0.0)


@dataclass
class Failed:
    outcome: Outcome = Outcome.HTTP_RATE_LIMITED
    http_status: int = 429
    first_token_ns: int = 0
    attempts: int = 1
    kept_headers: dict[str, str] = field(default_factory=dict)


def delay(failed: Failed, retry: Retry = PLAIN, seed: int = 0, longest_ns: int = DAY_NS) -> int | None:
    return retry_delay_ns(retry, failed, NOW, Random(seed), longest_ns=longest_ns)


@pytest.mark.parametrize(
    ("outcome", "status", "again", "why"),
    [
        (Outcome.CONNECT_DNS, 0, True, "nothing was sent"),
        (Outcome.CONNECT_REFUSED, 0, True, "nothing was sent"),
        (Outcome.CONNECT_TIMEOUT, 0, True, "nothing was sent"),
        (Outcome.CONNECT_TLS, 0, True, "nothing was sent"),
        (Outcome.CONNECT_RESET, 0, True, "no reply byte on a fresh connection"),
        (Outcome.HTTP_OTHER, 408, True, "Request Timeout"),
        (Outcome.HTTP_OTHER, 409, True, "Conflict: a lock on the provider's side"),
        (Outcome.HTTP_RATE_LIMITED, 429, True, "too many"),
        (Outcome.HTTP_SERVER, 500, True, ""),
        (Outcome.HTTP_SERVER, 502, True, ""),
        (Outcome.HTTP_OVERLOADED, 503, True, ""),
        (Outcome.HTTP_OVERLOADED, 529, True, "Anthropic's overloaded"),
        (Outcome.HTTP_SERVER, 599, True, "the last 5xx"),
        (Outcome.HTTP_AUTH, 401, False, "the key will not get better"),
        (Outcome.HTTP_AUTH, 403, False, ""),
        (Outcome.HTTP_INVALID, 400, False, "the request is wrong"),
        (Outcome.HTTP_INVALID, 404, False, ""),
        (Outcome.HTTP_INVALID, 422, False, ""),
        (Outcome.HTTP_OTHER, 302, False, "not followed, not repeated"),
        (Outcome.HTTP_OTHER, 418, False, ""),
        (Outcome.HTTP_OTHER, 600, False, "no status of HTTP"),
        (Outcome.TIMEOUT_FIRST_TOKEN, 200, False, "the provider may still work on it"),
        (Outcome.TIMEOUT_TOTAL, 0, False, "the time of the request is over"),
        (Outcome.STREAM_ERROR, 200, False, "the reply had begun"),
        (Outcome.STREAM_TRUNCATED, 200, False, ""),
        (Outcome.STREAM_MALFORMED, 503, False, "what it is, nobody knows"),
        (Outcome.CONTENT_FILTERED, 200, False, "an answer"),
        (Outcome.CANCELLED, 0, False, "our own will"),
    ],
)
def test_only_what_may_be_gone_the_next_time_is_tried_again(
    outcome: Outcome, status: int, again: bool, why: str
) -> None:
    assert (delay(Failed(outcome, status)) is not None) is again, why


@settings(deadline=None)
@given(st.sampled_from(list(Outcome)), st.integers(0, 600), st.integers(1, 4))
def test_never_after_the_first_token(outcome: Outcome, status: int, attempts: int) -> None:
    assert delay(Failed(outcome, status, first_token_ns=1, attempts=attempts)) is None


@pytest.mark.parametrize("asked", ["86400", "61", "Fri, 31 Dec 9999 23:59:59 GMT"])
def test_a_wait_beyond_the_time_limit_of_a_request_is_no_retry(asked: str) -> None:
    """One Retry-After of a day stopped a closed loop for a day."""
    longest_ns = 60 * SECOND
    assert delay(Failed(kept_headers={"retry-after": asked}), longest_ns=longest_ns) is None
    assert delay(Failed(kept_headers={"retry-after": "60"}), longest_ns=longest_ns) == longest_ns


def test_attempts_count_the_first_one() -> None:
    assert delay(Failed(attempts=4)) is not None
    assert delay(Failed(attempts=5)) is None
    assert delay(Failed(attempts=1), Retry()) is None  # default: no retries


def test_the_backoff_grows_to_its_cap() -> None:
    retry = Retry(attempts=2000, backoff_ns=SECOND // 2, backoff_max_ns=5 * SECOND, factor=3.0, jitter=0.0)
    waits = [delay(Failed(attempts=n), retry) for n in (1, 2, 3, 4, 1500)]
    assert waits == [500 * MS, 1500 * MS, 4500 * MS, 5000 * MS, 5000 * MS]


@pytest.mark.parametrize(
    ("retry", "expected", "why"),
    [
        (Retry(attempts=9, backoff_ns=0, jitter=0.0), 0, "at once, on purpose"),
        (Retry(attempts=9, backoff_ns=SECOND, factor=1.0, jitter=0.0), SECOND, "constant"),
        (Retry(attempts=9, backoff_ns=SECOND, backoff_max_ns=MS, jitter=0.0), MS, "a cap below the first wait"),
    ],
)
def test_backoffs_at_the_edge(retry: Retry, expected: int, why: str) -> None:
    assert delay(Failed(attempts=3), retry) == expected, why


@settings(deadline=None)
@given(attempts=st.integers(1, 900), jitter=st.floats(0, 1), seed=st.integers())
def test_jitter_only_shortens(attempts: int, jitter: float, seed: int) -> None:
    """So the cap is a cap, and the law is the same for the same chance."""
    retry = Retry(attempts=1000, backoff_ns=SECOND, backoff_max_ns=20 * SECOND, factor=2.0, jitter=jitter)
    whole = min(2 ** (attempts - 1), 20) * SECOND
    waits = [delay(Failed(attempts=attempts), retry, seed) for _ in range(2)]
    assert waits[0] == waits[1] is not None
    assert whole * (1 - jitter) - 1 <= waits[0] <= whole


def test_jitter_spreads_over_all_of_its_width() -> None:
    retry = Retry(attempts=9, backoff_ns=SECOND, jitter=0.5)
    waits = sorted(delay(Failed(), retry, seed) or 0 for seed in range(300))
    assert waits[0] < 0.51 * SECOND
    assert waits[-1] > 0.99 * SECOND


@pytest.mark.parametrize(
    ("headers", "expected", "why"),
    [
        ({"retry-after": "3"}, 3 * SECOND, "seconds"),
        ({"retry-after": "0.25"}, 250 * MS, "fractions, which the RFC does not have and providers send"),
        ({"retry-after": "0"}, 0, "at once"),
        ({"retry-after": " 7 "}, 7 * SECOND, "spaces"),
        ({"retry-after": "120"}, 120 * SECOND, "beyond backoff_max: the server knows"),
        ({"retry-after-ms": "40"}, 40 * MS, "ms"),
        ({"retry-after-ms": "40.5"}, 40_500_000, ""),
        ({"retry-after-ms": "40", "retry-after": "1"}, 40 * MS, "the finer one first"),
        ({"retry-after-ms": "soon", "retry-after": "1"}, SECOND, "what cannot be read is passed over"),
        ({"retry-after": formatdate(1_800_000_005, usegmt=True)}, 5 * SECOND - 123_456_789, "a date"),
        ({"retry-after": formatdate(1_799_999_000, usegmt=True)}, 0, "a date in the past"),
        ({"retry-after": "Friday, 15-Jan-27 08:00:05 GMT"}, 5 * SECOND - 123_456_789, "RFC 850's form of it"),
        ({"retry-after": "Fri Jan 15 08:00:05 2027"}, 5 * SECOND - 123_456_789, "asctime's, which is UTC"),
        ({"retry-after": "1e12"}, DAY_NS, "no server means 30,000 years"),
        ({"retry-after": "-5"}, None, "nonsense"),
        ({"retry-after": "nan"}, None, "nonsense"),
        ({"retry-after": "inf"}, None, "nonsense"),
        ({"retry-after": "later"}, None, "nonsense"),
        ({"retry-after": ""}, None, "empty"),
        ({"x-request-id": "7"}, None, "said nothing"),
    ],
)
def test_the_server_says_when(headers: dict[str, str], expected: int | None, why: str) -> None:
    assert retry_after_ns(headers, NOW) == expected, why
    wanted = SECOND if expected is None else expected  # the backoff in place of what cannot be understood
    assert delay(Failed(kept_headers=headers)) == wanted, why


def test_the_server_is_not_asked_when_the_plan_says_so() -> None:
    retry = Retry(attempts=3, backoff_ns=SECOND, jitter=0.0, respect_retry_after=False)
    assert delay(Failed(kept_headers={"retry-after": "9"}), retry) == SECOND


@settings(deadline=None)
@given(st.dictionaries(st.sampled_from(["retry-after", "retry-after-ms"]), st.text(max_size=40)))
def test_no_header_breaks_the_law(headers: dict[str, str]) -> None:
    wait = delay(Failed(kept_headers=headers))
    assert wait is not None
    assert 0 <= wait <= DAY_NS


@pytest.mark.slow
def test_a_refused_request_comes_back_when_the_server_said(tmp_path: Path) -> None:
    """For real: refused at first, asked_ns to come back after 0.4 s; one request, two attempts, in time and not before."""
    plan = {
        "requests": 20,
        "load": {"concurrency": 20},
        "retry": {"attempts": 8, "backoff": "5s"},
    }
    with simulator(ttft_ms=2, itl_ms=0, tokens=1, faults={"429": 0.5}, retry_after_s=0.4) as sim:
        plan["target"] = {"provider": "openai", "base_url": f"{sim.base_url}/v1", "model": "m"}
        (tmp_path / "plan.json").write_text(json.dumps(plan))
        ended = lens("run", "plan.json", "--json", cwd=tmp_path)
        log = sim.log()
    assert ended.code == 0, ended.stderr
    requests = ended.summary["requests"]
    accounts(requests)
    assert requests["ok"] == requests["sent"] == 20
    assert requests["attempts"] == len(log) > 20
    begin = min(row["arrival_ns"] for row in log)
    waves = {round((row["arrival_ns"] - begin) / 1e9 / 0.4, 1) // 1 for row in log}
    assert waves == set(range(len(waves)))
    assert all((row["arrival_ns"] - begin) / 1e9 % 0.4 < 0.2 for row in log)
