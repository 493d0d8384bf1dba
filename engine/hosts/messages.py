"""What driver and agents say to each other: frames (engine/frames.py) over one TCP connection each.

An agent's way: Invitation (on stdin) -> Hello -> Assigned -> Ready or Failed -> Start, Armed, Go -> Tick ... Taken ->
Ended -> FilePart ... -> Bye. Pings and Pongs at any time: they are the clock exchange and the sign of life of both.
"""

from __future__ import annotations

from typing import Final

import msgspec

from ..plan.plan import Plan

SILENCE_NS: Final = 5_000_000_000  # once the run has begun: without a word for so long the other side is lost
PATIENCE_NS: Final = 60_000_000_000  # before that: processes are started, workloads are read


class Invitation(msgspec.Struct, kw_only=True):
    """What the launcher brings to an agent's stdin. `work` is msgpack of Work, read only if the version is the same."""

    version: str
    driver: tuple[str, int]  # host and port
    token: str
    index: int
    work: bytes


class Work(msgspec.Struct, kw_only=True):
    """The run, secrets included."""

    plan: Plan
    run_id: str
    prices: list[tuple[int, int]] = []
    files: dict[str, str] = {}  # the plan's files: SHA-256 by path; a host without the same ones cannot take part


# --- from an agent ---------------------------------------------------------------------------------------------------


class Hello(msgspec.Struct, kw_only=True, tag=True):
    """The first message. `boot_id` is the same for agents on one machine."""

    token: str
    index: int
    name: str
    boot_id: str
    workers: int  # how many the host would start by itself


class Ready(msgspec.Struct, kw_only=True, tag=True):
    """The phases before `phase` are done here."""

    phase: int


class Armed(msgspec.Struct, kw_only=True, tag=True):
    """The Start of the first phase at this moment was received."""

    at_ns: int


class Started(msgspec.Struct, kw_only=True, tag=True):
    """The host saw its start at this moment of its own clock."""

    woke_ns: int


class Tick(msgspec.Struct, kw_only=True, tag=True):
    """A closed tick of the host, once its own checkpoint holds it; sent again after a reconnect never: there is none."""

    number: int
    content: bytes


class Pong(msgspec.Struct, kw_only=True, tag=True):
    sent_ns: int
    received_ns: int
    replied_ns: int


class Failed(msgspec.Struct, kw_only=True, tag=True):
    """The host cannot take part, or cannot go on. `code` is the exit code that goes with it."""

    text: str
    code: int = 1


class Ended(msgspec.Struct, kw_only=True, tag=True):
    """Every tick was sent. `early`: by itself, not because the plan or the driver ended it."""

    early: bool = False


class FilePart(msgspec.Struct, kw_only=True, tag=True):
    """A piece of a file of the host's run directory, in order. An empty piece ends the file, an empty name all."""

    name: str
    piece: bytes = b""


# --- from the driver -------------------------------------------------------------------------------------------------


class Assigned(msgspec.Struct, kw_only=True, tag=True):
    """The host's name and share: workers first_worker..first_worker + workers - 1 of workers_total."""

    name: str
    workers: int
    first_worker: int
    workers_total: int
    pin: bool  # False where several hosts share a machine


class Ping(msgspec.Struct, kw_only=True, tag=True):
    sent_ns: int


class Start(msgspec.Struct, kw_only=True, tag=True):
    """Phase `phase` begins at this moment of the host's clock; the first one only if Go follows."""

    phase: int
    at_ns: int


class Go(msgspec.Struct, kw_only=True, tag=True):
    """All hosts are armed."""


class Taken(msgspec.Struct, kw_only=True, tag=True):
    """This tick and all before it are in the driver's tmpfs."""

    number: int


class Stop(msgspec.Struct, kw_only=True, tag=True):
    """Send nothing more and drain."""

    reason: str


class Cancel(msgspec.Struct, kw_only=True, tag=True):
    """End what is in flight."""


class Bye(msgspec.Struct, kw_only=True, tag=True):
    """The driver has everything, or wants nothing."""


FromAgent = Hello | Ready | Armed | Started | Tick | Pong | Failed | Ended | FilePart
FromDriver = Assigned | Ping | Start | Go | Taken | Stop | Cancel | Bye
