"""`lens report` on real runs: every format, side by side, a part of a run, and what it refuses."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from tests.support_lens import lens, measured
from tests.support_simulator import FAST, simulator

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], dict[str, Any]]:
    """A folder with an open and a closed run in it, and their summaries."""
    folder = tmp_path_factory.mktemp("report")
    with simulator(**FAST) as sim:
        where = ("--base-url", f"{sim.base_url}/v1", "--model", "m")
        opened = measured(*where, "--rate", "50", "--duration", "3s", "--out", "open", cwd=folder)
        closed = measured(*where, "--requests", "50", "--out", "closed", cwd=folder)
    return folder, opened, closed


def test_the_console_prints_the_run_again(runs: tuple[Path, dict[str, Any], dict[str, Any]]) -> None:
    """The terminal of the run is gone when the question comes."""
    ended = lens("report", "open/latest", cwd=runs[0])
    assert ended.code == 0
    assert "TTFT ms" in ended.stdout
    assert "150 planned = 150 sent" in ended.stdout


@pytest.mark.parametrize(
    ("target", "files"),
    [
        ("html", {"report.html"}),
        ("csv", {"intervals.csv", "requests.csv"}),
        ("parquet", {"requests.parquet"}),
        ("hdr", {"ttft_ms-127.0.0.1.hgrm"}),
    ],
)
def test_files_go_to_the_folder_given(
    target: str, files: set[str], runs: tuple[Path, dict[str, Any], dict[str, Any]], tmp_path: Path
) -> None:
    """Run directories may be read-only archives."""
    ended = lens("report", "open/latest", "--to", target, "--out", str(tmp_path), cwd=runs[0])
    assert ended.code == 0, ended.stderr
    assert files <= {path.name for path in tmp_path.iterdir()}


def test_json_is_the_summary(runs: tuple[Path, dict[str, Any], dict[str, Any]]) -> None:
    """Scripts read one format, from `run --json` and from `report` alike."""
    folder, opened, _ = runs
    assert lens("report", "open/latest", "--to", "json", cwd=folder).summary == opened


def test_runs_of_different_load_models_are_compared_only_if_asked(
    runs: tuple[Path, dict[str, Any], dict[str, Any]], tmp_path: Path
) -> None:
    """A closed loop slows down with its server: its latencies beside an open loop's mislead."""
    arguments = ("report", "open/latest", "closed/latest", "--to", "html", "--out", str(tmp_path / "both.html"))
    refused = lens(*arguments, cwd=runs[0])
    assert refused.code == 2
    assert "different load models" in refused.stderr
    assert not (tmp_path / "both.html").exists()
    assert lens(*arguments, "--across-models", cwd=runs[0]).code == 0


def test_part_of_a_run_counts_its_ticks_and_no_others(runs: tuple[Path, dict[str, Any], dict[str, Any]]) -> None:
    """`--since` and `--until` answer what a bad hour looked like; two halves must add up."""
    folder, opened, _ = runs
    first = json.loads((folder / "open/latest/intervals.jsonl").read_text().partition("\n")[0])
    turn = datetime.fromtimestamp(first["wall_time_ns"] / 1e9 + 0.5, UTC).isoformat()
    before = lens("report", "open/latest", "--to", "json", "--until", turn, cwd=folder).summary
    after = lens("report", "open/latest", "--to", "json", "--since", turn, cwd=folder).summary
    whole = lens("report", "open/latest", "--to", "json", "--since", "1h", cwd=folder).summary
    assert 0 < before["requests"]["ok"] < opened["requests"]["ok"]
    for key in ("planned", "sent", "ok"):
        assert before["requests"][key] + after["requests"][key] == whole["requests"][key] == opened["requests"][key]
    assert (
        before["metrics"]["itl_ms"]["count"] + after["metrics"]["itl_ms"]["count"]
        == opened["metrics"]["itl_ms"]["count"]
    )
    assert whole == opened


FAILING = """
name: failing
targets:
  - {name: one, provider: openai, base_url: "URL/v1", model: m}
  - {name: two, provider: openai, base_url: "URL/v1", model: gpt-4o-mini}
workload: {prompts: {synthetic: {input_tokens: 8, output_tokens: 12}}}
phases:
  - {name: warmup, duration: 1s, load: {concurrency: 2}, measure: false}
  - {name: steady, duration: 2s, load: {rate: 60, max_in_flight: 2, overflow: drop}}
  - {name: closed, requests: 40, load: {concurrency: 4}}
slo: ["ttft_ms.p99 <= 500", "error_rate <= 0.5", "request: e2e_ms <= 84"]
output: {tick: 200ms}
"""


def test_a_complete_run_summed_from_its_ticks_is_its_summary(tmp_path: Path) -> None:
    """Two ways to the same numbers: were they to differ in one field, none of the two could be believed."""
    with simulator(ttft_ms=60, itl_ms=2, tokens=12, faults={"429": 0.2, "500": 0.1}) as sim:
        (tmp_path / "plan.yaml").write_text(FAILING.replace("URL", sim.base_url))
        ended = lens("run", "--json", "plan.yaml", cwd=tmp_path)
    assert ended.code == 3, ended.stderr
    summary = ended.summary
    assert summary["requests"]["failed"]
    assert summary["requests"]["unsent"]
    assert lens("report", "runs/latest", "--to", "json", "--since", "1h", cwd=tmp_path).summary == summary


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nowhere",), "nowhere is not a directory"),
        (("open/latest", "--to", "pdf"), "--to 'pdf' does not exist; there are console"),
        (("open/latest", "--since", "yesterday"), "'yesterday' is neither a time ago, such as 24h, nor a moment"),
        (("open/latest", "--to", "csv", "--since", "1h"), "--since and --until are for --to console and --to json"),
    ],
)
def test_a_wrong_argument_is_one_line(
    arguments: tuple[str, ...], message: str, runs: tuple[Path, dict[str, Any], dict[str, Any]]
) -> None:
    """The line says what is wrong and what there is instead."""
    ended = lens("report", *arguments, cwd=runs[0])
    assert ended.code in (1, 2)
    assert message in ended.stderr
    assert ended.stderr.count("\n") == 1


def test_the_summary_says_how_well_the_stamps_are_known(runs: tuple[Path, dict[str, Any], dict[str, Any]]) -> None:
    """The mapping between the two clocks is part of every stamp's error."""
    assert 0 < json.loads(json.dumps(runs[1]))["verdict"]["error_budget"]["clock_bracket_ns"] < 1_000_000
