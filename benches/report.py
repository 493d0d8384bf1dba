"""The report of a run of a million requests: seconds and memory to write it, its size, milliseconds to draw it.

    python -m benches.report [--requests 1000000] [--ticks 3600] [--targets 5]

The time to draw is that of the page's scripts in a headless Chromium, which must be installed.
"""

from __future__ import annotations

import argparse
import re
import resource
import tempfile
from pathlib import Path
from time import process_time

from llm_latency_lens.exporters.html.page import write_html
from tests.support_browser import opened
from tests.support_rows import write_rows
from tests.support_runs import FakeRun

BEGIN = "<script>window.began = performance.now();</script>"
END = "<script>document.documentElement.dataset.ms = performance.now() - window.began;</script>"


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    options.add_argument("--requests", type=int, default=1_000_000)
    options.add_argument("--ticks", type=int, default=3600)
    options.add_argument("--targets", type=int, default=5)
    given = options.parse_args()
    with tempfile.TemporaryDirectory(dir="/var/tmp") as name:
        folder = Path(name)
        FakeRun(ticks=given.ticks, targets=given.targets, rate=4).write(folder, records=0)
        write_rows(folder, given.requests, targets=given.targets, seconds=given.ticks)
        began = process_time()
        write_html([folder], folder / "report.html")
        seconds = process_time() - began
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        page = (folder / "report.html").read_text()
        timed = page.replace("<script>", BEGIN + "<script>", 1).replace("</body>", END + "</body>")
        (folder / "timed.html").write_text(timed)
        dom, _ = opened(folder / "timed.html", folder, width=1400, real_time=True)
        found = re.search(r'data-ms="([\d.]+)"', dom)
        print(
            f"{given.requests:,} requests, {given.ticks:,} ticks, {given.targets} targets: {seconds:.1f} CPU s, "
            f"peak {peak / 1e6:.0f} MB, page {len(page.encode()) / 1e6:.2f} MB, "
            f"drawn in {float(found[1]):.0f} ms"
            if found
            else "not drawn"
        )


if __name__ == "__main__":
    main()
