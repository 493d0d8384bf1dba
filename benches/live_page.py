"""What viewers of the live page cost: CPU time of the serving process per tick, without and with five of them.

A run has a tick a second: 10 ms of CPU a tick are 1 % of a core. `python benches/live_page.py [TICKS [TARGETS]]`.
"""

from __future__ import annotations

import multiprocessing
import sys
import threading
from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import TemporaryDirectory
from time import process_time, sleep
from urllib.request import urlopen

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from llm_latency_lens.exporters.rundir import read_report, ticks  # noqa: E402
from llm_latency_lens.exporters.web.listen import listen  # noqa: E402
from llm_latency_lens.exporters.web.live import LivePage  # noqa: E402
from tests.support_runs import FakeRun  # noqa: E402

VIEWERS = 5
PAUSE_S = 0.1  # between two ticks: a tenth of a run's, so that every viewer takes every one


def serve(run_dir: Path, pipe: Connection) -> None:
    """Serves all ticks of a run and sends the CPU seconds that took."""
    known = list(ticks(run_dir))
    listener = listen("", "--live")
    page = LivePage(listener, run_dir, "bench").start()
    pipe.send(listener.url)
    pipe.recv()
    began = process_time()
    for tick in known:
        page.write([tick])
        sleep(PAUSE_S)
    used = process_time() - began
    page.end(read_report(run_dir))
    page.linger(2)
    pipe.send(used)
    page.close()


def cpu_s(run_dir: Path, viewers: int) -> tuple[float, float]:
    """CPU seconds of the server, and the bytes that each viewer got."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    server = context.Process(target=serve, args=(run_dir, there))
    server.start()
    url = here.recv()
    sizes: list[int] = []

    def view() -> None:
        with urlopen(f"{url}events", timeout=120) as stream:
            sizes.append(sum(len(line) for line in stream))

    threads = [threading.Thread(target=view) for _ in range(viewers)]
    for thread in threads:
        thread.start()
    here.send("go")
    used = here.recv()
    for thread in threads:
        thread.join()
    server.join()
    return used, sum(sizes) / max(1, viewers)


def main(count: int = 120, targets: int = 2) -> None:
    with TemporaryDirectory() as folder:
        run_dir = Path(folder) / "run"
        FakeRun(ticks=count, targets=targets).write(run_dir)
        alone, _ = cpu_s(run_dir, 0)
        one, _ = cpu_s(run_dir, 1)
        five, size = cpu_s(run_dir, VIEWERS)
    print(f"{count} ticks of {targets} targets; CPU per tick: {alone / count * 1e3:.2f} ms without viewers, ", end="")
    print(f"{one / count * 1e3:.2f} ms with 1, {five / count * 1e3:.2f} ms with {VIEWERS}; ", end="")
    print(
        f"{VIEWERS} viewers cost {(five - alone) / count:.2%} of a core at a tick a second, {size / count:,.0f} bytes a tick each"
    )


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
