"""Starts the built-in simulator for a test, in a process of its own on a free loopback port, and always stops it.

with simulator(ttft_ms=5, itl_ms=1, tokens=10, faults={"429": 0.1}) as sim:
    ... sim.base_url + "/v1/chat/completions" ...
    rows = sim.log()      # what it received and sent, one dict per request that is over; stops nothing
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from llm_latency_lens.engine.simulator.providers.provider import VARIANT, WORDS

DEADLINE_S = 10.0
CHAT = "/v1/chat/completions"
FAST: dict[str, Any] = {"ttft_ms": 2, "itl_ms": 0.5, "tokens": 6}


class Simulator:
    """A running simulator. `base_url` has no /v1."""

    def __init__(self, process: subprocess.Popen[str], ready: dict[str, Any], log_path: Path) -> None:
        self.process = process
        self.pid: int = ready["pid"]
        self.port: int = ready["port"]
        self.base_url: str = ready["base_url"]
        self.log_path = log_path

    def log(self, rows: int | None = None) -> list[dict[str, Any]]:
        """The rows so far. Waits until all that were counted, or at least `rows`, are in the file."""
        deadline = time.monotonic() + DEADLINE_S
        while True:
            wanted = rows if rows is not None else (self.stats()["log_rows"] if self.process.poll() is None else 0)
            found = self._rows()
            if len(found) >= wanted:
                return found
            if time.monotonic() > deadline:
                raise TimeoutError(f"the simulator logged {len(found)} of {wanted} requests")
            time.sleep(0.02)

    def stats(self) -> dict[str, Any]:
        """The page /stats (of a simulator without TLS)."""
        with urllib.request.urlopen(f"{self.base_url}/stats", timeout=DEADLINE_S) as page:
            totals: dict[str, Any] = json.load(page)
        return totals

    def stop(self) -> int:
        """Stops it and gives its exit code; after this the log is complete."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            code = self.process.wait(DEADLINE_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            code = self.process.wait(DEADLINE_S)
        if self.process.stdout:
            self.process.stdout.close()
        return code

    def _rows(self) -> list[dict[str, Any]]:
        if not self.log_path.exists():
            return []
        text = self.log_path.read_text()
        return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


def start_simulator(
    log_path: Path, *, flags: tuple[str, ...] = (), wrapper: Sequence[str] = (), **script: Any
) -> Simulator:
    """Starts one with these script keys and process flags (`"--processes", "2"`), as a command of `wrapper`.

    The caller must call `.stop()`.
    """
    script_path = log_path.with_suffix(".script.json")
    script_path.write_text(json.dumps(script))
    command = [*wrapper, sys.executable, "-m", "llm_latency_lens.engine.simulator", "--die-with-parent"]
    command += ["--script", str(script_path), "--log", str(log_path), *flags]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONUNBUFFERED": "1"})
    assert process.stdout
    line = process.stdout.readline()
    if not line:
        process.wait(DEADLINE_S)
        process.stdout.close()
        raise RuntimeError(f"the simulator did not start: exit code {process.returncode}")
    return Simulator(process, json.loads(line), log_path)


@contextlib.contextmanager
def simulator(*, flags: tuple[str, ...] = (), wrapper: Sequence[str] = (), **script: Any) -> Iterator[Simulator]:
    """A running simulator with these script keys; stopped at the end, whatever happens."""
    with TemporaryDirectory(prefix="lens-simulator-") as directory:
        running = start_simulator(Path(directory) / "simulator.jsonl", flags=flags, wrapper=wrapper, **script)
        try:
            yield running
        finally:
            running.stop()


def ask(running: Simulator, **extra: Any) -> dict[str, Any]:
    body = {"model": "m", "messages": [{"role": "user", "content": "how fast is it"}], "stream": True}
    return body | {"stream_options": {"include_usage": True}} | extra


def post(
    running: Simulator, body: dict[str, Any], *, path: str = CHAT, headers: dict[str, str] | None = None
) -> tuple[int, dict[str, str], bytes]:
    """(status, headers, body) of one request on a connection of its own."""
    connection = http.client.HTTPConnection("127.0.0.1", running.port, timeout=20)
    try:
        connection.request("POST", path, json.dumps(body), headers or {})
        reply = connection.getresponse()
        return reply.status, {name.lower(): value for name, value in reply.getheaders()}, reply.read()
    finally:
        connection.close()


def raw(running: Simulator, body: dict[str, Any], *, headers: str = "") -> tuple[bytes, str]:
    """Every byte of a reply on a connection that says it will close, and how the connection ended."""
    text = json.dumps(body)
    head = f"POST {CHAT} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{headers}content-length: {len(text)}\r\n\r\n"
    received = b""
    with socket.create_connection(("127.0.0.1", running.port), timeout=20) as sock:
        sock.sendall((head + text).encode())
        while True:
            try:
                piece = sock.recv(65536)
            except ConnectionResetError:
                return received, "reset"
            if not piece:
                return received, "closed"
            received += piece


def events_of(body: bytes) -> list[bytes]:
    return [block.removeprefix(b"data: ") for block in body.split(b"\n\n") if block.startswith(b"data: ")]


def chunks_of(body: bytes) -> list[dict[str, Any]]:
    return [json.loads(event) for event in events_of(body) if event != b"[DONE]"]


def content_in(chunk: dict[str, Any]) -> str:
    return "".join(choice["delta"].get("content") or "" for choice in chunk.get("choices", []))


def content_of(body: bytes) -> str:
    """The text of a streamed chat reply, with the placeholder of `text_of` for what is the prompt's own in it."""
    return without_variant("".join(content_in(chunk) for chunk in chunks_of(body)))


def without_variant(text: str) -> str:
    """A simulated reply's text as `text_of` has it: the part that depends on the prompt replaced."""
    return re.sub(rf"^{WORDS[0]}[0-9a-f]{{{len(VARIANT)}}}", WORDS[0] + VARIANT, text)


def row_of(running: Simulator, headers: dict[str, str]) -> dict[str, Any]:
    return next(row for row in running.log() if row["id"] == headers["x-request-id"])
