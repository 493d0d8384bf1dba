"""A real browser without a window: Debian's chromium (`apt-get install chromium`; .ci/run does)."""

from __future__ import annotations

import asyncio
import base64
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import mkdtemp
from time import monotonic, sleep
from typing import Any

import aiohttp
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
STARTS_S = 60.0


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


class OpenPage:
    """A page in a running browser, asked through the DevTools protocol."""

    def __init__(self, process: subprocess.Popen[str], loop: asyncio.AbstractEventLoop) -> None:
        self.process = process
        self._loop = loop
        self._session: aiohttp.ClientSession | None = None
        self._socket: aiohttp.ClientWebSocketResponse | None = None
        self._number = 0
        self.console: list[str] = []  # what the page said, warnings and errors

    async def connect(self, port: int) -> None:
        self._session = aiohttp.ClientSession()
        while True:
            async with self._session.get(f"http://127.0.0.1:{port}/json") as reply:
                pages = [each for each in await reply.json() if each["type"] == "page"]
            if pages:
                break
        self._socket = await self._session.ws_connect(pages[0]["webSocketDebuggerUrl"], max_msg_size=0)
        for domain in ("Runtime", "Log"):
            await self.ask(f"{domain}.enable")

    async def ask(self, method: str, **parameters: object) -> Any:
        assert self._socket
        self._number += 1
        await self._socket.send_json({"id": self._number, "method": method, "params": parameters})
        while True:
            answer = await self._socket.receive_json(timeout=STARTS_S)
            if answer.get("method") == "Log.entryAdded":
                self.console.append(answer["params"]["entry"]["text"])
            if answer.get("method") == "Runtime.exceptionThrown":
                self.console.append(str(answer["params"]["exceptionDetails"]))
            if answer.get("id") == self._number:
                return answer["result"]

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()

    def do(self, method: str, **parameters: object) -> Any:
        """One command of the protocol and its result."""
        return self._loop.run_until_complete(self.ask(method, **parameters))

    def value(self, expression: str) -> Any:
        """A JavaScript expression's value."""
        return self.do("Runtime.evaluate", expression=expression, returnByValue=True)["result"].get("value")

    def wait_for(self, expression: str, timeout_s: float = 30.0) -> float:
        """Waits until the expression is true; returns the seconds that took."""
        began = monotonic()
        while not self.value(expression):
            assert monotonic() - began < timeout_s, f"{expression} did not become true within {timeout_s:g} s"
            sleep(0.05)
        return monotonic() - began

    def picture(self, path: Path) -> None:
        """A screenshot of all of the page."""
        taken = self.do("Page.captureScreenshot", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(taken["data"]))


@contextmanager
def browsing(url: str, folder: Path, *, width: int = 1280, dark: bool = False) -> Iterator[OpenPage]:
    """The page in a browser of its own, in real time."""
    profile = Path(mkdtemp(prefix="profile-", dir=folder))  # a used one names the port of an earlier browser
    command = [chromium(), *FLAGS, "--remote-debugging-port=0", "--remote-allow-origins=*"]
    command += [f"--user-data-dir={profile}", f"--window-size={width},1200"]
    command += ["--blink-settings=preferredColorScheme=0"] if dark else []
    process = subprocess.Popen([*command, url], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, text=True)
    loop = asyncio.new_event_loop()
    page = OpenPage(process, loop)
    try:
        port, end = profile / "DevToolsActivePort", monotonic() + STARTS_S
        while not (port.exists() and port.read_text().count("\n")):
            assert monotonic() < end, "the browser did not start"
            sleep(0.05)
        loop.run_until_complete(page.connect(int(port.read_text().split()[0])))
        yield page
    finally:
        loop.run_until_complete(page.close())
        loop.close()
        process.kill()
        process.wait()
