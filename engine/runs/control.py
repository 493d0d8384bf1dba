"""The messages between supervisor and worker: frames (engine/frames.py) over the worker's stdin and stdout.

To the worker: one `Share`, then `Order`s. From it: `Word`s. End of file on stdin means that the supervisor is gone.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from ..plan.plan import Plan


def salted(plan: Plan, run_id: str) -> Plan:
    """The plan as its workers get it: a salt of "run" is the run's id, the same in all of them and in no other run."""
    if plan.workload.salt != "run":
        return plan
    return msgspec.structs.replace(plan, workload=msgspec.structs.replace(plan.workload, salt=run_id))


class Share(msgspec.Struct, kw_only=True):
    """All that one incarnation of a worker needs. Holds secrets: it goes through a pipe, never a file or argv."""

    plan: Plan
    run_id: str
    worker: int
    workers: int
    incarnation: int
    segment: str
    geometry: tuple[int, ...]
    stamps: Literal["segment", "read"] = "read"  # segment: a tap is at work
    realtime: bool = False
    environ: dict[str, str] = {}  # the proxy variables
    budget_left: int | None = None  # pico-USD, of a successor; None: a full share of the plan's budget
    prices: list[tuple[int, int]] = []  # pico-USD per input and output token of each target, where a budget is set


class Order(msgspec.Struct, kw_only=True):
    """What to do now. `phase` begins phase `phase` at `at_ns` with the share's slots from `first` on, of a run that began
    at `origin_ns`: its ticks are counted from there."""

    do: Literal["phase", "drain", "cancel", "stop"]
    phase: int = 0
    at_ns: int = 0
    origin_ns: int = 0
    first: int = 0
    reason: str = "stopped"


class Word(msgspec.Struct, kw_only=True):
    """What a worker says: ready for orders, done with a phase, unable to work, or where a name leads now."""

    say: Literal["ready", "phase_done", "failed", "resolved"]
    phase: int = 0
    text: str = ""
    code: int = 1  # the exit code that goes with a failure
    servers: list[tuple[int, str, int]] = []  # resolved: (address family, numeric address, port)
