"""The host's end: joins the driver, starts phases when it says so, and passes on the ticks of its own collector.

Works inside the supervisor's loop, of which it is a guest: the connection and one timer are registered in its selector.
The supervisor knows nothing of hosts but that somebody else says when phases begin (runs.phases.Starts). When the driver
is gone the run ends here as well: what is in flight is cancelled, the rest of the slots are `worker_down`.
"""

from __future__ import annotations

import os
import platform
import selectors
import socket
from collections.abc import Iterator
from pathlib import Path
from time import monotonic_ns
from typing import Final

from .. import __version__
from ..clock import Timer
from ..errors import LensError, PlanError
from ..process import raise_priority, run_as_usual, run_in_real_time
from ..runs.phases import HOST_LOST
from ..runs.supervisor import Supervisor
from .link import Link
from .messages import (
    PATIENCE_NS,
    SILENCE_NS,
    Armed,
    Assigned,
    Bye,
    Cancel,
    Ended,
    Failed,
    FilePart,
    FromDriver,
    Go,
    Hello,
    Invitation,
    Ping,
    Pong,
    Ready,
    Start,
    Started,
    Stop,
    Taken,
    Tick,
)
from .relay import FOLDER, TickFolder

CONNECT_TIMEOUT_S: Final = 30.0
ASSIGN_TIMEOUT_S: Final = 600.0  # until the last of the hosts has joined; the driver gives up before
WORK_S: Final = 0.05
NICENESS: Final = -10  # as a worker's
SENDING_MAX_BYTES: Final = 1 << 20  # ticks wait in their folder while so much waits for the socket
FILE_PIECE_BYTES: Final = 1 << 18


class Agent:
    """One host's part in a run. `join` first, then `attach` to the supervisor, `finish` after its end."""

    def __init__(self, invitation: Invitation) -> None:
        self.invitation = invitation
        self.link: Link[FromDriver] = connected(invitation.driver)
        self.assigned: Assigned | None = None
        self.stopped = ""  # why the driver ended the run
        self.dismissed = False
        self._starts: dict[int, int] = {}
        self._go = False
        self._ready_for = -1
        self._due_ns = 0  # when the run starts here, until that was reported
        self._timer = Timer()
        self._niceness = 0
        self._supervisor: Supervisor | None = None
        self._ticks: TickFolder | None = None
        self._sent = -1

    # --- joining --------------------------------------------------------------------------------------------------

    def join(self, workers: int) -> Assigned:
        """Introduces this host, which would start `workers` workers; its share. Raises LensError."""
        self._introduce(workers)
        end = monotonic_ns() + int(ASSIGN_TIMEOUT_S * 1e9)
        while self.assigned is None:
            self.link.wait(WORK_S)
            self.receive()
            if self.link.lost or self.stopped or self.dismissed or monotonic_ns() > end:
                raise LensError(
                    f"the run did not begin: {self.link.lost or self.stopped or 'the driver does not answer'}"
                )
        return self.assigned

    def check_version(self) -> None:
        """Raises PlanError if the driver has another version: its plan may not be understood here."""
        if self.invitation.version != __version__:
            self._introduce(1)
            raise PlanError(
                f"this host has version {__version__} of llm-latency-lens, the driver {self.invitation.version}; "
                "install the same one everywhere"
            )

    def _introduce(self, workers: int) -> None:
        invitation = self.invitation
        self.link.send(
            Hello(
                token=invitation.token,
                index=invitation.index,
                name=platform.node() or "host",
                boot_id=boot_id(),
                workers=workers,
            )
        )

    def attach(self, supervisor: Supervisor) -> None:
        """From here on the supervisor's loop serves the driver."""
        self._supervisor = supervisor
        self._ticks = TickFolder(supervisor.segment_dir / FOLDER)
        supervisor.selector.register(self.link.socket, selectors.EVENT_READ, self.receive)
        supervisor.selector.register(self._timer, selectors.EVENT_READ, self._timer_fired)
        self._timer.arm(monotonic_ns() + int(WORK_S * 1e9))

    # --- starts of phases (runs.phases.Starts) ----------------------------------------------------------------------

    def at_ns(self, phase: int) -> int | None:
        if phase > self._ready_for:
            self._ready_for = phase
            self.link.send(Ready(phase=phase))
        at_ns = self._starts.get(phase)
        return None if at_ns is None or not self._go else at_ns

    # --- what the driver says ---------------------------------------------------------------------------------------

    def receive(self) -> None:
        """Obeys what has come. Pings first: what else is done for a message would count as delay."""
        now = monotonic_ns()
        messages = self.link.receive()
        for message in messages:
            if isinstance(message, Ping):
                self.link.send(Pong(sent_ns=message.sent_ns, received_ns=now, replied_ns=monotonic_ns()))
        for message in messages:
            self._obey(message)
        if self.link.lost:
            self._lost()

    def _obey(self, message: FromDriver) -> None:
        match message:
            case Assigned():
                self.assigned = message
            case Start(phase=phase, at_ns=at_ns):
                self._starts[phase] = at_ns
                if not phase:
                    # Until it has seen the start: what else runs on the host would count as its skew.
                    self._niceness = self._niceness if self._due_ns else os.getpriority(os.PRIO_PROCESS, 0)
                    if not run_in_real_time():
                        raise_priority(NICENESS)
                    self._due_ns = at_ns
                    self._timer.arm(at_ns)
                    self.link.send(Armed(at_ns=at_ns))
            case Go():
                self._go = True
            case Taken(number=number):
                if self._ticks is not None:
                    self._ticks.remove(number + 1)
            case Stop(reason=reason):
                self.stopped = reason
                if self._supervisor is not None and not self._supervisor.manifest.stop_reason:
                    self._supervisor.stop(reason)
            case Cancel():
                self.stopped = self.stopped or "interrupted"
                if self._supervisor is not None:
                    self._supervisor.cancel()
            case Bye():
                self.dismissed = True
            case _:
                pass

    def _lost(self) -> None:
        """The driver is gone, or the way to it: nobody would count what is still sent."""
        supervisor = self._supervisor
        if supervisor is None or self.stopped == HOST_LOST:
            return
        self.stopped = HOST_LOST
        supervisor.selector.unregister(self.link.socket)  # or it would be readable for ever
        if not supervisor.manifest.stop_reason:
            supervisor.stop(HOST_LOST)
        supervisor.cancel()

    # --- what the host says -----------------------------------------------------------------------------------------

    def _timer_fired(self) -> None:
        now = monotonic_ns()
        self._timer.read()
        if self._due_ns and now >= self._due_ns:
            self._due_ns = 0
            if self._go:  # else not all hosts were armed in time, and another start follows
                self.link.send(Started(woke_ns=now))
            run_as_usual(self._niceness)
        pulse_ns = now + int(WORK_S * 1e9)
        self._timer.arm(min(pulse_ns, self._due_ns) if self._due_ns else pulse_ns)
        self.work(now)

    def work(self, now: int) -> None:
        """Passes on ticks, and notices that the driver has been silent for too long."""
        self.link.flush()
        if now - self.link.heard_ns > (SILENCE_NS if self._go else PATIENCE_NS):
            self.link.lose("the driver is silent")
        if self.link.lost:
            self._lost()
            return
        for number in self._ticks.numbers() if self._ticks is not None else []:
            if number <= self._sent:
                continue
            if self.link.waiting_bytes > SENDING_MAX_BYTES:
                break
            self._send_tick(number)

    def _send_tick(self, number: int) -> None:
        assert self._ticks is not None
        try:
            content = self._ticks.read(number)
        except FileNotFoundError:
            return
        self.link.send(Tick(number=number, content=content))
        self._sent = number

    # --- the end ----------------------------------------------------------------------------------------------------

    def fail(self, error: LensError) -> None:
        """Reports why this host cannot take part, or go on."""
        self.link.send(Failed(text=str(error), code=error.exit_code))

    def finish(self, run_dir: Path, *, early: bool) -> bool:
        """Sends the last ticks and the files of the run directory. True when the driver has all of it."""
        self._supervisor = None
        while self._ticks is not None and self._ticks.numbers() and not self._over():
            self._serve()
        if not self._over():
            self.link.send(Ended(early=early))
        for part in file_parts(run_dir):
            if self._over():
                break
            self.link.send(part)
            while self.link.waiting_bytes > FILE_PIECE_BYTES and not self._over():
                self._serve()
        while not self._over():
            self._serve()
        return self.dismissed

    def _serve(self) -> None:
        self.link.wait(WORK_S)
        self.receive()
        self.work(monotonic_ns())

    def _over(self) -> bool:
        return bool(self.dismissed or self.link.lost)

    def close(self) -> None:
        end = monotonic_ns() + 1_000_000_000
        while self.link.waiting_bytes and not self.link.lost and monotonic_ns() < end:
            self.link.wait(WORK_S)
        self.link.close()
        self._timer.close()


def connected(address: tuple[str, int]) -> Link[FromDriver]:
    """The connection to the driver. Raises LensError."""
    host, port = address
    try:
        return Link(socket.create_connection((host, port), CONNECT_TIMEOUT_S), FromDriver)  # type: ignore[arg-type]  # a union is a type to msgspec
    except OSError as error:
        raise LensError(
            f"host {platform.node()} cannot reach the driver at {host}:{port}: {error.strerror or error}; "
            "the port must be open from every host"
        ) from error


def boot_id() -> str:
    """The same for all processes of one machine, whatever their namespaces; empty where the kernel does not say."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def file_parts(run_dir: Path) -> Iterator[FilePart]:
    """The files of a run directory in pieces, then the end of all."""
    for path in sorted(run_dir.iterdir()):
        if path.is_file() and not path.is_symlink():
            with path.open("rb") as file:
                while piece := file.read(FILE_PIECE_BYTES):
                    yield FilePart(name=path.name, piece=piece)
            yield FilePart(name=path.name)
    yield FilePart(name="")
