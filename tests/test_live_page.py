"""`lens run --live`: the page of a run that goes on, and that nobody who looks at it changes the run."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import psutil
import pytest

from llm_latency_lens.collectors.snapshot import SNAPSHOT_DECODER, Snapshot
from llm_latency_lens.engine.errors import PlanError
from llm_latency_lens.exporters.html.timeline import POINTS
from llm_latency_lens.exporters.web.listen import listen, parse
from llm_latency_lens.exporters.web.live import RunState
from tests.support_browser import browsing
from tests.support_lens import accounts, finish, lens, running
from tests.support_live import deaf_viewer, fetched, messages, now, url_in, when_up
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

    with running(*load(sim, "--duration", "6s", "--live", "127.0.0.1:0"), cwd=tmp_path) as process:
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
    assert requests["planned"] == requests["ok"] == 300
    assert len(ends) == 5
    assert all(end["ended"] and now(end)["ok"] == "300" for end in ends)


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
def test_a_page_elsewhere_than_on_loopback_needs_the_token(sim: Simulator, tmp_path: Path) -> None:
    """Whoever can reach the port is not whoever may look, and nobody may stop a run that was not started for it."""
    with running(*load(sim, "--duration", "1h", "--live", "0.0.0.0:0"), cwd=tmp_path) as process:
        url = re.sub(r"//[^:]+:", "//127.0.0.1:", url_in(process))
        when_up(url)
        root = re.match(r"http://[^/]+/", url)
        assert root
        for wrong in ("", "events", "x/", f"{url[len(root[0]) : -2]}/", "stop"):
            assert fetched(root[0] + wrong)[0] == 403
        assert fetched(f"{url}stop", method="POST", headers={"X-Lens-Control": "stop"})[0] == 403
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


@pytest.mark.slow
def test_options_that_do_not_go_together_are_refused(tmp_path: Path) -> None:
    """A button without a page, or one page for several runs, is a mistake that the user wants to know of."""
    for options, word in ((["--live-control"], "--live"), (["--live", "--repeat", "2"], "--repeat")):
        ended = lens("run", "--model", "m", "--base-url", "http://127.0.0.1:1", *options, cwd=tmp_path)
        assert ended.code == 2
        assert word in ended.stderr


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


def test_a_long_run_sends_little_more_than_the_numbers_of_each_tick(tmp_path: Path, ticks: list[Snapshot]) -> None:
    """Tables and charts for every tick would be gigabytes a week: from the same count of ticks on they come ever rarer."""
    state = RunState(tmp_path, "fake")
    state.message(-1)
    large, sizes = [0, 0], []
    length = 4 * POINTS
    for number in range(length):
        tick = ticks[number % len(ticks)]
        tick.elapsed_s = number + 1.0
        state.add([tick], watched=True)
        message = state.message(state.version - 1)
        assert len(message) < 5_000_000
        if len(message) > 2_000:
            large[number >= length // 2] += 1
        else:
            sizes.append(len(message))
    assert large[1] < length / 2 / 3  # of the later half
    assert max(sizes) < 1_000


def test_a_rewound_log_and_a_batch_reach_the_viewer_as_a_state(tmp_path: Path, ticks: list[Snapshot]) -> None:
    """A collector that was killed writes its last ticks again: appended to the charts they would be there twice."""
    state = state_of(tmp_path, ticks)
    state.restart()
    state.add(ticks[:7], watched=True)
    message = json.loads(state.message(state.version - 1))
    assert len(message["charts"]["times"][0]) == 7


def test_a_foreign_host_name_and_a_bare_post_are_refused(tmp_path: Path, sim: Simulator) -> None:
    """A page of another site can reach 127.0.0.1 by DNS rebinding, and can send a POST without asking."""
    with running(*load(sim, "--duration", "1h", "--live", "--live-control"), cwd=tmp_path) as process:
        url = url_in(process)
        when_up(url)
        assert fetched(url, headers={"Host": "evil.example"})[0] == 403
        assert fetched(f"{url}stop", method="POST")[0] == 403
        end = monotonic() + 1
        while monotonic() < end:
            assert process.poll() is None
            sleep(0.1)
        assert fetched(f"{url}stop", method="POST", headers={"X-Lens-Control": "stop"})[0] == 202
        assert finish(process).code == 130
    assert os.listdir(tmp_path) == ["runs"]
