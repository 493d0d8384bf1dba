"""Are faults of the measuring machine seen in the ticks in which they happen, with the right reason?

usage: python benches/faults.py [--injections 10] [--clean 40] [--only FAULT]

For each fault a real run against the simulator, in which it is injected every 3 s, and clean runs of 4 s. A fault is seen
if one of the ticks from its beginning to 1.2 s after its end has its reason (the clock is looked at once a second). An
alarm of a clean run is false unless the kernel itself says that the machine was busy: `starved`, `steal` and `cpu` are
its own counters, and are listed apart. Needs root for the hog's priority and the control group (version 1 or 2).
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from time import monotonic_ns, sleep
from typing import Any, Final, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from tests.support_lens import LENS, environment, finish, manifest_of
from tests.support_simulator import simulator

SECOND: Final = 1_000_000_000
PERIOD_S: Final = 3.0
DETECTED_S: Final = 1.2
KERNEL_SAYS: Final = frozenset({"starved", "steal", "cpu"})
HOG: Final = """\
import os, sys, time
os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(10))
end = time.monotonic() + float(sys.argv[1])
while time.monotonic() < end: pass
"""
# What a process of the run does to itself while the file exists: loaded by Python before the program (site module).
INJECTED: Final = """\
import gc, os, sys, threading, time
FAULT, FILE = os.environ.get("BENCH_FAULT", ""), os.environ.get("BENCH_FAULT_FILE", "")
WORKER, COLLECTOR = "llm_latency_lens.engine.worker" in sys.orig_argv, "collect" in " ".join(sys.orig_argv)
def collect_garbage():
    while gc.isenabled(): time.sleep(0.05)
    kept = [[i] for i in range(1_000_000)]
    while True:
        if os.path.exists(FILE): gc.collect()
        time.sleep(0.02)
if FAULT == "gc" and WORKER:
    threading.Thread(target=collect_garbage, daemon=True).start()
if FAULT == "clock_step" and WORKER:
    real = time.time_ns
    time.time_ns = lambda: real() + (1_000_000_000 if os.path.exists(FILE) else 0)
if FAULT == "slow_disk" and COLLECTOR:
    pwrite = os.pwrite
    def slow(fd, *arguments):
        if os.path.exists(FILE) and "/runs/" in os.readlink(f"/proc/self/fd/{fd}"): time.sleep(0.3)
        return pwrite(fd, *arguments)
    os.pwrite = slow
if FAULT == "ring_drops" and not WORKER and not COLLECTOR:
    import llm_latency_lens.engine.runs.placement as placement
    sized = placement.geometry_of
    placement.geometry_of = lambda *args, **more: sized(*args, **more)._replace(requests=32, gaps=1024, details=32)
"""


class Target(NamedTuple):
    """The processes of a run, the file whose existence switches an injected fault on, and the worker's control group."""

    worker: int
    collector: int
    file: Path
    group: Path


def stop(pid: int, seconds: float) -> None:
    os.kill(pid, signal.SIGSTOP)
    sleep(seconds)
    os.kill(pid, signal.SIGCONT)


def hog(target: Target) -> None:
    """A process of higher priority on each of the worker's cores."""
    command = [sys.executable, "-S", "-c", HOG, "0.15"]
    hogs = [subprocess.Popen(["taskset", "-c", str(core), *command]) for core in os.sched_getaffinity(target.worker)]
    for each in hogs:
        each.wait()


def throttle(target: Target) -> None:
    """The worker's control group may use a hundredth of a core."""
    limit(target.group, 1_000)
    sleep(0.5)
    limit(target.group, -1)


def limit(group: Path, quota_us: int) -> None:
    """So many us of CPU in 100 ms for the control group; all that there is if it is negative."""
    if (group / "cpu.max").exists():
        (group / "cpu.max").write_text(f"{quota_us if quota_us > 0 else 'max'} 100000")
    else:
        (group / "cpu.cfs_period_us").write_text("100000")
        (group / "cpu.cfs_quota_us").write_text(str(quota_us))


@contextmanager
def grouped(worker: int) -> Iterator[Path]:
    """A control group of its own for the worker, without a limit."""
    one = Path("/sys/fs/cgroup/cpu")
    group = (one if one.exists() else Path("/sys/fs/cgroup")) / f"lens-faults-{os.getpid()}"
    group.mkdir()
    try:
        (group / "cgroup.procs").write_text(str(worker))
        yield group
    finally:
        limit(group, -1)
        while (group / "cgroup.procs").read_text():  # the worker ends with its run
            sleep(0.05)
        group.rmdir()


def switched(seconds: float) -> Callable[[Target], None]:
    def inject(target: Target) -> None:
        target.file.touch()
        sleep(seconds)
        target.file.unlink()

    return inject


FAULTS: Final[dict[str, tuple[str, Callable[[Target], None]]]] = {
    # what is done: the reason that must be found, and how
    "SIGSTOP of the worker for 100 ms": ("stopped", lambda target: stop(target.worker, 0.1)),
    "CPU hog on its core for 150 ms": ("starved", hog),
    "control group throttled": ("throttled", throttle),
    "GC with a million objects": ("gc", switched(0.3)),
    "clock step": ("clock_step", switched(1.1)),
    "ring overflow": ("ring_drops", lambda target: stop(target.collector, 1.0)),
    "slow disk": ("slow_disk", switched(1.5)),
}


@contextmanager
def started(seconds: float, reason: str, folder: Path) -> Iterator[tuple[subprocess.Popen[str], Target, int]]:
    """A run, its processes, and when its first tick begins (CLOCK_MONOTONIC ns)."""
    (folder / "injected").mkdir()
    (folder / "injected" / "sitecustomize.py").write_text(INJECTED)
    file = folder / "on"
    more = {"BENCH_FAULT": reason, "BENCH_FAULT_FILE": str(file), "PYTHONPATH": str(folder / "injected")}
    with simulator(ttft_ms=20, itl_ms=5, tokens=20) as running:
        run = subprocess.Popen(
            [*LENS, "run", "--json", "--quiet", "--base-url", f"{running.base_url}/v1", "--model", "m",
             "--workers", "1", "--concurrency", "16", "--duration", f"{seconds}s"],
            cwd=folder, env=environment(more), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        try:
            _, manifest = manifest_of(folder)
            pids = manifest["pids"]
            worker = next(pid for role, pid in pids.items() if role.startswith("worker"))
            with grouped(worker) if reason == "throttled" else nullcontext(folder) as group:
                yield run, Target(worker, pids["collector"], file, group), manifest["phases"][0]["start_ns"]
        finally:
            if run.poll() is None:
                run.kill()


def ticks_of(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / "runs" / "latest" / "intervals.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def seen(fault: str, injections: int) -> tuple[int, Counter[str], Counter[str]]:
    """How many injections were seen, and the reasons of all ticks near injections and away from them."""
    reason, inject = FAULTS[fault]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with started(PERIOD_S * injections + 4, reason, folder) as (run, target, start_ns):
            spans = []
            sleep(2.2)
            for i in range(injections):
                begun = monotonic_ns()
                inject(target)
                spans.append(((begun - start_ns) / SECOND, (monotonic_ns() - start_ns) / SECOND))
                sleep(max(0.0, 2.2 + PERIOD_S * (i + 1) - (monotonic_ns() - start_ns) / SECOND))
            ended = finish(run)
        assert ended.code == 0, ended.stderr
        ticks = ticks_of(folder)
    near: Counter[str] = Counter()
    away: Counter[str] = Counter()
    found: set[int] = set()
    for tick in ticks:
        end_s, begin_s = tick["elapsed_s"], tick["elapsed_s"] - tick["seconds"]
        hits = [i for i, (a, b) in enumerate(spans) if begin_s < b + DETECTED_S and end_s > a]
        (near if hits else away).update(tick["client"]["limited_by"])
        if reason in tick["client"]["limited_by"]:
            found.update(hits)
    return len(found), near, away


def clean(runs: int) -> tuple[int, int, Counter[str]]:
    """Clean runs with an alarm that the kernel's own counters do not prove; ticks looked at; all reasons."""
    false, looked_at, reasons = 0, 0, Counter[str]()
    for _ in range(runs):
        with tempfile.TemporaryDirectory() as name:
            with started(4, "", Path(name)) as (run, _, _):
                ended = finish(run)
            assert ended.code == 0, ended.stderr
            ticks = [tick["client"]["limited_by"] for tick in ticks_of(Path(name))]
        looked_at += len(ticks)
        for tick in ticks:
            reasons.update(tick)
        false += any(set(tick) - KERNEL_SAYS for tick in ticks)
    return false, looked_at, reasons


def shown(reasons: Counter[str]) -> str:
    return ", ".join(f"{reason} {n}" for reason, n in reasons.most_common()) or "-"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--injections", type=int, default=10)
    parser.add_argument("--clean", type=int, default=40)
    parser.add_argument("--only", default="")
    options = parser.parse_args()
    print(f"{'fault':36}{'seen':>10}   reasons of the ticks near it | away from it")
    for fault, (reason, _) in FAULTS.items():
        if options.only in reason:
            found, near, away = seen(fault, options.injections)
            print(f"{fault:36}{found:>5} of {options.injections:<3}  {shown(near)} | {shown(away)}", flush=True)
    if options.clean:
        false, ticks, reasons = clean(options.clean)
        print(f"false alarms: in {false} of {options.clean} clean runs ({ticks} ticks; all reasons: {shown(reasons)})")


if __name__ == "__main__":
    main()
