"""JUnit and Markdown of a run: what a CI shows must agree with the exit code."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import pytest

from llm_latency_lens.collectors.snapshot import Distribution, ErrorSample, Reason, Report, Requests, Run, Slo, Verdict
from llm_latency_lens.exporters.run_formats import junit, markdown
from tests.support_lens import lens
from tests.support_simulator import FAST, simulator


def report(state: str = "VALID", slo: tuple[Slo, ...] = (), ok: int = 50, failed: int = 0) -> Report:
    return Report(
        run=Run(id="run-1", name="a|b<\x00>", version="1", started_at="2026-11-24T08:00:00Z", duration_s=61.0),
        verdict=Verdict(state=state, reasons=[Reason("lateness", "the client was *late*")]),
        requests=Requests(
            planned=ok + failed, sent=ok + failed, ok=ok, failed={"http_server": failed} if failed else {}
        ),
        metrics={"ttft_ms": Distribution(count=ok, p50=50.0, p95=60.0, p99=70.0)} if ok else {},
        slo=list(slo),
        errors=[ErrorSample(target="t", outcome="http_server", count=failed, message="boom")] if failed else [],
    )


def states(xml: bytes) -> dict[str, str]:
    """The outcome of each test case; the counts of the suite must be theirs."""
    (suite,) = ElementTree.fromstring(xml)
    found = {
        case.get("name", ""): next((each.tag for each in case if each.tag != "system-out"), "passed")
        for case in suite.iter("testcase")
    }
    counted = {"failure": "failures", "error": "errors", "skipped": "skipped"}
    assert {each: str([*found.values()].count(each)) for each in counted} == {
        each: suite.get(name) for each, name in counted.items()
    }
    assert suite.get("tests") == str(len(found))
    return found


SLOS = (Slo("a <= 1", 0.5, "PASS"), Slo("b <= 1", 2.0, "FAIL"), Slo("c <= 1", 1.0, "UNDECIDED", (0.5, 1.5), 100, 9.0))


@pytest.mark.parametrize(
    ("state", "strict", "verdict", "undecided"),
    [
        ("VALID", False, "passed", "skipped"),
        ("VALID", True, "passed", "failure"),
        ("INSUFFICIENT", False, "skipped", "skipped"),
        ("INSUFFICIENT", True, "error", "failure"),
        ("INVALID", False, "error", "skipped"),
    ],
)
def test_a_case_fails_where_the_exit_code_says_so(state: str, strict: bool, verdict: str, undecided: str) -> None:
    """A red test beside a green job, or the other way round, is a report that nobody trusts."""
    found = states(junit(report(state, SLOS), strict=strict))
    assert found == {
        "verdict": verdict,
        "requests": "passed",
        "a <= 1": "passed",
        "b <= 1": "failure",
        "c <= 1": undecided,
    }


def test_a_run_without_a_success_is_an_error_that_names_its_cause() -> None:
    """The CI's page is where people look first; it has to show what the server said."""
    xml = junit(report(ok=0, failed=3), strict=False)
    assert states(xml)["requests"] == "error"
    assert b"t http_server: boom" in xml
    text = markdown(report(ok=0, failed=3))
    assert "No request succeeded." in text
    assert "3 requests failed: http\\_server 3" in text


def test_the_markdown_has_the_verdict_one_table_and_the_objectives() -> None:
    """It is read in a pull request: the first line decides, and no name of a plan can make markup there."""
    lines = markdown(report(slo=SLOS)).splitlines()
    assert lines[0].startswith("**VALID: ")
    assert "1 of 3 objectives failed; 1 of 3 objectives undecided" in lines[0]
    assert "| TTFT ms | 50.00 | 60.00 | 70.00 | – |" in lines
    assert "- **FAIL** b \\<= 1: 2.00" in lines
    assert any("needs 100 more requests" in line for line in lines)
    assert "the client was \\*late\\*" in "\n".join(lines)


@pytest.mark.slow
def test_a_run_writes_both_files(tmp_path: Path) -> None:
    """The exit code, the test cases and the Markdown are of one run; a folder that is missing is found before it."""
    with simulator(**FAST) as sim:
        target = ("--base-url", f"{sim.base_url}/v1", "--model", "m", "--requests", "40", "--quiet")
        missing = lens("run", *target, "--junit", "no/x.xml", cwd=tmp_path)
        assert (missing.code, "there is no directory no" in missing.stderr) == (2, True)
        assert not (tmp_path / "runs").exists()
        files = ("--junit", "x.xml", "--summary-markdown", "x.md")
        ended = lens("run", *target, *files, "--slo", "ttft_ms.p50 <= 0.001", cwd=tmp_path)
    assert ended.code == 3, ended.stderr
    assert states((tmp_path / "x.xml").read_bytes())["ttft_ms.p50 <= 0.001"] == "failure"
    assert "**FAIL** ttft\\_ms.p50" in (tmp_path / "x.md").read_text()
    spread = lens("run", *target, "--repeat", "2", "--junit", "y.xml", cwd=tmp_path)
    assert (spread.code, "of one run or of a comparison" in spread.stderr) == (2, True)
