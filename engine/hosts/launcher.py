"""How agents get onto hosts: each launcher brings an invitation to the stdin of one agent a host."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final, Protocol

from ..frames import frame
from ..plan.plan import Plan, secrets
from ..process import environ_without_keys
from ..runs.runlog import last_line
from .messages import Invitation

AGENT: Final = ("-m", "llm_latency_lens.cli.processes.host")
END_S: Final = 20.0  # an agent that was dismissed ends within this time


class Launcher(Protocol):
    """Starts one agent a host and watches nothing but their starting: an agent's end shows at its connection."""

    count: int
    address: str  # of this machine, as the hosts reach it
    hint: str  # what to look at when hosts do not come

    def start(self, invitations: Sequence[Invitation]) -> None:
        """Begins to start the agents. Does not wait for them."""

    def work(self) -> None:
        """Called every turn."""

    def problem(self) -> str:
        """Why an agent will not come; empty while nothing is known."""

    def close(self) -> None:
        """Nothing that was started for this run stays: waits for the agents, then kills them."""


class LocalHosts:
    """Hosts that are processes on this machine (`cluster: local`): to try a plan out, and for tests."""

    hint = "see the machine's load"
    address = "127.0.0.1"

    def __init__(self, count: int, log_dir: Path, secrets: frozenset[str]) -> None:
        self.count = count
        self._log_dir = log_dir
        self._environ = environ_without_keys(os.environ, secrets)
        self.agents: list[subprocess.Popen[bytes]] = []

    def start(self, invitations: Sequence[Invitation]) -> None:
        for invitation in invitations:
            with self._log(invitation.index).open("ab") as log:
                agent = subprocess.Popen(
                    [sys.executable, *AGENT],
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

    def problem(self) -> str:
        for index, agent in enumerate(self.agents):
            code = agent.poll()
            if code is not None:
                return f"host {index + 1} ended with {code}: {last_line(self._log(index))}"
        return ""

    def close(self) -> None:
        for agent in self.agents:
            try:
                agent.wait(END_S)
            except subprocess.TimeoutExpired:
                agent.kill()
                agent.wait()


def launcher_of(plan: Plan, log_dir: Path) -> Launcher:
    """The launcher of the plan's cluster; the agents' last words go into `log_dir`."""
    hidden = frozenset(secrets(plan))
    assert plan.hosts.count is not None
    return LocalHosts(plan.hosts.count, log_dir, hidden)
