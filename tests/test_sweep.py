"""`lens sweep` on the built-in simulator: its files, its answers, and how it survives signals."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import pytest

from llm_latency_lens.cli.sweep.asked import plan_of, wanted_of
from llm_latency_lens.collectors.point import CLIENT_CODES
from llm_latency_lens.collectors.sweep import DECODER
from llm_latency_lens.engine.errors import PlanError
from llm_latency_lens.engine.runs.placement import physical_cores
from llm_latency_lens.exporters.sweep.files import HEADER
from tests.support_lens import LENS, Ended, finish, lens, started
from tests.support_simulator import Simulator, simulator

SLO = "ttft_ms.p50 <= 100ms"
GRID = "1,2,16"
SLOTS: dict[str, Any] = {"ttft_ms": 20, "itl_ms": 2, "tokens": 5, "concurrency": 2}  # 16 at once wait 200 ms


def options(server: Simulator, *more: str) -> list[str]:
    target = ["--base-url", f"{server.base_url}/v1", "--model", "m", "--workers", "1"]
    return ["sweep", *target, "--warmup", "300ms", "--slo", SLO, "--json", *more]


def wait_until_point(cwd: Path, process: subprocess.Popen[str], *, points: int, timeout: float = 60) -> Path:
    """The sweep's directory, as soon as so many points are finished and the run of the next one goes on."""
    end = monotonic() + timeout
    while monotonic() < end and process.poll() is None:
        for path in cwd.glob("sweeps/*/sweep.json"):
            runs = [each for each in path.parent.glob("*/plan.json") if not each.parent.is_symlink()]
            live = [each for each in runs if (each.parent / ".live" / "snapshot.json").exists()]
            if len(json.loads(path.read_bytes())["points"]) == points and live:
                return path.parent
        sleep(0.05)
    raise AssertionError(f"no sweep in {cwd} came to point {points}: {process.poll()}")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Simulator]:
    with simulator(**SLOTS) as running:
        yield running


@pytest.fixture(scope="module")
def resumed(tmp_path_factory: pytest.TempPathFactory, server: Simulator) -> tuple[Path, Ended, bytes]:
    """A sweep that was killed in its second point, then resumed: its directory, how it ended, sweep.json before."""
    folder = tmp_path_factory.mktemp("sweep")
    with started(options(server, "--over", "concurrency", "--grid", GRID), cwd=folder) as process:
        found = wait_until_point(folder, process, points=1)
        before = (found / "sweep.json").read_bytes()
    return found, lens("sweep", "--resume", str(found), "--json", cwd=folder), before


@pytest.mark.slow
def test_a_killed_sweep_goes_on_without_running_finished_points_again(resumed: tuple[Path, Ended, bytes]) -> None:
    """A sweep may take hours: what was measured before the machine went down must count."""
    folder, done, before = resumed
    assert done.code == 0, done.stderr
    first = json.loads(before)["points"]
    points = json.loads(done.stdout)["points"]
    assert points[:1] == first
    assert sorted(point["value"] for point in points) == [1, 2, 16]
    left = [path.parent for path in folder.glob("*/plan.json") if not path.parent.is_symlink()]
    assert len(left) == 4, "three points and what the killed one left"
    assert all((path / "summary.json").exists() for path in left)


@pytest.mark.slow
def test_sweep_json_has_the_keys_that_scripts_read(resumed: tuple[Path, Ended, bytes]) -> None:
    """Names, types and meaning are fixed; stdout holds it and nothing else."""
    folder, done, _ = resumed
    found = json.loads(done.stdout)
    assert (folder / "sweep.json").read_text() == done.stdout
    assert [*found] == ["schema", "over", "slo", "answer", "knee", "peak_goodput", "points", "spent"]
    assert (found["schema"], found["over"], found["slo"]) == (1, "concurrency", [SLO])
    assert [*found["answer"]] == ["value", "ci95", "state", "limited_by"]
    assert [*found["spent"]] == ["requests", "seconds", "usd"]
    keys = ["value", "run", "state", "throughput", "metrics", "requests", "duration_s"]
    assert all([*point] == keys for point in found["points"])
    assert found["spent"]["requests"] > sum(point["requests"]["sent"] for point in found["points"])
    assert DECODER.decode(done.stdout.encode()).answer.state == found["answer"]["state"]


@pytest.mark.slow
def test_each_point_is_judged_by_its_run_and_the_answer_follows(resumed: tuple[Path, Ended, bytes]) -> None:
    """Two slots bear two requests at once, and of sixteen most wait; a disturbed run is the client's and no verdict."""
    folder, done, _ = resumed
    found = json.loads(done.stdout)
    expected = {1: "PASS", 2: "PASS", 16: "FAIL"}
    clean = True
    for point in found["points"]:
        summary = json.loads((folder / point["run"] / "summary.json").read_bytes())
        if point["state"] == "CLIENT_LIMITED":
            clean = False
            assert {reason["code"] for reason in summary["verdict"]["reasons"]} & CLIENT_CODES
        else:
            assert point["state"] == expected[point["value"]]
            assert summary["run"]["ended_by"] in ("until", "slo")
    if clean:
        assert (found["answer"]["state"], found["answer"]["ci95"]) == ("FOUND", [2, 16])
        assert found["answer"]["limited_by"] == SLO
        assert found["peak_goodput"]["value"] in (1, 2)


@pytest.mark.slow
def test_csv_and_page_hold_every_point(resumed: tuple[Path, Ended, bytes]) -> None:
    """They are what people keep: a row per point, and a page that opens offline."""
    folder, done, _ = resumed
    with (folder / "points.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["value"]) for row in rows] == [1, 2, 16]
    assert [*rows[0]] == [*HEADER]
    page = (folder / "report.html").read_text()
    assert page.count("<svg") >= 2
    assert "http" not in page.replace("http://www.w3.org", "")
    assert all(point["run"] in page for point in json.loads(done.stdout)["points"])


@pytest.mark.slow
def test_sweeps_are_compared_point_by_point(resumed: tuple[Path, Ended, bytes], tmp_path: Path) -> None:
    """A sweep and its copy: every load that was usable is compared, nothing is worse, and both curves are drawn."""
    folder, done, _ = resumed
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy, symlinks=True)
    compared = lens("compare", str(folder), "--", str(copy), "--json", "--html", "page.html", cwd=tmp_path)
    assert compared.code == 0, compared.stderr
    found = json.loads(compared.stdout)
    usable = [p["value"] for p in json.loads(done.stdout)["points"] if p["state"] != "CLIENT_LIMITED"]
    for value in usable:
        assert any(f" at {value:g} requests in flight" in each["target"] for each in found["comparisons"])
    assert {each["verdict"] for each in found["comparisons"]} <= {"same", "undecided"}
    assert found["base"] == [folder.name]
    assert "<svg" in (tmp_path / "page.html").read_text()
    twice = lens("compare", str(folder), "--", str(folder), cwd=tmp_path)
    assert (twice.code, "given twice" in twice.stderr) == (2, True)
    mixed = lens("compare", str(folder), "--", str(folder / "latest"), cwd=tmp_path)
    assert mixed.code == 2


@pytest.mark.slow
def test_a_sweep_is_resumed_only_as_what_it_is(resumed: tuple[Path, Ended, bytes], tmp_path: Path) -> None:
    """Points of two plans in one curve would be a curve of nothing."""
    folder, _, _ = resumed
    other = tmp_path / "other.yaml"
    other.write_text(
        json.dumps({"target": {"base_url": "http://127.0.0.1:1/v1", "model": "m"}, "slo": ["ttft_ms.p50 <= 1"]})
    )
    for arguments, expected in (
        ([str(other), "--resume", str(folder)], "is not the plan of"),
        (["--resume", str(folder), "--over", "rate=1:2"], "--over"),
        (["--resume", str(folder), "--slo", "ttft_ms.p50 <= 1"], "--slo cannot stand beside --resume"),
        (["--resume", str(tmp_path)], "is not the directory of a sweep"),
    ):
        refused = lens("sweep", *arguments, cwd=tmp_path)
        assert (refused.code, expected in refused.stderr) == (2, True), refused.stderr


@pytest.mark.slow
def test_ctrl_c_ends_a_sweep_with_what_is_known(server: Simulator, tmp_path: Path) -> None:
    """The run drains, sweep.json and report are there, and the exit code says that it was interrupted."""
    with started(options(server, "--over", "concurrency=1:8"), cwd=tmp_path) as process:
        folder = wait_until_point(tmp_path, process, points=0)
        process.send_signal(signal.SIGINT)
        done = finish(process, timeout=90)
    assert done.code == 130, done.stderr
    found = json.loads(done.stdout)
    assert (found["answer"]["state"], found["points"]) == ("UNDECIDED", [])
    assert found["spent"]["requests"] > 0
    assert (folder / "report.html").exists()


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_client_without_cpu_time_is_never_taken_for_the_server(server: Simulator, tmp_path: Path) -> None:
    """Busy programs on the worker's core, and the worker at the lowest priority: its own waiting is all that it measures."""
    core = physical_cores(sorted(os.sched_getaffinity(0)))[-1]
    busy = f"import os\nos.sched_setaffinity(0, {{{core}}})\nwhile True: pass"
    hogs = [subprocess.Popen([sys.executable, "-c", busy]) for _ in range(2)]
    try:
        load = ["--over", "rate=60:120", "--precision", "25%", "--arrivals", "poisson", "--duration", "3s"]
        with started(options(server, *load), cwd=tmp_path, program=["nice", "-n", "19", *LENS]) as process:
            done = finish(process, timeout=280)
    finally:
        for hog in hogs:
            hog.kill()
            hog.wait()
    found = json.loads(done.stdout)
    assert done.code == 4, done.stderr
    assert found["answer"]["state"] in ("CLIENT_LIMITED", "UNDECIDED")
    assert "CLIENT_LIMITED" in {point["state"] for point in found["points"]}


@pytest.mark.slow
def test_a_server_that_answers_nothing_is_no_server_without_capacity(tmp_path: Path) -> None:
    """BELOW_RANGE would be an answer; this is a failure, and nothing is left of a sweep that never began."""
    load = ["--over", "rate=20:40", "--duration", "3s"]
    with simulator(**SLOTS, faults={"500": 1.0}) as failing:
        done = lens(*options(failing, *load), cwd=tmp_path)
    assert (done.code, "no request of" in done.stderr) == (1, True), done.stderr
    for folder in tmp_path.glob("sweeps/*"):
        shutil.rmtree(folder)
    refused = lens(*options(failing, *load), cwd=tmp_path)
    assert (refused.code, "refused the connection" in refused.stderr) == (1, True), refused.stderr
    assert not [*tmp_path.glob("sweeps/*")]


@pytest.mark.parametrize(
    ("over", "grid", "expected"),
    [
        (None, None, "needs the load that it varies"),
        ("rps=1:10", None, "'rps' is no load"),
        ("rate", None, "has no range"),
        ("rate=10", None, "is not rate=LOW:HIGH"),
        ("rate=1:2:3", None, "is not rate=LOW:HIGH"),
        ("rate=10:10", None, "LOW must be below HIGH"),
        ("rate=20:10", None, "LOW must be below HIGH"),
        ("rate=0:10", None, "must be above 0"),
        ("rate=-1:10", None, "must be above 0"),
        ("rate=1:nan", None, "is not a rate"),
        ("rate=1:1e12", None, "at most 1,000,000"),
        ("concurrency=1:2.5", None, "is not a number of requests in flight"),
        ("concurrency=0:4", None, "must be above 0"),
        ("rate", "5", "two different loads"),
        ("rate", "1,2,2", "names a load twice"),
        ("rate", "", "is not a rate"),
        ("rate=1:10", "2,20", "20 is outside"),
    ],
)
def test_a_range_that_makes_no_sense_is_refused(over: str | None, grid: str | None, expected: str) -> None:
    """Before anything is sent, with what is wrong and what would be right."""
    with pytest.raises(PlanError, match=expected):
        wanted_of(over, grid, precision=0.05, require=None)


@pytest.mark.parametrize(
    ("plan", "flags", "expected"),
    [
        ({}, {"slo": ()}, "needs an objective"),
        ({}, {"slo": ("ttft_ms.p98 <= 1",)}, "there is no 'p98'"),
        ({}, {"rate": "5"}, "leave out --rate"),
        ({"load": {"rate": {"from": 1, "to": 5}}, "duration": "9s"}, {}, "changes over time"),
        ({"load": {"rate": {"steps": [[1, "5s"], [2, "5s"]]}}}, {}, "changes over time"),
        ({"load": {"replay": True}}, {}, "replays a trace"),
        ({"phases": [{"duration": "1s", "load": {"rate": 1}}, {"duration": "1s", "load": {"rate": 2}}]}, {}, "measures 2"),
        ({"phases": [{"duration": "1s", "load": {"rate": 1}}, {"duration": "1s", "load": {"rate": 2}, "measure": False}]}, {}, "its own phases"),
        ({"probe": {"every": "10s"}}, {}, "lens probe"),
        ({"gpus": {"count": 0}}, {}, "count must be >= 1"),
    ],
)  # fmt: skip
def test_a_plan_with_another_load_is_refused(
    plan: dict[str, Any], flags: dict[str, Any], expected: str, tmp_path: Path
) -> None:
    """A load that the sweep silently replaced would make people believe that theirs was measured."""
    path = tmp_path / "plan.yaml"
    path.write_text(json.dumps({"target": {"base_url": "http://127.0.0.1:1/v1", "model": "m"}} | plan))
    with pytest.raises(PlanError, match=expected):
        plan_of(str(path), {"slo": (SLO,)} | flags, wanted_of("rate=1:10", None, precision=0.05, require=None))


def test_a_wrong_sweep_ends_with_exit_code_2(tmp_path: Path) -> None:
    """As every plan that is wrong."""
    done = lens("sweep", "--simulate", "--over", "rate=9:3", "--slo", SLO, cwd=tmp_path)
    assert (done.code, "LOW must be below HIGH" in done.stderr) == (2, True)
    assert not (tmp_path / "sweeps").exists()
