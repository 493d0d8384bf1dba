"""The tap's process as its run sees it: started before the workers, given the servers' addresses, ended with the run."""

from __future__ import annotations

import select
import socket
import subprocess
import sys
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

from ..frames import frame, read_frame
from ..plan.plan import Plan
from ..wire.endpoint import Endpoint
from ..wire.tap.filters import Server
from ..wire.tap.process import Readiness, Servers

START_S: Final = 5.0
END_S: Final = 2.0
FAMILIES: Final = (socket.AF_INET, socket.AF_INET6)


def servers_of(plan: Plan, environ: Mapping[str, str]) -> set[Server]:
    """The addresses that the plan's targets, or the proxies before them, have now. A name that cannot be resolved has
    none: its requests will say so."""
    found: set[Server] = set()
    for target in plan.targets:
        endpoint = Endpoint(target, environ)
        with suppress(OSError):
            for family, _, _, _, address in socket.getaddrinfo(
                endpoint.next_host, endpoint.next_port, type=socket.SOCK_STREAM
            ):
                if family in FAMILIES:
                    found.add(Server(int(family), str(address[0]).partition("%")[0], int(address[1])))
    return found


class TapProcess:
    """A tap at work. Its death is no failure of the run: the workers go on, and equal stamps show what merged."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process
        self.servers: set[Server] = set()

    @property
    def pid(self) -> int:
        return self.process.pid

    def ended(self) -> bool:
        """Whether it has died. Reaps it."""
        return self.process.poll() is not None

    def hold(self, servers: Iterable[Server]) -> None:
        """Holds these servers' segments, too."""
        more = self.servers | {*servers}
        if more != self.servers and self.process.stdin is not None:
            self.servers = more
            with suppress(BrokenPipeError):
                self.process.stdin.write(frame(Servers([(s.family, s.address, s.port) for s in sorted(more)])))
                self.process.stdin.flush()

    def close(self) -> None:
        """Ends it and reaps it."""
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with suppress(BrokenPipeError):
                    pipe.close()
        try:
            self.process.wait(END_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def start_tap(segment_dir: Path, servers: Iterable[Server], environ: Mapping[str, str]) -> TapProcess | str:
    """A tap that holds the servers' segments; or why there can be none here, and what would grant it."""
    process = subprocess.Popen(
        [sys.executable, "-m", "llm_latency_lens.engine.wire.tap", "--segment-dir", str(segment_dir)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environ,
        start_new_session=True,  # the terminal's Ctrl-C is the supervisor's to pass on
    )
    tap = TapProcess(process)
    assert process.stdout is not None
    refusal = f"the tap did not start within {START_S:g} s"
    if select.select([process.stdout], [], [], START_S)[0]:
        try:
            readiness = read_frame(process.stdout.fileno(), Readiness)
        except EOFError:
            refusal = "the tap ended before it was ready"
        else:
            if readiness.state == "ready":
                tap.hold(servers)
                return tap
            refusal = readiness.detail
    tap.close()
    return refusal
