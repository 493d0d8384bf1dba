"""The processes of one simulator: listening sockets, forks, signals, limits. One line on stdout when it listens."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import ssl
import sys
from pathlib import Path
from typing import Final

import msgspec
import uvloop

from ...errors import OutputError, PlanError, TargetError
from ...process import die_with_parent, raise_descriptor_limit
from ..log import RequestLog
from ..script import Script
from ..stats import Stats
from .server import Server

BACKLOG: Final = 4096
CERTIFICATE: Final = Path(__file__).with_name("localhost.pem")


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """Where and how the processes run; what the model does is the Script."""

    host: str = "127.0.0.1"
    port: int = 0
    processes: int = 1
    core: int | None = None
    log: str | None = None
    log_tokens: bool = False
    require_key: str | None = None
    certfile: str | None = None
    keyfile: str | None = None
    tls: bool = False
    die_with_parent: bool = False


HELP: Final = {
    "host": "address to listen on",
    "port": "port to listen on; 0 takes a free one",
    "processes": "processes that share the port, and the script's limits evenly",
    "core": "pin to this core; further processes take the following ones",
    "log": "file to append one JSON line per request to: what was received and sent, when",
    "log_tokens": "log every token's send time too",
    "require_key": "answer 401 to requests without this API key",
    "certfile": "serve TLS with this certificate",
    "keyfile": "its key",
    "tls": "serve TLS with the certificate for localhost that comes with the simulator",
    "die_with_parent": "end when the parent process ends",
}


def serve(script: Script, options: Options) -> int:
    """Listens, prints {"port", "pid", "base_url"}, serves until SIGTERM or SIGINT; returns 0. Raises LensError."""
    if options.processes < 1:
        raise PlanError(f"processes must be >= 1, got {options.processes}")
    if script.concurrency is not None and script.concurrency < options.processes:
        raise PlanError(f"concurrency must be >= processes, got {script.concurrency} for {options.processes} processes")
    if options.die_with_parent:
        die_with_parent(os.getppid(), signal.SIGTERM)
    raise_descriptor_limit()
    if options.tls:
        options = msgspec.structs.replace(options, certfile=options.certfile or str(CERTIFICATE))
    tls = _tls(options)
    listeners = _listen(options)
    stats = Stats(options.processes)
    leader = os.getpid()
    children: list[int] = []
    rank = 0
    for number in range(1, options.processes):
        child = os.fork()
        if not child:
            die_with_parent(leader, signal.SIGTERM)
            rank, children = number, []
            break
        children.append(child)
    listener = listeners.pop(rank)
    for other in listeners:
        other.close()
    try:
        if options.core is not None:
            _pin(options.core + rank)
        server = Server(
            script,
            stats,
            rank=rank,
            log=_log(options),
            log_tokens=options.log_tokens,
            require_key=options.require_key,
            tls=tls,
        )
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_serve(server, listener, _ready_line(listener, options) if rank == 0 else ""))
    finally:
        for child in children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGTERM)
        for child in children:
            os.waitpid(child, 0)
    return 0


async def _serve(server: Server, listener: socket.socket, ready: str) -> None:
    loop = asyncio.get_running_loop()
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    server.start(loop, listener)
    if ready:
        sys.stdout.write(ready)
        sys.stdout.flush()
    await stopping.wait()
    server.stop()


def _ready_line(listener: socket.socket, options: Options) -> str:
    port = listener.getsockname()[1]
    host = f"[{options.host}]" if ":" in options.host else options.host
    url = f"{'https' if options.certfile else 'http'}://{host}:{port}"
    return msgspec.json.encode({"port": port, "pid": os.getpid(), "base_url": url}).decode() + "\n"


def _listen(options: Options) -> list[socket.socket]:
    """One listening socket per process, all on one port: the kernel spreads connections over them."""
    listeners: list[socket.socket] = []
    port = options.port
    for _ in range(options.processes):
        listener = socket.socket(socket.AF_INET6 if ":" in options.host else socket.AF_INET, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if options.processes > 1:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        try:
            listener.bind((options.host, port))
        except OSError as error:
            raise TargetError(
                f"cannot listen on {options.host}:{port}: {error.strerror}; choose another --port"
            ) from error
        listener.listen(BACKLOG)
        listener.setblocking(False)
        port = listener.getsockname()[1]
        listeners.append(listener)
    return listeners


def _tls(options: Options) -> ssl.SSLContext | None:
    if options.certfile is None:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(options.certfile, options.keyfile)
    except (OSError, ssl.SSLError) as error:
        raise PlanError(f"cannot use certificate {options.certfile} with key {options.keyfile}: {error}") from error
    return context


def _log(options: Options) -> RequestLog | None:
    if options.log is None:
        return None
    try:
        return RequestLog(options.log)
    except OSError as error:
        raise OutputError(f"cannot write the simulator's log {options.log}: {error.strerror}") from error


def _pin(core: int) -> None:
    try:
        os.sched_setaffinity(0, {core})
    except OSError as error:
        raise PlanError(
            f"cannot pin to core {core}: {error.strerror}; cores here: {sorted(os.sched_getaffinity(0))}"
        ) from error
