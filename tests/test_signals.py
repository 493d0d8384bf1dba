"""Signals to `lens run` at its most awkward moments: whoever stops a run must not pay for all of it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from time import monotonic, sleep

import pytest

from tests.chaos import signalled_after
from tests.support_lens import LENS, accounts, environment, finish, manifest_of, running
from tests.support_simulator import FAST, Simulator, simulator


@pytest.fixture(scope="module")
def sim() -> Iterator[Simulator]:
    with simulator(**FAST) as server:
        yield server


def day_long(sim: Simulator) -> tuple[str, ...]:
    return ("--base-url", f"{sim.base_url}/v1", "--model", "m", "--rate", "20", "--duration", "24h")


def run_dir_of(cwd: Path) -> Path:
    """The run directory, as soon as there is one."""
    end = monotonic() + 30
    while not (found := list((cwd / "runs").glob("2*"))):
        assert monotonic() < end
        sleep(0.005)
    return found[0]


def summary_of(cwd: Path) -> dict[str, dict[str, int]]:
    (path,) = (cwd / "runs").glob("2*/summary.json")
    found: dict[str, dict[str, int]] = json.loads(path.read_bytes())
    return found


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_before_the_first_request_ends_the_run_with_a_summary(
    number: signal.Signals, sim: Simulator, tmp_path: Path
) -> None:
    """It used to be swallowed by the start, and 24 h of load and cost followed."""
    with running(*day_long(sim), cwd=tmp_path) as process:
        run_dir_of(tmp_path)
        process.send_signal(number)
        ended = finish(process)
    assert ended.code == 130, ended.stderr
    assert "Traceback" not in ended.stderr
    accounts(ended.summary["requests"])
    assert summary_of(tmp_path)["requests"]["sent"] <= 5


@pytest.mark.slow
@pytest.mark.parametrize("pair", [(signal.SIGINT, signal.SIGTERM), (signal.SIGTERM, signal.SIGHUP)])
def test_two_signals_at_once_stop_the_run_as_two_do(
    pair: tuple[signal.Signals, signal.Signals], sim: Simulator, tmp_path: Path
) -> None:
    """Seen as one wake-up they were neither the first nor the second: exit code 0, VALID, no word of it."""
    with running(*day_long(sim), cwd=tmp_path) as process:
        manifest_of(tmp_path)
        for number in pair:
            os.kill(process.pid, number)
        ended = finish(process)
    assert ended.code == 130, ended.stderr
    accounts(ended.summary["requests"])
    assert ended.summary["requests"]["unsent"]["stopped"] > 0


@pytest.mark.slow
def test_a_closed_terminal_is_a_sigterm_and_the_report_is_written(sim: Simulator, tmp_path: Path) -> None:
    """SIGHUP killed the run without a summary and left its segments; a stderr that is gone changes nothing."""
    read, write = os.pipe()
    process = subprocess.Popen(
        [*LENS, "run", *day_long(sim)], cwd=tmp_path, env=environment(), stdout=write, stderr=write
    )
    os.close(write)
    os.close(read)
    try:
        manifest_of(tmp_path)
        process.send_signal(signal.SIGHUP)
        process.wait(60)
    finally:
        process.kill()
        process.wait()
    accounts(summary_of(tmp_path)["requests"])


@pytest.mark.slow
def test_a_signal_at_any_moment_of_the_first_second_ends_it(sim: Simulator, tmp_path: Path) -> None:
    """Whatever is being imported, resolved or started then: no hang, no orphan, no run without a summary."""
    for step in range(6):
        cwd = tmp_path / str(step)
        cwd.mkdir()
        signalled_after(0.15 * step + 0.05, day_long(sim), cwd)
