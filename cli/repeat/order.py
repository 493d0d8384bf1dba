"""What the starter of a run sends to its process, and how that is started."""

from __future__ import annotations

import signal
import subprocess
import sys

import msgspec

from ...engine.plan.plan import Plan
from ...engine.runs.interrupts import SIGNALS


class RunOrder(msgspec.Struct, frozen=True):
    """A plan, secrets included. `beside` are processes of ours that are kept off its cores. `warn`: the warnings that are
    the same for all runs."""

    plan: Plan
    run_id: str
    parent: int
    beside: list[int]
    quiet: bool
    warn: bool


def started(*, keep_messages: bool = False) -> subprocess.Popen[bytes]:
    """The process of one run, which waits for its RunOrder on stdin. `keep_messages`: its stderr is a pipe, too."""
    # Blocked until the process has its handlers: a signal in its first moments would end it without a summary.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        return subprocess.Popen(
            [sys.executable, "-m", "llm_latency_lens.cli.repeat.run_process"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE if keep_messages else None,
            start_new_session=True,  # a Ctrl-C of the terminal reaches it through us, once
        )
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
