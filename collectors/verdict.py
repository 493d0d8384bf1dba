"""Is the run to be believed? Plain rules over counted facts, each with its number and its bound. Pure.

These make a run INVALID:

    ring_drops              any record or gap lost to a full ring
    books_do_not_balance    planned != sent + unsent
    clock_steps             any request ran across a step of the wall clock (it is kept out of the latencies)
    user_clock              user-space stamps, while the event loop's p99 lag (their error then) is over 1 ms
    mixed_clocks            kernel and user stamps in the same distributions
    lateness                open loop: p99 of send - intended over max(1 ms, 5 % of the mean time between slots)
    cpu                     the busiest worker over 90 % of its core
    steal                   the hypervisor took over 5 % of the machine's CPU time
    worker_restarts         a worker died; its in-flight requests are `lost`, its share of the load paused
    censored                over 1 % of the sent requests were still running at the end: percentiles are lower bounds
    stopped                 the run was ended before its plan was done, by an error: its supervisor died

These are told and do not invalidate: `collector_restarts` (nothing is counted twice or lost), `gaps_coalesced` (share
over 50 %: the exact ITL histogram holds the minority), `loop_lag` (p99 over 5 ms; harmless to kernel stamps),
`export_failures`, `records_dropped`, `details_dropped`, `clamped`, `timeouts` (over 1 % of the sent: they are missing
from the percentiles).

Fewer than 30 ok requests make a run that is not INVALID INSUFFICIENT.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

from .histogram import RESOLUTION
from .snapshot import Client, Reason, Verdict

MINIMUM_OK: Final = 30
CPU_BOUND: Final = 0.9
STEAL_BOUND: Final = 0.05
LATENESS_FLOOR_MS: Final = 1.0
LATENESS_SHARE: Final = 0.05
CENSORED_BOUND: Final = 0.01
USER_LAG_BOUND_US: Final = 1_000.0
LAG_BOUND_US: Final = 5_000.0
COALESCED_BOUND: Final = 0.5


class Facts(NamedTuple):
    """What the rules look at, over the measured phases unless it is about the whole process."""

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
    mean_interval_ms: float | None = None
    lateness_p99_ms: float | None = None
    ttft_coalesced_share: float | None = None
    clock_bracket_ns: int | None = None
    outages: str = ""  # the ticks in which a worker was dead
    died: str = ""  # why the run did not end by itself
    overspent_usd: float = 0.0  # beyond budget_usd, in all phases
    problems: tuple[str, ...] = ()  # of extras that failed: a price look-up, the tokenizer


def judge(facts: Facts) -> Verdict:
    """The verdict with its reasons, the invalidating ones first, and the error budget."""
    against, notes = list(_against(facts)), list(_notes(facts))
    if against:
        state = "INVALID"
    elif facts.ok < MINIMUM_OK:
        state = "INSUFFICIENT"
        notes.insert(0, Reason("too_few_samples", f"{facts.ok} ok requests, {MINIMUM_OK} are needed"))
    else:
        state = "VALID"
    return Verdict(state=state, reasons=against + notes, error_budget=error_budget(facts))


def _against(facts: Facts) -> Any:
    client = facts.client
    if client.ring_drops or facts.gap_drops:
        yield Reason(
            "ring_drops",
            f"{client.ring_drops} records and {facts.gap_drops} token gaps found their ring full, 0 allowed",
        )
    if facts.finished and facts.planned is not None and facts.planned != facts.settled:
        yield Reason("books_do_not_balance", f"planned {facts.planned} slots, sent + unsent are {facts.settled}")
    if facts.died:
        yield Reason("stopped", facts.died)
    if client.clock_steps or facts.stepped:
        yield Reason(
            "clock_steps",
            f"the wall clock was stepped {client.clock_steps} times, {facts.stepped} requests are not in the latencies",
        )
    if client.clock == "mixed":
        yield Reason("mixed_clocks", "some arrivals are stamped by the kernel and some by this process")
    lag = client.loop_lag_us.p99
    if client.clock == "user" and (lag is None or lag > USER_LAG_BOUND_US):
        told = "unknown" if lag is None else f"{lag:.0f} us"
        yield Reason(
            "user_clock",
            f"no kernel stamps: arrivals are late by the loop lag, p99 {told} > {USER_LAG_BOUND_US:.0f} us",
        )
    bound = lateness_bound_ms(facts)
    if bound is not None and facts.lateness_p99_ms is not None and facts.lateness_p99_ms > bound:
        yield Reason("lateness", f"requests left late: p99 {facts.lateness_p99_ms:.3f} ms > {bound:.3f} ms")
    if client.cpu_utilisation is not None and client.cpu_utilisation > CPU_BOUND:
        yield Reason("cpu", f"the busiest worker used {client.cpu_utilisation:.0%} of its core > {CPU_BOUND:.0%}")
    if client.steal_share is not None and client.steal_share > STEAL_BOUND:
        yield Reason("steal", f"the hypervisor took {client.steal_share:.1%} of the CPU time > {STEAL_BOUND:.0%}")
    if client.restarts:
        when = f"; affected: {facts.outages}" if facts.outages else ""
        yield Reason("worker_restarts", f"{client.restarts} workers died and were started again, 0 allowed{when}")
    if facts.sent and facts.in_flight_at_end / facts.sent > CENSORED_BOUND:
        running = facts.in_flight_at_end / facts.sent
        yield Reason(
            "censored",
            f"{running:.1%} of the sent were running at the end > {CENSORED_BOUND:.0%}: percentiles are lower bounds",
        )


def _notes(facts: Facts) -> Any:
    client = facts.client
    if client.collector_restarts:
        yield Reason("collector_restarts", f"{client.collector_restarts}: nothing was counted twice or lost by it")
    if client.itl_coalesced_share is not None and client.itl_coalesced_share > COALESCED_BOUND:
        yield Reason(
            "gaps_coalesced",
            f"{client.itl_coalesced_share:.0%} of the token gaps shared a read > {COALESCED_BOUND:.0%}",
        )
    lag = client.loop_lag_us.p99
    if lag is not None and lag > LAG_BOUND_US and client.clock == "kernel":
        yield Reason(
            "loop_lag",
            f"reads were late by p99 {lag:.0f} us > {LAG_BOUND_US:.0f} us; kernel stamps are not touched by it",
        )
    if facts.sent and facts.timeouts / facts.sent > CENSORED_BOUND:
        share = facts.timeouts / facts.sent
        yield Reason(
            "timeouts", f"{share:.1%} of the sent timed out > {CENSORED_BOUND:.0%}: the percentiles are of the others"
        )
    if client.clamped:
        yield Reason("clamped", f"{client.clamped} values above the histogram's range are counted at its end")
    if client.export_failures:
        yield Reason("export_failures", f"{client.export_failures} writes into the run directory failed")
    if client.records_dropped:
        yield Reason("records_dropped", f"{client.records_dropped} request rows are not in requests.msgpack")
    if facts.detail_drops:
        yield Reason("details_dropped", f"{facts.detail_drops} messages of failed requests found their ring full")
    if facts.overspent_usd > 0:
        yield Reason("budget_overrun", f"the requests cost {facts.overspent_usd:.6f} USD more than budget_usd")
    for problem in facts.problems:
        yield Reason("extra_failed", problem)


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
        "ttft_coalesced_share": facts.ttft_coalesced_share,
        "lateness_p99_ms": facts.lateness_p99_ms,
        "lateness_bound_ms": lateness_bound_ms(facts),
        "loop_lag_p99_us": client.loop_lag_us.p99,
        "loop_lag_touches_stamps": client.clock != "kernel",
        "clock_stepped_requests": facts.stepped,
        "ring_drops": client.ring_drops,
        "gap_drops": facts.gap_drops,
    }
