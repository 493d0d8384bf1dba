"""The HTML report: offline, exact where it says so, small for a day of ticks, and drawn by a real browser."""

from __future__ import annotations

import json
import re
from importlib import resources
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_latency_lens.collectors.histogram import Histogram
from llm_latency_lens.collectors.snapshot import ENCODER, SNAPSHOT_DECODER, Distribution
from llm_latency_lens.engine.errors import OutputError
from llm_latency_lens.engine.metrics import SCALES
from llm_latency_lens.exporters.hdr import read as hdrread
from llm_latency_lens.exporters.html.page import page_of, report_html, write_html
from llm_latency_lens.exporters.html.run import read_run
from llm_latency_lens.exporters.html.timeline import POINTS, Timeline
from tests.support_browser import opened
from tests.support_hdr import write_hlog
from tests.support_rows import drawn, write_rows
from tests.support_runs import FakeRun

DAY = 86_400


def payload_of(page: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)
    assert found
    reported: dict[str, Any] = json.loads(found[1])
    return reported


@given(st.lists(st.lists(st.integers(1_000, 3_600_000_000_000), max_size=20), min_size=1, max_size=4))
@settings(max_examples=30, deadline=None)
def test_the_intervals_of_a_log_add_up_to_what_was_recorded(
    tmp_path_factory: pytest.TempPathFactory, ticks: list[list[int]]
) -> None:
    """The report's distributions are sums of interval logs, which other tools must be able to check."""
    folder = tmp_path_factory.mktemp("hlog")
    expected = write_hlog(folder, {"ttft_ms/a": ticks})["ttft_ms/a"]
    total = hdrread.sums(folder / "intervals.hlog").get("ttft_ms/a", Histogram())
    theirs = np.frombuffer(expected.counts, np.uint64).astype(np.int64)
    assert np.array_equal(np.frombuffer(total.hdr().counts, np.uint64).astype(np.int64), theirs)
    _, counts = hdrread.values_and_counts(total)
    assert counts.sum() == sum(len(tick) for tick in ticks)


def test_a_torn_or_foreign_line_in_the_log_is_passed_over(tmp_path: Path) -> None:
    """A log that was cut by a full disk or a SIGKILL still has all its other lines."""
    write_hlog(tmp_path, {"ttft_ms/a": [[50_000_000] * 3], "other": [[1_000_000]]})
    with (tmp_path / "intervals.hlog").open("a") as file:
        file.write("Tag=ttft_ms/a,1.0,1.0,0.0,HISTFAAnot!base64\nTag=ttft_ms/a,2.0,1.0,0.0,HIST")
    totals = hdrread.sums(tmp_path / "intervals.hlog", ["ttft_ms/a"])
    assert {tag: total.count for tag, total in totals.items()} == {"ttft_ms/a": 3}


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    FakeRun(ticks=60, targets=3).write(folder)
    return folder


def test_the_page_needs_nothing_from_outside_itself(run_dir: Path) -> None:
    """Reports are mailed and archived; they must open without a network, and call nobody."""
    page = report_html([run_dir])
    assert not re.search(r'(src|href)\s*=\s*["\']?(https?:|//)', page)
    assert "{{" not in page.split("<script", 1)[0]
    assert "default-src 'none'" in page


def test_the_page_says_the_verdict_the_numbers_and_what_went_wrong(run_dir: Path) -> None:
    """A reader without JavaScript sees these tables and nothing else."""
    page = report_html([run_dir])
    reported = json.loads((run_dir / "summary.json").read_bytes())
    for word in ("VALID", "TTFT scheduled ms", "ttft_ms.p99 &lt;= 500", "http_rate_limited", "AMD EPYC", "Plan"):
        assert word in page
    assert f"{reported['requests']['ok']:,}" in page
    assert all(target["name"] in page for target in reported["targets"])


def test_the_page_shows_late_bodies_and_saturated_gaps_if_there_were_any(run_dir: Path, tmp_path: Path) -> None:
    """They are counted so that people see them."""
    reported = json.loads((run_dir / "summary.json").read_bytes())
    assert "late renders" not in report_html([run_dir])
    reported["client"] |= {"late_renders": 12, "gaps_saturated": 3}
    (tmp_path / "summary.json").write_text(json.dumps(reported))
    assert "3 saturated gaps, 12 late renders" in report_html([tmp_path])


def test_the_charts_carry_every_tick_of_a_short_run(run_dir: Path) -> None:
    """Merging is for long runs; a short one is shown as it was measured."""
    charts = payload_of(report_html([run_dir]))
    ticks = [json.loads(line) for line in (run_dir / "intervals.jsonl").read_text().splitlines()]
    assert charts["times"][0] == [tick["elapsed_s"] for tick in ticks]
    first = charts["series"][1]["lines"]
    assert first["ok"] == [tick["intervals"][1]["requests"]["ok"] for tick in ticks]
    assert first["ttft_ms_p99"] == pytest.approx(
        [t["intervals"][1]["metrics"]["ttft_ms"]["p99"] for t in ticks], rel=1e-3
    )


def test_a_servers_text_cannot_become_markup_or_script(tmp_path: Path) -> None:
    """Names and messages come from plans and servers; the page is opened with the reader's rights."""
    name = "</script><script>alert(1)</script>"
    FakeRun(ticks=3, names=(name, "other")).write(tmp_path)
    reported = json.loads((tmp_path / "summary.json").read_bytes())
    reported["errors"] = [
        {"target": "t", "outcome": "http_server", "count": 1, "message": "<img src=x onerror=alert(1)>"}
    ]
    (tmp_path / "summary.json").write_text(json.dumps(reported))
    page = report_html([tmp_path])
    assert "<script>alert(1)" not in page
    assert "<img" not in page
    assert payload_of(page)["series"][0]["name"] == name


def test_distributions_are_exact_where_the_run_has_its_histograms(run_dir: Path, tmp_path: Path) -> None:
    """The tail that people argue about must not come from coarse buckets."""
    for name in ("summary.json", "intervals.jsonl", "plan.json"):
        (tmp_path / name).write_bytes((run_dir / name).read_bytes())
    values = [int(v) for v in np.random.default_rng(3).lognormal(17.7, 0.3, 4000)]
    expected = write_hlog(tmp_path, {"ttft_ms/target-0": [values[:1500], values[1500:]]})["ttft_ms/target-0"]
    page = report_html([tmp_path])
    assert "from the HDR histograms of the run" in page
    curve = payload_of(page)["distributions"][0]["curves"][0]["curve"]
    for p, v in zip(curve["p"], curve["v"], strict=True):
        if p > 0:
            exact = expected.get_value_at_percentile(100 * p) / SCALES["ttft_ms"]
            assert v == pytest.approx(exact, rel=0.002)


@pytest.mark.slow
def test_a_days_run_of_five_targets_stays_small_and_keeps_its_peaks(tmp_path: Path) -> None:
    """A soak of days must not end in a page that no browser opens, nor lose its one bad second on the way."""
    run = FakeRun(ticks=1, targets=5)
    run.write(tmp_path)
    quiet = SNAPSHOT_DECODER.decode((tmp_path / "intervals.jsonl").read_bytes())
    loud = SNAPSHOT_DECODER.decode((tmp_path / "intervals.jsonl").read_bytes())
    loud.intervals[2].metrics["ttft_ms"] = Distribution(count=1, p50=9_000.0, p99=9_999.0)
    timeline = Timeline()
    for i in range(DAY):
        tick = loud if i == 54_321 else quiet
        tick.elapsed_s = i + 1.0
        timeline.add(tick)
    assert len(timeline.spans) <= POINTS
    page = page_of([read_run(tmp_path)._replace(timeline=timeline)])
    assert len(page) < 15_000_000
    series = payload_of(page)["series"]
    assert max(v for v in series[2]["lines"]["ttft_ms_p99"] if v is not None) == 9_999
    total = sum(ok * span.seconds for ok, span in zip(series[0]["lines"]["ok"], timeline.spans, strict=True))
    assert total == pytest.approx(DAY * quiet.intervals[0].counts["ok"], rel=1e-3)
    assert f"86,400 ticks, {timeline.ticks_per_span} in each point" in page


def test_ticks_in_which_the_client_was_limited_are_shaded_and_stand_in_the_health_strip(tmp_path: Path) -> None:
    """A slow second of this client must not be read as one of the server."""
    run = FakeRun(ticks=10, targets=1)
    run.write(tmp_path)
    lines = (tmp_path / "intervals.jsonl").read_text().splitlines()
    for k, reasons in ((5, {"starved": 1}), (6, {"starved": 1, "gc": 1}), (8, {"gc": 1})):
        reported = json.loads(lines[k])
        reported["client"]["limited_by"] = reasons
        lines[k] = json.dumps(reported)
    (tmp_path / "intervals.jsonl").write_text("\n".join(lines) + "\n")
    page = report_html([tmp_path])
    assert payload_of(page)["limited"] == [[5, 6], [6, 7], [8, 9]]
    strip = page[page.index('class="strip"') :]
    assert strip.count('class="limited"') == 3
    assert 'title="5 s to 6 s: starved"' in strip
    assert 'title="6 s to 7 s: gc, starved"' in strip
    assert "6 s to 7 s, 8 s to 9 s" in strip  # when garbage was collected


@pytest.mark.slow
def test_the_servers_own_load_stands_beside_the_latencies(tmp_path: Path) -> None:
    """A queue that grows at the server explains a TTFT that grows."""
    points = 50
    FakeRun(ticks=2 * points, targets=2, servers=True).write(tmp_path)
    page = tmp_path / "report.html"
    page.write_text(report_html([tmp_path], points=points))
    first = payload_of(page.read_text())["series"][0]["lines"]
    assert set(first["requests_running"]) == {8}
    merged = [max(tick % 7, (tick + 1) % 7) for tick in range(0, 2 * points, 2)]
    assert first["requests_waiting"] == merged
    assert first["kv_cache_usage"] == pytest.approx([10 * waiting for waiting in merged])
    assert first["gpu_utilisation"][0] == 90
    dom, console = opened(page, tmp_path, width=1280)
    assert console == []
    assert "Load of the server" in dom


def test_a_directory_without_a_summary_says_what_to_do(tmp_path: Path) -> None:
    """A killed run can be recovered, and its user may not know."""
    with pytest.raises(OutputError, match="lens recover"):
        report_html([tmp_path])


@pytest.mark.slow
@pytest.mark.parametrize(("width", "dark"), [(1280, False), (1280, True), (400, False)])
def test_a_real_browser_draws_every_chart_and_complains_about_nothing(
    run_dir: Path, tmp_path: Path, width: int, dark: bool
) -> None:
    """Only a browser can say whether the page works, in both colour schemes and on a phone."""
    page = tmp_path / "report.html"
    write_html([run_dir], page)
    probe = "<script>const e = document.documentElement; e.dataset.overflow = e.scrollWidth - e.clientWidth;</script>"
    page.write_text(page.read_text().replace("</body>", f"{probe}</body>"))
    dom, console = opened(page, tmp_path, width=width, dark=dark)
    assert console == []
    drawn = int(re.findall(r'data-charts="(\d+)"', dom)[0])
    assert drawn == dom.count('class="uplot') + dom.count('class="heat"')
    assert dom.count('class="panel"') >= 3 * 5  # three targets, p50 and p99: a small chart each
    assert dom.count("<summary") >= dom.count('class="card"') - dom.count('class="card run"')
    assert dom.count('class="chip"') == 3
    assert 'data-overflow="0"' in dom


@pytest.fixture(scope="module")
def complete_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page with every kind of picture: five targets, requests, token times, incidents and objectives."""
    folder = tmp_path_factory.mktemp("complete")
    run = FakeRun(ticks=60, targets=5)
    report = run.write(folder, records=0)
    report.run.phases.insert(0, msgspec.structs.replace(report.run.phases[0], name="warmup", measured=False))
    (folder / "summary.json").write_bytes(ENCODER.encode(report))
    plan = {"phases": [{"name": "steady", "duration": "60s", "load": {"rate": 100, "arrivals": "poisson"}}]}
    (folder / "plan.json").write_text(json.dumps(plan))
    write_rows(folder, 6000, targets=5)
    ns = [50_000_000, 60_000_000, 70_000_000, 190_000_000, 200_000_000, 200_000_000]
    timed = {"token_ns": ns, "token_coalesced": [False] * 5 + [True]}
    with (folder / "requests.msgpack").open("ab") as file:
        file.writelines(drawn(k, 10.0 + k, 48.5, [10, 10, 120, 10, 0], **timed) for k in range(6))
    lines = (folder / "intervals.jsonl").read_text().splitlines()
    late = [json.loads(line) for line in lines]
    for tick in late[30:]:
        tick["client"]["restarts"] = 1
    (folder / "intervals.jsonl").write_text("".join(json.dumps(tick) + "\n" for tick in late))
    page = folder / "report.html"
    write_html([folder], page)
    return page


AXE = """
for (const each of document.querySelectorAll("details")) each.open = true;
const heat = document.querySelector("canvas.heat");
for (const key of ["ArrowRight", "ArrowUp", "ArrowUp", "ArrowUp", "Enter"]) heat.dispatchEvent(new KeyboardEvent("keydown", { key }));
axe.run().then((found) => {
  const said = document.createElement("pre");
  said.id = "axe";
  const bad = found.violations.filter((each) => ["serious", "critical"].includes(each.impact));
  said.textContent = JSON.stringify(bad.map((each) => [each.id, each.nodes.map((node) => node.html.slice(0, 200))])) + " of " + found.passes.length;
  document.body.append(said);
});
"""


@pytest.mark.slow
@pytest.mark.parametrize("dark", [False, True])
def test_a_reader_who_cannot_see_or_point_is_not_shut_out(complete_page: Path, tmp_path: Path, dark: bool) -> None:
    """axe-core finds missing names, colours without contrast and what the keyboard cannot reach, tables opened and the
    requests of a cell shown."""
    axe = resources.files("axe_core_python").joinpath("axe.min.js").read_text("utf-8").replace("</script", "<\\/script")
    page = tmp_path / "axe.html"
    page.write_text(
        complete_page.read_text().replace("</body>", f"<script>{axe}</script><script>{AXE}</script></body>")
    )
    dom, console = opened(page, tmp_path, width=1280, dark=dark, virtual_ms=20_000)
    assert console == []
    found = re.search(r'<pre id="axe">(.*?) of (\d+)</pre>', dom)
    assert found
    assert found[1] == "[]"
    assert int(found[2]) > 15
    assert "Requests of one cell" in dom


@pytest.mark.slow
def test_every_kind_of_picture_is_drawn(complete_page: Path, tmp_path: Path) -> None:
    """A picture that is missing is not missed by anyone who does not know of it."""
    dom, console = opened(complete_page, tmp_path, width=1400)
    assert console == []
    for title in (
        "Targets side by side",
        "Phases",
        "Offered and achieved rate",
        "ITL by requests in flight",
        "TTFT by input tokens, target-4",
        "E2E by output tokens, target-0",
        "The request that was slowest",
        "The request of median duration",
        "1 stall of 120 ms",
        "1 of 6 coalesced",
        "1 worker restarts at 31 s",
    ):
        assert title in dom
    assert int(re.findall(r'data-pictures="(\d+)"', dom)[0]) == 2 * 5 + 4
    legends = re.findall(r'<table class="u-legend.*?</table>', dom)
    assert 2 <= max(legend.count('class="u-series"') for legend in legends) <= 5  # the axis and four lines


@pytest.mark.slow
def test_on_paper_nothing_is_cut_off(complete_page: Path, tmp_path: Path) -> None:
    """Reports are attached to tickets as PDF: what scrolls on a screen is lost on paper."""
    page, pdf = tmp_path / "paper.html", tmp_path / "paper.pdf"
    probe = """<script>
    dispatchEvent(new Event("beforeprint"));
    const edge = document.querySelector("main").getBoundingClientRect().right + 1;
    const shown = [...document.querySelectorAll("main *")].filter((each) => each.getClientRects().length && !each.closest(".unseen"));
    const cut = shown.filter((each) => each.getBoundingClientRect().right > edge || (each.scrollWidth > each.clientWidth + 1 && getComputedStyle(each).overflowX !== "visible"));
    document.documentElement.dataset.cut = cut.map((each) => each.tagName + "." + each.className).join(" ") || "none";
    document.documentElement.dataset.shown = shown.length;
    </script>"""
    # The rules of paper, on a screen of the width between the margins of A4 (186 mm).
    text = (
        complete_page.read_text().replace("@media print", "@media all").replace("<main>", '<main style="width:703px">')
    )
    page.write_text(text.replace("</body>", f"{probe}</body>"))
    dom, console = opened(page, tmp_path, width=760, dark=True)
    assert console == []
    assert re.findall(r'data-cut="([^"]*)"', dom) == ["none"]
    assert int(re.findall(r'data-shown="(\d+)"', dom)[0]) > 500
    assert 'class="paper"' in dom
    opened(complete_page, tmp_path, width=1400, dark=True, pdf=pdf)
    boxes = re.findall(rb"/MediaBox ?\[([^\]]+)\]", pdf.read_bytes())
    assert {tuple(round(float(each)) for each in box.split()) for box in boxes} == {(0, 0, 595, 842)}  # A4


@pytest.mark.slow
def test_several_runs_stand_side_by_side(run_dir: Path, tmp_path: Path) -> None:
    """Comparing two runs is what reports are opened for most."""
    FakeRun(ticks=20, targets=1, seed=9).write(tmp_path / "second")
    write_html([run_dir, tmp_path / "second"], tmp_path / "both.html")
    charts = payload_of((tmp_path / "both.html").read_text())
    assert [s["run"] for s in charts["series"]] == [0, 0, 0, 1]
    assert [len(times) for times in charts["times"]] == [60, 20]
    _, console = opened(tmp_path / "both.html", tmp_path, width=1280)
    assert console == []


def test_what_a_run_does_not_know_takes_no_room(run_dir: Path, tmp_path: Path) -> None:
    """Rows of dashes hide the rows that say something."""
    reported = json.loads((run_dir / "summary.json").read_bytes())
    reported["cost"] = {"usd": None}
    reported["run"]["host"] = {"governor": None}
    for distribution in reported["metrics"].values():
        distribution["ci95"] = None
    reported["slo"] = [{"expression": "request: ttft_ms <= 800", "value": 0.985, "state": "PASS"}]
    (tmp_path / "summary.json").write_text(json.dumps(reported))
    page = report_html([tmp_path])
    assert "per day at this rate" not in page
    assert "95 % CI" not in page
    assert "<td>98.5 %</td>" in page
    assert "null</td>" not in page
    assert "2023-11-14 22:13:20 UTC" in page


def test_the_totals_of_a_run_spare_reading_its_intervals(run_dir: Path, tmp_path: Path) -> None:
    """The interval log of a week takes minutes to add up; totals.hlog holds the sums already."""
    for name in ("summary.json", "intervals.jsonl"):
        (tmp_path / name).write_bytes((run_dir / name).read_bytes())
    write_hlog(tmp_path, {"ttft_ms/target-0": [[50_000_000] * 9]})
    (tmp_path / "intervals.hlog").rename(tmp_path / "totals.hlog")
    (tmp_path / "intervals.hlog").mkdir()  # nobody can read it
    curves = payload_of(report_html([tmp_path]))["distributions"]
    assert {round(value) for value in curves[0]["curves"][0]["curve"]["v"]} == {50}
