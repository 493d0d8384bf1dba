"""`lens compare` on real run directories, through the example of a CI gate, and on directories that are damaged."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import yaml

from llm_latency_lens.collectors.compare import Compared, Observed, Question, compare
from llm_latency_lens.exporters.compare.formats import junit, markdown
from tests.support_lens import LENS, Ended, environment, lens
from tests.support_simulator import simulator

EXAMPLES = Path(__file__).parent.parent / "examples"
GATE = EXAMPLES / "ci-gate.sh"
RUNS = 3


@contextmanager
def gate_variables(base_ms: float, candidate_ms: float) -> Iterator[dict[str, str]]:
    """What the examples are told about two simulators."""
    with (
        simulator(ttft_ms=base_ms, itl_ms=2, tokens=5) as base,
        simulator(ttft_ms=candidate_ms, itl_ms=2, tokens=5) as candidate,
    ):
        yield {
            "BASE_URL": f"{base.base_url}/v1",
            "CANDIDATE_URL": f"{candidate.base_url}/v1",
            "MODEL": "m",
            "RUNS": str(RUNS),
            "LOAD": "--concurrency 2 --duration 1s --workers 1",
        }


@pytest.fixture(scope="module")
def gated(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Ended]:
    """A folder with the runs of a base and of a candidate that is three times as slow, and how the gate ended."""
    folder = tmp_path_factory.mktemp("gate")
    with gate_variables(20, 60) as variables:
        given = variables | {"OUT": str(folder), "LENS": " ".join(LENS)}
        done = subprocess.run(
            [str(GATE)], cwd=folder, env=environment(given), capture_output=True, text=True, timeout=300
        )
    return folder, Ended(done.returncode, done.stdout, done.stderr)


@pytest.fixture(scope="module")
def series(gated: tuple[Path, Ended]) -> Path:
    """The directory with the runs of the gate."""
    return (gated[0] / "latest").resolve()


@pytest.fixture(scope="module")
def sides(series: Path) -> tuple[list[str], list[str]]:
    base, candidate = (
        [str(path) for path in sorted(series.glob(f"*-gate-{side}-*"))] for side in ("base", "candidate")
    )
    return base, candidate


@pytest.mark.slow
def test_the_example_of_a_gate_fails_on_a_slower_candidate(gated: tuple[Path, Ended]) -> None:
    """People copy the example into their CI: its commands, its exit code and its files must be right as they stand."""
    folder, ended = gated
    assert ended.code == 3, ended.stderr
    assert ended.stdout.startswith("**FAIL: ")
    assert (folder / "compare.md").read_text() == ended.stdout
    suite = ElementTree.parse(folder / "compare.xml").getroot()[0]
    cases = {case.get("name"): case for case in suite.iter("testcase")}
    assert cases["ttft_ms.p50"].find("failure") is not None
    assert int(suite.get("failures", "0")) == len(suite.findall("testcase/failure"))


@pytest.mark.slow
def test_the_workflow_fails_its_job_and_still_shows_the_table(tmp_path: Path) -> None:
    """Its commands run as they stand; a step after the one that failed runs only `if: always()`."""
    job = yaml.safe_load((EXAMPLES / "github-actions.yml").read_text())["jobs"]["gate"]
    (tmp_path / "lens").write_text(f'#!/bin/sh\nexec {" ".join(LENS)} "$@"\n')
    (tmp_path / "lens").chmod(0o755)
    codes = {}
    with gate_variables(20, 60) as variables:
        assert variables.keys() == job["env"].keys()
        given = variables | {
            "PATH": f"{tmp_path}:{os.environ['PATH']}",
            "GITHUB_STEP_SUMMARY": "summary.md",
        }
        for step in job["steps"]:
            if (
                "run" in step
                and step["name"] != "Install"
                and (not any(codes.values()) or step.get("if") == "always()")
            ):
                command = ["bash", "-e", "-o", "pipefail", "-c", step["run"]]
                codes[step["name"]] = subprocess.run(
                    command, cwd=tmp_path, env=environment(given), timeout=120
                ).returncode
    assert codes == {"Compare": 3, "Show": 0}
    assert (tmp_path / "summary.md").read_text().startswith("**FAIL: ")
    kept = job["steps"][-1]["with"]["path"].split()
    assert all((tmp_path / name).exists() for name in kept)


@pytest.mark.slow
def test_both_sides_are_named_wherever_the_answer_is_shown(gated: tuple[Path, Ended], series: Path) -> None:
    """Which of two URLs got worse must not have to be guessed."""
    index = json.loads((series / "repeat.json").read_text())
    note = f"base: {index['base']}; candidate: {index['candidate']}"
    assert index["base"] != index["candidate"]
    first = json.loads((series / "comparison.json").read_text())["notes"][0]
    assert (first["code"], first["detail"]) == ("sides", note)
    assert index["base"] in gated[1].stdout
    for path in (gated[0] / "compare.xml", series / "report.html"):
        assert note in path.read_text()


@pytest.mark.slow
def test_a_directory_of_repeated_runs_is_compared_again(series: Path, tmp_path: Path) -> None:
    """With another margin, or against the runs of another day, without measuring anything."""
    again = lens("compare", str(series), "--json", cwd=tmp_path)
    assert again.code == 3, again.stderr
    assert json.loads(again.stdout) == json.loads((series / "comparison.json").read_text())
    assert lens("compare", str(series), "--margin", "100%", "--metric", "itl_ms.p50", cwd=tmp_path).code == 0
    mixed = lens("compare", str(series), "--", str(series), cwd=tmp_path)
    assert mixed.code == 2
    assert "holds runs of a base and of a candidate" in mixed.stderr
    shown = lens("report", str(series), cwd=tmp_path)
    assert (shown.code, "holds repeated runs" in shown.stderr) == (1, True)


@pytest.mark.slow
def test_every_pair_has_a_seed_of_its_own_and_every_run_prompts_of_its_own(series: Path) -> None:
    """Equal arrivals make a pair alike; equal prompts would measure a prefix cache."""
    index = json.loads((series / "repeat.json").read_text())
    seeds = [run["seed"] for run in index["runs"]]
    assert seeds[::2] == seeds[1::2]
    assert len(set(seeds)) == RUNS
    for run in index["runs"]:
        plan = json.loads((series / run["run"] / "plan.json").read_text())
        assert (plan["seed"], plan["workload"]["salt"]) == (run["seed"], "run")


@pytest.mark.slow
def test_json_is_exactly_the_contract(sides: tuple[list[str], list[str]], tmp_path: Path) -> None:
    """Scripts read it: names, types and meaning are fixed."""
    base, candidate = sides
    ended = lens("compare", *base, "--", *candidate, "--json", cwd=tmp_path)
    assert ended.code == 3, ended.stderr
    found = json.loads(ended.stdout)
    assert [*found] == ["schema", "base", "candidate", "margin", "comparisons", "state", "notes"]
    assert (found["schema"], found["margin"], found["state"]) == (1, 0.05, "FAIL")
    assert found["base"] == [Path(path).name for path in base]
    first = found["comparisons"][0]
    assert [*first] == ["target", "metric", "statistic", "base", "candidate", "ratio", "ci95", "verdict"]
    assert (first["metric"], first["statistic"], first["verdict"]) == ("ttft_ms", "p50", "worse")
    assert first["ratio"] == pytest.approx(first["candidate"] / first["base"])
    assert first["ci95"][0] < first["ratio"] < first["ci95"][1]
    assert {"replication", "correction"} <= {note["code"] for note in found["notes"]}


@pytest.mark.slow
def test_the_console_says_the_verdict_first(sides: tuple[list[str], list[str]], tmp_path: Path) -> None:
    """What a person reads first is the answer; options may stand before or after the lists."""
    base, candidate = sides
    ended = lens("compare", "--metric", "ttft_ms.p50", *candidate, "--", *base, "--margin", "0.1", cwd=tmp_path)
    assert ended.code == 0, ended.stderr
    assert ended.stdout.startswith(("PASS: nothing is worse", "UNDECIDED: nothing is worse, but a run is INVALID"))
    assert "better" in ended.stdout
    assert "requests/s" not in ended.stdout


@pytest.mark.slow
def test_a_page_with_the_change_by_percentile_opens_offline(sides: tuple[list[str], list[str]], tmp_path: Path) -> None:
    """The page is sent around as one file: nothing in it comes from elsewhere."""
    base, candidate = sides
    ended = lens("compare", *base, "--", *candidate, "--html", "page.html", "--metric", "e2e_ms.p50", cwd=tmp_path)
    assert ended.code == 3, ended.stderr
    page = (tmp_path / "page.html").read_text()
    assert page.count("<svg") >= 2
    assert "http" not in page.replace("http://www.w3.org", "")


@pytest.mark.slow
def test_a_single_pair_is_compared_by_its_blocks(sides: tuple[list[str], list[str]], tmp_path: Path) -> None:
    """Two short runs have too few blocks for an interval: that must be said, not passed."""
    base, candidate = sides
    ended = lens("compare", base[0], candidate[0], "--json", cwd=tmp_path)
    assert ended.code == 0, ended.stderr
    found = json.loads(ended.stdout)
    assert found["state"] == "UNDECIDED"
    assert "blocks within the runs" in found["notes"][0]["detail"]
    assert found["comparisons"][0]["ratio"] > 2


Edit = Callable[[Path], object]


def edited(name: str, *keys: str | int, value: Any) -> Edit:
    """Sets one value in a JSON file of a run directory."""

    def edit(run: Path) -> None:
        document = json.loads((run / name).read_text())
        part = document
        for key in keys[:-1]:
            part = part[key]
        part[keys[-1]] = value
        (run / name).write_text(json.dumps(document))

    return edit


def unfinished(run: Path) -> None:
    (run / "summary.json").unlink()
    (run / ".live").symlink_to("/nonexistent")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("edit", "code", "said"),
    [
        (edited("plan.json", "phases", 0, "load", "concurrency", value=9), 2, "load concurrency: 2 in"),
        (edited("plan.json", "workload", "prompts", "prompt", value="Other"), 2, "workload prompts.prompt: Write"),
        (edited("summary.json", "run", "load", value="open"), 2, "load model: closed in"),
        (edited("summary.json", "run", "host", "cpu", value="abacus"), 2, "host cpu:"),
        (edited("summary.json", "requests", "ok", value=0), 1, "no successful request"),
        (unfinished, 1, "is not finished; wait for its end, or if it was killed: lens recover"),
        (lambda run: (run / "summary.json").unlink(), 1, "has no summary.json"),
        (lambda run: (run / "summary.json").write_text('{"schema": 1'), 1, "summary.json is damaged"),
        (lambda run: (run / "plan.json").write_text("[]"), 1, "holds no plan"),
        (lambda run: (run / "plan.json").write_bytes(b"\xff"), 1, "plan.json cannot be read"),
        (lambda run: (run / "intervals.hlog").unlink(), 1, "has no intervals.hlog"),
        (lambda run: (run / "intervals.jsonl").unlink(), 1, "has no intervals.jsonl"),
        (lambda run: (run / "sweep.json").write_text("{}"), 2, "is the directory of a sweep"),
        (shutil.rmtree, 2, "is not a directory"),
    ],
)
def test_what_cannot_be_compared_is_one_line(
    edit: Edit, code: int, said: str, sides: tuple[list[str], list[str]], tmp_path: Path
) -> None:
    """Damaged, unfinished and unlike runs are everyday in a CI: what is wrong, where, and the way out."""
    base, candidate = sides
    copy = tmp_path / Path(candidate[0]).name
    shutil.copytree(candidate[0], copy, symlinks=True)
    edit(copy)
    ended = lens("compare", base[0], "--", str(copy), cwd=tmp_path)
    assert (ended.code, ended.stdout) == (code, ""), ended.stderr
    assert said in ended.stderr
    assert ended.stderr.count("\n") == 1
    assert copy.name in ended.stderr


@pytest.mark.slow
def test_unlike_and_damaged_runs_are_compared_where_they_can_be(
    sides: tuple[list[str], list[str]], tmp_path: Path
) -> None:
    """`--across` compares and says so; an INVALID run is no PASS; a torn log line and another host's name do not matter."""
    base, candidate = sides
    copy = tmp_path / Path(base[1]).name
    shutil.copytree(base[1], copy, symlinks=True)
    edited("plan.json", "phases", 0, "load", "concurrency", value=9)(copy)
    edited("summary.json", "run", "host", "name", value="elsewhere")(copy)
    edited("summary.json", "verdict", "state", value="INVALID")(copy)
    with (copy / "intervals.hlog").open("a") as log:
        log.write("Tag=ttft_ms/127.0.0.1,9.000,1.000,1.0,HISTF!!!\n")
        log.write("Tag=ttft_ms/127.0.0.1,nan,1.000,1.0,x\nTag=ttft_ms/127.0.0.1,9,inf,1.0,x\nTag=ttft_ms/127.0.0.1,1")
    arguments = ["--across", "--metric", "success_share", "--margin", "100%", "--json"]
    ended = lens("compare", base[0], base[2], "--", str(copy), candidate[0], *arguments, cwd=tmp_path)
    assert ended.code == 0, ended.stderr
    found = json.loads(ended.stdout)
    notes = {note["code"]: note["detail"] for note in found["notes"]}
    assert found["comparisons"][0]["verdict"] == "same"
    assert found["state"] == "UNDECIDED"
    assert "load concurrency: 2 in" in notes["across"]
    assert copy.name in notes["invalid_run"]
    single = lens("compare", base[0], "--", str(copy), "--across", "--steady", "--json", cwd=tmp_path)
    assert single.code == 0, single.stderr
    assert "too_short" in single.stdout
    # The window is the one that the run itself found and judged by: none of this copy's values lie in this one.
    for end in ("from_s", "to_s"):
        edited("summary.json", "steady", end, value=0.0)(copy)
    nothing = lens("compare", base[0], "--", str(copy), "--across", "--steady", "--json", cwd=tmp_path)
    assert "ttft_ms p50" in {note["code"]: note["detail"] for note in json.loads(nothing.stdout)["notes"]}["too_few"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["a", "b", "c"], "put -- between the base and the candidate"),
        (["a", "--"], "nothing to compare with"),
        (["--", "a"], "nothing to compare with"),
        (["a", "--", "b", "--margin", "0"], "--margin '0' is not a share"),
        (["a", "--", "b", "--margin", "nan"], "--margin 'nan' is not a share"),
        (["a", "--", "b", "--margin", "five"], "--margin 'five' is not a share"),
        (["a", "--", "b", "--metric", "ttft.p50"], "there is no metric 'ttft'"),
        (["a", "--", "b", "--metric", "ttft_ms"], "give a statistic, such as ttft_ms.p50"),
        (["a", "--", "b", "--metric", "ttft_ms.p50.9"], "give a statistic"),
        (["a", "--", "b", "--json", "--markdown"], "give one of them"),
        (["a", "--", "b"], "a is not a directory"),
        (["a", "--", "b", "--", "c"], "a is not a directory"),
    ],
)
def test_arguments_that_are_wrong_are_named(arguments: list[str], said: str, tmp_path: Path) -> None:
    """Exit code 2 and one line: a typo in a CI file is found by reading its log."""
    ended = lens("compare", *arguments, cwd=tmp_path)
    assert ended.code == 2
    assert said in ended.stderr
    assert ended.stderr.count("\n") == 1


def answered() -> Compared:
    """A comparison whose target's name tries to make markup."""
    name = "a|b*<script>\x07\n[x](y)"
    runs = [Observed(10.0), Observed(10.1)], [Observed(20.0), Observed(20.1)]
    questions = [Question(name, "ttft_ms", "p50", *runs, 0.05), Question(name, "itl_ms", "p99", (), (), 0.05)]
    return compare(questions, base=["one", "two"], candidate=["three", "four"], margin=0.05)


def test_markdown_is_one_table_that_names_cannot_break() -> None:
    """It is posted into pull requests by a bot with rights."""
    lines = markdown(answered()).split("\n")
    assert lines[0].startswith("**FAIL: 1 of 2 comparisons is worse: TTFT ms p50 of a\\|b\\*\\<script\\>")
    table = [line for line in lines if line.startswith("|")]
    assert len(table) == 4
    assert {line.replace("\\|", "").count("|") for line in table} == {8}
    assert "**worse**" in table[2]


def test_junit_is_xml_whatever_the_names_are() -> None:
    """CI systems refuse a report with a control character as a whole."""
    suite = ElementTree.fromstring(junit(answered()))[0]
    assert {key: suite.get(key) for key in ("tests", "failures", "skipped")} == {
        "tests": "2",
        "failures": "1",
        "skipped": "1",
    }
    assert "\x07" not in suite[0].get("classname", "")


def test_the_example_is_executable() -> None:
    """It is called as it stands."""
    assert os.access(GATE, os.X_OK)
