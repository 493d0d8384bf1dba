"""Alert rules over a window, with invented ticks."""

from __future__ import annotations

import json

import pytest

from llm_latency_lens.collectors.alerts import AlertBook, Values, Window, notification, statistic
from llm_latency_lens.collectors.snapshot import Interval, Snapshot
from llm_latency_lens.engine.plan.plan import SECOND, Alert, Secret


def tick(second: int, ok: int = 0, failed: int = 0, target: str = "a", usd: float | None = None) -> Snapshot:
    part = Interval(
        target=target,
        phase="probe",
        measured=True,
        counts={
            name: n
            for name, n in {
                "ok": int(ok),
                "http_server": int(failed),
                "output": 10 * ok,
                "by_provider": int(ok),
                "priced": int(usd is not None),
                "pico_usd": round((usd or 0) * 1e12),
            }.items()
            if n
        },
    )
    return Snapshot(
        run="r", tick=second, wall_time_ns=second * SECOND, elapsed_s=second, seconds=1, state="running", phase="probe",
        in_flight=0, sent_total=0, ok_total=0, failed_total=0, unsent_total=0, planned_total=None, intervals=[part],
    )  # fmt: skip


def ttft(second: int, *milliseconds: float, target: str = "a") -> Values:
    return Values(second * SECOND, target, "ttft_ms", [(ms * 1e6, 1) for ms in sorted(milliseconds)])


def test_it_fires_once_and_is_resolved_once() -> None:
    window, book = Window(10 * SECOND), AlertBook([Alert(name="errors", when="error_rate > 0.5", over_ns=10 * SECOND)])
    history: list[tuple[int, bool]] = []
    for second in range(60):
        window.tick(tick(second, ok=second < 20 or second >= 40, failed=20 <= second < 40))
        window.forget(second * SECOND)
        history += [(second, change.firing) for change in book.judge(window.value, second * SECOND)]
    assert history == [(25, True), (44, False)]  # 6 and 5 of 10


def test_silence_changes_nothing() -> None:
    """A target that is not asked, in its quiet hours, neither fires nor heals."""
    window = Window(5 * SECOND)
    book = AlertBook([Alert(name="errors", when="error_rate > 0.5", over_ns=5 * SECOND)], {"errors": 1})
    window.forget(100 * SECOND)
    assert book.judge(window.value, 100 * SECOND) == []
    assert book.firing == {"errors": 1}


def test_a_latency_is_judged_by_the_requests_of_its_window_and_target() -> None:
    window = Window(60 * SECOND)
    for second, ms in enumerate([500, 500, 500, 10, 10, 10]):
        window.tick(tick(second, ok=1))
        window.values(ttft(second, ms))
        window.tick(tick(second, ok=1, target="b"))
        window.values(ttft(second, 2000, target="b"))
    rule = Alert(name="slow", when="ttft_ms.p50 > 100", over_ns=3 * SECOND, target="a")
    assert AlertBook([rule]).judge(window.value, 5 * SECOND) == []
    before = AlertBook([rule]).judge(window.value, 2 * SECOND + 500_000_000)
    assert before == []  # its window reaches to the newest tick: three of six
    every = Alert(name="slow", when="ttft_ms.max > 1000", over_ns=3 * SECOND)
    (change,) = AlertBook([every]).judge(window.value, 5 * SECOND)
    assert (change.firing, change.value, change.samples) == (True, 2000.0, 6)


def test_too_few_samples_do_not_fire() -> None:
    window = Window(60 * SECOND)
    window.tick(tick(1, failed=2))
    assert AlertBook([Alert(name="e", when="error_rate > 0", samples=3)]).judge(window.value, SECOND) == []
    assert AlertBook([Alert(name="e", when="error_rate > 0", samples=2)]).judge(window.value, SECOND)


def test_what_fires_survives_a_restart_unless_the_rule_is_gone() -> None:
    firing = json.loads(json.dumps({"errors": 5, "gone": 6}))
    assert AlertBook([Alert(name="errors", when="error_rate > 0.5")], firing).firing == {"errors": 5}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("p50", 2.0),
        ("p90", 9.0),
        ("p99", 9.0),
        ("mean", 3.5),
        ("min", 1.0),
        ("max", 9.0),
        ("stddev", 3.2015621187164243),
    ],
)
def test_statistics_of_counted_values(name: str, value: float) -> None:
    assert statistic([(1.0, 1), (2.0, 2), (9.0, 1)], name) == pytest.approx(value)


def test_a_window_without_values_has_no_statistic() -> None:
    assert statistic([], "p50") is None


def test_the_message_holds_what_people_need_and_not_the_url() -> None:
    window = Window(60 * SECOND)
    window.tick(tick(1, failed=1, usd=0.5))
    rule = Alert(name="dear", when="cost_total_usd > 0.1", webhook=Secret("http://127.0.0.1/T0K3N"))
    (change,) = AlertBook([rule]).judge(window.value, SECOND)
    message = notification(change, "2026-01-01T00:00:00Z", "nightly")
    assert message["alert"] == "dear"
    assert message["state"] == "firing"
    assert message["value"] == 0.5
    assert "T0K3N" not in json.dumps(message)
