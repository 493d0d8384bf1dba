"""The first lines of a report: what was measured, under which load, with which prompts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from llm_latency_lens.exporters.phase_rows import phase_rows, step_rows
from llm_latency_lens.exporters.plan_words import address, load_words, setting_line
from llm_latency_lens.exporters.setting import Lengths, Setting, read_plan, read_setting, setting_lines
from tests.support_hdr import write_hlog
from tests.support_rows import write_rows
from tests.support_runs import FakeRun

PLAN: dict[str, Any] = {
    "targets": [{"name": "target-0", "base_url": "https://user:secret@api.example.org/v1?key=secret"}],
    "workload": {
        "prompts": {
            "synthetic": {"input_tokens": {"mean": 300.0, "stddev": 150.0, "distribution": "normal", "min": 1}}
        },
        "output_tokens": {"mean": 40.0, "stddev": 0.0, "distribution": "fixed", "min": 1},
        "prefix": "shared",
        "prefix_tokens": 1000,
    },
    "phases": [{"name": "steady", "duration": "20s", "load": {"rate": {"steps": [[10.0, "8s"], [30.0, "12s"]]}}}],
}


def stepped(folder: Path) -> FakeRun:
    run = FakeRun(ticks=20, targets=1)
    run.write(folder, records=0)
    (folder / "plan.json").write_text(json.dumps(PLAN))
    write_hlog(folder, {"ttft_ms/target-0": [[50_000_000 if tick < 8 else 90_000_000] * 4 for tick in range(20)]})
    return run


def test_a_report_begins_with_model_url_load_prompts_and_measured_lengths(tmp_path: Path) -> None:
    """A number without its workload and load says nothing; a reader should not have to open the plan."""
    run = stepped(tmp_path)
    write_rows(tmp_path, 2000)
    lines = dict(setting_lines(run.report(), read_setting(tmp_path, run.report())))
    assert lines["target"] == "llama-3.1-8b-instruct at https://api.example.org/v1 (openai)"
    assert lines["load"] == "10 (8s), 30 (12s) requests/s (open loop), 20 s"
    assert "synthetic, 300 ± 150 (normal) tokens asked for; replies of at most 40 tokens" in lines["prompts"]
    assert "a shared prefix of 1,000 tokens" in lines["prompts"]
    assert "at the median" in lines["tokens"]
    assert "input" in lines["tokens"]
    assert "output" in lines["tokens"]


def test_a_url_is_shown_without_what_may_be_secret() -> None:
    """Reports are mailed; a user and password in a URL must not be."""
    assert address("https://user:secret@host:8443/v1?key=secret#x") == "https://host:8443/v1"
    assert address("http://[bad") == ""


@pytest.mark.parametrize("content", ["", "[1]", "{", '{"targets": 3, "phases": {}, "workload": []}'])
def test_a_damaged_plan_leaves_its_lines_out_and_the_report_stands(tmp_path: Path, content: str) -> None:
    """The numbers do not depend on plan.json, so they must not be lost with it."""
    run = FakeRun(ticks=3, targets=1)
    run.write(tmp_path, records=0)
    (tmp_path / "plan.json").write_text(content)
    lines = setting_lines(run.report(), Setting(read_plan(tmp_path), Lengths()))
    assert [name for name, _ in lines] == ["target", "load", "tokens"]
    assert lines[1][1] == "open loop, 3 s"


@pytest.mark.parametrize(
    ("load", "words"),
    [
        ({"concurrency": 8}, "8 in flight at a time (closed loop)"),
        ({"concurrency": {"from": 1, "to": 64}}, "1 to 64 in flight at a time (closed loop)"),
        ({"rate": 2.5, "arrivals": "poisson"}, "2.5 requests/s, Poisson arrivals (open loop)"),
        (
            {"rate": 10, "arrivals": "gamma:0.5", "max_in_flight": 1000, "overflow": "drop"},
            "10 requests/s, gamma 0.5 arrivals (open loop), at most 1,000 in flight, others drop",
        ),
        ({"replay": True}, "at the times of the trace"),
    ],
)
def test_a_load_reads_as_one_would_say_it(load: dict[str, Any], words: str) -> None:
    """Rate or concurrency, the arrival law and the cap decide what the latencies mean."""
    assert load_words(load) == words


def test_the_live_view_names_model_url_and_load_of_the_phase() -> None:
    """Several runs in several terminals look alike otherwise."""
    plan = FakeRun(targets=2).manifest().plan
    line = setting_line(plan, "steady")
    assert line.startswith("target-0 at http://127.0.0.1:1/v1 and 1 more · 20 requests/s")


def test_each_step_of_a_load_has_a_row_of_its_own(tmp_path: Path) -> None:
    """One p99 over all steps is that of none of them."""
    run = stepped(tmp_path)
    steps = read_setting(tmp_path, run.report()).steps
    assert [(step.load, step.start_s, step.end_s) for step in steps] == [("10/s", 0, 8), ("30/s", 8, 20)]
    assert [step.levels["ttft_ms"][0] for step in steps] == pytest.approx([50, 90], rel=0.01)
    ticks = [json.loads(line) for line in (tmp_path / "intervals.jsonl").read_text().splitlines()]
    assert steps[0].ok == sum(tick["intervals"][0]["requests"]["ok"] for tick in ticks[:8])
    rows = step_rows(steps)
    assert rows[1].levels["TTFT ms p50"].startswith("90")
    assert rows[0].requests_per_s == pytest.approx(steps[0].ok / 8)


def test_phases_share_a_unit_that_fits_the_slowest() -> None:
    """A column in which one row is ms and the next s misleads."""
    run = FakeRun(ticks=3, targets=1)
    list(run.snapshots())
    report = run.report()
    slow = msgspec.structs.replace(report.run.phases[0], name="slow", metrics=dict(report.run.phases[0].metrics))
    slow.metrics["e2e_ms"] = msgspec.structs.replace(slow.metrics["e2e_ms"], p50=64_000.0, p99=90_000.0)
    report.run.phases.append(slow)
    first, second = phase_rows(report, {})
    assert second.levels["E2E s p50"] == "64.00"
    assert first.levels["E2E s p50"].startswith("0.")
