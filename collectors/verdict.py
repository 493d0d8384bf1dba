"""Is the run to be believed? Plain rules over counted facts, each with its number and its bound. Pure.

The rules are AGAINST, which make a run INVALID, and NOTES, which are worth knowing and do not. Each says in words when
it holds; REFERENCE.md's table is made of that. Fewer than 30 ok requests make a run that is not INVALID INSUFFICIENT.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from .bounds import (
    BURST_BOUND,
    CENSORED_BOUND,
    COALESCED_BOUND,
    CPU_BOUND,
    LAG_BOUND_US,
    LATENESS_FLOOR_MS,
    LATENESS_SHARE,
    LENGTH_BOUND,
    MINIMUM_OK,
    STARVED_BOUND,
    STEAL_BOUND,
    STOPPED_BOUND,
    TTFT_COALESCED_BOUND,
    USER_LAG_BOUND_US,
)
from .histogram import RESOLUTION
from .replies import REPLY_RULES
from .rule import Rule, of_part
from .snapshot import Client, Reason, Replies, Verdict
from .tick_health import LIMITED_AGAINST, LIMITED_NOTES, LimitedTicks


class Facts(NamedTuple):
    """What the rules look at, over the measured phases unless it is about the complete process."""

    client: Client
    ok: int = 0
    sent: int = 0
    unsent: int = 0
    planned: int | None = None  # of all phases; None while it cannot be known
    settled: int = 0  # sent + unsent of all phases
    finished: bool = False
    in_flight_at_end: int = 0
    timeouts: int = 0
    stepped: int = 0
    gap_drops: int = 0
    detail_drops: int = 0
    open_loop: bool = False
    closed_loop: bool = False  # a measured phase waits for replies before it sends
    mean_interval_ms: float | None = None
    client_lateness_p99_ms: float | None = None
    clock_bracket_ns: int | None = None
    outages: str = ""  # the ticks in which a worker was dead
    read_ticks: str = ""  # the ticks in which segments had no stamps of their own
    died: str = ""  # why the run did not end by itself
    overspent_usd: float = 0.0  # beyond budget_usd, in all phases
    unsteady: str = ""  # what drifts, and by how much
    correlated: str = ""
    self_checks: tuple[Reason, ...] = ()  # those that failed
    problems: tuple[str, ...] = ()  # of extras that failed: a price look-up, the tokenizer
    prompt_length_ratio: float | None = None  # measured over asked tokens
    replies: Replies = Replies()
    limited: LimitedTicks = LimitedTicks()
    draws: str = ""  # where random arrivals differ from the plan's rate
    calibration: dict[str, Any] | None = None  # the nearest point of this host's calibration
    beyond_ceiling: str = ""  # in what the plan asks more than the calibration found possible

    @property
    def lag_us(self) -> float | None:
        return self.client.loop_lag_us.p99

    @property
    def starved(self) -> bool:
        return _over(self.client.run_queue_wait_share, STARVED_BOUND)

    def share(self, count: int) -> float:
        """Of the requests that were sent."""
        return count / self.sent if self.sent else 0.0


def _limited(facts: Facts) -> LimitedTicks:
    return facts.limited


def _replies(facts: Facts) -> Replies:
    return facts.replies


AGAINST: Final[tuple[Rule[Facts], ...]] = (
    Rule(
        "ring_drops",
        "any record or gap was lost to a full ring",
        lambda f: bool(f.client.ring_drops or f.gap_drops),
        lambda f: (
            f"{f.client.ring_drops} records and {f.gap_drops} token gaps found their ring full, 0 allowed: the "
            "collector was too slow; lower the load, or give it a core of its own"
        ),
    ),
    Rule(
        "totals_do_not_balance",
        "planned slots differ from sent + unsent",
        lambda f: f.finished and f.planned is not None and f.planned != f.settled,
        lambda f: (
            f"planned {f.planned} slots, sent + unsent are {f.settled}: requests were lost with a process or a removed "
            "directory; run it again"
        ),
    ),
    Rule(
        "stopped",
        "the run was ended before its plan was done, by an error",
        lambda f: bool(f.died),
        lambda f: f"the run was ended early ({f.died}): the numbers are of what was sent until then; run it again",
    ),
    Rule(
        "clock_steps",
        "any request ran across a step of the wall clock (it is kept out of the latencies)",
        lambda f: bool(f.client.clock_steps or f.stepped),
        lambda f: (
            f"the wall clock was stepped {f.client.clock_steps} times, {f.stepped} requests are not in the latencies; "
            "have the time daemon slew the clock instead"
        ),
    ),
    Rule(
        "mixed_clocks",
        "kernel and user stamps in the same distributions",
        lambda f: f.client.clock == "mixed",
        lambda f: (
            "some arrivals are stamped by the kernel and some by this process, with errors of their own; measure the "
            "targets in runs of their own"
        ),
    ),
    Rule(
        "user_clock",
        "user-space stamps, while the event loop's p99 lag (their error then) is over 1 ms",
        lambda f: f.client.clock == "user" and (f.lag_us is None or f.lag_us > USER_LAG_BOUND_US),
        lambda f: (
            "no kernel stamps: arrivals are late by the loop lag, p99 "
            f"{'unknown' if f.lag_us is None else f'{f.lag_us:.0f} us'} > {USER_LAG_BOUND_US:.0f} us; "
            "use fewer streams per worker or more cores"
        ),
    ),
    Rule(
        "lateness",
        "open loop: p99 of `client_lateness_ms` over max(1 ms, 5 % of the mean time between slots)",
        lambda f: _over(f.client_lateness_p99_ms, lateness_bound_ms(f)),
        lambda f: (
            f"this client sent its requests late: p99 {f.client_lateness_p99_ms:.3f} ms > {lateness_bound_ms(f):.3f} ms; "
            "use fewer streams per worker, more cores or a quieter machine"
        ),
    ),
    Rule(
        "ttft_coalesced",
        "over 5 % of the first tokens shared a late read: their time is an upper bound",
        lambda f: _over(f.client.ttft_coalesced_share, TTFT_COALESCED_BOUND),
        lambda f: (
            f"{f.client.ttft_coalesced_share:.1%} of the first tokens shared a late read > {TTFT_COALESCED_BOUND:.0%}: "
            "the worker read late, and the kernel kept only the latest stamp; give it CPU time of its own, or segment "
            "stamps (CAP_NET_RAW)"
        ),
    ),
    Rule(
        "starved",
        "a worker waited for a CPU for over 5 % of the time, and segments had no stamps of their own",
        lambda f: f.starved and f.client.stamps != "segment",
        lambda f: (
            f"a worker waited for a CPU for {f.client.run_queue_wait_share:.1%} of the time > {STARVED_BOUND:.0%}: what "
            "it read then is stamped late; free its core (other load, a server on the same cores, a CPU limit), or use "
            "segment stamps (CAP_NET_RAW)"
        ),
    ),
    Rule(
        "client_stopped",
        "closed loop: a worker's loop stood still in stops of over 100 ms for over 1 % of the time",
        lambda f: f.closed_loop and _over(f.client.stopped_share, STOPPED_BOUND),
        lambda f: (
            f"a worker's loop stood still for {f.client.stopped_share:.1%} of the time > {STOPPED_BOUND:.0%}, in stops "
            "of over 100 ms: a closed loop sends nothing then, so throughput is this client's, not the server's"
        ),
    ),
    Rule(
        "cpu",
        "the busiest worker used over 90 % of its core",
        lambda f: _over(f.client.cpu_utilisation, CPU_BOUND),
        lambda f: (
            f"this client was short of CPU: the busiest worker used {f.client.cpu_utilisation:.0%} of its core > "
            f"{CPU_BOUND:.0%}; use fewer streams per worker or more cores"
        ),
    ),
    Rule(
        "steal",
        "the hypervisor took over 5 % of the machine's CPU time",
        lambda f: _over(f.client.steal_share, STEAL_BOUND),
        lambda f: (
            f"the hypervisor took {f.client.steal_share:.1%} of the CPU time > {STEAL_BOUND:.0%}; use a machine "
            "that is not shared"
        ),
    ),
    Rule(
        "worker_restarts",
        "a worker died; its requests in flight are `lost`, its share of the load paused",
        lambda f: bool(f.client.restarts),
        lambda f: (
            f"{f.client.restarts} workers died and were started again, 0 allowed: their requests in flight were lost; "
            "log.jsonl has the reason" + (f"; affected: {f.outages}" if f.outages else "")
        ),
    ),
    Rule(
        "censored",
        "over 1 % of the sent requests were still running at the end: percentiles are lower bounds",
        lambda f: f.share(f.in_flight_at_end) > CENSORED_BOUND,
        lambda f: (
            f"{f.share(f.in_flight_at_end):.1%} of the sent were running at the end > {CENSORED_BOUND:.0%}: "
            "percentiles are lower bounds; give them more time (limits.drain)"
        ),
    ),
    *of_part(LIMITED_AGAINST, _limited),
)
NOTES: Final[tuple[Rule[Facts], ...]] = (
    Rule(
        "collector_restarts",
        "the collector was started again; nothing is counted twice or lost",
        lambda f: bool(f.client.collector_restarts),
        lambda f: f"{f.client.collector_restarts}: nothing was counted twice or lost by it",
    ),
    Rule(
        "gaps_coalesced",
        "over 50 % of the token gaps shared a read: the exact ITL histogram holds the minority",
        lambda f: _over(f.client.itl_coalesced_share, COALESCED_BOUND),
        lambda f: f"{f.client.itl_coalesced_share:.0%} of the token gaps shared a read > {COALESCED_BOUND:.0%}",
    ),
    Rule(
        "loop_lag",
        "reads were late by over 5 ms at p99",
        lambda f: f.client.clock == "kernel" and _over(f.lag_us, LAG_BOUND_US),
        lambda f: (
            f"reads were late by p99 {f.lag_us:.0f} us; "
            + (
                "every segment kept its own stamp"
                if f.client.stamps == "segment"
                else "events that arrived meanwhile share a stamp and are counted as coalesced"
            )
        ),
    ),
    Rule(
        "starved",
        "as above, where every segment kept its own stamp",
        lambda f: f.starved and f.client.stamps == "segment",
        lambda f: (
            f"a worker waited for a CPU for {f.client.run_queue_wait_share:.1%} of the time; every segment kept its own "
            "stamp, so latencies stand; sends may have been late"
        ),
    ),
    Rule(
        "stamps_mixed",
        "segments had no stamps of their own for a part of the run",
        lambda f: f.client.stamps == "mixed",
        lambda f: f"segments had no stamps of their own in {f.read_ticks}: the tap had ended, or its queue was full",
    ),
    Rule(
        "timeouts",
        "over 1 % of the sent requests timed out: they are missing from the percentiles",
        lambda f: f.share(f.timeouts) > CENSORED_BOUND,
        lambda f: (
            f"{f.share(f.timeouts):.1%} of the sent timed out > {CENSORED_BOUND:.0%}: the percentiles are of the others"
        ),
    ),
    Rule(
        "prompt_length",
        "the provider counted over 10 % more or fewer prompt tokens than were asked for",
        lambda f: _differs(f.prompt_length_ratio),
        lambda f: (
            f"the provider counted {f.prompt_length_ratio:.2f} times the prompt tokens that were asked for; name the model's "
            "tokenizer (workload.tokenizer) or calibrate (workload.calibration)"
        ),
    ),
    *of_part(LIMITED_NOTES, _limited),
    *of_part(REPLY_RULES, _replies),
    Rule(
        "burst_replies",
        "over 1 % of the ok replies came in bursts: they have no pace",
        lambda f: f.ok > 0 and f.client.burst_replies / f.ok > BURST_BOUND,
        lambda f: (
            f"{f.client.burst_replies} of {f.ok} replies came in bursts, something between buffers (a proxy, a gateway, "
            "compression): they have no tpot_ms and decode_tps"
        ),
    ),
    Rule(
        "drawn_rate",
        "chance drew over 5 % more or fewer arrivals than the plan's rate",
        lambda f: bool(f.draws),
        lambda f: f"{f.draws}: that is chance; a longer phase or another seed comes closer",
    ),
    Rule(
        "clamped",
        "a value was above the histogram's range",
        lambda f: bool(f.client.clamped),
        lambda f: f"{f.client.clamped} values above the histogram's range are counted at its end",
    ),
    Rule(
        "export_failures",
        "a write into the run directory failed",
        lambda f: bool(f.client.export_failures),
        lambda f: f"{f.client.export_failures} writes into the run directory failed",
    ),
    Rule(
        "records_dropped",
        "request rows are missing from requests.msgpack",
        lambda f: bool(f.client.records_dropped),
        lambda f: f"{f.client.records_dropped} request rows are not in requests.msgpack",
    ),
    Rule(
        "details_dropped",
        "messages of failed requests found their ring full",
        lambda f: bool(f.detail_drops),
        lambda f: f"{f.detail_drops} messages of failed requests found their ring full",
    ),
    Rule(
        "budget_overrun",
        "the requests cost more than `budget_usd`",
        lambda f: f.overspent_usd > 0,
        lambda f: f"the requests cost {f.overspent_usd:.6f} USD more than budget_usd",
    ),
    Rule(
        "not_steady", "the latency changes by over 10 % over the run", lambda f: bool(f.unsteady), lambda f: f.unsteady
    ),
    Rule(
        "correlated",
        "the effective number of requests is under half of their count",
        lambda f: bool(f.correlated),
        lambda f: f.correlated,
    ),
    Rule(
        "extra_failed",
        "an extra failed: a price look-up, the tokenizer",
        lambda f: bool(f.problems),
        lambda f: "; ".join(f.problems),
    ),
    Rule(
        "beyond_ceiling",
        "the plan asks more of a worker than `lens calibrate` found possible on this host",
        lambda f: bool(f.beyond_ceiling),
        lambda f: f.beyond_ceiling,
    ),
)


def _over(value: float | None, bound: float | None) -> bool:
    return value is not None and bound is not None and value > bound


def _differs(ratio: float | None) -> bool:
    return ratio is not None and abs(ratio - 1) > LENGTH_BOUND


def judge(facts: Facts) -> Verdict:
    """The verdict with its reasons, the invalidating ones first, and the error budget."""
    against = _reasons(AGAINST, facts)
    notes = [Reason(each.code, each.detail, note=True) for each in (*_reasons(NOTES, facts), *facts.self_checks)]
    if against:
        state = "INVALID"
    elif facts.ok < MINIMUM_OK:
        state = "INSUFFICIENT"
        notes.insert(0, Reason("too_few_samples", f"{facts.ok} ok requests, {MINIMUM_OK} are needed"))
    else:
        state = "VALID"
    return Verdict(state=state, reasons=against + notes, error_budget=error_budget(facts))


def _reasons(rules: Sequence[Rule[Facts]], facts: Facts) -> list[Reason]:
    return [Reason(rule.code, rule.text(facts)) for rule in rules if rule.holds(facts)]


def lateness_bound_ms(facts: Facts) -> float | None:
    """Open loop only: in a closed loop lateness is the wait for a free slot, not our error."""
    if not facts.open_loop:
        return None
    return max(LATENESS_FLOOR_MS, LATENESS_SHARE * (facts.mean_interval_ms or 0.0))


def error_budget(facts: Facts) -> dict[str, Any]:
    """How wrong the numbers may be, by cause. Kernel stamps are ns since the packet's arrival in software."""
    client = facts.client
    return {
        "clock": client.clock,
        "stamp_resolution_ns": 1,
        "clock_bracket_ns": facts.clock_bracket_ns,
        "histogram_resolution": round(RESOLUTION, 6),
        "itl_coalesced_share": client.itl_coalesced_share,
        "ttft_coalesced_share": client.ttft_coalesced_share,
        "client_lateness_p99_ms": facts.client_lateness_p99_ms,
        "lateness_bound_ms": lateness_bound_ms(facts),
        "loop_lag_p99_us": client.loop_lag_us.p99,
        "loop_lag_touches_stamps": client.clock != "kernel" or client.stamps != "segment",
        "stamps": client.stamps,
        "run_queue_wait_share": client.run_queue_wait_share,
        "clock_stepped_requests": facts.stepped,
        "ring_drops": client.ring_drops,
        "gap_drops": facts.gap_drops,
        "calibration": facts.calibration,
    }
