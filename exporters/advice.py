"""What a verdict means and what to do about it: a sentence that fits its reason, and a way out for each code. Pure."""

from __future__ import annotations

from typing import Any, Final

from ..collectors.snapshot import Reason, Report, Verdict
from .plan_words import phases_of, targets_of

STATES: Final = {
    "VALID": "the client stayed within its limits; the numbers can be used",
    "INVALID": "the client disturbed what it measured; do not use these numbers",
    "INSUFFICIENT": "too little was measured to be sure of the numbers; measure for longer",
}
_CLIENT_SLOW: Final = "this client was too slow for the load; do not use these numbers"
# Of an INVALID run, by the code of its first reason: what happened, where the client was not what disturbed it.
BY_REASON: Final = {
    "stopped": "the run was ended early; the numbers are of its beginning only",
    "censored": "requests were still running at the end; the percentiles are lower bounds",
    "worker_restarts": "a worker died during the run; its requests and part of the load are missing",
    "totals_do_not_balance": "requests were lost; the counts cannot be trusted",
    "clock_steps": "the clock of this machine was stepped; some latencies are missing",
    "mixed_clocks": "two clocks with different errors are in the same distributions",
    "user_clock": "the kernel stamped no arrivals, and this client read late",
    "ttft_coalesced": "first tokens were read late; TTFT is an upper bound",
    "ring_drops": "measurements were dropped; the numbers are of the rest",
    "host_lost": "a load host was lost; its requests and part of the load are missing",
    "clock_bound": "the clocks of the load hosts are too far apart for these ticks; latencies stand, ticks may not",
    "steal": "the hypervisor took this machine's CPU time; do not use these numbers",
    "starved": "other processes took this client's CPU time; do not use these numbers",
    "lateness": "this client sent late, so the load was not the one asked for",
    "cpu": _CLIENT_SLOW,
    "client_stopped": _CLIENT_SLOW,
    "client_limited": "this client was limited for much of the run; do not use these numbers",
}
# Of the codes whose text names a fact only: what to do about it.
CURES: Final = {
    "collector_restarts": "nothing to do for this run; log.jsonl says why it died",
    "client_limited": "the numbers of the other ticks stand; use a quieter machine, more cores or less load",
    "client_stopped": "use fewer streams per worker or more cores",
    "gaps_coalesced": "read ITL as that of the others; allow segment stamps (CAP_NET_RAW), or look for a proxy that buffers",
    "loop_lag": "use fewer streams per worker or more cores if lateness is high, too",
    "starved": "free the workers' cores of other load",
    "stamps_mixed": "compare runs without those ticks, or lower the load",
    "host_lost": "look at the host and at RUN_DIR/hosts; then run again",
    "clock_bound": "take longer ticks (output.tick), or a shorter way between driver and hosts",
    "hosts_disagree": "look at the table of hosts: one is further away or busier than the others",
    "timeouts": "raise limits.timeout, or read the percentiles as those of the fast ones",
    "burst_replies": "measure without what lies between, or use TTFT and E2E",
    "clamped": "the highest percentiles are lower bounds; set limits.timeout below an hour",
    "export_failures": "check the space and the permissions of the run directory",
    "records_dropped": "raise output.records_max_bytes, or check the disk's speed",
    "details_dropped": "the counts are complete; the messages of some failures are not",
    "budget_overrun": "lower max_in_flight: what is in flight when the budget is spent is still paid for",
    "not_steady": "measure for longer, or judge the steady part alone (--steady)",
    "correlated": "the intervals take this into account already; measure for longer to narrow them",
    "cut_short": "ask for no more output than its limit, or raise it",
    "finish_missing": "look at a reply of each length before trusting the token counts",
    "identical_replies": "turn off what stores replies between client and model",
    "usage_under_events": "count output tokens locally (workload.tokenizer, workload.count_tokens)",
    "tokens_per_event": "compare servers by tpot_ms",
    "littles_law": "look for restarts in log.jsonl; without one it is a defect of this tool, please report it",
    "arrivals": "look for restarts in log.jsonl; without one it is a defect of this tool, please report it",
    "beyond_ceiling": "use more workers, or a lower load",
    "extra_failed": "the other numbers stand",
    "too_few_samples": "measure for longer, or send more requests",
}
WAITED_SHARE: Final = 2.0  # lateness over the client's own, from which requests are said to have waited
WAITED_MS: Final = 1.0


def plain_state(verdict: Verdict) -> str:
    """The state in a sentence that fits its reason."""
    if verdict.state == "INVALID":
        first = next((each.code for each in verdict.reasons if not each.note), "")
        return BY_REASON.get(first, STATES["INVALID"])
    return STATES.get(verdict.state, "")


def explained(reason: Reason) -> str:
    """The reason's text, and what to do about it where the text does not say so itself."""
    text = reason.detail or reason.code
    cure = CURES.get(reason.code)
    return text if not cure or cure in text or cure.rpartition("; ")[2] in text else f"{text}: {cure}"


def waited(report: Report, plan: dict[str, Any]) -> str:
    """Whether requests waited for a limit of the plan and not for this client: a sentence, empty if they did not."""
    if report.run.load == "closed":
        return ""
    caps = list(_caps(plan))
    refused = report.requests.unsent.get("no_capacity", 0)
    if refused:
        return (
            f"{refused:,} requests were not sent because {_named(caps) or 'max_in_flight'} was reached: raise it, or read "
            "the run as one of the server's capacity"
        )
    late, own = (report.metrics.get(name) for name in ("lateness_ms", "client_lateness_ms"))
    if not late or not own or late.p99 is None or own.p99 is None or not caps:
        return ""
    if late.p99 <= WAITED_MS or late.p99 <= WAITED_SHARE * own.p99:
        return ""
    return (
        f"requests waited for your cap ({_named(caps)}): p99 {late.p99:,.0f} ms, of which this client caused "
        f"{own.p99:,.2f} ms; raise it, or read TTFT from the schedule"
    )


def _caps(plan: dict[str, Any]) -> list[str]:
    loads = [each.get("load") for each in phases_of(plan)]
    values = {load["max_in_flight"] for load in loads if isinstance(load, dict) and load.get("max_in_flight")}
    found = [f"max_in_flight {', '.join(f'{each:,}' for each in sorted(values))}"] if values else []
    parts = [plan.get("limits"), *targets_of(plan)]
    for name in ("rpm", "tpm"):
        limits = {part[name] for part in parts if isinstance(part, dict) and part.get(name)}
        found += [f"{name} {', '.join(f'{each:,g}' for each in sorted(limits))}"] if limits else []
    return found


def _named(caps: list[str]) -> str:
    return " or ".join(caps)
