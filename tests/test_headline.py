"""Which numbers are shown, and in which unit."""

from __future__ import annotations

import pytest

from llm_latency_lens.collectors.snapshot import Ci95, Distribution, Slo
from llm_latency_lens.exporters import figures
from llm_latency_lens.exporters.headline import far_note, informative, objectives, scale_of, slo_state


def times(value: float, **more: float | int) -> Distribution:
    levels = dict.fromkeys(("mean", "p50", "p90", "p95", "p99", "max"), value)
    return Distribution(**({"count": 50} | levels | more))


def test_what_repeats_another_metric_or_has_no_meaning_is_left_out() -> None:
    """Rows without information hide those with it."""
    metrics = {
        "ttft_ms": times(50.0),
        "ttft_scheduled_ms": times(70.0),
        "ttfo_ms": times(50.0),
        "e2e_ms": times(600.0),
        "dns_ms": times(0.0),
        "itl_ms": Distribution(),
        "tokens_per_event": times(1.0),
        "lateness_ms": times(9.0),
    }
    assert [name for name, _ in informative(metrics, "open")] == [
        "ttft_ms",
        "ttft_scheduled_ms",
        "e2e_ms",
        "lateness_ms",
    ]
    assert [name for name, _ in informative(metrics, "closed")] == ["ttft_ms", "e2e_ms"]
    metrics["ttfo_ms"] = times(50.0, p99=80.0)  # a reasoning model
    assert "ttfo_ms" in dict(informative(metrics, "closed"))


@pytest.mark.parametrize(
    ("metric", "middle", "unit", "shown"),
    [
        ("ttft_ms", 80.0, "ms", "80.00"),
        ("e2e_ms", 64_000.0, "s", "64.00"),
        ("tcp_ms", 0.02, "us", "20.00"),
        ("decode_tps", 5000.0, "tok/s", "5,000"),
    ],
)
def test_a_time_is_shown_in_the_unit_that_fits_it(metric: str, middle: float, unit: str, shown: str) -> None:
    """64,000 ms takes a thought that 64 s does not."""
    d = times(middle, ci95=Ci95(p50=(middle, None)))  # type: ignore[arg-type]
    scale = scale_of(metric, [d])
    assert (scale.unit, scale.value(d.p50, metric)) == (unit, shown)
    assert scale.interval(d, "p50", metric) == f"[{shown}, inf)"


def test_a_percentile_that_the_sample_does_not_support_is_a_note_and_no_column() -> None:
    """The contract: printed only where the effective sample supports it, else that n is too small."""
    known, unknown = times(5.0, p99_9=9.0), times(5.0)
    assert far_note([("ttft_ms", unknown)]) == f"p99.9: {figures.TOO_SMALL}"
    assert far_note([("itl_ms", known), ("ttft_ms", unknown)]) == f"p99.9 of the others: {figures.TOO_SMALL}"
    assert far_note([("itl_ms", known)]) == ""


def test_objectives_are_summed_up_by_the_worst() -> None:
    """One line has to say whether the run passed."""
    made = [Slo("a", 1.0, state) for state in ("PASS", "FAIL", "UNDECIDED")]
    assert (objectives(made), slo_state(made)) == ("1 FAIL, 1 UNDECIDED of 3", "FAIL")
    assert (objectives(made[:1]), slo_state(made[:1])) == ("1 of 1 PASS", "PASS")
    assert (objectives([]), slo_state([])) == ("", "")
