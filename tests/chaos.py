"""Kills a run's processes at random, with a server that fails now and then, and checks its counts against the simulator's.

    python -m tests.chaos --kills 100
    python -m tests.chaos --hours 8 --seed 7
    python -m tests.chaos --all --minutes 20

With `--hours` one run of kills follows another. `--all` also kills supervisors, sends signals in a run's first second, and
tries odd plans and damaged directories: no traceback, no hang, no process left after 5 s, no wrong exit code. It ends with 1
at the first thing that is not so.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from time import monotonic, sleep
from typing import Any, Final

import msgpack
import psutil

from llm_latency_lens.engine.errors import LensError
from tests.support_damage import damage, killed_run, recovered, reported
from tests.support_databases import free_port
from tests.support_lens import Ended, accounts, finish, lens, manifest_of, running
from tests.support_simulator import Simulator, simulator

TOKENS: Final = 8
WORKERS: Final = 2
RATE: Final = 150
REPLIES: Final[dict[str, Any]] = {"ttft_ms": 15, "itl_ms": 4, "tokens": TOKENS}
FAULTS: Final = {"429": 0.02, "500": 0.02, "reset": 0.02, "cut": 0.02, "truncate": 0.02, "stall": 0.01}
DURING_START_S: Final = (0.02, 0.3)  # a process is killed so long after it was spawned ...
AT_WORK_S: Final = (0.15, 0.6)  # ... or so long after it mapped its ring
EARLY_SHARE: Final = 0.3
EARLY_IN_A_ROW: Final = 2  # five deaths in a row of a worker at its start end a run
ORPHAN_S: Final = 5.0  # how long a process may outlive its killed run
KILLS_A_TURN: Final = 20
ENOUGH: Final = {"kills": 400, "signals": 40, "plans": 600, "damaged": 600}
PLAN: Final = """\
name: odd
targets:
  - {name: a, base_url: 'http://127.0.0.1:9/v1', model: m, parameters: {top_p: 0.9}}
workload: {prompt: some words, output_tokens: 32}
load: {rate: 5/s, arrivals: poisson}
duration: 10s
limits: {drain: 3s, timeout: 20s, max_error_rate: 0.5}
seed: 7
slo: ['ttft_ms.p95 < 500']
"""
ODD: Final = (
    "0x_", "0b_", "2026-99-99", "\0", "~nosuchuser/x", "[" * 400, "{a: " * 200, "9" * 6000, "1e308", "-1", "1e-300",
    "1ns", "*a", "&a [*a]", "<<: x", "!!python/name:os.system", "\ud800".encode("utf-8", "replace").decode(), "\u2028",
    "null", "true", "''", ": ", "- ", "\n", "\t", "${HOME}", "${NO_SUCH}", "gamma:1e-300", "2**70", ".inf", ".nan", "#",
)  # fmt: skip


def load(server: Simulator, *more: str) -> tuple[str, ...]:
    """The flags of an open loop against the simulator, over two workers."""
    page = ("--export", f"prometheus://127.0.0.1:{free_port()}")
    base = (
        *page,
        "--base-url",
        f"{server.base_url}/v1",
        "--model",
        "m",
        "--workers",
        str(WORKERS),
        "--max-in-flight",
        "64",
    )
    return *base, "--rate", str(RATE), *more


def storm(kills: int, seed: int, directory: Path) -> dict[str, int]:
    """One run with so many SIGKILLs and a server that fails now and then, then Ctrl-C, with the kills going on. Gives what was killed, by role.

    Raises AssertionError if the totals do not balance.
    """
    with (
        simulator(faults=FAULTS, **REPLIES) as server,
        running(*load(server, "--duration", "24h", "--timeout", "1s"), cwd=directory) as process,
    ):
        segments, _ = manifest_of(directory)
        killer = Killer(segments, random.Random(seed))
        while killer.count < kills:
            assert process.poll() is None, process.communicate()
            killer.turn()
        process.send_signal(signal.SIGINT)
        while process.poll() is None and json.loads(_text(segments / "run.json") or "{}").get("state") != "finished":
            killer.turn()
        ended = finish(process)
        assert ended.code == 130, ended.stderr
        reconcile(directory / "runs" / "latest", ended, server.stats()["requests"], killer.killed)
    return dict(killer.killed)


class Killer:
    """Kills each process of a run a random time after it was born, again and again."""

    def __init__(self, segments: Path, dice: random.Random) -> None:
        self.segments = segments
        self.dice = dice
        self.killed: Counter[str] = Counter()
        self.due: dict[str, tuple[int, float]] = {}  # role -> (pid, when; 0.0: once it is at work)
        self.done: dict[str, int] = {}
        self.early: Counter[str] = Counter()

    @property
    def count(self) -> int:
        return self.killed.total()

    def turn(self) -> None:
        """Kills who is due."""
        for role, pid in (pids_of(self.segments) | self._exporter()).items():
            if role != "supervisor" and self.done.get(role) != pid and self._is_due(role, pid):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                    self.killed[role.partition("-")[0]] += 1
                self.done[role] = pid
        sleep(0.01)

    def _exporter(self) -> dict[str, int]:
        supervisor = pids_of(self.segments).get("supervisor", 0)
        with suppress(psutil.Error):
            for each in psutil.Process(supervisor).children() if supervisor else ():
                if "llm_latency_lens.cli.processes.export" in each.cmdline():
                    return {"exporter": each.pid}
        return {}

    def _is_due(self, role: str, pid: int) -> bool:
        known, at = self.due.get(role, (0, 0.0))
        if known != pid:
            early = self.dice.random() < EARLY_SHARE and self.early[role] < EARLY_IN_A_ROW
            self.early[role] = self.early[role] + 1 if early else 0
            at = monotonic() + self.dice.uniform(*DURING_START_S) if early else 0.0
        elif not at and (role == "exporter" or ".ring" in _text(Path(f"/proc/{pid}/maps"))):
            at = monotonic() + self.dice.uniform(*AT_WORK_S)
        self.due[role] = pid, at
        return 0.0 < at < monotonic()


def pids_of(segments: Path) -> dict[str, int]:
    """The run's processes by role; none once its totals are closed."""
    found: dict[str, int] = json.loads(_text(segments / "run.json") or '{"pids": {}}')["pids"]
    return found


def reconcile(
    run_dir: Path, ended: Ended, received: int, killed: Mapping[str, int], *, ended_together: bool = True
) -> None:
    """Every slot once, in the totals, the rows and the ticks alike, and as many sent as the server received.

    Workers that were killed did not end together: on a busy machine one of them sends some slots more than the other.
    """
    summary = ended.summary
    requests, client = summary["requests"], summary["client"]
    accounts(requests)
    unreached = (
        requests["sent"] - received
    )  # marked as sent, killed before send(): one per incarnation at most, and lost
    assert 0 <= unreached <= min(killed["worker"], requests["failed"].get("lost", 0)), (received, requests)
    assert client["ring_drops"] == client["records_dropped"] == 0
    assert client["restarts"] <= killed["worker"]
    assert not client["restarts"] or any(
        reason["code"] == "worker_restarts" and "affected: ticks " in reason["detail"]
        for reason in summary["verdict"]["reasons"]
    )
    assert client["collector_restarts"] <= killed["collector"]
    assert client["exporter_restarts"] <= killed.get("exporter", 0)
    made = rows_of(run_dir)
    slots = sorted(slots_of(made))
    assert len(slots) == requests["planned"]
    for worker in range(WORKERS):
        own = [slot for slot in slots if slot % WORKERS == worker]
        assert own == list(range(worker, WORKERS * len(own), WORKERS)), (worker, own)
    assert not ended_together or slots == list(range(requests["planned"])), slots
    by_outcome = Counter(row["outcome"] for row in made if row["outcome"] != "unsent")
    assert by_outcome == Counter({"ok": requests["ok"]} | requests["failed"])
    assert {row["token_events"] for row in made if row["outcome"] == "ok"} <= {TOKENS}
    metrics = summary["metrics"]
    coalesced = sum(row["coalesced"] for row in made if row["outcome"] == "ok")
    assert metrics["ttft_ms"]["count"] == requests["ok"]
    assert metrics["itl_ms"]["count"] + coalesced == requests["ok"] * (TOKENS - 1)
    ticks = [json.loads(line) for line in (run_dir / "intervals.jsonl").read_text().splitlines()]
    assert [tick["tick"] for tick in ticks] == list(range(len(ticks)))
    assert ticks_sum(ticks) == by_outcome


def rows_of(run_dir: Path) -> list[dict[str, Any]]:
    with (run_dir / "requests.msgpack").open("rb") as file:
        return list(msgpack.Unpacker(file))


def slots_of(made: list[dict[str, Any]]) -> Iterator[int]:
    """The slots of all rows; a run of unsent ones is every WORKERS-th from the first on."""
    for row in made:
        yield from range(row["request"], row["request"] + row["slots"] * WORKERS, WORKERS)


def ticks_sum(ticks: list[dict[str, Any]]) -> Counter[str]:
    """Outcomes over all ticks."""
    total: Counter[str] = Counter()
    for tick in ticks:
        for interval in tick["intervals"]:
            total.update({"ok": interval["requests"]["ok"]} | interval["requests"]["failed"])
    return +total


def lens_with_small_rings() -> None:
    """`lens` with room for 128 records a worker, 1.7 s of the load."""
    from llm_latency_lens.cli import launch
    from llm_latency_lens.cli.main import main as program

    usual = launch.geometry_of
    launch.geometry_of = lambda *given: usual(*given)._replace(requests=128)
    sys.exit(program())


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def killed_whole(moment_s: float, directory: Path) -> None:
    """SIGKILL of a run's supervisor so long after its start: all its processes follow, and the run is recovered."""
    directory.mkdir()
    with simulator(**REPLIES) as server:
        with running(*load(server, "--duration", "24h"), cwd=directory) as process:
            sleep(moment_s)
            family = psutil.Process(process.pid).children(recursive=True)
            process.kill()
            process.wait()
        _, left = psutil.wait_procs(family, timeout=ORPHAN_S)
        assert not left, left
        received = server.stats()["requests"]
    for run_dir in (directory / "runs").glob("2*"):
        done = lens("recover", str(run_dir), "--json", cwd=directory)
        assert "Traceback" not in done.stderr
        if done.code:  # it had not begun
            assert received == 0
            assert "had begun" in done.stderr or "just starting" in done.stderr, done.stderr
            shutil.rmtree((run_dir / ".live").resolve(), ignore_errors=True)
        else:
            accounts(done.summary["requests"])
            assert abs(done.summary["requests"]["sent"] - received) <= WORKERS


def signalled_after(delay_s: float, arguments: tuple[str, ...], cwd: Path) -> Ended:
    """SIGTERM so long after the start of `lens run`; checks what must be true at any moment."""
    with running(*arguments, cwd=cwd) as process:
        sleep(delay_s)  # the moment is what is tested
        process.terminate()
        ended = finish(process)
    assert ended.code in (130, -signal.SIGTERM), ended  # the latter: the interpreter itself was not up yet
    assert "Traceback" not in ended.stderr
    for run_dir in (cwd / "runs").glob("2*"):
        assert (run_dir / "summary.json").exists()
    return ended


def odd_plan(dice: random.Random, path: Path) -> None:
    """`lens validate` of a plan with a few values that nobody means: exit code 0, 1 or 2 and no traceback."""
    text = PLAN
    for _ in range(dice.randint(1, 3)):
        at = dice.randrange(len(text))
        text = text[:at] + dice.choice(ODD) + text[at + dice.randint(0, 12) :]
    path.write_text(text)
    done = lens("validate", path.name, cwd=path.parent, timeout=30)
    assert done.code in (0, 1, 2), (done.code, text)
    assert "Traceback" not in done.stderr, (done.stderr, text)


def everything(minutes: float, seed: int, directory: Path, *, plans: bool = True) -> dict[str, int]:
    """Every kind of trouble in turn until the time is over or there was enough of it; returns how often each.

    Raises AssertionError at the first that was not survived.
    """
    dice = random.Random(seed)
    end = monotonic() + minutes * 60
    done: Counter[str] = Counter()
    (directory / "damaged").mkdir(parents=True)
    with simulator(**REPLIES) as server:
        target = ("--base-url", f"{server.base_url}/v1", "--model", "m", "--rate", "20", "--duration", "24h")
        killed = killed_run(server, directory / "killed")
        while not done or (monotonic() < end and any(done[kind] < most for kind, most in ENOUGH.items())):
            turn = directory / f"turn-{done.total()}"
            turn.mkdir()
            done["kills"] += sum(storm(KILLS_A_TURN, dice.randrange(1 << 32), turn).values())
            killed_whole(dice.uniform(0.2, 2.0), turn / "whole")
            for number in range(2):
                (turn / f"signal-{number}").mkdir()
                signalled_after(dice.uniform(0.0, 1.0), target, turn / f"signal-{number}")
            for number in range(30 if plans else 0):
                odd_plan(dice, turn / f"{number}.yaml")
            for number in range(30):
                error, how = recovered(*killed, turn / f"damaged-{number}", dice)
                assert error is None or isinstance(error, LensError), (how, error)
                if error is None:
                    path = turn / f"damaged-{number}/run"
                    how = damage(dice.choice([each for each in sorted(path.iterdir()) if each.is_file()]), dice)
                    found = reported(path, dice.choice(["console", "json", "html", "csv", "hdr"]))
                    assert found.exception is None or isinstance(found.exception, LensError), (how, found.exception)
            done.update(kills=1, signals=2, plans=30 if plans else 0, damaged=30)
            shutil.rmtree(turn)
        shutil.rmtree(killed[1])
    return dict(done)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=100, help="SIGKILLs in one run (100)")
    parser.add_argument("--hours", type=float, default=0.0, help="one run of --kills after another for so long")
    parser.add_argument("--all", action="store_true", help="every kind of trouble, as the module's docstring says")
    parser.add_argument("--minutes", type=float, default=20.0, help="how long --all goes on at most (20)")
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 32))
    options = parser.parse_args()
    end = monotonic() + options.hours * 3600
    seed = options.seed
    if options.all:
        with tempfile.TemporaryDirectory(prefix="lens-chaos-") as directory:
            print(f"seed {seed}: {everything(options.minutes, seed, Path(directory))}; nothing was wrong", flush=True)
        return 0
    while True:
        with tempfile.TemporaryDirectory(prefix="lens-chaos-") as directory:
            began = monotonic()
            killed = storm(options.kills, seed, Path(directory))
            print(f"seed {seed}: {killed} killed in {monotonic() - began:.0f} s; the totals balance", flush=True)
        if monotonic() >= end:
            return 0
        seed += 1


if __name__ == "__main__":
    sys.exit(main())
