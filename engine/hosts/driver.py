"""The driver: gathers the hosts of a run, starts them at one moment, and ends them together. It owns no measured data.

One thread, one selector, as the supervisor, whose place it takes in `lens run`. What hosts send is put into tmpfs for the
collector (hosts.relay) before it is confirmed, so that a killed driver can be finished by `lens recover` with all that
the hosts know to be safe. Nobody starts before everybody is ready, and one host that cannot take part ends the attempt;
after the start a lost host is named, and the others go on.
"""

from __future__ import annotations

import hmac
import os
import secrets as random_secrets
import selectors
import socket
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from time import monotonic_ns
from typing import Final

import msgspec

from .. import __version__
from ..errors import LensError
from ..plan.plan import Plan
from ..plan.written import secrets
from ..process import environ_without_keys
from ..runs.collecting import Collecting
from ..runs.interrupts import Interrupts
from ..runs.manifest import Manifest
from ..runs.phases import PHASE_GAP_NS, SHORTENED, chained
from ..runs.runlog import note
from .host import Host
from .launcher import Launcher
from .link import Link
from .messages import (
    PATIENCE_NS,
    SILENCE_NS,
    Assigned,
    Bye,
    Cancel,
    FromAgent,
    Go,
    Hello,
    Invitation,
    Start,
    Stop,
    Work,
)
from .relay import TickFolder, incoming
from .shares import spans

FOLDER: Final = "hosts"  # in the run directory: a folder for each host's own files
TURN_S: Final = 0.05
START_DELAY_NS: Final = 2_000_000_000  # between the last "ready" and the first slot, or so many round trips:
START_ROUND_TRIPS: Final = 10
START_TRIES: Final = 5
JOIN_TIMEOUT_S: Final = 180.0
READY_TIMEOUT_S: Final = 180.0
FILES_TIMEOUT_S: Final = 600.0


class Driver:
    """Runs one plan on several hosts. `run()` blocks; signals and `on_tick` are served meanwhile, as in Supervisor."""

    def __init__(
        self,
        work: Work,
        manifest: Manifest,
        segment_dir: Path,
        collector: Sequence[str],
        interrupts: Interrupts,
        launcher: Launcher,
        *,
        on_tick: Callable[[], str | None] = lambda: None,
    ) -> None:
        self.plan: Plan = work.plan
        self.manifest = manifest
        self.run_dir = Path(manifest.run_dir)
        self.segment_dir = segment_dir
        self.hosts: list[Host] = []
        self.failure: LensError | None = None
        self._work = work
        self._interrupts = interrupts
        self._interrupts_seen = 0
        self._launcher = launcher
        self._on_tick = on_tick
        self._token = random_secrets.token_hex(32)
        self._selector = selectors.DefaultSelector()
        environ = environ_without_keys(os.environ, frozenset(secrets(self.plan)))
        self._collecting = Collecting(self._selector, manifest, segment_dir, collector, cores=[], environ=environ)
        self._listener: socket.socket | None = None
        self._strangers: list[Link[FromAgent]] = []  # connected, and not yet introduced
        self._next_phase = 0
        self._cancel_sent = False

    def run(self) -> Manifest:
        """The complete run, until summary.json is written. Raises LensError when it cannot be carried out."""
        self._selector.register(self._interrupts.fd, selectors.EVENT_READ, self._on_signal)
        try:
            self._run()
        finally:
            self._dismiss()
            self._collecting.child.kill()
            self._collecting.child.reap()
            if self._listener is not None:
                self._listener.close()
            self._launcher.close()
            self._selector.close()
        failure = self.failure or self._collecting.failure
        if failure is not None:
            raise failure
        if self.manifest.state == "starting":  # a signal came while the hosts gathered: there is no run
            raise KeyboardInterrupt
        return self.manifest

    def _run(self) -> None:
        self._on_signal()  # one that came before this
        self._gather()
        if self._stopped:
            return
        self._collecting.start()
        self._start()
        if self._next_phase == 0:
            for times in self.manifest.phases:
                times.planned = 0
        while self._failing is None and any(host.alive for host in self.hosts):
            self._turn()
            self._steer()
        if self._failing is not None:
            self._abandon(self._failing)
        self._finish()

    # --- gathering ------------------------------------------------------------------------------------------------

    def _gather(self) -> None:
        """Invites the hosts and waits until all of them are here, have their shares and are ready."""
        self._until(lambda: bool(self._launcher.address), JOIN_TIMEOUT_S, "answer")
        if self._stopped:
            return
        self._listener = socket.create_server((self._launcher.address, 0))
        self._selector.register(self._listener, selectors.EVENT_READ, self._accept)
        address = self._listener.getsockname()[:2]
        work = msgspec.msgpack.encode(self._work)
        invitations = [
            Invitation(version=__version__, driver=(address[0], address[1]), token=self._token, index=index, work=work)
            for index in range(self._launcher.count)
        ]
        self._launcher.start(invitations)
        self._until(lambda: len(self.hosts) == self._launcher.count, JOIN_TIMEOUT_S, "join")
        if self._stopped:
            return
        self.hosts.sort(key=lambda host: host.hello.index)
        self._assign()
        self._until(lambda: all(host.ready_for >= 0 and host.measured for host in self.hosts), READY_TIMEOUT_S, "start")

    def _assign(self) -> None:
        """Gives every host its name and its workers."""
        shares = spans(self.plan, [host.hello.workers for host in self.hosts])
        names = Counter(host.hello.name for host in self.hosts)
        machines = Counter(host.hello.boot_id for host in self.hosts)
        total = sum(span.size for span in shares)
        for host, span in zip(self.hosts, shares, strict=True):
            alone = names[host.hello.name] == 1
            name = host.hello.name if alone else f"{host.hello.name}-{host.hello.index + 1}"
            host.state.name, host.state.workers, host.state.first_worker = name, span.size, span.first
            host.files_dir = self.run_dir / FOLDER / name
            host.link.send(
                Assigned(
                    name=name,
                    workers=span.size,
                    first_worker=span.first,
                    workers_total=total,
                    pin=self.plan.workers.pin and machines[host.hello.boot_id] == 1,
                )
            )
        self.manifest.workers = total
        self.manifest.hosts = [host.state for host in self.hosts]
        self._collecting.publish()
        note(self.run_dir, "joined", hosts={host.state.name: host.state.workers for host in self.hosts})

    def _accept(self) -> None:
        assert self._listener is not None
        connection, _ = self._listener.accept()
        link: Link[FromAgent] = Link(connection, FromAgent)  # type: ignore[arg-type]  # a union is a type to msgspec
        self._strangers.append(link)
        self._selector.register(connection, selectors.EVENT_READ, partial(self._introduce, link))

    def _introduce(self, link: Link[FromAgent]) -> None:
        """The first message of a connection must have the token that only the launcher's hosts know."""
        messages = iter(link.receive())
        for message in messages:
            # As bytes: compare_digest takes text of ASCII only, and strangers send what they like.
            known = isinstance(message, Hello) and hmac.compare_digest(message.token.encode(), self._token.encode())
            if not known or not isinstance(message, Hello) or message.index in self._indexes:
                break
            self._strangers.remove(link)
            host = Host(link, message, TickFolder(incoming(self.segment_dir, message.index)))
            self.hosts.append(host)
            self._selector.modify(link.socket, selectors.EVENT_READ, partial(self._receive, host))
            host.take(messages, 0)  # what came with it, such as why this host cannot take part
            return
        else:
            if not link.lost:
                return
        self._unwatch(link)
        self._strangers.remove(link)
        link.close()

    @property
    def _indexes(self) -> set[int]:
        return {host.hello.index for host in self.hosts}

    def _receive(self, host: Host) -> None:
        known = host.state.start_skew_ns
        host.receive(self.manifest.phases[0].start_ns)
        if host.state.start_skew_ns != known:
            self._collecting.publish()
        if host.link.lost:
            self._unwatch(host.link)

    def _unwatch(self, link: Link[FromAgent]) -> None:
        """A connection that was closed would be readable for ever."""
        if link.socket.fileno() >= 0 and link.socket in self._selector.get_map():
            self._selector.unregister(link.socket)

    # --- starting -------------------------------------------------------------------------------------------------

    def _start(self) -> None:
        """Orders the first phase for one moment of the driver's clock. If not all hosts confirm that in time, another try."""
        start_ns = 0
        for attempt in range(1, START_TRIES + 1):
            if self._stopped or self._failing is not None:
                return
            start_ns = self._order_start()
            confirm_s = (start_ns - START_DELAY_NS // 4 - monotonic_ns()) / 1e9
            try:
                self._until(lambda: all(host.armed for host in self.hosts), confirm_s, "confirm the start")
                break
            except LensError:
                if attempt == START_TRIES or any(host.failure or host.link.lost for host in self.hosts):
                    raise
        if self._stopped or self._failing is not None:
            return
        for host in self.hosts:
            host.state.state = "running"
        self._send(Go())
        manifest = self.manifest
        manifest.set_anchor()
        manifest.state = "running"
        note(self.run_dir, "started", hosts={host.state.name: host.state.clock_bound_ns for host in self.hosts})
        self._begin_phases(start_ns)

    def _order_start(self) -> int:
        """Tells every host when the run starts, by its own clock; returns it by the driver's."""
        slowest_ns = max(host.clock.delay_ns for host in self.hosts)
        start_ns = monotonic_ns() + max(START_DELAY_NS, START_ROUND_TRIPS * slowest_ns)
        for host in self.hosts:
            host.armed = False
            host.state.offset_ns = host.clock.fix()
            host.state.start_ns = start_ns + host.state.offset_ns
            host.state.clock_bound_ns = host.clock.bound_ns
            host.link.send(Start(phase=0, at_ns=host.state.start_ns))
        return start_ns

    def _begin_phases(self, at_ns: int) -> None:
        for index, start_ns, end_ns in chained(self.plan, self._next_phase, at_ns):
            self._next_phase = index + 1
            times = self.manifest.phases[index]
            times.start_ns, times.end_ns = start_ns, end_ns
        self._collecting.publish()

    # --- running --------------------------------------------------------------------------------------------------

    @property
    def _stopped(self) -> bool:
        return bool(self.manifest.stop_reason)

    @property
    def _failing(self) -> LensError | None:
        return self.failure or self._collecting.failure

    def _send(self, message: object) -> None:
        for host in self.hosts:
            if not host.link.lost:
                host.link.send(message)

    def _turn(self) -> None:
        for key, _ in self._selector.select(TURN_S):
            key.data()
        now = monotonic_ns()
        for host in self.hosts:
            if not host.link.lost:
                host.work(now)
        self._collecting.publish_again()
        self._launcher.work()

    def _until(self, condition: Callable[[], bool], timeout_s: float, what: str) -> None:
        """Until the hosts have done something together; ends early when the run was stopped. Raises LensError."""
        end = monotonic_ns() + int(timeout_s * 1e9)
        while not condition() and not self._stopped:
            for host in self.hosts:
                if host.failure is not None:
                    raise host.failure
                if host.link.lost or monotonic_ns() - host.link.heard_ns > PATIENCE_NS:
                    raise LensError(f"host {host.state.name} was lost before the start: {host.link.lost or 'silent'}")
            problem = self._launcher.problem()
            if problem is not None:
                raise problem
            if monotonic_ns() > end:
                missing = self._launcher.count - len(self.hosts)
                who = f"{missing} of {self._launcher.count} hosts" if missing else "the hosts"
                raise LensError(f"{who} did not {what} within {timeout_s:.0f} s; {self._launcher.hint}")
            self._turn()

    def _steer(self) -> None:
        """Begins phases that waited for the slowest host, notices lost hosts, looks at the stop rules."""
        now = monotonic_ns()
        for host in [each for each in self.hosts if each.alive]:
            if now - host.link.heard_ns > SILENCE_NS and not host.link.lost:
                self._receive(host)  # perhaps it was this process that did not run
            if host.failure is not None and self.failure is None:
                self.failure = host.failure
            if host.ended:
                self._ended(host, now)
            elif host.link.lost or now - host.link.heard_ns > SILENCE_NS:
                self._lose(host, host.link.lost or f"silent for {SILENCE_NS / 1e9:g} s", now)
        alive = [host for host in self.hosts if host.alive]
        if not alive and all(host.state.state == "lost" for host in self.hosts) and self.failure is None:
            self.failure = LensError(
                "all hosts were lost: " + "; ".join(f"{h.state.name} {h.state.why}" for h in self.hosts)
            )
        more = self._next_phase < len(self.plan.phases) and not self._stopped
        if more and alive and all(host.ready_for >= self._next_phase for host in alive):
            self._next(alive, now)
        last = self.manifest.phases[-1]
        if last.end_ns and now > last.end_ns and self.manifest.state == "running":
            self.manifest.state = "draining"
            self._collecting.publish()
        reason = self._on_tick()
        if reason and not self._stopped:
            self.stop(reason)

    def _next(self, alive: Sequence[Host], now: int) -> None:
        times = self.manifest.phases[self._next_phase - 1]
        times.end_ns = min(times.end_ns or now, now)
        start_ns = now + max(PHASE_GAP_NS, START_ROUND_TRIPS * max(host.clock.delay_ns for host in alive))
        for host in alive:
            host.link.send(Start(phase=self._next_phase, at_ns=start_ns + host.state.offset_ns))
        self._begin_phases(start_ns)

    def _ended(self, host: Host, now: int) -> None:
        """Every tick of it is here. One that ended by itself, while the run goes on, is lost to the rest of it."""
        if host.state.ended_early and not self._stopped:
            self._lose(host, "it ended by itself", now)
            return
        host.state.state = "done"
        self._collecting.publish()

    def _lose(self, host: Host, why: str, now: int) -> None:
        host.state.state, host.state.why, host.state.lost_ns = "lost", why, now
        note(self.run_dir, "host_lost", host=host.state.name, why=why, last_tick=host.state.last_tick)
        self._collecting.publish()
        if not host.ended:
            self._part(host)

    def _part(self, host: Host) -> None:
        self._unwatch(host.link)
        host.close()

    def publish(self) -> None:
        """Writes run.json."""
        self._collecting.publish()

    def stop(self, reason: str) -> None:
        """No host sends any more; all drain. The report says the reason."""
        self.manifest.stop_reason = reason
        self.manifest.end_phases(monotonic_ns(), countable=reason not in SHORTENED)
        if self.manifest.state == "running":
            self.manifest.state = "draining"
        self._collecting.publish()
        note(self.run_dir, "draining", reason=reason)
        self._send(Stop(reason=reason))

    def _on_signal(self) -> None:
        """As the supervisor: the first signal drains, the second cancels what is in flight, the third gives up."""
        self._interrupts.clear()
        seen, self._interrupts_seen = self._interrupts_seen, len(self._interrupts.numbers)
        if seen < 1 <= self._interrupts_seen:
            self.manifest.interrupted = True
            self.stop("interrupted")
        if seen < 2 <= self._interrupts_seen:
            self._send(Cancel())
        if self._interrupts_seen > 2:
            raise LensError("interrupted three times: the report was not finished; see `lens recover`")

    # --- the end --------------------------------------------------------------------------------------------------

    def _abandon(self, failure: LensError) -> None:
        """The run cannot go on: all hosts end now, what they recorded comes here."""
        if not self._stopped:
            self.stop(f"failed: {failure}")
        self._send(Cancel())
        while any(host.alive for host in self.hosts):
            self._turn()
            now = monotonic_ns()
            for host in [each for each in self.hosts if each.alive]:
                if host.ended:
                    host.state.state = "done"
                elif host.link.lost or now - host.link.heard_ns > SILENCE_NS:
                    self._lose(host, host.link.lost or "silent", now)

    def _finish(self) -> None:
        """Declares the run finished, waits for summary.json, and takes in the hosts' files."""
        now = monotonic_ns()
        for times in self.manifest.phases:
            if times.start_ns and not times.end_ns:
                times.end_ns = now
        for host in self.hosts:
            host.state.clock_bound_ns = host.clock.bound_ns or host.state.clock_bound_ns
        self.manifest.state = "finished"
        self._collecting.publish()
        note(self.run_dir, "finished", failure=str(self._failing or ""))
        self._collecting.wait(self._turn)
        end = monotonic_ns() + int(FILES_TIMEOUT_S * 1e9)
        while monotonic_ns() < end and any(self._sending_files(host) for host in self.hosts):
            self._turn()

    def _sending_files(self, host: Host) -> bool:
        silent = monotonic_ns() - host.link.heard_ns > SILENCE_NS
        return host.ended and not host.has_files and not host.link.lost and not silent

    def _dismiss(self) -> None:
        """Nobody stays who was invited: whoever has no part in the run any more is told so, and the rest is closed."""
        self._send(Stop(reason="stopped"))
        self._send(Cancel())
        self._send(Bye())
        for host in self.hosts:
            self._part(host)
        for link in self._strangers:
            link.close()
