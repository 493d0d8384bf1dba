"""What a server's counters say of the measured part: growth only, of one server process, or a reason why not."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic_ns

import msgspec
import pytest
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest

from llm_latency_lens.collectors.server import Servers, read_page
from llm_latency_lens.collectors.server_window import PageWindow, window_of
from llm_latency_lens.collectors.snapshot import Distribution, ServerTime, ServerWindow, TargetReport
from llm_latency_lens.collectors.time_parts import time_parts
from llm_latency_lens.engine.plan.plan import Load, Phase, Plan, Secret, Shape, Target, Workload
from llm_latency_lens.engine.runs.manifest import PhaseTimes
from llm_latency_lens.engine.wire.proxy import proxied
from llm_latency_lens.exporters.time_rows import server_line, time_rows
from tests.support_lens import lens, measured
from tests.support_llama import llama_server
from tests.support_pages import pages

SECOND = 1_000_000_000


class Vllm:
    """The page of a vLLM, written by the client library that vLLM writes it with."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        names = ("time_to_first_token", "request_queue_time", "request_prefill_time", "request_decode_time")
        self.times = {
            name: Histogram(f"vllm:{name}_seconds", name, ["engine"], registry=self.registry) for name in names
        }
        counters = ("prefix_cache_queries", "prefix_cache_hits", "num_preemptions")
        self.counters = {name: Counter(f"vllm:{name}", name, ["engine"], registry=self.registry) for name in counters}

    def answer(self, engine: str, queue_s: float, prefill_s: float, decode_s: float) -> None:
        """One request of 100 prompt tokens, of which 40 were cached."""
        for name, seconds in zip(self.times, (queue_s + prefill_s, queue_s, prefill_s, decode_s), strict=True):
            self.times[name].labels(engine).observe(seconds)
        self.counters["prefix_cache_queries"].labels(engine).inc(100)
        self.counters["prefix_cache_hits"].labels(engine).inc(40)

    def text(self) -> str:
        return generate_latest(self.registry).decode()


def totals(vllm: Vllm) -> dict[str, float]:
    return read_page(vllm.text()).totals


def test_the_measured_part_is_what_was_added_and_not_what_was_there() -> None:
    """A server that has run for a week has counted millions of other requests before."""
    vllm = Vllm()
    for _ in range(50):
        vllm.answer("0", 5.0, 7.0, 9.0)
    window = PageWindow()
    window.begin(totals(vllm), 10 * SECOND)
    for engine, queue_s in (("0", 0.010), ("1", 0.030)):  # the second engine had no series before
        vllm.answer(engine, queue_s, 0.050, 0.4)
    window.see(totals(vllm))
    vllm.answer("0", 0.020, 0.050, 0.4)
    vllm.counters["num_preemptions"].labels("0").inc(2)
    window.end(totals(vllm), 14 * SECOND)
    found = window_of([window])
    assert found is not None
    assert (found.window_s, found.reason, found.preemptions) == (4.0, "", 2)
    assert (found.ttft.count, found.ttft.mean_ms) == (3, pytest.approx(70))
    assert found.queue.mean_ms == pytest.approx(20)
    assert found.prefill.mean_ms == pytest.approx(50)
    assert found.decode.mean_ms == pytest.approx(400)
    assert (found.prefix_cache_queries, found.prefix_cache_hits) == (300, 120)
    assert found.prefix_cache_hit_share == pytest.approx(0.4)


def test_two_measured_parts_are_added_and_what_lies_between_is_left_out() -> None:
    """A phase that the plan does not measure is no part of the results, on the server's side either."""
    vllm, window = Vllm(), PageWindow()
    window.begin(totals(vllm), 0)
    vllm.answer("0", 0.1, 0.1, 0.1)
    window.end(totals(vllm), SECOND)
    vllm.answer("0", 50, 50, 50)
    window.begin(totals(vllm), 5 * SECOND)
    vllm.answer("0", 0.3, 0.1, 0.1)
    window.end(totals(vllm), 6 * SECOND)
    found = window_of([window])
    assert found is not None
    assert (found.queue.count, found.queue.mean_ms, found.window_s) == (2, pytest.approx(200), 2.0)


@pytest.mark.parametrize("seen_between", [True, False], ids=["seen between", "seen at the end"])
def test_a_server_that_was_restarted_has_no_numbers(seen_between: bool) -> None:
    """Its counters began anew: a difference would be negative, or plausible and wrong."""
    old, new, window = Vllm(), Vllm(), PageWindow()
    for _ in range(3):
        old.answer("0", 1, 1, 1)
    window.begin(totals(old), 0)
    if seen_between:
        window.see(totals(new))
        for _ in range(10):
            new.answer("0", 1, 1, 1)
    window.end(totals(new), SECOND)
    found = window_of([window])
    assert found is not None
    assert "restarted" in found.reason
    assert (found.ttft, found.preemptions) == (ServerTime(), None)


def test_a_restart_shows_by_the_start_time_although_the_counters_have_overtaken() -> None:
    """A server that is fast again has more than before at the end; only the time of its start tells."""
    window = PageWindow()
    window.begin({"ttft_sum": 1.0, "ttft_count": 1.0, "started": 100.0}, 0)
    window.end({"ttft_sum": 9.0, "ttft_count": 9.0, "started": 200.0}, SECOND)
    found = window_of([window])
    assert found is not None
    assert "restarted" in found.reason


def test_a_page_that_cannot_be_read_gives_a_reason_and_no_numbers() -> None:
    """Nothing is guessed from one reading."""
    window = PageWindow()
    window.begin({"queue_sum": 1.0, "queue_count": 1.0}, 0)
    assert window_of([window]) is None, "while it goes on there is no growth yet"
    window.end(None, SECOND)
    found = window_of([window])
    assert found is not None
    assert found.reason == "the server's counters could not be read when the measured part ended"
    assert found.queue == ServerTime()


def test_a_window_survives_the_collector() -> None:
    """A collector that is killed goes on with the counters of the beginning, which nobody can read again."""
    window = PageWindow()
    window.begin({"queue_sum": 1.0, "queue_count": 1.0}, 5)
    again = msgspec.msgpack.decode(msgspec.msgpack.encode(window), type=PageWindow)
    again.end({"queue_sum": 3.0, "queue_count": 2.0}, 5 + SECOND)
    found = window_of([again])
    assert found is not None
    assert found.queue.mean_ms == pytest.approx(2000)


def plan_of(url: str, *measure: bool) -> Plan:
    load = Load(model="closed", shapes=(Shape(duration_ns=SECOND, start=1, end=1),))
    target = Target(name="t", provider="openai", base_url=url, metrics_urls=(f"{url}/metrics",), metrics_interval_ns=0)
    phases = tuple(Phase(name=f"p{i}", load=load, measure=each) for i, each in enumerate(measure))
    return Plan(name="n", targets=(target,), workload=Workload(), phases=phases)


@contextmanager
def served(vllm: Vllm) -> Iterator[str]:
    class Now(dict[str, str]):
        def get(self, path: str, _: object = None) -> str:  # type: ignore[override]  # the page of the moment
            return vllm.text()

    with pages(Now()) as url:
        yield url


def followed(servers: Servers, phases: list[PhaseTimes], opened: bool) -> None:
    """Until the pages' window is open, or closed."""
    limit = monotonic_ns() + 20 * SECOND
    while any(window.open != opened for window in servers.windows.values()):
        servers.follow(phases, monotonic_ns())
        assert monotonic_ns() < limit


def test_a_warm_up_is_left_out_and_no_page_is_read_twice_in_between() -> None:
    """Without an interval there are three readings: at the start, and at both ends of the measured part."""
    vllm = Vllm()
    with served(vllm) as url:
        servers = Servers(plan_of(url, False, True))
        warm = [PhaseTimes(start_ns=1), PhaseTimes()]
        followed(servers, warm, False)
        vllm.answer("0", 9, 9, 9)
        followed(servers, [PhaseTimes(start_ns=1, end_ns=2), PhaseTimes(start_ns=2)], True)
        vllm.answer("0", 0.2, 0.1, 0.1)
        servers.finish(late=False)
        servers.close()
        found = servers.window("t")
    assert found is not None
    assert (found.queue.count, found.queue.mean_ms) == (1, pytest.approx(200))
    assert servers.window("another target") is None


def test_a_run_that_was_over_long_ago_reads_no_page() -> None:
    """`lens recover` comes hours later: what the server has counted since is not the run's."""
    vllm = Vllm()
    with served(vllm) as url:
        servers = Servers(plan_of(url, True))
        followed(servers, [PhaseTimes(start_ns=1)], True)
        servers.finish(late=True)
        servers.close()
        found = servers.window("t")
    assert found is not None
    assert "could not be read when the measured part ended" in found.reason


def report(server: ServerWindow | None, **means: float) -> TargetReport:
    metrics = {f"{name}_ms": Distribution(count=10, mean=mean) for name, mean in means.items()}
    made = TargetReport(name="t", provider="openai", model="m", metrics=metrics, server=server)
    made.time = time_parts(made, proxied=False)
    return made


def test_known_parts_add_up_to_the_first_token() -> None:
    """network + queue + prefill + other = TTFT, so that nothing is shown twice or lost."""
    server = ServerWindow(queue=ServerTime(count=9, mean_ms=10.0), prefill=ServerTime(count=9, mean_ms=25.0))
    made = report(server, ttft=60.0, rtt=20.0, server_ttft=40.0, e2e=160.0, client_lateness=0.1)
    t = made.time
    assert (t.network_ms, t.queue_ms, t.prefill_ms, t.other_ms, t.decode_ms) == (20, 10, 25, 5, 100)
    assert [(row.name, row.ms) for row in time_rows(made)] == [
        ("client", 0.1), ("network", 20), ("queue", 10), ("prefill", 25), ("other", 5), ("decode", 100),
    ]  # fmt: skip


def test_what_nobody_measured_is_shown_as_unknown() -> None:
    """Without the server's word the queue is unknown, not 0, and its time is not given to another part."""
    rows = {row.name: row for row in time_rows(report(None, ttft=60.0, rtt=20.0, server_ttft=40.0, e2e=160.0))}
    assert (rows["queue"].value, rows["prefill"].value) == ("unknown", "unknown")
    assert rows["server"].ms == 40
    blind = {row.name: row for row in time_rows(report(None, ttft=60.0, e2e=160.0))}
    assert (blind["network"].value, blind["client"].value) == ("unknown", "unknown")
    assert blind["until first token"].ms == 60
    assert time_rows(report(None, e2e=160.0)) == []


def test_a_proxy_is_said_beside_the_network() -> None:
    """The kernel's round trip ends at the proxy: the way behind it is in the server's part."""
    target = Target(name="t", provider="openai", base_url="http://far.example/v1")
    through = msgspec.structs.replace(target, proxy=Secret("http://127.0.0.1:3128"))
    assert proxied(through, {})
    assert proxied(target, {"http_proxy": "http://127.0.0.1:3128"})
    assert not proxied(target, {"http_proxy": "http://127.0.0.1:3128", "no_proxy": "far.example"})
    made = report(None, ttft=60.0, rtt=20.0, server_ttft=40.0, e2e=160.0)
    assert "proxy" in time_parts(made, proxied=True).sources["network_ms"]
    assert "proxy" not in made.time.sources["network_ms"]


def test_a_reason_is_shown_in_the_place_of_numbers() -> None:
    """People who gave a metrics_url want to know why it brought nothing."""
    assert server_line(report(ServerWindow(reason="it was restarted"))) == "unknown: it was restarted"
    shared = report(ServerWindow(queue=ServerTime(count=900, mean_ms=10.0)))
    shared.requests.ok = 100
    assert "of 900 requests, where this run had 100 ok" in server_line(shared)
    assert server_line(report(None)) == ""


@pytest.mark.slow
def test_a_real_server_explains_its_part_of_the_time(tmp_path: Path) -> None:
    """llama.cpp: its page's sums over the run, its timings for the prefill, in summary.json, console and report."""
    with llama_server(tmp_path) as url:
        target = {"base_url": f"{url}/v1", "model": "m", "metrics_url": f"{url}/metrics", "metrics_interval": "0s"}
        plan = {
            "target": target,
            "workload": {"prompt": "hello", "output_tokens": 16},
            "phases": [
                {"name": "warm", "duration": "2s", "measure": False, "load": {"concurrency": 1}},
                {"name": "steady", "duration": "3s", "load": {"concurrency": 1}},
            ],
        }
        (tmp_path / "plan.json").write_text(json.dumps(plan))
        summary = measured("plan.json", cwd=tmp_path)
    (found,) = summary["targets"]
    assert found["server"]["reason"] == ""
    assert found["server"]["decode"]["count"] is None
    assert found["server"]["decode"]["sum_s"] > 0
    assert found["server"]["prefix_cache_hit_share"] > 0.5, "the same prompt again and again"
    assert found["time"]["prefill_ms"] == found["metrics"]["provider_ms"]["mean"]
    assert found["time"]["queue_ms"] is None
    known = [found["time"][name] for name in ("network_ms", "prefill_ms", "other_ms")]
    assert sum(known) == pytest.approx(found["metrics"]["ttft_ms"]["mean"], abs=0.1)
    shown = lens("report", "runs/latest", cwd=tmp_path).stdout
    assert "where the time went" in shown
    assert "unknown" in shown
    assert "Where the time went" in (tmp_path / "runs/latest/report.html").read_text()
