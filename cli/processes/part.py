"""A host's part in a run: `python -m llm_latency_lens.cli.processes.part`, started by the process of the host.

On stdin comes an Invitation. It joins the driver, carries out its share with an ordinary supervisor, and sends what that
leaves. What the driver has taken is removed here; after a driver that died it stays, and stderr says where.
"""

from __future__ import annotations

import os
import shutil
import sys
from contextlib import suppress
from pathlib import Path

import msgspec

from ...engine.errors import LensError
from ...engine.frames import read_frame
from ...engine.hosts.agent import Agent
from ...engine.hosts.files import check_files, own_runs
from ...engine.hosts.messages import Assigned, Invitation, Work
from ...engine.hosts.relay import FOLDER as TICKS
from ...engine.plan.plan import Output, Plan, Workers
from ...engine.runs.interrupts import Interrupts
from ...engine.runs.placement import worker_count


def plan_of(work: Work, share: Assigned) -> Plan:
    """The run's plan as this host carries it out: its own workers and files, no exports; the driver reads the servers' own
    pages, once for all hosts."""
    plan = work.plan
    targets = tuple(msgspec.structs.replace(target, metrics_urls=()) for target in plan.targets)
    output: Output = msgspec.structs.replace(plan.output, dir=str(own_runs()))
    workers: Workers = msgspec.structs.replace(plan.workers, count=share.workers, pin=share.pin)
    return msgspec.structs.replace(plan, targets=targets, output=output, workers=workers, export=(), until=())


def take_part(invitation: Invitation, interrupts: Interrupts) -> int:
    """Joins the run and carries out this host's share; the exit code."""
    agent = Agent(invitation)
    try:
        return _take_part(agent, invitation, interrupts)
    except LensError as error:
        agent.fail(error)
        print(f"lens: {error}", file=sys.stderr)
        return error.exit_code
    finally:
        agent.close()


def _take_part(agent: Agent, invitation: Invitation, interrupts: Interrupts) -> int:
    from ...engine.wire.preflight import check_targets
    from ..launch import launched

    agent.check_version()
    work = msgspec.msgpack.decode(invitation.work, type=Work)
    share = agent.join(worker_count(work.plan))
    plan = plan_of(work, share)
    check_files(work.files)
    check_targets(plan, os.environ)
    failure: LensError | None = None
    with launched(plan, work.run_id, interrupts, prices=work.prices, share=share) as launch:
        supervisor = launch.supervisor(lambda: None, starts=agent)
        agent.attach(supervisor)
        try:
            supervisor.run()
        except LensError as error:
            failure = error
            agent.fail(error)
        early = failure is not None or (bool(supervisor.manifest.stop_reason) and not agent.stopped)
        taken = agent.finish(launch.run_dir, early=early)
        if not taken:  # `lens recover` on the driver may still want them
            leave_ticks(launch.segment_dir, launch.run_dir)
    if taken:
        shutil.rmtree(launch.run_dir, ignore_errors=True)
    else:
        print(f"lens: the driver is gone; this host's part of the run is in {launch.run_dir}", file=sys.stderr)
    return 0 if failure is None else failure.exit_code


def leave_ticks(segment_dir: Path, run_dir: Path) -> None:
    """Moves the ticks that the driver did not take beside the files of the run: the segments are removed."""
    with suppress(OSError):
        shutil.copytree(segment_dir / TICKS, run_dir / TICKS)


def main() -> int:
    os.umask(0o077)
    with Interrupts(deferred=True) as interrupts:
        try:
            invitation = read_frame(0, Invitation)
        except (EOFError, msgspec.DecodeError) as error:
            print(f"lens: no invitation on stdin: {error}", file=sys.stderr)
            return 2
        try:
            return take_part(invitation, interrupts)
        except LensError as error:
            print(f"lens: {error}", file=sys.stderr)
            return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
