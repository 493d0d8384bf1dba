"""Kills a run's workers and collector at random, with a server that fails now and then, and checks its books against the simulator's count.

    python -m tests.chaos --kills 100
    python -m tests.chaos --hours 8 --seed 7

With `--hours` one run of 500 kills follows another. It ends with 1 at the first books that do not balance.
"""

from __future__ import annotations

import argparse
import json
import os
import random
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

from tests.support_lens import Ended, accounts, finish, manifest_of, running
from tests.support_simulator import Simulator, simulator

TOKENS: Final = 8
WORKERS: Final = 2
RATE: Final = 150
REPLIES: Final[dict[str, Any]] = {"ttft_ms": 15, "itl_ms": 4, "tokens": TOKENS}
FAULTS: Final = {"429": 0.02, "500": 0.02, "reset": 0.02, "cut": 0.02, "truncate": 0.02, "stall": 0.01}
DURING_START_S: Final = (0.02, 0.3)  # a process is killed so long after it was spawned ...
AT_WORK_S: Final = (0.15, 0.6)  # ... or so long after it mapped its ring
EARLY_SHARE: Final = 0.3
EARLY_IN_A_ROW: Final = 2  # five lives of a worker in vain end a run


def load(server: Simulator, *more: str) -> tuple[str, ...]:
    """The flags of an open loop against the simulator, over two workers."""
    base = ("--base-url", f"{server.base_url}/v1", "--model", "m", "--workers", str(WORKERS), "--max-in-flight", "64")
    return *base, "--rate", str(RATE), *more


def storm(kills: int, seed: int, directory: Path) -> dict[str, int]:
    """One run with so many SIGKILLs and a server that fails now and then, then Ctrl-C, with the kills going on. Gives what was killed, by role.

    Raises AssertionError if the books do not balance.
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
        for role, pid in pids_of(self.segments).items():
            if role != "supervisor" and self.done.get(role) != pid and self._is_due(role, pid):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                    self.killed[role.partition("-")[0]] += 1
                self.done[role] = pid
        sleep(0.01)

    def _is_due(self, role: str, pid: int) -> bool:
        known, at = self.due.get(role, (0, 0.0))
        if known != pid:
            early = self.dice.random() < EARLY_SHARE and self.early[role] < EARLY_IN_A_ROW
            self.early[role] = self.early[role] + 1 if early else 0
            at = monotonic() + self.dice.uniform(*DURING_START_S) if early else 0.0
        elif not at and ".ring" in _text(Path(f"/proc/{pid}/maps")):
            at = monotonic() + self.dice.uniform(*AT_WORK_S)
        self.due[role] = pid, at
        return 0.0 < at < monotonic()


def pids_of(segments: Path) -> dict[str, int]:
    """The run's processes by role; none once its books are closed."""
    found: dict[str, int] = json.loads(_text(segments / "run.json") or '{"pids": {}}')["pids"]
    return found


def reconcile(run_dir: Path, ended: Ended, received: int, killed: Mapping[str, int]) -> None:
    """Every slot once, in the totals, the rows and the ticks alike, and as many sent as the server received."""
    summary = ended.summary
    requests, client = summary["requests"], summary["client"]
    accounts(requests)
    unreached = requests["sent"] - received  # marked as sent, killed before send(): one a life at most, and lost
    assert 0 <= unreached <= min(killed["worker"], requests["failed"].get("lost", 0)), (received, requests)
    assert client["ring_drops"] == client["records_dropped"] == 0
    assert client["restarts"] <= killed["worker"]
    assert not client["restarts"] or any(
        reason["code"] == "worker_restarts" and "affected: ticks " in reason["detail"]
        for reason in summary["verdict"]["reasons"]
    )
    assert client["collector_restarts"] <= killed["collector"]
    made = rows_of(run_dir)
    assert sorted(slots_of(made)) == list(range(requests["planned"]))
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
    launch.geometry_of = lambda plan, workers: usual(plan, workers)._replace(requests=128)
    sys.exit(program())


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=100, help="SIGKILLs in one run (100)")
    parser.add_argument("--hours", type=float, default=0.0, help="one run of --kills after another for so long")
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 32))
    options = parser.parse_args()
    end = monotonic() + options.hours * 3600
    seed = options.seed
    while True:
        with tempfile.TemporaryDirectory(prefix="lens-chaos-") as directory:
            began = monotonic()
            killed = storm(options.kills, seed, Path(directory))
            print(f"seed {seed}: {killed} killed in {monotonic() - began:.0f} s; the books balance", flush=True)
        if monotonic() >= end:
            return 0
        seed += 1


if __name__ == "__main__":
    sys.exit(main())
