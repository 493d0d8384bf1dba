"""The loop of a worker: which request begins when, and what happens to it next.

How it works. The event loop calls `turn()` when the reactor's epoll object is ready: a socket or the one timer. The
reactor serves the sockets; connections write into their exchanges and report to their pool, which calls `sending` and
`done` here. What has to be looked at after that sets `pending`, and `work()` then does, never nested:
calls that are due, slots that are due (`run.issue`, which calls `dispatch`), the sweep of the deadlines. It ends by
arming the timer for whatever is due next, so an idle worker does not wake up. Requests are rendered ahead of their
slots in `_fill`, in slices with the sockets served in between; a late render is counted.
A request: dispatch -> _enter (ledger) -> _admit (rate limits) -> _begin -> pool.send ... sending ... done -> again by
the retry law, or ledger.record, and then the session's next turn or the next request of a closed loop.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from time import monotonic_ns, time_ns

from ..clock import StampClock
from ..dialects import OK, Prompt
from ..dialects.table import dialect_of
from ..errors import LensError
from ..load.feed import OUTPUT_ESTIMATE, Feed, Prepared
from ..load.models import schedule_of
from ..load.phase_run import NEVER, ClosedRun, OpenRun, PhaseRun, in_flight_cap
from ..load.retry import CONNECT, retry_delay_ns
from ..load.schedule import Closed
from ..plan.written import secrets
from ..records.layout import SLOT_MASK, TURN_SHIFT
from ..records.record import ABORT_PLANNED, Outcome, Unsent
from ..records.tap_status import TapWatch
from ..records.writer import SegmentWriter
from ..runs.control import Share, Word
from ..wire.endpoint import Address, Endpoint
from ..wire.exchange import Exchange
from ..wire.pool import Pool
from ..wire.reactor import Reactor
from ..wire.trace_header import TraceHeader
from ..workload import Session, source_of
from .allowance import Allowance
from .deadlines import Deadlines
from .health import PULSE_NS, Health
from .ledger import Ledger
from .timers import Timers


class Worker:
    """One incarnation of one worker, from its share to the last record."""

    def __init__(self, share: Share, segment: SegmentWriter, say: Callable[[Word], None]) -> None:
        plan = share.plan
        self.share = share
        self.plan = plan
        self.say = say
        clock = StampClock()
        self.reactor = Reactor(clock, segment.lag)
        self.reactor.watch(self.reactor.timer.fileno(), 1, self._timer_fired)
        self.source = source_of(plan, seed=plan.seed)
        # The incarnation is in the seed: a successor must not repeat the backoffs of the dead one.
        self.random = random.Random(f"{plan.seed}/{share.worker}/{share.incarnation}")
        self.keep_text = plan.workload.kind == "sessions" or plan.workload.keep_replies or plan.workload.count_tokens
        self.runs: list[OpenRun | ClosedRun] = []
        self.pools: list[Pool] = []
        endpoints = [Endpoint(target, share.environ) for target in plan.targets]
        self.timers = Timers()
        self.trace = TraceHeader(plan, share.run_id)
        self.deadlines = Deadlines(plan.limits, plan.seed, [endpoint.tls_context is not None for endpoint in endpoints])
        hidden = [tuple(secrets(target)) for target in plan.targets]
        self.ledger = Ledger(segment, plan, hidden, worker=share.worker, workers=share.workers)
        tap = TapWatch(Path(share.segment).parent) if share.stamps == "segment" else None
        self.health = Health(self.reactor, self.ledger, self.pools, self.runs, tap)
        for target, endpoint in zip(plan.targets, endpoints, strict=True):
            self.pools.append(
                Pool(
                    self.reactor,
                    target,
                    dialect_of(target.provider),
                    endpoint,
                    sending=self.sending,
                    done=self.done,
                    suspect=self.health.suspect,
                    exact=share.stamps == "segment",
                    resolved=self._resolved,
                )
            )
        self.allowance = Allowance(share, segment.counters)
        self.in_flight = 0  # requests, and sessions that are thinking
        self.last_now = monotonic_ns()
        self.armed_ns = 0
        self.pending = False
        self.filling = False
        self.working = False
        self.reserved = 0  # pico-USD, by affordable() for the dispatch that follows it
        self.stopping: Unsent | None = None
        first_ns = monotonic_ns() + PULSE_NS
        self.timers.at(first_ns, self._pulse, first_ns)

    # --- the loop -------------------------------------------------------------------------------------------------

    def turn(self) -> None:
        """One wake-up: sockets first, then everything that is due."""
        try:
            # Sockets first: what has arrived carries its stamp already, but a reply that ends here frees a slot for work().
            self.reactor.turn()
            if self.pending or self.reactor.yielding:
                self.work()
        except LensError as error:
            self.give_up(error)

    def give_up(self, error: LensError) -> None:
        """Reports that the share cannot be carried out, as when a row of its workload is bad, and ends the process."""
        self.say(Word(say="failed", text=str(error), code=error.exit_code))
        # Not sys.exit(): that would wait for the threads of getaddrinfo(). Everything to keep is in shared memory.
        os._exit(error.exit_code)

    def _timer_fired(self, _mask: int) -> None:
        self.reactor.timer.read()
        self.armed_ns = 0
        self.pending = True

    def work(self) -> None:
        """Runs what is due, issues what can be sent and arms the timer for what comes next."""
        if self.working:  # an attempt failed inside issue(): the outer call goes round again
            self.pending = True
            return
        self.working = True
        while True:
            self.pending = False
            # Read in each round: an issue() of many requests takes as long as the next slots are apart.
            now = self.last_now = monotonic_ns()
            self.timers.run_due(now)
            for run in self.runs:
                run.issue(self, now)
            if now >= self.deadlines.sweep_ns:
                for exchange, outcome, message in self.deadlines.sweep(self.ledger.active, now):
                    self._abandon(exchange, outcome, message)
            if not self.pending:
                break
        self.working = False
        self._end_runs()
        self._arm()

    def _arm(self) -> None:
        due = min(self.timers.next_ns(), self.deadlines.sweep_ns)
        for run in self.runs:
            due = min(due, run.next_due_ns(self))
        # Most turns leave the next due time where it was: then no system call.
        if due != self.armed_ns:
            self.armed_ns = self.reactor.due_ns = due
            # 0 would disarm the timer (timerfd_create(2)) where "at once" is meant.
            self.reactor.timer.arm(max(due, 1))
        if not self.filling and any(run.feed.low for run in self.runs if not run.issued):
            self.filling = True
            asyncio.get_running_loop().call_soon(self._fill)

    def _fill(self) -> None:
        """Renders ahead in slices, with the sockets served in between."""
        try:
            self.filling = max((run.feed.fill() for run in self.runs if not run.issued), default=False)
        except LensError as error:
            self.give_up(error)
        if self.filling:
            asyncio.get_running_loop().call_soon(self._fill)

    def _pulse(self, due_ns: int) -> None:
        now = monotonic_ns()
        self.health.pulse(now, due_ns)
        self.timers.at(now + PULSE_NS, self._pulse, now + PULSE_NS)
        if not self.in_flight:
            self.health.collect_if_idle(now, lambda: min((run.next_due_ns(self) for run in self.runs), default=NEVER))

    # --- phases ---------------------------------------------------------------------------------------------------

    def begin(self, index: int, start_ns: int, first: int) -> None:
        """Begins phase `index` at `start_ns` with this worker's slots from `first` on."""
        share, plan = self.share, self.plan
        phase = plan.phases[index]
        schedule = schedule_of(phase, seed=plan.seed, index=index, timestamps=self.source.timestamps)
        items = iter(self.source.items(share.worker, share.workers, first, phase=index))
        items = schedule.aim(items, share.worker, share.workers, first)
        feed = Feed(
            schedule.share(share.worker, share.workers, first),
            items,
            lambda target, prompt: self.pools[target].render(prompt),
            planned=schedule.planned,
            workers=share.workers,
            finish=partial(self.trace.add, index) if self.trace.wanted else None,
        )
        run: OpenRun | ClosedRun
        if isinstance(schedule, Closed):
            run = ClosedRun(index, phase, feed, start_ns, schedule, share.worker, share.workers)
        else:
            cap = in_flight_cap(phase.load, share.worker, share.workers, self.ledger.slots)
            # More than the table has entries could not be counted as lost if this process died.
            cap = min(cap, self.ledger.segment.geometry.inflight)
            run = OpenRun(index, phase, feed, start_ns, cap, plan.limits.drain_ns)
        self.health.measure()
        self.runs.append(run)
        feed.fill()
        if self.stopping is not None:
            run.stop(self, monotonic_ns(), self.stopping)
        self.work()

    def _resolved(self, addresses: Sequence[Address]) -> None:
        """Reports where a name leads now: the tap holds the segments of these addresses."""
        if self.share.stamps == "segment":
            servers = [(int(a.family), str(a.sockaddr[0]).partition("%")[0], int(a.sockaddr[1])) for a in addresses]
            self.say(Word(say="resolved", servers=servers))

    def _end_runs(self) -> None:
        """Removes the runs that are over and reports them."""
        for run in [run for run in self.runs if run.issued and not run.in_flight]:
            self.health.measure()
            self.runs.remove(run)
            self.health.publish()
            self.say(Word(say="phase_done", phase=run.index))

    def stop(self, reason: Unsent) -> None:
        """Sends nothing more; what is in flight may end."""
        self.stopping = reason
        now = monotonic_ns()
        for run in self.runs:
            run.stop(self, now, reason)
        for exchange, entered_by in list(self.ledger.active.items()):
            # Only what waits for a rate limit. A request that has begun may be half sent: the drain waits for it.
            if not exchange.send_ns and not exchange.attempts:
                self._withdraw(entered_by, exchange, reason)
        self.work()

    def abort(self, outcome: Outcome) -> None:
        """Ends everything in flight now, with `outcome`."""
        # A copy: each end removes itself from `active`.
        for exchange in list(self.ledger.active):
            self._abandon(exchange, outcome, "the run was ended")
        self.work()

    def close(self) -> None:
        """Publishes the last counters and closes the sockets."""
        self.health.publish()
        for pool in self.pools:
            pool.close()
        self.reactor.close()

    # --- the way of a request -------------------------------------------------------------------------------------

    def affordable(self, run: PhaseRun, prepared: Prepared) -> bool:
        """Reserves the money for one request. Not enough: what is in flight may settle for less, else the run stops."""
        # The most that it can cost is set aside before it is sent: settled afterwards, a burst would overspend.
        input_tokens = prepared.estimate_tokens - prepared.output_tokens
        reserved = self.allowance.reserve(prepared.target, input_tokens, prepared.output_tokens)
        if reserved is not None:
            self.reserved = reserved
            return True
        if not self.in_flight:
            self.stopping = Unsent.BUDGET
            for each in self.runs:
                each.stop(self, self.last_now, Unsent.BUDGET)
        return False

    def dispatch(self, run: PhaseRun, prepared: Prepared, intended_ns: int, waited_ns: int = 0) -> None:
        """Starts the request of one slot, at once or when its rate limits permit it."""
        exchange = Exchange(
            prepared.slot,
            intended_ns,
            run.index,
            prepared.target,
            self.plan.series(run.index, prepared.target),
            prepared.wire,
        )
        exchange.waited_ns = waited_ns
        exchange.session = prepared.session
        exchange.estimate_tokens = prepared.estimate_tokens
        exchange.asked_input_tokens = prepared.asked_input_tokens
        exchange.asked_output_tokens = prepared.asked_output_tokens
        exchange.reserved = self.reserved
        self._enter(run, exchange)

    def _enter(self, run: PhaseRun, exchange: Exchange) -> None:
        self.in_flight += 1
        run.in_flight += 1
        self.ledger.enter(run, exchange)
        # After the entry is made: from here on it is waiting for limits or connections, not for this process.
        exchange.dequeued_ns = now = monotonic_ns()
        if self.allowance.limited(exchange.target):
            self._admit(exchange, exchange.estimate_tokens)
        else:
            self._begin(exchange, now)

    def _admit(self, exchange: Exchange, tokens: int) -> None:
        """Begins an attempt as soon as the limits of its target permit one more request, of `tokens` tokens."""
        if exchange not in self.ledger.active:  # withdrawn before its next attempt
            return
        now = monotonic_ns()
        wait = self.allowance.wait_ns(exchange.target, tokens, now)
        if wait:
            if not exchange.send_ns:
                exchange.waited_ns += wait
            self.timers.at(now + wait, self._begin_admitted, exchange)
        else:
            self._begin(exchange, now)

    def _begin_admitted(self, exchange: Exchange) -> None:
        if exchange in self.ledger.active:  # not withdrawn while it waited
            self._begin(exchange, monotonic_ns())

    def _begin(self, exchange: Exchange, now: int) -> None:
        pool = self.pools[exchange.target]
        exchange.begin_attempt(pool.dialect.reply(pool.target, self.keep_text))
        deadlines = self.deadlines
        if deadlines.watch(exchange, now + deadlines.connect_ns):
            self.pending = True
        pool.send(exchange)

    def sending(self, exchange: Exchange) -> None:
        """The pool is about to call send(): the in-flight table says so first."""
        now = monotonic_ns()
        deadlines = self.deadlines
        if self.ledger.sending(exchange, now) and deadlines.cancels(exchange):
            self.timers.at(now + self.plan.limits.cancel_after_ns, self._cancel_planned, exchange)
        if deadlines.watch(exchange, now + deadlines.first_ns):
            self.pending = True

    def done(self, exchange: Exchange) -> None:
        """An attempt ended: try again by the retry law, or write the record."""
        run = self.ledger.active[exchange]
        self.pending = True
        self.ledger.attempt_ended(exchange)
        if exchange.outcome is not OK and self.plan.retry.attempts > exchange.attempts:
            delay = retry_delay_ns(
                self.plan.retry, exchange, time_ns(), self.random, longest_ns=self.plan.limits.timeout_ns
            )
            # A retry after the stop would be load that nobody planned: what failed stays failed.
            if delay is not None and self.stopping is None:
                exchange.deadline_ns = NEVER
                if not exchange.send_ns:  # it never reached the server: what follows is no lateness of the client
                    exchange.waited_ns += exchange.end_ns - exchange.connect_start_ns + delay
                self.timers.at(monotonic_ns() + delay, self._admit, exchange, 0)  # its tokens are still charged
                return
        self.ledger.record(run, exchange)
        if self.allowance.metered:
            self.allowance.settle(exchange)
        if exchange.session is None or not self._think(run, exchange, exchange.session):
            run.freed(monotonic_ns(), failed_connect=exchange.outcome in CONNECT)
        self._leave(run, exchange.end_ns)

    def _leave(self, run: PhaseRun, ended_ns: int) -> None:
        run.in_flight -= 1
        self.in_flight -= 1
        for each in self.runs:
            each.left(ended_ns)

    def unsent(self, run: PhaseRun, slot: int, slots: int, intended_ns: int, reason: Unsent) -> None:
        """Records that `slots` slots from `slot` on were not sent."""
        self.ledger.unsent(run, slot, slots, intended_ns, reason)

    def _withdraw(self, run: PhaseRun, exchange: Exchange, reason: Unsent) -> None:
        """Takes a slot back that waited for its rate limit and was never sent."""
        self.ledger.withdraw(run, exchange, reason)
        self._leave(run, monotonic_ns())

    def _abandon(self, exchange: Exchange, outcome: Outcome, message: str) -> None:
        run = self.ledger.active[exchange]
        if not exchange.attempts:
            self._withdraw(run, exchange, Unsent.STOPPED)
        elif not self.pools[exchange.target].abandon(exchange, outcome, message):  # between two attempts
            self.ledger.record(run, exchange)
            self._leave(run, monotonic_ns())

    def _cancel_planned(self, exchange: Exchange) -> None:
        if exchange in self.ledger.active:
            exchange.flags |= ABORT_PLANNED
            self._abandon(exchange, Outcome.CANCELLED, "aborted as planned")

    # --- sessions -------------------------------------------------------------------------------------------------

    def _think(self, run: PhaseRun, exchange: Exchange, session: Session) -> bool:
        """Begins the think time before the session's next turn. False if there is none."""
        if exchange.outcome is not OK or self.stopping is not None:
            return False
        following = session.next("".join(exchange.reply.text))
        if following is None:
            return False
        think_ns, prompt = following
        run.in_flight += 1
        self.in_flight += 1
        intended_ns = exchange.end_ns + think_ns
        # From the end of the reply, not from now: a late turn of this loop must not lengthen the user's think time.
        self.timers.at(intended_ns, self._next_turn, run, session, exchange, prompt, intended_ns)
        return True

    def _next_turn(self, run: PhaseRun, session: Session, last: Exchange, prompt: Prompt, intended_ns: int) -> None:
        """The think time of a session is over."""
        self._leave(run, intended_ns)
        request = last.request & SLOT_MASK | session.turn << TURN_SHIFT
        exchange = Exchange(
            request,
            intended_ns,
            run.index,
            last.target,
            self.plan.series(run.index, last.target),
            self.trace.add(run.index, last.target, request, self.pools[last.target].render(prompt)),
        )
        exchange.session = session
        exchange.estimate_tokens = session.estimate_tokens
        exchange.asked_output_tokens = prompt.max_tokens or 0
        # The run may have been stopped while the user was thinking.
        reason = self.stopping if self.stopping is not None else run.stopped
        if reason is None:
            output = prompt.max_tokens or min(OUTPUT_ESTIMATE, session.estimate_tokens)
            reserved = self.allowance.reserve(last.target, session.estimate_tokens - output, output)
            exchange.reserved = reserved or 0
            reason = Unsent.BUDGET if reserved is None else None
        if reason is None:
            self._enter(run, exchange)
        else:
            self.unsent(run, exchange.request, 1, intended_ns, reason)

    def cancel_think_timers(self, run: PhaseRun) -> None:
        """Ends the think times of the phase's sessions: their next turns are recorded as unsent."""
        for args in self.timers.take_out(self._next_turn, run):
            self._next_turn(*args)
