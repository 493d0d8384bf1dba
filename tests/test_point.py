"""When a point of a sweep ends, and what its run says about its load."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from llm_latency_lens.collectors.gpus import gpus_of
from llm_latency_lens.collectors.point import (
    SATURATED,
    Against,
    Looks,
    Queue,
    against_of,
    decided,
    failing,
    goals_of,
    hopeless,
    latency_metric,
    point_of,
    state_of,
)
from llm_latency_lens.collectors.snapshot import Reason, Report, Requests, Run, Slo, Throughput, Verdict
from llm_latency_lens.collectors.sweep import Measured, Spent, Wanted, below, next_of, sweep_report
from llm_latency_lens.engine.plan.plan import Gpus
from llm_latency_lens.exporters.sweep.words import sentence

TICK_S = 0.25
P99 = "ttft_ms.p99 <= 500"


def report(
    *slos: Slo, ok: int = 1000, failed: int = 0, ended_by: str = "until", load: str = "open", codes: Sequence[str] = ()
) -> Report:
    reasons = [Reason(code.removeprefix("note "), "", note=code.startswith("note ")) for code in codes]
    return Report(
        run=Run(id="r", name="r", version="1", started_at="2026-01-01T00:00:00Z", ended_by=ended_by, load=load),
        verdict=Verdict(state="VALID", reasons=reasons),
        requests=Requests(sent=ok + failed, ok=ok, failed={"http_overloaded": failed} if failed else {}),
        throughput=Throughput(requests_per_s=10.0, output_tokens_per_s=100.0),
        slo=[*slos],
    )


def slo(state: str, value: float = 400.0, low: float | None = 390.0, high: float | None = 420.0) -> Slo:
    return Slo(P99, value, state, (low, high))


def in_flight(rate: float, served: float, ticks: int, seed: int) -> list[int]:
    """Requests in an M/M/1 queue at each tick."""
    random = np.random.default_rng(seed)
    n, found, now, due = 0, [], 0.0, TICK_S
    while len(found) < ticks:
        total = rate + (served if n else 0.0)
        now += random.exponential(1 / total)
        while now > due and len(found) < ticks:
            found.append(n)
            due += TICK_S
        n += 1 if random.random() < rate / total else -1
    return found


def test_a_point_is_judged_at_doublings_and_not_at_every_tick() -> None:
    """An interval that is looked at every second is wrong sooner or later: looks have to be few."""
    looks = Looks()
    seen = [n for n in range(0, 4000, 10) if looks.due(n, n / 10)]
    assert seen == [30, 60, 120, 240, 480, 960, 1920, 3840]
    assert not Looks().due(5000, 1.0)


def test_few_requests_decide_only_what_is_clear() -> None:
    """A slow server sends 30 requests in a minute: a tenth of the objective passes then, and nine tenths do not."""
    clear, close = Against(0.1, 0.08, 0.12), Against(0.9, 0.85, 0.95)
    assert decided([("PASS", clear)], 30) == "PASS"
    assert decided([("PASS", close)], 30) == "UNDECIDED"
    assert decided([("PASS", close)], 400) == "PASS"
    assert decided([("PASS", clear), ("FAIL", Against(1.1, 1.05, 1.2))], 30) == "UNDECIDED"
    assert decided([("PASS", clear), ("FAIL", Against(3.0, 2.5, None))], 30) == "FAIL"


def test_a_queue_that_grows_is_found_in_seconds() -> None:
    """At 150 % of what the server can serve, latencies drift and decide nothing for long; the queue shows it at once."""
    found = []
    for seed in range(20):
        queue = Queue(30.0)
        found.append(next((k for k, n in enumerate(in_flight(30, 20, 400, seed)) if queue.add(n, TICK_S)), None))
    assert all(tick is not None for tick in found)
    assert np.median([tick for tick in found if tick is not None]) * TICK_S < 20


def test_a_busy_queue_is_not_taken_for_one_that_grows() -> None:
    """At 90 % the queue is long and wanders, but stays: a wrong FAIL there would put the answer far too low."""
    wrong = 0
    for seed in range(40):
        queue = Queue(18.0)
        wrong += any(queue.add(n, TICK_S) for n in in_flight(18, 20, 400, seed))
    assert wrong <= 2


def test_requests_that_stay_at_the_cap_are_a_growing_queue() -> None:
    """With max_in_flight the queue stands in this client, where nobody counts it."""
    capped, free = Queue(50.0, cap=8), Queue(50.0, cap=9)
    assert any(capped.add(8, TICK_S) for _ in range(30))
    assert not any(free.add(8, TICK_S) for _ in range(30))


@pytest.mark.parametrize(
    ("run", "state"),
    [
        (report(slo("PASS")), "PASS"),
        (report(slo("FAIL", 600)), "FAIL"),
        (report(slo("PASS"), slo("UNDECIDED")), "UNDECIDED"),
        (report(slo("PASS"), slo("FAIL")), "FAIL"),
        (report(slo("UNDECIDED"), ended_by="slo"), "FAIL"),
        (report(slo("FAIL"), codes=["lateness"]), "CLIENT_LIMITED"),
        (report(slo("FAIL"), codes=["steal"]), "CLIENT_LIMITED"),
        (report(slo("UNDECIDED"), ended_by="slo", codes=["cpu"]), "CLIENT_LIMITED"),
        (report(slo("PASS"), codes=["lateness", "cpu", "steal"]), "PASS"),
        (report(slo("PASS"), codes=["cpu"], load="closed"), "CLIENT_LIMITED"),
        (report(slo("PASS"), codes=["ttft_coalesced"]), "CLIENT_LIMITED"),
        (report(slo("PASS"), codes=["note starved"]), "PASS"),
        (report(slo("PASS"), codes=["note starved"], load="closed"), "CLIENT_LIMITED"),
        (report(slo("UNDECIDED"), codes=["lateness"], ok=40), "UNDECIDED"),
        (report(slo("PASS"), codes=["censored"]), "UNDECIDED"),
    ],
)
def test_the_server_is_blamed_only_for_what_the_server_did(run: Report, state: str) -> None:
    """A client that was late can only make a server look worse: PASS stands, FAIL may be its own doing."""
    assert state_of(run) == state


def test_a_saturated_point_says_so() -> None:
    """Its objective is undecided: naming it as the limit would be wrong."""
    assert point_of(10.0, report(slo("UNDECIDED"), ended_by="slo")).limited_by == SATURATED
    assert point_of(10.0, report(slo("FAIL", 600.0), ended_by="slo")).limited_by == P99


@pytest.mark.parametrize(
    ("expression", "value", "ci95", "against"),
    [
        (P99, 400.0, (390.0, None), (0.8, 0.78, None)),
        ("decode_tps.p50 >= 40", 50.0, (45.0, 80.0), (0.8, 0.5, 40 / 45)),
        ("error_rate <= 1%", 0.005, (0.0, 0.02), (0.5, 0.0, 2.0)),
        ("goodput_share >= 0.9", 0.95, (0.92, 0.97), (0.5, 0.3, 0.8)),
        ("request [90%]: ttft_ms <= 800", 0.85, (0.8, 0.9), (1.5, 1.0, 2.0)),
        ("error_rate <= 0", 0.0, None, (None, None, None)),
    ],
)
def test_every_kind_of_objective_is_a_share_of_what_it_allows(
    expression: str, value: float, ci95: tuple[float | None, float | None] | None, against: tuple[float | None, ...]
) -> None:
    """The fit that places the answer needs one number that is 1 at the capacity, whatever the objective."""
    found = against_of(Slo(expression, value, "UNDECIDED", ci95))
    assert [*found] == [each if each is None else pytest.approx(each) for each in against]


def test_a_server_that_refuses_does_not_pass() -> None:
    """One that answers half of the requests quickly and refuses the rest has fine latencies."""
    assert failing(report(slo("PASS"), ok=900, failed=100), [P99])
    assert not failing(report(slo("PASS"), ok=999, failed=1), [P99])
    assert not failing(report(slo("PASS"), ok=900, failed=100), [P99, "error_rate <= 0.2"])


def test_a_clear_point_that_cannot_be_proven_in_time_is_left() -> None:
    """A 99th percentile at one request per second takes half an hour to prove; the next load says more."""
    clear = Slo(P99, 100.0, "UNDECIDED", (90.0, None), 1800, 1800.0)
    assert hopeless(report(clear), 100.0)
    assert not hopeless(report(clear), 2000.0)
    assert not hopeless(report(Slo(P99, 450.0, "UNDECIDED", (90.0, None), 1800, 1800.0)), 100.0)
    assert not hopeless(report(slo("PASS")), 100.0)


def test_the_goals_of_a_point_are_its_objectives_statistics() -> None:
    """A point that stays undecided is known well enough at some time; maxima and rates have no interval."""
    slos = [P99, "ttft_ms.p99 < 1s", "itl_ms.max <= 100", "error_rate <= 0.01", "tpot_ms.mean <= 40"]
    assert goals_of(slos, 0.025) == ("ttft_ms.p99 +-2.5%", "tpot_ms.mean +-2.5%")
    assert latency_metric(["error_rate <= 0.01", "request: tpot_ms <= 40"]) == "tpot_ms"


def measured(*values: float, states: str) -> list[Measured]:
    runs = {
        "P": report(slo("PASS")),
        "F": report(slo("FAIL", 600.0, 550.0, 650.0)),
        "L": report(slo("PASS"), codes=["cpu"]),
    }
    return [Measured(value, f"run-{k}", runs[states[k]]) for k, value in enumerate(values)]


def test_a_grid_is_measured_in_its_order_and_then_done() -> None:
    """Its answer lies between two of its loads, however far apart: that is what was asked for."""
    wanted = Wanted(over="rate", low=1, high=8, grid=(1, 2, 8))
    following = next_of(wanted, measured(1, states="P"))
    assert following is not None
    assert following.value == 2
    runs = measured(1, 2, 8, states="PPF")
    assert next_of(wanted, runs) is None
    found = sweep_report(wanted, [P99], runs, spent=Spent())
    assert (found.answer.state, found.answer.ci95, found.answer.limited_by) == ("FOUND", (2, 8), P99)
    assert sentence(found).startswith("FOUND: ")
    assert f"{P99} is missed" in sentence(found)


@pytest.mark.parametrize(
    ("states", "required", "expected"),
    [("PPF", 1.0, False), ("PPF", 8.0, True), ("PPP", 8.0, False), ("PLL", 8.0, False)],
)
def test_the_answer_is_below_what_is_required_only_where_it_is_known_to_be(
    states: str, required: float, expected: bool
) -> None:
    """A gate must not fail because this client was too slow to know."""
    wanted = Wanted(over="rate", low=1, high=8, grid=(1, 2, 8))
    found = sweep_report(wanted, [P99], measured(1, 2, 8, states=states), spent=Spent())
    assert below(found.answer, required) == expected


def test_goodput_without_request_lines_is_the_rate_of_loads_that_pass() -> None:
    """A load that misses the objectives serves nobody well, whatever its throughput."""
    found = sweep_report(
        Wanted(over="rate", low=1, high=8, grid=(1, 8)), [P99], measured(1, 8, states="PF"), spent=Spent()
    )
    assert found.peak_goodput is not None
    assert (found.peak_goodput.value, found.peak_goodput.goodput_per_s) == (1, 10.0)


def test_gpu_figures_charge_all_time_to_the_tokens() -> None:
    """2 GPUs at 3.60 USD an hour make 100 tokens/s: 2 cents a second in 10,000 s make a million tokens."""
    found = gpus_of(
        Gpus(count=2, usd_per_hour=3.6, watts=500), Throughput(requests_per_s=4.0, output_tokens_per_s=100.0)
    )
    assert found is not None
    assert (found.requests_per_s, found.output_tokens_per_s) == (2.0, 50.0)
    assert found.usd_per_million_output_tokens == pytest.approx(20.0)
    assert found.joules_per_output_token == pytest.approx(10.0)
    assert found.usd_per_million_total_tokens is None
    assert gpus_of(None, Throughput()) is None
    read = gpus_of(Gpus(), Throughput(output_tokens_per_s=100.0), measured_watts=250.0)
    assert read is not None
    assert read.joules_per_output_token == 2.5
