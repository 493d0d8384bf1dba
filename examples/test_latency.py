"""Latency objectives as tests: `pytest examples/test_latency.py`.

The fixture `lens_run` comes with the package. Without LENS_BASE_URL the built-in provider is measured.
"""

import os

import pytest

from llm_latency_lens import LensRun, Summary


@pytest.fixture(scope="module")
def measured(lens_run: LensRun) -> Summary:
    """One run for all tests of this file."""
    slo = ["ttft_ms.p95 <= 2000", "error_rate <= 0.01"]
    base_url = os.environ.get("LENS_BASE_URL")
    if base_url:
        return lens_run(base_url=base_url, model=os.environ["LENS_MODEL"], concurrency=4, requests=200, slo=slo)
    return lens_run(simulate=True, concurrency=20, requests=20, slo=slo)


def test_every_request_is_answered(measured: Summary) -> None:
    assert measured.requests.ok == measured.requests.sent > 0


def test_no_objective_has_failed(measured: Summary) -> None:
    assert [slo.expression for slo in measured.slo if slo.state == "FAIL"] == []


def test_the_first_token_comes_in_time(measured: Summary) -> None:
    p50 = measured.metrics["ttft_ms"].p50
    assert p50 is not None
    assert p50 < 1000


def test_no_single_request_waits_long(measured: Summary) -> None:
    slowest = max(row["ttft_ms"] for row in measured.rows if row["ttft_ms"] is not None)
    assert slowest < 10_000
