"""`lens run --repeat`: what is base and candidate, the order of the runs, how runs differ, and runs that fail or stop."""

from __future__ import annotations

import json
import math
import signal
import subprocess
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import numpy as np
import pytest

from llm_latency_lens.cli.repeat.sides import sides_of, turns
from llm_latency_lens.collectors.compare import Observed, Question, compare
from llm_latency_lens.collectors.spread import spread_of
from llm_latency_lens.engine.errors import PlanError
from llm_latency_lens.engine.plan.plan import Plan
from llm_latency_lens.engine.planfile.build import make_plan
from llm_latency_lens.engine.planfile.document import Source
from tests.support_lens import LENS, environment, lens
from tests.support_simulator import FAST, simulator

SHORT = ("--concurrency", "2", "--duration", "1s", "--workers", "1")


def plan(*targets: dict[str, Any], **keys: Any) -> Plan:
    listed = [{"model": "m"} | target for target in targets]
    return make_plan({"targets": listed, "load": {"concurrency": 2}, **keys}, Source(), {})


ONE = {"base_url": "http://new:1/v1", "metrics_url": "http://new:1/metrics", "resolve": "10.0.0.1"}
TWO = ({"name": "old", "base_url": "http://a:1/v1"}, {"name": "new", "base_url": "http://b:1/v1"})


def test_the_plan_is_the_candidate_and_a_url_the_base() -> None:
    """The exit code speaks of the plan's own target; what belongs to its address must not go to another server."""
    sides = sides_of(plan(ONE), "https://old:2/v1")
    assert sides.base is not None
    base, candidate = sides.base.targets[0], sides.candidate.targets[0]
    assert (candidate.base_url, candidate.name, candidate.resolve) == ("http://new:1/v1", "new", "10.0.0.1")
    assert (base.base_url, base.name, base.resolve, base.metrics_urls) == ("https://old:2/v1", "old", None, ())
    named = sides_of(plan(ONE | {"name": "local"}), "https://old:2/v1")
    assert named.base is not None
    assert named.base.targets[0].name == "local"


def test_of_two_targets_the_other_one_is_the_candidate() -> None:
    """Each side is measured alone, and judged by the objectives that are for it."""
    slo = ["[target=old] ttft_ms.p50 <= 1", "[target=new] ttft_ms.p50 <= 2", "error_rate <= 0.01"]
    sides = sides_of(plan(*TWO, slo=slo), "old")
    assert sides.base is not None
    assert [target.name for target in sides.base.targets] == ["old"]
    assert [target.name for target in sides.candidate.targets] == ["new"]
    assert sides.base.slo == (slo[0], slo[2])
    assert sides.candidate.slo == (slo[1], slo[2])


@pytest.mark.parametrize(
    ("targets", "against", "said"),
    [
        ((ONE,), "old", "neither a target of the plan \\(new\\) nor a URL"),
        ((ONE,), "old:2/v1", "nor a URL, which begins with http"),
        ((ONE,), "sk-0123456789abcdef0123456789", "--against '\\*\\*\\*' is neither"),
        ((ONE,), "ftp://old/v1", "--against must begin with http"),
        ((ONE,), "http://u:p@old/v1", "must not hold credentials"),
        ((ONE,), "http://old/v1?key=p", "must not have a query"),
        (TWO, "http://old/v1", "a plan with one target, this one has 2"),
        ((*TWO, {"name": "third", "base_url": "http://c/v1"}), "old", "has 3 targets"),
    ],
)
def test_what_cannot_be_the_base_is_said_before_anything_runs(
    targets: tuple[dict[str, Any], ...], against: str, said: str
) -> None:
    """A typo is found at once, not after the first half of an hour."""
    with pytest.raises(PlanError, match=said):
        sides_of(plan(*targets), against)


def test_the_order_cancels_a_drift_and_is_drawn_from_the_seed() -> None:
    """A machine that slows down, or another job that starts, must not hit one side more than the other."""
    runs = list(turns(40, 7, compared=True))
    assert runs == list(turns(40, 7, compared=True))
    assert runs != list(turns(40, 8, compared=True))
    for k in range(0, 80, 4):
        first, second, third, last = (run.side for run in runs[k : k + 4])
        assert first == last
        assert second == third
        assert first != second
    assert {runs[k].side for k in range(0, 80, 4)} == {"base", "candidate"}
    assert len({run.seed for run in runs}) == 40
    assert [run.side for run in turns(3, 7, compared=False)] == ["run"] * 3


def test_the_interval_over_runs_holds_the_true_mean() -> None:
    """95 % of the intervals cover it; one that used the requests' own spread would cover half."""
    random = np.random.default_rng(3)
    covered = 0
    for _ in range(400):
        values = [Observed(float(v)) for v in 50 * np.exp(0.03 * random.standard_normal(5))]
        found = spread_of(Question("t", "ttft_ms", "p50", values, values, 0.05), 1)
        low, high = found.ci95
        assert low is not None
        assert high is not None
        covered += low <= 50 <= high
    assert 366 <= covered <= 393  # 380 +- 3 standard deviations


def test_what_can_be_found_is_found_in_nine_of_ten_comparisons() -> None:
    """It is how people choose N: with the spread that was seen, N runs a side find such a difference."""
    random = np.random.default_rng(4)
    logs = 0.03 * random.standard_normal(1000)
    scale = 0.03 / float(np.std(logs[:6], ddof=1))
    six = [Observed(float(v)) for v in np.exp(scale * logs[:6])]  # their spread is exactly 3 %
    finds = spread_of(Question("t", "ttft_ms", "p50", six, six, 0.05), 1).finds
    assert finds is not None
    found = 0
    for _ in range(300):
        base, candidate = np.exp(0.03 * random.standard_normal((2, 6)))
        sides = [[Observed(float(v)) for v in side] for side in (base, candidate * (1 + finds))]
        question = Question("t", "ttft_ms", "p50", *sides, 0.001)
        found += compare([question], base=["a"], candidate=["b"], margin=0.001).comparisons[0].verdict == "worse"
    assert 255 <= found <= 285


def test_one_run_says_nothing_about_the_spread() -> None:
    """Nor do values that have no logarithm."""
    for values in ([Observed(5.0)], [Observed(0.0), Observed(1.0)], []):
        found = spread_of(Question("t", "ttft_ms", "p50", values, values, 0.05), 1)
        assert (found.ci95, found.stddev_share, found.finds) == ((None, None), None, None)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--repeat", "0"], "--repeat '0' is not a number of runs from 1"),
        (["--repeat", "2.5"], "--repeat '2.5' is not a number of runs"),
        (["--against", "http://h/v1"], "--against http://h/v1 needs --repeat N"),
        (["--repeat", "2", "--markdown"], "--markdown is for a comparison"),
        (["--repeat", "2", "--against", "h", "--json", "--markdown"], "give one of them"),
        (["--repeat", "2", "--against", "h", "--metric", "ttft.p50"], "there is no metric 'ttft'"),
        (["--repeat", "2", "--against", "h", "--margin", "0"], "--margin '0' is not a share"),
        (["--repeat", "2", "--against", ""], "--against is empty"),
    ],
)
def test_options_that_do_not_go_together_are_refused(arguments: list[str], said: str, tmp_path: Path) -> None:
    """Exit code 2, one line, and nothing was made."""
    ended = lens("run", "--base-url", "http://127.0.0.1:9/v1", "--model", "m", *arguments, cwd=tmp_path)
    assert ended.code == 2
    assert said in ended.stderr
    assert ended.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_repeated_runs_report_their_spread(tmp_path: Path) -> None:
    """N runs of the same: each is an ordinary run, and two such directories can be compared."""
    with simulator(**FAST) as sim:
        target = ("--base-url", f"{sim.base_url}/v1", "--model", "m", *SHORT, "--repeat", "2")
        ended = lens("run", *target, "--json", "--budget-usd", "2", cwd=tmp_path)
        assert ended.code == 2  # nobody knows the price: refused before the first run
        ended = lens("run", *target, "--json", "--slo", "ttft_ms.p50 <= 0.001", cwd=tmp_path)
    assert ended.code == 3, ended.stderr  # one objective failed in a run
    found = json.loads(ended.stdout)
    assert [*found] == ["schema", "runs", "statistics", "notes"]
    assert len(found["runs"]) == 2
    failed = [note["detail"] for note in found["notes"] if note["code"] == "failed_objective"]
    assert len(failed) >= 1
    assert "ttft_ms.p50 <= 0.001 failed" in failed[0]
    first = found["statistics"][0]
    assert (first["metric"], first["statistic"], len(first["values"])) == ("ttft_ms", "p50", 2)
    assert first["ci95"][0] <= first["mean"] <= first["ci95"][1]
    assert first["mean"] == pytest.approx(math.sqrt(math.prod(first["values"])))
    folder = (tmp_path / "runs/latest").resolve()
    assert json.loads((folder / "spread.json").read_text()) == found
    for run in found["runs"]:
        summary = json.loads((folder / run / "summary.json").read_text())
        assert summary["run"]["id"] == run
    alone = lens("compare", str(folder), cwd=tmp_path)
    assert (alone.code, "holds runs of one side" in alone.stderr) == (2, True)
    single = lens("compare", str(folder / found["runs"][0]), "--", str(folder / found["runs"][1]), cwd=tmp_path)
    assert single.code in (0, 3), single.stderr


@pytest.mark.slow
def test_a_side_that_fails_is_named_and_ends_the_series(tmp_path: Path) -> None:
    """A server that is broken must not cost an hour of runs of the other, and must not pass a gate."""
    with simulator(**FAST) as sim, simulator(**FAST, faults={"500": 1.0}) as broken:
        target = ("--base-url", f"{sim.base_url}/v1", "--model", "m", *SHORT, "--quiet", "--repeat", "9", "--against")
        ended = lens("run", *target, f"{broken.base_url}/v1", cwd=tmp_path)
        absent = lens("run", *target, "http://127.0.0.1:9/v1", "--out", "absent", cwd=tmp_path)
    assert (ended.code, ended.stdout) == (1, ""), ended.stderr
    assert "has no complete run of the base" in ended.stderr
    assert "none ok, most are http_server" in ended.stderr
    index = json.loads((tmp_path / "runs/latest/repeat.json").read_text())
    assert [run["state"] for run in index["runs"] if run["side"] == "base"] == ["failed", "failed"]
    assert len(index["runs"]) <= 4
    assert absent.code == 1
    assert absent.stderr.startswith("lens: base: target '127.0.0.1': 127.0.0.1:9 refused the connection")
    assert not (tmp_path / "absent").exists()


@pytest.mark.slow
def test_a_signal_in_the_middle_keeps_and_compares_what_is_complete(tmp_path: Path) -> None:
    """Whoever stops after half an hour gets the answer of half an hour; the run that was cut short is left out."""
    with simulator(**FAST) as sim:
        url = f"{sim.base_url}/v1"
        target = ("--base-url", url, "--model", "m", *SHORT, "--repeat", "99", "--against", url, "--json")
        command = [*LENS, "run", *target]
        with subprocess.Popen(
            command, cwd=tmp_path, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as process:
            try:
                wait_for_runs(tmp_path, 3)
                process.send_signal(signal.SIGINT)
                out, err = process.communicate(timeout=60)
            finally:
                process.kill()
    assert process.returncode == 130, err
    assert "Traceback" not in err
    found = json.loads(out)
    index = json.loads((tmp_path / "runs/latest/repeat.json").read_text())
    done = [run["run"] for run in index["runs"] if run["state"] == "done"]
    assert sorted([*found["base"], *found["candidate"]]) == sorted(done)
    notes = {note["code"]: note["detail"] for note in found["notes"]}
    assert "both are the same" in notes["sides"]
    assert "of 198 runs are complete" in notes["fewer_runs"]
    assert all((tmp_path / "runs/latest" / run["run"] / "summary.json").exists() for run in index["runs"][:-1])


def wait_for_runs(cwd: Path, number: int) -> None:
    """Until run `number` has begun."""
    end = monotonic() + 90
    while monotonic() < end:
        for path in (cwd / "runs").glob("latest/repeat.json"):
            if len(json.loads(path.read_text())["runs"]) >= number:
                return
        sleep(0.05)
    raise AssertionError(f"run {number} never began")
