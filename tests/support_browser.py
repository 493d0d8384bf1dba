"""A real browser without a window: Debian's chromium (`apt-get install chromium`; .ci/run does)."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--enable-logging=stderr",
]


def chromium() -> str:
    path = shutil.which("chromium") or shutil.which("chromium-browser")
    if path is None:
        pytest.skip("there is no chromium on this machine: apt-get install chromium")
    return path


def opened(
    page: Path,
    folder: Path,
    *,
    width: int,
    dark: bool = False,
    picture: Path | None = None,
    pdf: Path | None = None,
    real_time: bool = False,
    virtual_ms: int = 3000,
) -> tuple[str, list[str]]:
    """The DOM after the page's scripts ran, and what it said on its console; with `picture` or `pdf` a file of it.

    Time is virtual, so that timers cost nothing, unless `real_time`."""
    flags = [*FLAGS, *([] if real_time else [f"--virtual-time-budget={virtual_ms}"])]
    command = [chromium(), *flags, f"--user-data-dir={folder / 'profile'}", f"--window-size={width},2000"]
    command += ["--blink-settings=preferredColorScheme=0"] if dark else []
    command += [f"--screenshot={picture}"] if picture else [f"--print-to-pdf={pdf}"] if pdf else ["--dump-dom"]
    done = subprocess.run([*command, page.as_uri()], capture_output=True, text=True, timeout=100, check=True)
    return done.stdout, [line for line in done.stderr.splitlines() if ":CONSOLE" in line]
