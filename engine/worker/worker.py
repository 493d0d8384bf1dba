"""A worker: one fresh interpreter, one core, one uvloop; its share of the schedule in, records into its own ring out.

Run as `python -m llm_latency_lens.engine.worker.worker`, the share of the plan on stdin (engine.control). It imports neither
numpy nor aiohttp nor rich, shares nothing with other workers, and dies with its supervisor.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import heapq
import os
import random
import resource
import signal
import sys
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from time import monotonic_ns, process_time_ns, time_ns
from typing import Any, Final

import msgspec
import uvloop

from ..clock import StampClock, keep_stamps_on
from ..dialects import OK, Prompt
from ..dialects.outcomes import masked_text
from ..dialects.table import DIALECTS
from ..errors import LensError
from ..load.budget import PICO_PER_USD, Budget
from ..load.feed import OUTPUT_ESTIMATE, Feed, Prepared
from ..load.limits import buckets_of
from ..load.phase_run import NEVER, ClosedRun, OpenRun, PhaseRun, in_flight_cap
from ..load.retry import retry_delay_ns
from ..load.schedule import Closed, schedule_of
from ..load.timetable import Timetables
from ..records import record
from ..records.record import Outcome, Unsent
from ..records.ring import DETAIL_MAX, PHASE_SHIFT, SLOT_MASK, TURN_SHIFT, Counter, Geometry, SegmentWriter, State
from ..runs.control import Frames, Order, Share, Word, frame, read_share
from ..wire.endpoint import Endpoint
from ..wire.exchange import Exchange
from ..wire.pool import Pool
from ..wire.reactor import Reactor
from ..workload import source_of

HEARTBEAT_NS: Final = 100_000_000
CLOCK_CHECK_NS: Final = 1_000_000_000
IDLE_COLLECT_NS: Final = 30_000_000_000  # garbage is collected at idle points, at most this often
IDLE_GAP_NS: Final = 20_000_000  # a point is idle if nothing is due for this long
FAR_FUTURE_NS: Final = 3_600_000_000_000
NICENESS: Final = -10
PR_SET_PDEATHSIG: Final = 1

_CONNECT_FAILURES: Final = frozenset(
    {
        Outcome.CONNECT_DNS,
        Outcome.CONNECT_REFUSED,
        Outcome.CONNECT_TIMEOUT,
        Outcome.CONNECT_TLS,
        Outcome.CONNECT_RESET,
    }
)
TEXT_PIECE: Final = 108  # characters of at most 4 bytes each that fit a detail
_packed = msgspec.msgpack.Encoder().encode
_NEXT_SLOT = int(Counter.NEXT_SLOT)
_BUDGET_LEFT = int(Counter.BUDGET_LEFT)


class Detail(msgspec.Struct, omit_defaults=True, gc=False):
    """What a request's fixed record has no room for. Goes through the ring as a msgpack map of what there is."""

    request: int
    phase: int
    message: str = ""
    request_id: str = ""
    finish: str = ""
    headers: dict[str, str] = {}


class Worker:
    """One life of one worker, from its share to the last record."""

    def __init__(self, share: Share, segment: SegmentWriter, say: Callable[[Word], None]) -> None:
        plan = share.plan
        self.share = share
        self.plan = plan
        self.number = share.worker
        self.segment = segment
        self.say = say
        self.clock = StampClock()
        self.reactor = Reactor(self.clock, segment.lag)
        self.reactor.watch(self.reactor.timer.fileno(), 1, self._timer_fired)
        self.pools = [
            Pool(self.reactor, target, DIALECTS[target.provider], Endpoint(target, share.environ), self)
            for target in plan.targets
        ]
        self.buckets = [buckets_of(plan, target, share.worker, share.workers) for target in plan.targets]
        for bucket, _ in chain.from_iterable(self.buckets if share.incarnation else ()):
            bucket.empty(monotonic_ns())  # the life before may have spent its burst a moment ago
        self.told_text = plan.workload.keep_replies or plan.workload.count_tokens
        self.keep_text = plan.workload.kind == "sessions" or self.told_text
        self.source = source_of(plan, seed=plan.seed)
        self.random = random.Random(f"{plan.seed}/{share.worker}/{share.incarnation}")
        self.runs: list[OpenRun | ClosedRun] = []
        self.active: dict[Exchange, PhaseRun] = {}
        self.thinking = 0
        self.in_flight = 0
        self.last_now = monotonic_ns()
        self.places = list(range(share.geometry[3] - 1, -1, -1))  # free entries of the in-flight table
        self.timers: list[tuple[int, int, Callable[..., None], tuple[Any, ...]]] = []
        self.timer_serial = 0
        self.armed_ns = 0
        self.sweep_ns = NEVER
        self.pending = False
        self.filling = False
        self.working = False
        self.sent = 0
        self.events = 0
        self.bytes_in = 0
        self.bytes_out = 0
        self.measured_ns = self.measured_cpu_ns = self.measured_events = 0
        self.mark_ns, self.mark_cpu_ns, self.mark_events = monotonic_ns(), 0, 0
        self.gc_started_ns = 0
        self.collected_ns = 0
        limit = plan.limits.budget_usd
        self.budget: Budget | None = None
        if limit is not None:
            left = share.budget_left
            mine = int(limit * PICO_PER_USD) // share.workers if left is None else left
            self.budget = Budget(mine, share.prices, self._tell_budget)
        self.reserved: int | None = 0  # pico-USD, by affordable() for the dispatch that follows it
        self.stopping: Unsent | None = None
        limits = plan.limits
        self.connect_limit_ns = limits.connect_timeout_ns
        self.first_limit_ns = min(limits.timeout_ns, limits.first_token_timeout_ns or limits.timeout_ns)
        self.cancels = limits.cancel_share > 0
        self.metered = self.budget is not None or any(self.buckets)  # do a reply's token counts matter to a limit?
        self.at(monotonic_ns() + HEARTBEAT_NS, self._heartbeat)
        self.at(monotonic_ns() + CLOCK_CHECK_NS, self._check_clock)

    # --- time -----------------------------------------------------------------------------------------------------

    def at(self, due_ns: int, call: Callable[..., None], *args: Any) -> None:
        """Calls `call(*args)` at `due_ns`, never early."""
        self.timer_serial += 1
        heapq.heappush(self.timers, (due_ns, self.timer_serial, call, args))

    def turn(self) -> None:
        """One wake-up: sockets first, then everything that is due."""
        try:
            self.reactor.turn()
            if self.pending:
                self.work()
        except LensError as error:
            self.give_up(error)

    def give_up(self, error: LensError) -> None:
        """The share cannot be carried out, a row of its workload is bad: says so and ends."""
        self.say(Word(say="failed", text=str(error), code=error.exit_code))
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
            now = self.last_now = monotonic_ns()
            timers = self.timers
            while timers and timers[0][0] <= now:
                _, _, call, args = heapq.heappop(timers)
                call(*args)
            for run in self.runs:
                run.issue(self, now)
            if now >= self.sweep_ns:
                self._sweep(now)
            if not self.pending:
                break
        self.working = False
        self._settle()
        self._arm()

    def _arm(self) -> None:
        due = min(self.timers[0][0], self.sweep_ns)
        for run in self.runs:
            due = min(due, run.next_due_ns(self))
        if due != self.armed_ns:
            self.armed_ns = due
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

    # --- phases ---------------------------------------------------------------------------------------------------

    def begin(self, index: int, start_ns: int, first: int) -> None:
        """Begins phase `index` at `start_ns` with this worker's slots from `first` on."""
        share, plan = self.share, self.plan
        phase = plan.phases[index]
        schedule = schedule_of(phase, seed=plan.seed, index=index, timestamps=self.source.timestamps)
        items = iter(self.source.items(share.worker, share.workers, first, phase=index))
        if isinstance(schedule, Timetables):
            items = schedule.aim(items, share.worker, share.workers, first)
        feed = Feed(
            schedule.share(share.worker, share.workers, first),
            items,
            self.render,
            planned=schedule.planned,
            workers=share.workers,
        )
        run: OpenRun | ClosedRun
        if isinstance(schedule, Closed):
            run = ClosedRun(index, phase, feed, start_ns, schedule, share.worker, share.workers)
        else:
            cap = min(in_flight_cap(phase.load, share.worker, share.workers, len(self.places)), share.geometry[3])
            run = OpenRun(index, phase, feed, start_ns, cap, plan.limits.drain_ns)
        self._measure()
        self.runs.append(run)
        self.segment.counters[int(Counter.PHASE)] = index
        feed.fill()
        if self.stopping is not None:
            run.stop(self, monotonic_ns(), self.stopping)
        self.work()

    def render(self, target: int, prompt: Prompt) -> bytes:
        """One request as it goes on the wire, head and body together."""
        pool = self.pools[target]
        return pool.endpoint.encode(pool.dialect.request(pool.target, prompt))

    def _settle(self) -> None:
        """Takes out the runs that are over and says so."""
        for run in [run for run in self.runs if run.issued and not run.in_flight]:
            self._measure()
            self.runs.remove(run)
            self._publish()
            self.say(Word(say="phase_done", phase=run.index))

    def stop(self, reason: Unsent) -> None:
        """Sends nothing more; what is in flight may end."""
        self.stopping = reason
        now = monotonic_ns()
        for run in self.runs:
            run.stop(self, now, reason)
        for exchange, each in [item for item in self.active.items() if not item[0].send_ns and not item[0].attempts]:
            self._withdraw(each, exchange, reason)
        self.work()

    def abort(self, outcome: Outcome) -> None:
        """Ends everything in flight now, with `outcome`."""
        for exchange in list(self.active):
            self._abandon(exchange, outcome, "the run was ended")
        self.work()

    # --- requests -------------------------------------------------------------------------------------------------

    def affordable(self, run: PhaseRun, prepared: Prepared) -> bool:
        """Reserves the money for one request. Not enough: what is in flight may settle for less, else the run stops."""
        if self.budget is None:
            return True
        estimate = prepared.estimate_tokens - prepared.output_tokens, prepared.output_tokens
        self.reserved = self.budget.reserve(prepared.target, *estimate)
        if self.reserved is not None:
            return True
        if not self.in_flight:
            self.stopping = Unsent.BUDGET
            for each in self.runs:
                each.stop(self, self.last_now, Unsent.BUDGET)
        return False

    def _tell_budget(self, left: int) -> None:
        self.segment.counters[_BUDGET_LEFT] = left + 1

    def dispatch(self, run: PhaseRun, prepared: Prepared, intended_ns: int) -> None:
        """Starts the request of one slot, at once or when its token bucket lets it."""
        exchange = Exchange(
            prepared.slot,
            intended_ns,
            run.index,
            prepared.target,
            self.plan.series(run.index, prepared.target),
            prepared.wire,
        )
        exchange.session = prepared.session
        exchange.estimate_tokens = prepared.estimate_tokens
        exchange.reserved = self.reserved or 0
        self._enter(run, exchange)

    def _enter(self, run: PhaseRun, exchange: Exchange) -> None:
        self.in_flight += 1
        run.in_flight += 1
        self.active[exchange] = run
        exchange.inflight_slot = place = self.places.pop()
        self.segment.begin(place, exchange.request, exchange.intended_ns, run.index, exchange.target)
        if not exchange.request >> TURN_SHIFT:  # after begin(): a worker killed in between must not lose the slot
            self.segment.counters[_NEXT_SLOT] = run.index << PHASE_SHIFT | exchange.request + 1
        exchange.dequeued_ns = now = monotonic_ns()
        if self.buckets[exchange.target]:
            self._admit(exchange, exchange.estimate_tokens)
        else:
            self._begin(exchange, now)

    def _admit(self, exchange: Exchange, tokens: int) -> None:
        """Begins an attempt as soon as the limits of its target allow one more request, of `tokens` tokens."""
        if exchange not in self.active:  # withdrawn before its next attempt
            return
        now = monotonic_ns()
        wait = 0
        for bucket, counted in self.buckets[exchange.target]:
            wait = max(wait, bucket.take(now, tokens if counted else 1))
        if wait:
            self.at(now + wait, self._attempt, exchange)
        else:
            self._begin(exchange, now)

    def _attempt(self, exchange: Exchange) -> None:
        if exchange in self.active:  # not withdrawn while it waited
            self._begin(exchange, monotonic_ns())

    def _begin(self, exchange: Exchange, now: int) -> None:
        pool = self.pools[exchange.target]
        exchange.begin_attempt(pool.dialect.reply(pool.target, self.keep_text))
        exchange.deadline_ns = deadline = now + self.connect_limit_ns
        if deadline < self.sweep_ns:
            self._watch(deadline)
        pool.send(exchange)

    def sending(self, exchange: Exchange) -> None:
        """The pool is about to call send(): the books say so first."""
        now = monotonic_ns()
        self.segment.sent(exchange.inflight_slot, now)
        if exchange.attempts == 1 and not exchange.flags & record.STALE_RESENT:
            self.sent += 1
            if self.cancels and self._to_cancel(exchange):
                self.at(now + self.plan.limits.cancel_after_ns, self._cancel_planned, exchange)
        exchange.deadline_ns = deadline = now + self.first_limit_ns
        if deadline < self.sweep_ns:
            self._watch(deadline)

    def done(self, exchange: Exchange) -> None:
        """An attempt ended: try again by the retry law, or write the record and free the place."""
        run = self.active[exchange]
        self.pending = True
        self.events += exchange.events
        self.bytes_in += exchange.received_bytes
        self.bytes_out += exchange.sent_bytes
        if exchange.outcome is not OK and self.plan.retry.attempts > exchange.attempts:
            delay = retry_delay_ns(self.plan.retry, exchange, time_ns(), self.random)
            if delay is not None and self.stopping is None:
                exchange.deadline_ns = NEVER
                self.at(monotonic_ns() + delay, self._admit, exchange, 0)  # its tokens are still charged
                return
        self._record(run, exchange)
        if self.metered:
            self._settle_tokens(exchange)
        if exchange.session is not None and exchange.outcome is OK and self.stopping is None:
            following = exchange.session.next("".join(exchange.reply.text))
            if following is not None:
                think_ns, prompt = following
                run.in_flight += 1
                self.in_flight += 1
                self.at(exchange.end_ns + think_ns, self._next_turn, run, exchange, prompt, exchange.end_ns + think_ns)
                self._leave(run)
                return
        run.freed(monotonic_ns(), failed_connect=exchange.outcome in _CONNECT_FAILURES)
        self._leave(run)

    def _settle_tokens(self, exchange: Exchange) -> None:
        """Charges what the request really used in the place of what was estimated."""
        reply = exchange.reply
        if self.budget is not None:
            if exchange.outcome is Outcome.OK:
                self.budget.settle(exchange.target, exchange.reserved, reply.input_tokens, reply.output_tokens)
            elif not exchange.token_events:
                self.budget.refund(exchange.reserved)
        if reply.input_tokens != record.UNKNOWN and reply.output_tokens != record.UNKNOWN:
            for bucket, tokens in self.buckets[exchange.target]:
                if tokens:
                    bucket.settle(exchange.estimate_tokens, reply.input_tokens + reply.output_tokens)

    def _next_turn(self, run: PhaseRun, last: Exchange, prompt: Prompt, intended_ns: int) -> None:
        """The think time of a session is over."""
        run.in_flight -= 1
        self.in_flight -= 1
        session = last.session
        assert session is not None
        exchange = Exchange(
            last.request & SLOT_MASK | session.turn << TURN_SHIFT,
            intended_ns,
            run.index,
            last.target,
            self.plan.series(run.index, last.target),
            self.render(last.target, prompt),
        )
        exchange.session = session
        exchange.estimate_tokens = session.estimate_tokens
        reason = self.stopping if self.stopping is not None else run.stopped
        if reason is None and self.budget is not None:
            output = prompt.max_tokens or min(OUTPUT_ESTIMATE, session.estimate_tokens)
            reserved = self.budget.reserve(last.target, session.estimate_tokens - output, output)
            exchange.reserved = reserved or 0
            reason = Unsent.BUDGET if reserved is None else None
        if reason is None:
            self._enter(run, exchange)
        else:
            self.unsent(run, exchange.request, 1, intended_ns, reason)

    def hush(self, run: PhaseRun) -> None:
        """Ends the think times of the phase's sessions: their next turns are told as unsent."""
        thinking = [entry for entry in self.timers if entry[2] == self._next_turn and entry[3][0] is run]
        for entry in thinking:
            self.timers.remove(entry)
        heapq.heapify(self.timers)
        for _, _, call, args in thinking:
            call(*args)

    def _record(self, run: PhaseRun, exchange: Exchange) -> None:
        """Writes the books of one request: detail first, then the record that commits it, then the place is free."""
        if exchange.error or exchange.kept_headers:
            self._detail(run, exchange)
        if self.told_text:
            self._text(run, exchange)
        self.segment.push(exchange.values(self.number), exchange.gaps if exchange.outcome is OK else None)
        if exchange.gaps_saturated:
            self.segment.counters[int(Counter.GAPS_SATURATED)] += exchange.gaps_saturated
        self._free(exchange)

    def _free(self, exchange: Exchange) -> None:
        self.segment.clear(exchange.inflight_slot)
        self.places.append(exchange.inflight_slot)
        del self.active[exchange]

    def _leave(self, run: PhaseRun) -> None:
        run.in_flight -= 1
        self.in_flight -= 1

    def _detail(self, run: PhaseRun, exchange: Exchange) -> None:
        reply = exchange.reply
        hidden = self.pools[exchange.target].secrets
        headers = exchange.kept_headers
        if hidden:
            headers = {name: masked_text(value, hidden) for name, value in headers.items()}
        detail = Detail(
            exchange.request,
            run.index,
            masked_text(exchange.error, hidden) if exchange.error else "",
            masked_text(reply.request_id, hidden)[:80] if reply.request_id else "",
            reply.finish[:40] if reply.finish else "",
            headers,
        )
        blob = _packed(detail)
        if len(blob) > DETAIL_MAX:
            detail.headers = {}
            detail.message = detail.message[:120]
            blob = _packed(detail)
        self.segment.push_detail(blob)

    def _text(self, run: PhaseRun, exchange: Exchange) -> None:
        """The reply's text for the collector, in as many details as it takes; `pieces` tells whether all came."""
        reply = exchange.reply
        if not (self.plan.workload.keep_replies or reply.output_tokens == record.UNKNOWN):
            return
        text = "".join([*reply.reasoning_text, *reply.text])
        pieces = [text[i : i + TEXT_PIECE] for i in range(0, len(text), TEXT_PIECE)]
        for piece in pieces:
            told = {"request": exchange.request, "phase": run.index, "text": piece, "pieces": len(pieces)}
            self.segment.push_detail(_packed(told))

    def unsent(self, run: PhaseRun, slot: int, slots: int, intended_ns: int, reason: Unsent) -> None:
        """Writes that `slots` slots from `slot` on were not sent; nothing for Unsent.NONE, they are another run's."""
        if not slots or reason is Unsent.NONE:
            return
        values = dict.fromkeys((name for name, _ in record.FIELDS), 0)
        values |= {
            "request": slot,
            "intended_ns": intended_ns,
            "dequeued_ns": monotonic_ns(),
            "slots": slots,
            "target": record.NO_TARGET if len(self.plan.targets) > 1 else 0,
            "phase": run.index,
            "worker": self.share.worker,
            "inflight_slot": record.UNKNOWN,
            "outcome": Outcome.UNSENT,
            "unsent": reason,
        }
        self.segment.push(tuple(values.values()), None)
        counters = self.segment.counters  # a slot withdrawn late lies before those that were told already
        counters[_NEXT_SLOT] = max(counters[_NEXT_SLOT], run.index << PHASE_SHIFT | slot + slots * self.share.workers)

    def _withdraw(self, run: PhaseRun, exchange: Exchange, reason: Unsent) -> None:
        """Takes a slot back that waited for its token bucket and was never sent."""
        self.unsent(run, exchange.request, 1, exchange.intended_ns, reason)
        self._free(exchange)
        self._leave(run)

    def _abandon(self, exchange: Exchange, outcome: Outcome, message: str) -> None:
        if not exchange.attempts:
            self._withdraw(self.active[exchange], exchange, Unsent.STOPPED)
        elif exchange.end_ns and exchange.connection is None:  # between two attempts
            run = self.active[exchange]
            self._record(run, exchange)
            self._leave(run)
        else:
            self.pools[exchange.target].abandon(exchange, outcome, message)

    def _to_cancel(self, exchange: Exchange) -> bool:
        """Is this one of the requests that the plan aborts? The same ones for a seed, however many workers there are."""
        draw = random.Random(f"cancel/{self.plan.seed}/{exchange.phase}/{exchange.request}").random()
        return draw < self.plan.limits.cancel_share

    def _cancel_planned(self, exchange: Exchange) -> None:
        if exchange in self.active:
            exchange.flags |= record.ABORT_PLANNED
            self._abandon(exchange, Outcome.CANCELLED, "aborted as planned")

    # --- timeouts -------------------------------------------------------------------------------------------------

    def _watch(self, deadline_ns: int) -> None:
        """Sweeps no later than at `deadline_ns`."""
        self.sweep_ns = deadline_ns
        self.pending = True

    def _sweep(self, now: int) -> None:
        """Ends what is over its deadline; the next sweep is at the earliest deadline left."""
        limits = self.plan.limits
        expired: list[tuple[Exchange, Outcome, str]] = []
        earliest = NEVER
        for exchange in self.active:
            deadline = exchange.deadline_ns
            if exchange.first_token_ns:
                deadline = exchange.deadline_ns = exchange.last_send_ns + limits.timeout_ns
            if deadline and deadline <= now:
                expired.append((exchange, *self._overdue(exchange)))
            elif deadline:
                earliest = min(earliest, deadline)
        self.sweep_ns = earliest
        for exchange, outcome, message in expired:
            exchange.end_ns = now
            self._abandon(exchange, outcome, message)

    def _overdue(self, exchange: Exchange) -> tuple[Outcome, str]:
        limits = self.plan.limits
        if not exchange.last_send_ns:
            if exchange.tcp_done_ns and self.pools[exchange.target].endpoint.tls_context:
                return Outcome.CONNECT_TIMEOUT, f"no TLS session within {limits.connect_timeout_ns / 1e9:g} s"
            return Outcome.CONNECT_TIMEOUT, f"no connection within {limits.connect_timeout_ns / 1e9:g} s"
        first = limits.first_token_timeout_ns
        if not exchange.first_token_ns and first is not None and first < limits.timeout_ns:
            return Outcome.TIMEOUT_FIRST_TOKEN, f"no first token within {first / 1e9:g} s"
        return Outcome.TIMEOUT_TOTAL, f"not complete within {limits.timeout_ns / 1e9:g} s"

    # --- clocks and health ----------------------------------------------------------------------------------------

    def suspect(self, stamp_ns: int, now_ns: int) -> tuple[int, bool]:
        """A kernel stamp lies in the future or far back: has CLOCK_REALTIME been stepped?"""
        if self._stepped() or stamp_ns > now_ns:
            return now_ns, False
        return stamp_ns, True

    def _check_clock(self) -> None:
        self._stepped()
        self.at(monotonic_ns() + CLOCK_CHECK_NS, self._check_clock)

    def _stepped(self) -> bool:
        if not self.clock.resample():
            return False
        self.segment.counters[int(Counter.CLOCK_STEPS)] += 1
        for exchange in self.active:
            exchange.flags |= record.CLOCK_STEPPED
        return True

    def _heartbeat(self) -> None:
        self._measure()
        self._publish()
        now = monotonic_ns()
        self.at(now + HEARTBEAT_NS, self._heartbeat)
        if (
            now - self.collected_ns > IDLE_COLLECT_NS
            and not self.in_flight
            and self._next_slot_ns() > now + IDLE_GAP_NS
        ):
            gc.collect()
            self.collected_ns = now

    def _next_slot_ns(self) -> int:
        return min((run.next_due_ns(self) for run in self.runs), default=NEVER)

    def _measure(self) -> None:
        """Adds the time, CPU time and events since the last call to the measured ones, if a measured phase is running."""
        now, cpu, events = monotonic_ns(), process_time_ns(), self._events_now()
        if any(run.phase.measure and run.start_ns <= now for run in self.runs):
            self.measured_ns += now - self.mark_ns
            self.measured_cpu_ns += cpu - self.mark_cpu_ns
            self.measured_events += events - self.mark_events
        self.mark_ns, self.mark_cpu_ns, self.mark_events = now, cpu, events

    def _events_now(self) -> int:
        return self.events + sum(exchange.events for exchange in self.active if exchange.attempts)

    def _publish(self) -> None:
        counters = self.segment.counters
        values = {
            Counter.SENT: self.sent,
            Counter.IN_FLIGHT: self.in_flight,
            Counter.EVENTS: self._events_now(),
            Counter.BYTES_IN: self.bytes_in,
            Counter.BYTES_OUT: self.bytes_out,
            Counter.READS: sum(self.reactor.lag) + self.reactor.user_stamps,
            Counter.USER_STAMPS: self.reactor.user_stamps,
            Counter.CONNECTIONS: sum(pool.opened for pool in self.pools),
            Counter.STALE_RESENDS: sum(pool.stale_resends for pool in self.pools),
            Counter.CPU_NS: process_time_ns(),
            Counter.CPU_MEASURED_NS: self.measured_cpu_ns,
            Counter.MEASURED_NS: self.measured_ns,
            Counter.EVENTS_MEASURED: self.measured_events,
            Counter.LATE_RENDERS: sum(run.feed.late for run in self.runs),
            Counter.CLOCK_BRACKET_NS: self.clock.width_ns,
            Counter.HEARTBEAT_NS: monotonic_ns(),
        }
        for counter, value in values.items():
            counters[int(counter)] = value
        self.segment.trim()

    def on_gc(self, phase: str, _info: dict[str, int]) -> None:
        """The garbage collector's hook: every pause is counted."""
        if phase == "start":
            self.gc_started_ns = monotonic_ns()
        else:
            self.segment.counters[int(Counter.GC_PAUSES)] += 1
            self.segment.counters[int(Counter.GC_PAUSE_NS)] += monotonic_ns() - self.gc_started_ns

    def close(self) -> None:
        self._publish()
        for pool in self.pools:
            pool.close()
        self.reactor.close()


def die_with_parent() -> None:
    """SIGKILL for this process when its parent ends, however it ends. A parent that is gone already shows on stdin."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def ask_for_priority() -> None:
    """A worker runs before what shares its core, where the system lets it: its timers and sends are what is measured."""
    with contextlib.suppress(PermissionError):
        os.setpriority(os.PRIO_PROCESS, 0, NICENESS)


def raise_descriptor_limit() -> int:
    """Raises the soft limit of open files to the hard one; gives the limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


async def serve(share: Share, frames: Frames) -> None:
    """Works until the order to stop, or until the supervisor is gone."""
    loop = asyncio.get_running_loop()
    stopped = loop.create_future()

    def say(word: Word) -> None:
        os.write(1, frame(word))

    segment = SegmentWriter.create(
        Path(share.segment), Geometry(*share.geometry), worker=share.worker, incarnation=share.incarnation
    )
    worker = Worker(share, segment, say)

    def ordered() -> None:
        piece = os.read(0, 1 << 16)
        if not piece:
            os._exit(1)
        try:
            for order in frames.feed(piece):
                obey(order)
        except LensError as error:
            worker.give_up(error)

    def obey(order: Order) -> None:
        match order.do:
            case "phase":
                worker.begin(order.phase, order.at_ns, order.first)
            case "drain":
                worker.stop(Unsent[order.reason.upper()])
            case "cancel":
                worker.stop(Unsent.STOPPED)
                worker.abort(Outcome.CANCELLED if order.reason == "cancelled" else Outcome.IN_FLIGHT)
            case "stop":
                if not stopped.done():
                    stopped.set_result(None)

    loop.add_reader(0, ordered)
    loop.add_reader(worker.reactor.epoll.fileno(), worker.turn)
    loop.add_signal_handler(signal.SIGTERM, worker.stop, Unsent.STOPPED)
    gc.collect()
    gc.freeze()
    gc.disable()
    gc.callbacks.append(worker.on_gc)
    worker.work()
    say(Word(say="ready"))
    await stopped
    gc.callbacks.remove(worker.on_gc)
    loop.remove_reader(worker.reactor.epoll.fileno())
    loop.remove_reader(0)
    worker.close()
    segment.close(State.DONE)


def main() -> int:
    """Entry of the process."""
    die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal's Ctrl-C is the supervisor's to answer
    raise_descriptor_limit()
    ask_for_priority()
    frames = Frames()
    try:
        share = read_share(0, frames)
        stamps = keep_stamps_on()
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(serve(share, frames))
        stamps.close()
    except LensError as error:
        os.write(1, frame(Word(say="failed", text=str(error), code=error.exit_code)))
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
