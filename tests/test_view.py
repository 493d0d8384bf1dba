"""`lens view`: the runs of a directory as pages. Nothing outside it is shown, and nothing in it makes the list fail."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from html import unescape
from pathlib import Path
from urllib.parse import quote

import pytest
from aiohttp import web

from llm_latency_lens.exporters.compare.repeated import RepeatedRun, Repetition
from llm_latency_lens.exporters.web.library import Library
from llm_latency_lens.exporters.web.listen import listen
from llm_latency_lens.exporters.web.serving import Serving
from llm_latency_lens.exporters.web.view import application
from tests.support_browser import browsing
from tests.support_hdr import write_hlog
from tests.support_lens import lens
from tests.support_live import fetched, viewing
from tests.support_runs import FakeRun


@contextmanager
def pages(folder: Path) -> Iterator[str]:
    """The pages of a directory, served from this process: their URL."""
    listener = listen("", "--listen")
    serving = Serving(
        "view", lambda: application(Library(folder), listener), lambda runner: web.SockSite(runner, listener.socket)
    )
    serving.start()
    try:
        yield listener.url
    finally:
        serving.close()


def run_in(folder: Path, *, seed: int, rate: int = 20) -> Path:
    FakeRun(ticks=5, targets=1, seed=seed, rate=rate).write(folder, records=1)
    values = [[(40 + tick + seed) * 1_000_000] * rate for tick in range(5)]
    write_hlog(folder, {f"{metric}/target-0": values for metric in ("ttft_ms", "itl_ms", "e2e_ms")})
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with all kinds of things in it."""
    folder = tmp_path_factory.mktemp("view")
    for seed in (1, 2, 3):
        run_in(folder / "runs" / f"run-{seed}", seed=seed, rate=10 * seed)
    (folder / "runs" / "latest").symlink_to("run-3")
    both = folder / "runs" / "both"
    index = Repetition(id="both", name="fake", version="0", started_at="", seed=1, repeat=2, base=None, candidate="c")
    for seed in (4, 5):
        run_in(both / f"r{seed}", seed=seed)
        index.runs.append(RepeatedRun(run=f"r{seed}", side="run", seed=seed, state="done"))
    index.write(both)
    sweep = folder / "sweeps" / "knee"
    run_in(sweep / "point", seed=6)
    answer = {"value": 41.5, "ci95": [40, 43], "state": "FOUND", "limited_by": "ttft_ms.p99 <= 500"}
    (sweep / "sweep.json").write_text(json.dumps({"schema": 1, "over": "rate", "answer": answer, "points": [{}]}))
    (sweep / "report.html").write_text("<h1>the page of the sweep</h1>")
    probe = folder / "probe-x"
    run_in(probe / "history" / "20260101T000000Z-x-aaaa", seed=7)
    (probe / "lock").touch()
    return folder


def links(page: str) -> list[str]:
    return [unescape(each) for each in re.findall(r'<a href="([^"]+)"', page)]


def test_every_kind_of_directory_is_listed_and_opens(runs: Path) -> None:
    """A report that was never written is made from the history; a link in the list that leads nowhere is useless."""
    with pages(runs) as url:
        page = fetched(url)[1]
        for text in ("runs/run-1", "repeated runs", "41.5, FOUND", "probe-x/history/20260101T000000Z-x-aaaa", "VALID"):
            assert text in page
        assert "latest" not in page
        asked = links(page)
        assert len(asked) == 10 + 7  # a report each, and a curve of each run
        for link in asked:
            status, text = fetched(url + link)
            assert status == 200, (link, text)
        assert fetched(f"{url}report?run=sweeps/knee")[1] == "<h1>the page of the sweep</h1>"


def test_no_name_leads_out_of_the_directory(runs: Path, tmp_path: Path) -> None:
    """The report of a run may hold prompts and replies: only what lies below DIR may be read, however it is spelled."""
    run_in(tmp_path / "secret", seed=1)
    inside = tmp_path / "inside"
    run_in(inside / "mine", seed=2)
    (inside / "link").symlink_to(tmp_path / "secret")
    with pages(inside) as url:
        page = fetched(url)[1]
        assert links(page)[0] == "report?run=mine"
        assert "secret" not in page
        assert "link" not in [each.rpartition("=")[2] for each in links(page)]
        names = [
            "../secret",
            "link",
            str(tmp_path / "secret"),
            "mine/../../secret",
            "mine/../mine",
            "mine%00",
            "",
            "..",
            "\0",
        ]
        for name in names:
            for what in ("report?run=", "curve?run=", "compare?run=mine&run="):
                assert fetched(f"{url}{what}{quote(name)}")[0] == 404, (what, name)
        for path in ("../secret/summary.json", "mine/summary.json", "%2e%2e/secret/summary.json", "mine"):
            assert fetched(url + path)[0] == 404


def test_damaged_directories_are_listed_with_what_is_wrong(tmp_path: Path) -> None:
    """Disks fill and runs are killed: the one broken directory is the one that somebody looks for."""
    good = run_in(tmp_path / "good", seed=1)
    summary = json.loads((good / "summary.json").read_bytes())
    contents = {
        "empty": b"",
        "half": (good / "summary.json").read_bytes()[:500],
        "other-types": json.dumps(summary | {"metrics": 7}).encode(),
        "no-unicode": b'{"run": "\xff"}',
        "deep": b"[" * 200_000,
    }
    for name, content in contents.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "summary.json").write_bytes(content)
    for name in ("sweep.json", "repeat.json"):
        (tmp_path / f"bad-{name}").mkdir()
        (tmp_path / f"bad-{name}" / name).write_text('{"over": 3}')
    (tmp_path / "killed").mkdir()
    (tmp_path / "killed" / "intervals.jsonl").write_text("{}\n")
    (tmp_path / "pipe").mkdir()
    os.mkfifo(tmp_path / "pipe" / "summary.json")
    run_in(tmp_path / "no-plan", seed=2)
    (tmp_path / "no-plan" / "plan.json").write_text("[")
    (tmp_path / "odd-plan").mkdir()
    (tmp_path / "odd-plan" / "summary.json").write_bytes((good / "summary.json").read_bytes())
    (tmp_path / "odd-plan" / "plan.json").write_text('{"targets": [3, {"base_url": []}], "workload": "x"}')
    with pages(tmp_path) as url:
        status, page = fetched(url)
        assert status == 200
        assert page.count("is damaged") == len(contents) + 2
        assert "lens recover" in page
        assert "is not a file" in page
        assert "plan.json is missing or damaged" in page
        for link in links(page):
            status, text = fetched(url + link)
            assert status in (200, 404, 500), link
            assert "<h1" in text
            assert "Traceback" not in text


def test_two_ticked_runs_are_compared_and_unlike_ones_only_if_wanted(runs: Path) -> None:
    """As `lens compare` does: whoever compares runs of different loads should know it."""
    with pages(runs) as url:
        status, page = fetched(f"{url}compare?run=runs/run-1&run=runs/run-2")
        assert status == 200
        assert "Change by percentile" in page
        for asked in ("compare", "compare?run=runs/run-1", "compare?run=runs/run-1&run=runs/run-2&run=runs/run-3"):
            assert fetched(url + asked)[0] == 400
    plan = runs / "runs" / "run-3" / "plan.json"
    before = plan.read_text()
    plan.write_text(json.dumps(json.loads(before) | {"workload": {"prompt": "another"}}))
    try:
        with pages(runs) as url:
            status, page = fetched(f"{url}compare?run=runs/run-1&run=runs/run-3")
            assert status == 409
            assert "not alike" in page
            anyway = links(page)[-1]
            assert "across" in anyway
            assert fetched(url + anyway)[0] == 200
            assert "6 runs with" in fetched(f"{url}curve?run=runs/run-1")[1]
    finally:
        plan.write_text(before)


def test_a_summary_is_read_again_only_after_it_changed(tmp_path: Path) -> None:
    """Hundreds of runs: the list must not decode megabytes whenever it is opened, and must not show what was."""
    for seed in range(3):
        run_in(tmp_path / f"run-{seed}", seed=seed)
    library = Library(tmp_path)
    first, second = library.entries(), library.entries()
    assert all(second[path] is first[path] for path in first)
    changed = json.loads((tmp_path / "run-1" / "summary.json").read_bytes())
    changed["verdict"]["state"] = "INVALID"
    (tmp_path / "run-1" / "summary.json").write_text(json.dumps(changed))
    (tmp_path / "run-2" / "summary.json").unlink()
    third = library.entries()
    assert third["run-0"] is first["run-0"]
    assert third["run-1"].summary is not None
    assert third["run-1"].summary.verdict.state == "INVALID"
    assert third["run-2"].state == "unfinished"


def test_a_run_that_goes_on_is_listed_with_its_numbers_so_far(tmp_path: Path) -> None:
    """Also one of a probe, which nobody started by hand: its page comes again by itself."""
    fake = FakeRun(ticks=9, targets=1)
    probe = tmp_path / "probe"
    run = probe / "history" / "now"
    fake.write(run)
    (run / "summary.json").unlink()
    (probe / "lock").touch()
    fake.write_segment(tmp_path / "segments" / "shm", until=5)
    (run / ".live").symlink_to(tmp_path / "segments" / "shm")
    with pages(probe) as url:
        page = fetched(url)[1]
        assert "run, running" in page
        so_far = json.loads((run / ".live" / "report.json").read_bytes())
        assert f"<td>{so_far['requests']['ok']}</td>" in page
        for link in ("report?run=history/now", "report?run=."):
            status, text = fetched(url + link)
            assert status == 200
            assert "target-0" in text
        assert 'http-equiv="refresh"' in fetched(f"{url}report?run=history/now")[1]


def test_text_from_runs_cannot_become_markup(tmp_path: Path) -> None:
    """Names come from plans, and directories from whoever can write there."""
    name = '"><script>alert(1)</script>'
    run = run_in(tmp_path / "<img src=x>", seed=1)
    summary = json.loads((run / "summary.json").read_bytes())
    summary["run"]["name"] = summary["verdict"]["state"] = name
    (run / "summary.json").write_text(json.dumps(summary))
    with pages(tmp_path) as url:
        page = fetched(url)[1]
        assert "<script>alert" not in page
        assert "<img" not in page
        assert [fetched(url + link)[0] for link in links(page)] == [200, 200]


@pytest.mark.slow
def test_a_browser_filters_the_list_ticks_two_and_compares(runs: Path, tmp_path: Path) -> None:
    """What the page does by script, in a real browser, at the width of a phone."""
    with viewing(runs) as url, browsing(url, tmp_path, width=400, dark=True) as page:
        page.wait_for("document.getElementById('shown') !== null && document.getElementById('compare').disabled")
        assert page.value("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
        script = (
            "const f = document.getElementById('filter'); f.value = 'RUNS/run-'; f.dispatchEvent(new Event('input'));"
        )
        page.value(f"(() => {{ {script} }})()")
        assert page.value("[...document.querySelectorAll('table tr')].filter(r => !r.hidden).length") == 4
        page.value(
            "[...document.querySelectorAll('input[name=run]')].filter(b => !b.closest('tr').hidden).slice(0, 2).forEach(b => b.click())"
        )
        assert page.value("document.getElementById('compare').disabled") is False
        assert page.console == []
        page.value("document.getElementById('compare').click()")
        page.wait_for("document.querySelector('h1')?.textContent === 'Comparison'")


@pytest.mark.slow
def test_a_directory_that_is_none_is_a_usage_error(tmp_path: Path) -> None:
    """Exit code 2 and the way out, before a page of nothing is served."""
    ended = lens("view", "nowhere", cwd=tmp_path)
    assert ended.code == 2
    assert "nowhere is not a directory" in ended.stderr
