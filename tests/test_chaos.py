"""What survives what: real processes are killed, stopped and robbed of their disk; the totals are checked at the end.

`LENS_CHAOS_KILLS=100 pytest tests/test_chaos.py` kills more; `python -m tests.chaos --hours 8` goes on for hours.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from time import monotonic, sleep

import psutil
import pytest

from llm_latency_lens.collectors.report import RANGES_SHOWN, tick_ranges
from llm_latency_lens.engine.runs.manifest import OUTAGES_KEPT, Manifest
from tests.chaos import KILLS_A_TURN, RATE, REPLIES, WORKERS, everything, load, pids_of, reconcile, rows_of, storm
from tests.support_collector import SECOND
from tests.support_collector import plan as small_plan
from tests.support_lens import Ended, accounts, finish, lens, manifest_of, running
from tests.support_simulator import simulator

DEADLINE_S = 30.0
STOP_S = 1.5
HERE = Path(__file__).parents[1]
SMALL_RINGS = [
    sys.executable,
    "-c",
    f"import sys; sys.path.append({str(HERE)!r}); import tests.chaos; tests.chaos.lens_with_small_rings()",
]
KILLS = int(os.environ.get("LENS_CHAOS_KILLS", "24"))


def until(condition: Callable[[], object], what: str = "what was waited for") -> None:
    end = monotonic() + DEADLINE_S
    while not condition():
        assert monotonic() < end, f"{what} did not come"
        sleep(0.02)


@contextmanager
def stopped(pid: int) -> Iterator[None]:
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MB."""
    with mounted(tmp_path / "disk", "1m") as path:
        yield path


@contextmanager
def mounted(path: Path, size: str) -> Iterator[Path]:
    """A tmpfs of that size. Skips the test where that is not allowed."""
    path.mkdir()
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", path], capture_output=True, text=True)
    if mount.returncode:
        pytest.skip(f"needs to mount a tmpfs: {mount.stderr.strip()}")
    try:
        yield path
    finally:
        subprocess.run(["umount", "--lazy", path], check=True)


def fill(disk: Path) -> Path:
    """Takes all its room; gives the file to delete."""
    ballast = disk / "ballast"
    with ballast.open("wb", buffering=0) as file, suppress(OSError):
        while file.write(bytes(4096)):
            pass
    return ballast


def read_only(directory: Path) -> Callable[[], None]:
    """Lays an empty read-only file system over a directory; gives what takes it away."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", "ro,size=4k", "none", directory], check=True)
    return lambda: subprocess.run(["umount", "--lazy", directory], check=True) and None


def reasons(ended: Ended) -> dict[str, str]:
    return {reason["code"]: reason["detail"] for reason in ended.summary["verdict"]["reasons"]}


@pytest.mark.slow
@pytest.mark.timeout(120 + KILLS * 2)
def test_random_kills_of_workers_and_collector_lose_nothing_and_count_nothing_twice(tmp_path: Path) -> None:
    """The claim of the design: any process may die at any moment."""
    killed = storm(KILLS, 6, tmp_path)
    assert {"worker", "collector"} <= set(killed)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_every_kind_of_trouble_is_survived_once(tmp_path: Path) -> None:
    """One turn of `python -m tests.chaos --all`, which goes on for 20 minutes; odd plans have tests of their own."""
    done = everything(0.01, 8, tmp_path / "chaos", plans=False)
    assert done["kills"] >= KILLS_A_TURN


@pytest.mark.slow
@pytest.mark.parametrize("victims", ["everything", "supervisor"])
def test_a_run_that_was_killed_whole_is_recovered_to_the_request(victims: str, tmp_path: Path) -> None:
    """`lens recover` reports what the server logged: those in flight are lost, the others ended as they ended."""
    with simulator(**REPLIES) as server:
        with running(*load(server, "--duration", "1h"), cwd=tmp_path) as process:
            _, manifest = manifest_of(tmp_path)
            until(lambda: server.stats()["requests"] > RATE)
            pids = manifest["pids"] if victims == "everything" else {"supervisor": process.pid}
            for pid in random.Random(victims).sample(sorted(pids.values()), len(pids)):
                with suppress(ProcessLookupError):  # dead already, with its supervisor
                    os.kill(pid, signal.SIGKILL)
            process.wait(10)
        recovered = lens("recover", "runs/latest", "--json", cwd=tmp_path)
        log = server.log(server.stats()["requests"])
    assert recovered.code == 0, recovered.stderr
    requests = recovered.summary["requests"]
    killed = {"worker": WORKERS, "collector": 1}
    reconcile(tmp_path / "runs" / "latest", recovered, len(log), killed, ended_together=False)
    assert requests["ok"] <= sum(row["completed"] for row in log) <= requests["ok"] + requests["failed"].get("lost", 0)
    assert recovered.summary["verdict"]["state"] == "INVALID"
    assert "stopped" in [reason["code"] for reason in recovered.summary["verdict"]["reasons"]]


@pytest.mark.slow
@pytest.mark.parametrize("after_ms", [0, 30, 100, 300, 600])
def test_no_process_outlives_a_supervisor_that_is_killed_while_it_starts_them(after_ms: int, tmp_path: Path) -> None:
    """A worker without a supervisor would send, and cost money, for as long as its phase lasts."""
    with simulator(**REPLIES) as sim:
        arguments = ("--base-url", f"{sim.base_url}/v1", "--model", "m", "--rate", "10", "--duration", "60s")
        with running(*arguments, cwd=tmp_path) as process:
            manifest_file = tmp_path / "runs/latest/.live/run.json"
            until(lambda: manifest_file.exists() and "collector" in json.loads(manifest_file.read_bytes())["pids"])
            segments, pids = manifest_file.resolve().parent, json.loads(manifest_file.read_bytes())["pids"]
            sleep(after_ms / 1000)
            process.kill()
            process.wait()
        until(lambda: not any(psutil.pid_exists(pid) for pid in pids.values()), "the end of all of them")
    shutil.rmtree(segments)


@pytest.mark.slow
def test_a_worker_that_dies_in_vain_again_and_again_ends_the_run_with_its_books_closed(tmp_path: Path) -> None:
    """A worker that cannot start must end the run, not keep it busy with restarts."""
    with simulator(**REPLIES) as server:
        with running(*load(server, "--duration", "1h"), cwd=tmp_path) as process:
            segments, _ = manifest_of(tmp_path)
            until(lambda: server.stats()["requests"] > RATE // 2)
            killed = {0}
            while process.poll() is None:
                pid = pids_of(segments).get("worker-0", 0)
                if pid not in killed:
                    killed.add(pid)
                    os.kill(pid, signal.SIGKILL)
                sleep(0.01)
            ended = finish(process)
        received = server.stats()["requests"]
    assert ended.code == 1
    assert "worker 0 died 5 times right after its start" in ended.stderr.splitlines()[-1]
    summary = json.loads((tmp_path / "runs" / "latest" / "summary.json").read_text())
    accounts(summary["requests"])
    assert 0 <= summary["requests"]["sent"] - received <= WORKERS
    assert "stopped" in [reason["code"] for reason in summary["verdict"]["reasons"]]
    assert not segments.exists()


@pytest.mark.slow
def test_a_collector_stopped_for_8_s_costs_nothing_nor_does_a_stopped_supervisor(tmp_path: Path) -> None:
    """The rings are sized for that: measuring depends on the workers alone."""
    with simulator(**REPLIES) as server:
        with running(*load(server, "--duration", "9s"), cwd=tmp_path) as process:
            _, manifest = manifest_of(tmp_path)
            with stopped(manifest["pids"]["collector"]):
                sleep(6)
                with stopped(process.pid):
                    sleep(2)
            ended = finish(process)
        received = server.stats()["requests"]
    assert ended.code == 0, ended.stderr
    reconcile(tmp_path / "runs" / "latest", ended, received, {"worker": 0, "collector": 0})
    assert ended.summary["requests"]["ok"] == ended.summary["requests"]["planned"] == received == 9 * RATE
    assert "ring_drops" not in reasons(ended)


@pytest.mark.slow
def test_a_collector_stopped_past_the_rings_room_drops_are_exact_and_make_the_run_invalid(tmp_path: Path) -> None:
    """What is lost is counted, and a report with a loss says that it is not valid."""
    with simulator(**REPLIES) as server:
        with running(*load(server, "--duration", "3s"), cwd=tmp_path, program=SMALL_RINGS) as process:
            _, manifest = manifest_of(tmp_path)
            with stopped(manifest["pids"]["collector"]):
                until(lambda: server.stats()["requests"] > 2.5 * RATE)
            ended = finish(process)
        received = server.stats()["requests"]
    assert ended.code == 0, ended.stderr
    requests, client = ended.summary["requests"], ended.summary["client"]
    accounts(requests)
    assert requests["ok"] == requests["planned"] == received == 3 * RATE  # outcomes are known of the dropped too
    assert client["ring_drops"] == 3 * RATE - len(rows_of(tmp_path / "runs" / "latest")) > 0
    assert ended.summary["metrics"]["ttft_ms"]["count"] == 3 * RATE - client["ring_drops"]
    assert ended.summary["verdict"]["state"] == "INVALID"
    assert f"{client['ring_drops']} records" in reasons(ended)["ring_drops"]


@pytest.mark.slow
def test_a_stopped_worker_sends_late_and_says_so_and_its_latencies_stay_the_kernels(tmp_path: Path) -> None:
    """A pause of the measuring side must appear as lateness and never as the server's latency."""
    with simulator(**REPLIES) as server:
        with running(*load(server, "--duration", "3s"), cwd=tmp_path) as process:
            _, manifest = manifest_of(tmp_path)
            until(lambda: server.stats()["requests"] > RATE // 2)
            with stopped(manifest["pids"]["worker-0"]):
                sleep(STOP_S)
            ended = finish(process)
        received = server.stats()["requests"]
    assert ended.code == 0, ended.stderr
    reconcile(tmp_path / "runs" / "latest", ended, received, {"worker": 0, "collector": 0})
    metrics = ended.summary["metrics"]
    assert metrics["lateness_ms"]["max"] > STOP_S * 900
    assert metrics["ttft_ms"]["max"] < STOP_S * 500
    assert "lateness" in reasons(ended)


REMOVALS = [
    ("worker-0", True),  # its successor goes on after the last slot in the segment that no name leads to any more
    ("collector", False),  # the next one cannot find the segments that are still written
]


@pytest.mark.slow
@pytest.mark.parametrize(("killed", "balanced"), REMOVALS)
def test_a_removed_segment_directory_costs_nothing_while_the_collector_lives(
    killed: str, balanced: bool, tmp_path: Path
) -> None:
    """A cleaner of temporary files may remove it; whoever has it open goes on."""
    with simulator(**REPLIES) as server:
        with running(*load(server, "--duration", "3s"), cwd=tmp_path) as process:
            segments, manifest = manifest_of(tmp_path)
            until(lambda: server.stats()["requests"] > RATE)
            shutil.rmtree(segments)
            until((segments / "checkpoint").exists)
            os.kill(manifest["pids"][killed], signal.SIGKILL)
            ended = finish(process)
        received = server.stats()["requests"]
    assert ended.code == 0, ended.stderr
    if balanced:
        reconcile(tmp_path / "runs" / "latest", ended, received, {"worker": 1, "collector": 0})
    else:
        assert "totals_do_not_balance" in reasons(ended)


@pytest.mark.slow
def test_a_tmpfs_that_is_full_for_a_while_costs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rings have their memory already; run.json and the checkpoint are tried again until they are written."""
    with mounted(tmp_path / "tmpfs", "64m") as tmpfs, simulator(**REPLIES) as server:
        monkeypatch.setenv("RUNTIME_DIRECTORY", str(tmpfs))
        with running(*load(server, "--duration", "3s"), cwd=tmp_path) as process:
            segments, _ = manifest_of(tmp_path)
            until((segments / "checkpoint").exists)
            ballast = fill(tmpfs)
            os.kill(pids_of(segments)["collector"], signal.SIGKILL)
            until(lambda: server.stats()["requests"] > 2.5 * RATE)
            ballast.unlink()
            ended = finish(process)
        received = server.stats()["requests"]
    assert ended.code == 0, ended.stderr
    reconcile(tmp_path / "runs" / "latest", ended, received, {"worker": 0, "collector": 1})
    assert ended.summary["client"]["collector_restarts"] == 1


@pytest.mark.slow
def test_a_disk_that_is_full_for_a_while_costs_nothing(small_disk: Path) -> None:
    """Ticks and rows wait in memory until there is room."""
    with simulator(**REPLIES) as server:
        with running(*load(server, "--duration", "3s"), cwd=small_disk) as process:
            manifest_of(small_disk)
            ballast = fill(small_disk)
            until(lambda: server.stats()["requests"] > 2.5 * RATE)
            ballast.unlink()
            ended = finish(process)
        received = server.stats()["requests"]
    assert ended.code == 0, ended.stderr
    reconcile(small_disk / "runs" / "latest", ended, received, {"worker": 0, "collector": 0})
    assert ended.summary["client"]["export_failures"] > 0
    assert "export_failures" in reasons(ended)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["full", "read-only"])
def test_a_disk_that_takes_no_summary_leaves_the_books_to_recover(how: str, small_disk: Path) -> None:
    """Exit code 1 and the way out; the totals are whole once there is room, only rows may be missing, and are counted."""
    with simulator(**REPLIES) as server:
        with running(*load(server, "--duration", "1s"), cwd=small_disk) as process:
            manifest_of(small_disk)
            undo = fill(small_disk).unlink if how == "full" else read_only(small_disk / "runs")
            try:
                ended = finish(process)
            finally:
                undo()
        received = server.stats()["requests"]
    assert (ended.code, ended.stdout) == (1, "")
    assert "lens recover" in ended.stderr.splitlines()[-1]
    recovered = lens("recover", "runs/latest", "--json", cwd=small_disk)
    requests = recovered.summary["requests"]
    assert requests["ok"] == requests["sent"] == received == RATE
    made = rows_of(small_disk / "runs" / "latest")
    assert len(made) + recovered.summary["client"]["records_dropped"] >= received
    assert len({row["request"] for row in made}) == len(made)


OUTAGES = [
    ([], ""),
    ([(3.2, 3.9)], "ticks 3"),
    ([(3.2, 4.1)], "ticks 3-4"),
    ([(3.2, 3.4), (4.1, 4.2), (9.0, 9.1)], "ticks 3-4, 9"),  # neighbours are one range
    ([(9.0, 9.1), (3.2, 3.4)], "ticks 3, 9"),  # of two workers, in no order
    ([(-1.0, 0.5)], "ticks 0"),  # dead before the first slot
    (
        [(n * 2.0, n * 2.0) for n in range(RANGES_SHOWN + 5)],
        "ticks 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, ... 4 more ..., 28",
    ),
]


@pytest.mark.parametrize(("spans", "ticks"), OUTAGES)
def test_outages_are_reported_as_ticks(spans: list[tuple[float, float]], ticks: str) -> None:
    """The reader finds them in the time series by their numbers."""
    start = 100 * SECOND
    moments = [(start + int(a * SECOND), start + int(b * SECOND)) for a, b in spans]
    assert tick_ranges(moments, start, SECOND) == ticks


def test_outages_that_touch_are_one_and_their_number_is_bounded() -> None:
    """The manifest is written at each death and must not grow with their number."""
    manifest = Manifest(
        run_id="r", run_dir="r", version="0", plan=small_plan(), plan_sha256="", workers=1, started_at=""
    )
    manifest.add_outage(10, 20)
    manifest.add_outage(15, 30)
    assert manifest.outages == [(10, 30)]
    for number in range(2 * OUTAGES_KEPT):
        manifest.add_outage(100 + 10 * number, 101 + 10 * number)
    assert len(manifest.outages) == OUTAGES_KEPT
    assert manifest.outages[-1][1] == 101 + 10 * (2 * OUTAGES_KEPT - 1)
