"""`lens probe PLAN`: measures continuously at a low rate, for months, as a service. The work is in `prober`."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import click

from ...engine.errors import OutputError
from ...engine.files import lock_of
from ...engine.runs.interrupts import Interrupts


@click.command(short_help="Measure continuously at a low rate, as a service.")
@click.argument("plan_path", metavar="PLAN", type=click.Path())
@click.option(
    "--state-dir",
    type=click.Path(path_type=Path),
    envvar="STATE_DIRECTORY",
    help="Where history and state are kept.  [default: $STATE_DIRECTORY, or probe-NAME in the plan's output.dir]",
)
def probe(plan_path: str, state_dir: Path | None) -> int:
    """Probe the targets of PLAN until SIGTERM or Ctrl-C.

    Each target is asked once in every `probe.every` (default 30s), or as the plan's load says. SIGHUP reads the plan
    again: a wrong one is refused and the old one goes on. Under systemd: see systemd/README.md.
    """
    with Interrupts(deferred=True) as interrupts:  # first: a signal must never find nobody
        from .prober import Prober, checked_plan

        os.umask(0o077)  # the history may hold prompts and replies
        plan = checked_plan(plan_path)
        folder = (state_dir or Path(plan.output.dir) / f"probe-{plan.name}").absolute()
        with locked(folder):
            return Prober(plan_path, plan, folder, interrupts).run()


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """The state directory, for this process alone. Raises OutputError."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = lock_of(folder / "lock")
    except BlockingIOError as error:
        raise OutputError(f"another probe works in {folder}; give each its own --state-dir") from error
    except OSError as error:
        raise OutputError(f"cannot write the state directory {folder}: {error.strerror}; see --state-dir") from error
    with lock:
        yield
