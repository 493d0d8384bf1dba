"""How agents get onto hosts: each launcher brings an invitation to the stdin of one agent a host."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final, Protocol

from ..errors import LensError, error_of
from ..frames import Frames, frame
from ..plan.plan import Hosts, Plan
from ..plan.written import secrets
from ..process import environ_without_keys
from ..runs.runlog import last_line
from .launch import LaunchOrder, LaunchWord
from .messages import Invitation

AGENT: Final = ("-m", "llm_latency_lens.cli.processes.host")
HELPER: Final = ("-m", "llm_latency_lens.engine.hosts.launch")
END_S: Final = 20.0  # an agent that was dismissed ends within this time
HELPER_END_S: Final = 60.0  # and then a local cluster is taken down
READ_BYTES: Final = 1 << 16


class Launcher(Protocol):
    """Starts one agent a host and watches nothing but their starting: an agent's end shows at its connection."""

    count: int
    address: str  # of this machine, as the hosts reach it; empty until that is known
    hint: str  # what to look at when hosts do not come

    def start(self, invitations: Sequence[Invitation]) -> None:
        """Begins to start the agents. Does not wait for them."""

    def work(self) -> None:
        """Called every turn."""

    def problem(self) -> LensError | None:
        """Why an agent will not come; None while nothing is known."""

    def close(self) -> None:
        """Nothing that was started for this run stays: waits for the agents, then kills them."""


class LocalHosts:
    """Hosts that are processes on this machine (`cluster: local`), to try a plan out. `command` starts an agent, which
    reaches this process at `address`."""

    hint = "see the machine's load"

    def __init__(
        self,
        count: int,
        log_dir: Path,
        secrets: frozenset[str],
        *,
        address: str = "127.0.0.1",
        command: Sequence[str] = (sys.executable, *AGENT),
    ) -> None:
        self.count = count
        self.address = address
        self._command = list(command)
        self._log_dir = log_dir
        self._environ = environ_without_keys(os.environ, secrets)
        self.agents: list[subprocess.Popen[bytes]] = []

    def start(self, invitations: Sequence[Invitation]) -> None:
        for invitation in invitations:
            with self._log(invitation.index).open("ab") as log:
                agent = subprocess.Popen(
                    self._command,
                    stdin=subprocess.PIPE,
                    stdout=log,
                    stderr=log,
                    env=self._environ,
                    start_new_session=True,
                )
            self.agents.append(agent)
            assert agent.stdin is not None
            with suppress(BrokenPipeError):
                agent.stdin.write(frame(invitation))
                agent.stdin.close()

    def _log(self, index: int) -> Path:
        return self._log_dir / f"agent-{index}.log"

    def work(self) -> None:
        pass

    def problem(self) -> LensError | None:
        for index, agent in enumerate(self.agents):
            code = agent.poll()
            if code is not None:
                return LensError(f"host {index + 1} ended with {code}: {last_line(self._log(index))}")
        return None

    def close(self) -> None:
        for agent in self.agents:
            try:
                agent.wait(END_S)
            except subprocess.TimeoutExpired:
                agent.kill()
                agent.wait()


class RayHosts:
    """One agent on each of so many nodes of a Ray cluster, started by the helper process (hosts.launch)."""

    hint = "see `ray status`, and whether this machine's ports can be reached from the nodes"

    def __init__(self, hosts: Hosts, log_dir: Path, secrets: frozenset[str]) -> None:
        assert hosts.count is not None
        self.count = hosts.count
        self.address = ""
        self._problem: LensError | None = None
        self._frames = Frames(LaunchWord)
        self._log = log_dir / "ray.log"
        with self._log.open("ab") as log:
            self._helper = subprocess.Popen(
                [sys.executable, *HELPER],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=environ_without_keys(os.environ, secrets),
                start_new_session=True,
            )
        assert self._helper.stdout is not None
        os.set_blocking(self._helper.stdout.fileno(), False)
        self._say(LaunchOrder(count=hosts.count, address=hosts.address, cpus=hosts.cpus, labels=hosts.labels))

    def _say(self, message: object) -> None:
        assert self._helper.stdin is not None
        with suppress(BrokenPipeError):
            self._helper.stdin.write(frame(message))
            self._helper.stdin.flush()

    def start(self, invitations: Sequence[Invitation]) -> None:
        for invitation in invitations:
            self._say(invitation)

    def work(self) -> None:
        assert self._helper.stdout is not None
        with suppress(BlockingIOError):
            for word in self._frames.feed(os.read(self._helper.stdout.fileno(), READ_BYTES)):
                if word.say == "connected":
                    self.address = word.text
                elif word.say == "problem":
                    self._problem = self._problem or error_of(word.text, word.code)
        if self._problem is None and self._helper.poll() is not None:
            self._problem = LensError(f"the helper that speaks to Ray ended: {last_line(self._log)}")

    def problem(self) -> LensError | None:
        return self._problem

    def close(self) -> None:
        """The helper waits for the agents, and takes a local cluster down."""
        for pipe in (self._helper.stdin, self._helper.stdout):
            if pipe is not None:
                with suppress(BrokenPipeError):
                    pipe.close()
        try:
            self._helper.wait(HELPER_END_S)
        except subprocess.TimeoutExpired:
            self._helper.kill()
            self._helper.wait()


def launcher_of(plan: Plan, log_dir: Path) -> Launcher:
    """The launcher of the plan's cluster; the agents' last words go into `log_dir`."""
    hosts, hidden = plan.hosts, frozenset(secrets(plan))
    assert hosts.count is not None
    return LocalHosts(hosts.count, log_dir, hidden) if hosts.cluster == "local" else RayHosts(hosts, log_dir, hidden)
