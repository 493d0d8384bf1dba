"""One load host as the driver sees it: its connection, its clock, how far it is, and where its ticks and files go."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from time import monotonic_ns
from typing import IO, Final

from ..errors import LensError, error_of
from ..runs.manifest import HostState
from .clock import Exchange, HostClock
from .link import Link
from .messages import (
    Armed,
    Ended,
    Failed,
    FilePart,
    FromAgent,
    Hello,
    Ping,
    Pong,
    Ready,
    Started,
    Taken,
    Tick,
)
from .relay import TickFolder

ROUND_EXCHANGES: Final = 64
ROUND_MAX_NS: Final = 2_000_000_000  # a round over a slow way ends with fewer
ROUND_EVERY_NS: Final = 10_000_000_000
PULSE_NS: Final = 1_000_000_000  # between two pings outside of rounds: the sign of life
FILES_MAX_BYTES: Final = 64 << 30  # more than a run directory can be: what a broken host may write here


class Host:
    """`receive` takes in what came, `work` pings. The driver reads the fields and never waits here."""

    def __init__(self, link: Link[FromAgent], hello: Hello, folder: TickFolder) -> None:
        self.link = link
        self.hello = hello
        self.state = HostState(name=hello.name)
        self.clock = HostClock()
        self.measured = False  # a complete round of clock exchanges
        self.ready_for = -1  # the phases before this one are done there
        self.armed = False
        self.ended = False
        self.has_files = False  # all of them
        self.failure: LensError | None = None
        self.files_dir: Path | None = None  # where its files go; None: nowhere
        self._folder = folder
        self._untaken: deque[tuple[int, bytes]] = deque()  # ticks that tmpfs did not take yet
        self._last_round_ns = 0
        self._exchanges = 0
        self._round_began_ns = 0
        self._pinged_ns = 0
        self._file: IO[bytes] | None = None
        self._files_bytes = 0

    @property
    def alive(self) -> bool:
        return self.state.state in ("starting", "running")

    def receive(self, run_start_ns: int) -> None:
        """Takes in what has come. `run_start_ns` is the start of the run on the driver's clock, 0 before it is known."""
        self.take(self.link.receive(), run_start_ns)

    def take(self, messages: Iterable[FromAgent], run_start_ns: int) -> None:
        """Takes in messages that have just come."""
        now = monotonic_ns()
        for message in messages:
            self._take(message, now, run_start_ns)

    def _take(self, message: FromAgent, now: int, run_start_ns: int) -> None:
        match message:
            case Pong(sent_ns=sent, received_ns=received, replied_ns=replied):
                self._exchanged(Exchange(sent, received, replied, now))
            case Tick(number=number, content=content):
                self._untaken.append((number, content))
                self._put()
            case Ready(phase=phase):
                self.ready_for = max(self.ready_for, phase)
            case Armed(at_ns=at_ns):
                self.armed = at_ns == self.state.start_ns  # else of an earlier attempt
            case Started(woke_ns=woke):
                self.state.start_skew_ns = woke - (self.clock.offset_ns or 0) - run_start_ns
            case Failed(text=text, code=code):
                self.failure = error_of(f"host {self.state.name}: {text}", code)
            case Ended(early=early):
                self.ended = True
                self.state.ended_early = early
            case FilePart(name=name, piece=piece):
                self._write(name, piece)
            case _:
                pass

    def _put(self) -> None:
        """Puts ticks where the collector finds them, in their order. One that tmpfs does not take is not confirmed and
        tried again: the host keeps it until then."""
        with suppress(OSError):
            while self._untaken:
                number, content = self._untaken[0]
                if number > self.state.last_tick:
                    self._folder.put(number, content)
                    self.state.last_tick = number
                self.link.send(Taken(number=number))
                self._untaken.popleft()

    # --- the clock ------------------------------------------------------------------------------------------------

    def _exchanged(self, exchange: Exchange) -> None:
        self.clock.add(exchange)
        self._exchanges += 1
        over = exchange.returned_ns - self._round_began_ns > ROUND_MAX_NS
        if self._round_began_ns and (self._exchanges >= ROUND_EXCHANGES or over):
            self._round_began_ns = 0
            self.measured = True
            self.state.clock_bound_ns = self.clock.bound_ns
        elif self._round_began_ns:
            self._ping(exchange.returned_ns)

    def work(self, now: int) -> None:
        """Pings: a round of exchanges every 10 s, in between once a second. Tries again what could not be written."""
        self.link.flush()
        self._put()
        if not self._round_began_ns and now - self._pinged_ns > PULSE_NS:
            if not self.measured or now - self._last_round_ns > ROUND_EVERY_NS:
                if self.measured:
                    self.clock.begin_round()
                self._round_began_ns = self._last_round_ns = now
                self._exchanges = 0
            self._ping(now)

    def _ping(self, now: int) -> None:
        self._pinged_ns = now
        self.link.send(Ping(sent_ns=monotonic_ns()))

    # --- files ----------------------------------------------------------------------------------------------------

    def _write(self, name: str, piece: bytes) -> None:
        """A piece of a file. The name is a plain one: a host writes into its own folder and nowhere else."""
        if not name:
            self.has_files = True
        if self._file is not None and (not name or not piece):
            self._file.close()
            self._file = None
        if not name or not piece or self.files_dir is None or Path(name).name != name or name.startswith("."):
            return
        self._files_bytes += len(piece)
        with suppress(OSError):
            if self._file is None and self._files_bytes <= FILES_MAX_BYTES:
                self.files_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
                self._file = (self.files_dir / name).open("wb")
            if self._file is not None:
                self._file.write(piece)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
        self.link.close()
