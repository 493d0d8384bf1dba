"""`lens run --live`: the page of a run that goes on, and that nobody who looks at it changes the run."""

from __future__ import annotations

import json
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from llm_latency_lens.cli.live import address_and_plan, live_page
from llm_latency_lens.collectors.snapshot import SNAPSHOT_DECODER, Snapshot
from llm_latency_lens.engine.errors import PlanError
from llm_latency_lens.exporters.figures import clock
from llm_latency_lens.exporters.rundir import read_report
from llm_latency_lens.exporters.web.listen import Listener, listen, parse
from llm_latency_lens.exporters.web.live import LivePage, RunState
from tests.support_browser import browsing
from tests.support_lens import accounts, finish, lens, running
from tests.support_live import deaf_viewer, fetched, messages, now, url_in, when_up
from tests.support_rows import write_rows
from tests.support_runs import FakeRun
from tests.support_simulator import FAST, Simulator, simulator


@pytest.fixture(scope="module")
def sim() -> Iterator[Simulator]:
    with simulator(**FAST) as started:
        yield started


def load(sim: Simulator, *more: str) -> list[str]:
    return ["--base-url", f"{sim.base_url}/v1", "--model", "m", "--rate", "50", *more]


@pytest.mark.slow
def test_a_browser_sees_a_number_change_and_at_the_end_the_report(sim: Simulator, tmp_path: Path) -> None:
    """What the page is for. The page is up to date within a tick; the limit is for a machine that is busy with others."""
    with running(*load(sim, "--duration", "1h", "--live", "--live-control"), cwd=tmp_path) as process:
        url = url_in(process)
        when_up(url)
        with browsing(url, tmp_path, width=400) as page:
            page.wait_for("Number(document.getElementById('now-ok').textContent.replace(',', '')) > 0")
            seen = page.value("document.getElementById('now-ok').textContent")
            page.wait_for(f"document.getElementById('now-ok').textContent !== {seen!r}", 20)
            page.wait_for("document.querySelectorAll('.uplot').length > 6")
            assert page.value("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
            page.value("document.getElementById('stop').click()")
            page.wait_for("document.getElementById('now-state').textContent === 'done'", 60)
            page.wait_for("document.getElementById('body').textContent.includes('VALID')")
            assert page.console == []
        ended = finish(process)
    assert ended.code == 130, ended.stderr
    accounts(ended.summary["requests"])
    assert ended.summary["run"]["ended_by"] == "interrupted"


@pytest.mark.slow
def test_viewers_that_are_many_slow_or_killed_change_nothing_of_a_run(sim: Simulator, tmp_path: Path) -> None:
    """Five that read, one that reads nothing and one that vanishes: totals are complete, all get the end, the run ends."""
    ends: list[dict[str, Any]] = []

    def view(url: str) -> None:
        ends.append(list(messages(url))[-1])

    with running(*load(sim, "--duration", "4s", "--live", "127.0.0.1:0"), cwd=tmp_path) as process:
        url = url_in(process)
        when_up(url)
        viewers = [threading.Thread(target=view, args=(url,)) for _ in range(5)]
        for viewer in viewers:
            viewer.start()
        deaf = deaf_viewer(url)
        killed = deaf_viewer(url)
        killed.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # its end is a reset
        killed.close()
        ended = finish(process)
        for viewer in viewers:
            viewer.join(60)
        deaf.close()
    assert ended.code == 0, ended.stderr
    requests = ended.summary["requests"]
    accounts(requests)
    assert requests["planned"] == requests["ok"] == 200
    assert len(ends) == 5
    assert all(end["ended"] and now(end)["ok"] == "200" for end in ends)


@pytest.mark.slow
def test_the_page_goes_on_after_its_process_was_killed(sim: Simulator, tmp_path: Path) -> None:
    """The run keeps the socket: a viewer that comes back finds the successor at the same address, with all ticks."""
    with running(*load(sim, "--duration", "1h", "--live"), cwd=tmp_path) as process:
        url = url_in(process)
        when_up(url)
        exporter = next(
            each for each in psutil.Process(process.pid).children() if any("export" in word for word in each.cmdline())
        )
        assert not any(word in " ".join(exporter.cmdline()) for word in ("token", "127.0.0.1"))
        exporter.kill()
        when_up(url)
        first = next(messages(url))
        assert len(first["charts"]["times"][0]) >= 1 or first["version"] == 0
        process.send_signal(signal.SIGINT)
        assert finish(process).code == 130


@pytest.mark.slow
def test_a_port_in_use_ends_the_command_before_its_run(sim: Simulator, tmp_path: Path) -> None:
    """A second run must not load a server and then say that its page is missing."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ended = lens("run", *load(sim, "--requests", "1", "--live", str(port)), cwd=tmp_path)
    assert (ended.code, list(tmp_path.iterdir())) == (2, [])
    assert f"port {port} is in use" in ended.stderr


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ("127.0.0.1", 0)),
        (":80", ("127.0.0.1", 80)),
        ("80", ("127.0.0.1", 80)),
        ("0.0.0.0:0", ("0.0.0.0", 0)),
        ("localhost:8080", ("localhost", 8080)),
        ("[::1]:99", ("::1", 99)),
        ("[::1]", ("::1", 0)),
        ("::1", ("::1", 0)),
    ],
)
def test_addresses_are_read_as_people_write_them(text: str, expected: tuple[str, int]) -> None:
    """No host is loopback: a page must not be on the network because somebody left out a word."""
    assert parse(text, "--live") == expected


@pytest.mark.parametrize("text", ["[::1", "a:b", "http://x:1", "x/y", "1:99999", "[v4]:1", "८०", "[::1]9", "a b:1"])
def test_what_is_no_address_is_an_error_that_shows_the_forms(text: str) -> None:
    """It is found before anything starts."""
    with pytest.raises(PlanError, match="--live"):
        parse(text, "--live")


def test_an_address_that_is_not_this_machines_says_so() -> None:
    """TEST-NET-1 (RFC 5737) is nobody's."""
    with pytest.raises(PlanError, match="does not have that address"):
        listen("192.0.2.1:0", "--live")


def test_only_an_address_on_loopback_has_no_token() -> None:
    """Every listener of 0.0.0.0 is reachable from outside, and two have different tokens."""
    listeners = [listen(text, "--live") for text in ("127.0.0.1:0", "0.0.0.0:0", "0.0.0.0:0")]
    try:
        tokens = [each.token for each in listeners]
        assert tokens[0] == ""
        assert len({*tokens}) == 3
        assert min(map(len, tokens[1:])) >= 20
    finally:
        for each in listeners:
            each.socket.close()


@pytest.fixture
def ticks(tmp_path: Path) -> list[Snapshot]:
    """The ticks of a run in `tmp_path`."""
    FakeRun(ticks=40, targets=2).write(tmp_path)
    return [SNAPSHOT_DECODER.decode(line) for line in (tmp_path / "intervals.jsonl").read_bytes().splitlines()]


def test_changes_add_up_to_the_state_of_a_late_viewer(tmp_path: Path, ticks: list[Snapshot]) -> None:
    """Who looked on all the time and who comes now must see the same lines."""
    state = RunState(tmp_path, "fake")
    state.message(-1)
    charts: dict[str, Any] = {}
    kinds = []
    for tick in ticks:
        state.add([tick], watched=True)
        message = json.loads(state.message(state.version - 1))
        kinds.append("state" if "charts" in message else "change")
        if "charts" in message:
            charts = message["charts"]
            continue
        point = message["point"]
        assert point["index"] == len(charts["times"][0])
        charts["times"][0].append(point["time"])
        for series, values in zip(charts["series"], point["series"], strict=True):
            for name, line in series["lines"].items():
                line.append(values.get(name))
        for name in ("lag_us", "cpu_percent", "steal_percent"):
            charts["health"][0][name].append(point[name])
    assert kinds.count("change") > len(ticks) / 2
    late = json.loads(state_of(tmp_path, ticks).message(-1))["charts"]
    assert charts["times"] == late["times"]
    assert charts["series"] == late["series"]
    assert charts["health"] == late["health"]


def state_of(run_dir: Path, ticks: list[Snapshot]) -> RunState:
    state = RunState(run_dir, "fake")
    state.add(ticks, watched=False)
    return state


def test_a_rewound_log_and_a_batch_reach_the_viewer_as_a_state(tmp_path: Path, ticks: list[Snapshot]) -> None:
    """A collector that was killed writes its last ticks again: appended to the charts they would be there twice."""
    state = state_of(tmp_path, ticks)
    state.restart()
    state.add(ticks[:7], watched=True)
    message = json.loads(state.message(state.version - 1))
    assert len(message["charts"]["times"][0]) == 7


def test_a_long_run_sends_little_more_than_the_numbers_of_each_tick(tmp_path: Path, ticks: list[Snapshot]) -> None:
    """Tables and charts for every tick would be gigabytes a week: from some length on they come ever rarer."""
    state = RunState(tmp_path, "fake", points=30)
    state.message(-1)
    large: list[int] = []
    for number in range(960):
        tick = ticks[number % len(ticks)]
        tick.elapsed_s = number + 1.0
        state.add([tick], watched=True)
        message = json.loads(state.message(state.version - 1))
        if "sections" in message:
            large.append(number)
        else:
            assert len(json.dumps(message)) < 1_000
    doublings = [sum(low <= number < 2 * low for number in large) for low in (30, 60, 120, 240, 480)]
    assert max(doublings) < 45  # as many in the last doubling of the length, 480 ticks, as in the first, 30


@contextmanager
def served(listener: Listener, run_dir: Path, stop: Callable[[], None] | None = None) -> Iterator[LivePage]:
    page = LivePage(listener, run_dir, "fake", stop).start()
    try:
        yield page
    finally:
        page.close()


# What a reader without the picture is told of each chart, and of its last point on pressing End.
SAID = """[...document.querySelectorAll(".u-wrap")].map((each) => {
  each.dispatchEvent(new KeyboardEvent("keydown", { key: "End" }));
  return each.getAttribute("aria-label") + " " + each.parentElement.querySelector(".unseen").textContent;
}).filter((each) => !each.match(/percentile|distribution/)).join("\\n")"""
DRAWN = """[document.querySelectorAll(".uplot").length + document.querySelectorAll("canvas.heat").length,
  Number(document.documentElement.dataset.charts)]"""


@pytest.mark.slow
def test_a_page_that_grew_is_the_page_that_is_opened_now(tmp_path: Path) -> None:
    """Charts are extended and drawn anew again and again: none may be there twice, keep an old value, or lose what the
    reader has opened and hidden."""
    report = FakeRun(ticks=9, targets=5).write(tmp_path, records=0)
    (tmp_path / "plan.json").write_text('{"phases": [{"name": "steady", "load": {"rate": 100}}]}')
    write_rows(tmp_path, 500, targets=5, seconds=9)
    listener = listen("", "--live")
    with served(listener, tmp_path) as live, browsing(listener.url, tmp_path) as page:
        page.wait_for("document.getElementById('live-state').textContent === 'live'")
        for line in (tmp_path / "intervals.jsonl").read_bytes().splitlines():
            tick = SNAPSHOT_DECODER.decode(line)
            live.write([tick])
            page.wait_for(f"document.getElementById('now-elapsed').textContent === '{clock(tick.elapsed_s)}'")
            if tick.tick == 2:
                page.value("document.querySelector('#time .numbers').open = true")
                page.value("document.querySelector('#targets button').click()")
        grown, charts = page.value(SAID), page.value(DRAWN)
        assert page.value("document.querySelectorAll('#time .panel[hidden]').length") > 3
        page.value("document.querySelector('#targets button').click()")
        with browsing(listener.url, tmp_path) as fresh:
            fresh.wait_for("document.documentElement.dataset.charts > 0")
            assert grown == fresh.value(SAID)
            assert charts == fresh.value(DRAWN)
            assert charts[0] == charts[1] > 30
        live.end(report)
        page.wait_for("document.documentElement.dataset.pictures > 0")
        assert page.value("document.querySelector('#time .numbers').open")
        assert page.value(DRAWN)[0] == page.value(DRAWN)[1]
        assert "input tokens, target-4" in page.value("document.getElementById('load').textContent")
        assert page.console == []


def test_a_page_elsewhere_than_on_loopback_needs_the_token(tmp_path: Path, ticks: list[Snapshot]) -> None:
    """Whoever can reach the port is not whoever may look."""
    listener = listen("0.0.0.0:0", "--live")
    with served(listener, tmp_path) as page:
        page.write(ticks)
        root = f"http://127.0.0.1:{listener.port}/"
        for wrong in ("", "events", "x/", f"{listener.token[:-1]}/", "stop"):
            assert fetched(root + wrong)[0] == 403
        status, text = fetched(f"{root}{listener.token}/")
        assert status == 200
        assert "target-1" in text
        assert listener.token not in text
        assert fetched(f"{root}{listener.token}/stop", method="POST", headers={"X-Lens-Control": "stop"})[0] == 403


def test_a_foreign_host_name_and_a_bare_post_are_refused(tmp_path: Path, ticks: list[Snapshot]) -> None:
    """A page of another site can reach 127.0.0.1 by DNS rebinding, and can send a POST without asking. A second click
    would cancel what is in flight, as a second Ctrl-C does."""
    stops: list[int] = []
    listener = listen("", "--live")
    with served(listener, tmp_path, lambda: stops.append(1)) as page:
        page.write(ticks)
        url = listener.url
        assert fetched(url, headers={"Host": "evil.example"})[0] == 403
        assert fetched(f"{url}stop", method="POST")[0] == 403
        assert stops == []
        for _ in range(2):
            assert fetched(f"{url}stop", method="POST", headers={"X-Lens-Control": "stop"})[0] == 202
        assert stops == [1]


@pytest.mark.slow
def test_a_viewer_that_reads_nothing_holds_up_nobody_and_then_gets_the_latest(
    tmp_path: Path, ticks: list[Snapshot]
) -> None:
    """What it missed is not kept for it: memory must not depend on how slow a browser is."""
    listener = listen("", "--live")
    listener.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 14)  # else the kernel takes megabytes
    with served(listener, tmp_path) as page, deaf_viewer(listener.url) as deaf:
        reader = messages(listener.url)
        assert next(reader)["version"] == 0
        for number, tick in enumerate(ticks * 3):
            tick.elapsed_s = number + 1.0
            page.write([tick])
            if number % 10 == 0:
                while next(reader)["version"] <= number:
                    pass
        page.end(read_report(tmp_path))
        assert list(reader)[-1]["ended"]
        received = b""
        while piece := deaf.recv(1 << 20):
            received += piece
    assert received.count(b"data: ") < len(ticks)
    assert b'"ended":true' in received


def test_options_that_do_not_go_together_are_refused() -> None:
    """A button without a page, or one page for several runs, is a mistake that the user wants to know of."""
    for address, control, repeated, word in ((None, True, False, "give --live"), ("", False, True, "--repeat")):
        with pytest.raises(PlanError, match=word), live_page(address, control=control, repeated=repeated):
            pass


def test_a_plan_after_the_option_is_the_plan(tmp_path: Path) -> None:
    """`lens run --live plan.yaml` is what people write."""
    plan = tmp_path / "plan.yaml"
    plan.write_text("model: m")
    assert address_and_plan(str(plan), None) == ("", str(plan))
    assert address_and_plan(str(plan), "other.yaml") == (str(plan), "other.yaml")
    assert address_and_plan("8080", None) == ("8080", None)
