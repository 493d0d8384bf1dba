"""Checks of what was measured: the workers' cores, loopback, kernel stamps, and the path to each target. Pure."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from ...engine.runs.reach import Reach
from ..bounds import LAG_BOUND_US, LATENESS_FLOOR_MS, USER_LAG_BOUND_US
from .facts import CoreTiming, Facts
from .finding import Finding, judged, unknown

TIMER_US: Final = LATENESS_FLOOR_MS * 1000
RTT_LOOPBACK_US: Final = 500.0
DNS_US: Final = 100_000.0
TLS_US: Final = 300_000.0
RTT_US: Final = 10_000.0
SILENT: Final = "the core did not answer in time; see load_of_others"


def _slowest(
    facts: Facts,
    bound: str,
    cure: str,
    value_of: Callable[[CoreTiming], float | None],
    most_us: float,
    text: Callable[[CoreTiming], str],
) -> Finding:
    """The worst core of one measurement; unknown if none was measured, a warning if some did not answer."""
    if not facts.timing:
        return unknown(bound)
    known = [(value, timing) for timing in facts.timing if (value := value_of(timing)) is not None]
    if not known:
        return unknown(bound, SILENT)
    worst, timing = max(known, key=lambda each: each[0])
    return judged(worst <= most_us, text(timing), bound, cure)


def timers(facts: Facts) -> Finding:
    bound = f"p99 <= {TIMER_US:g} us late, p50 over {LAG_BOUND_US:g} us no run is VALID"
    cure = (
        "free the worker cores of others (load_of_others), allow real time (priority), shallower C-states (idle_states)"
    )
    late = [t for t in facts.timing if t.timer_p50_us is not None and t.timer_p50_us > LAG_BOUND_US]
    if late:
        return Finding("fail", _timer_text(late[0]), bound, cure)
    return _slowest(facts, bound, cure, lambda t: t.timer_p99_us, TIMER_US, _timer_text)


def _timer_text(timing: CoreTiming) -> str:
    return f"p50 {timing.timer_p50_us or 0:.0f}, p99 {timing.timer_p99_us or 0:.0f} us on core {timing.cpu}"


def wakeups(facts: Facts) -> Finding:
    bound = f"p99 <= {USER_LAG_BOUND_US:g} us from the kernel's stamp to the read"
    cure = (
        "free the worker cores of others (load_of_others), allow real time (priority), shallower C-states (idle_states)"
    )

    def text(timing: CoreTiming) -> str:
        return f"p50 {timing.wakeup_p50_us or 0:.0f}, p99 {timing.wakeup_p99_us or 0:.0f} us on core {timing.cpu}"

    return _slowest(facts, bound, cure, lambda t: t.wakeup_p99_us, USER_LAG_BOUND_US, text)


def loopback(facts: Facts) -> Finding:
    bound = f"p50 <= {RTT_LOOPBACK_US:g} us there and back"
    cure = "ip link set lo up; else free the cores of others (load_of_others)"

    def text(timing: CoreTiming) -> str:
        return f"{timing.rtt_p50_us or 0:.0f} us to core {timing.cpu}"

    return _slowest(facts, bound, cure, lambda t: t.rtt_p50_us, RTT_LOOPBACK_US, text)


def kernel_stamps(facts: Facts) -> Finding:
    bound = "on every read, between its send and its read"
    known = [timing for timing in facts.timing if timing.stamped_share is not None]
    if not known:
        return unknown(bound, SILENT if facts.timing else "")
    worst = min(known, key=lambda t: (t.stamped_share or 0, t.stamps_in_order is True))
    cure = "a kernel with SO_TIMESTAMPNS: sandboxes such as gVisor have none, and the worker's own clock is used"
    if not worst.stamped_share:
        return Finding("warn", "none", bound, cure)
    value = f"{worst.stamped_share:.0%}, {worst.stamp_after_send_p50_us or 0:.1f} us after the send"
    if not worst.stamps_in_order:
        return Finding("fail", f"{value}, some outside", bound, "the clock is being stepped: see clock_sync")
    return judged(worst.stamped_share == 1, value, bound, cure)


# --- one target -------------------------------------------------------------------------------------------------------

CURES: Final = {
    "dns": "correct the host in base_url; `resolvectl query HOST` asks the name servers",
    "tcp": "start the server or correct base_url; `ss -ltn` on its machine says what listens",
    "tls": "https or http in base_url, --ca-file for an authority of your own, verify_tls: false for none",
}
ORDER: Final = ("dns", "tcp", "tls", "http", "done")


def _stopped(reach: Reach, stage: str, bound: str) -> Finding | None:
    """A finding for what stopped at this stage (fail) or before it (unknown); None for what came further."""
    if not reach.error:
        return None
    here, there = ORDER.index(stage), ORDER.index(reach.stage)
    if there < here:
        return unknown(bound)
    return Finding("fail", reach.error, bound, CURES[stage]) if there == here else None


def _ms(us: float) -> str:
    return f"{us / 1000:.3g} ms"


def target_dns(reach: Reach) -> Finding:
    bound = f"<= {_ms(DNS_US)}"
    if (stopped := _stopped(reach, "dns", bound)) is not None:
        return stopped
    if reach.literal:
        return Finding("ok", "a numeric address", bound)
    cure = "a name server near by (resolvectl), or targets[].resolve with the address"
    return judged((reach.dns_us or 0) <= DNS_US, _ms(reach.dns_us or 0), bound, cure)


def target_tcp(reach: Reach) -> Finding:
    bound = "connects"
    if (stopped := _stopped(reach, "tcp", bound)) is not None:
        return stopped
    return unknown(bound) if reach.tcp_us is None else Finding("ok", f"{_ms(reach.tcp_us)} to {reach.where}", bound)


def target_tls(reach: Reach) -> Finding:
    bound = f"<= {_ms(TLS_US)}"
    if (stopped := _stopped(reach, "tls", bound)) is not None:
        return stopped
    if not reach.tls:
        return Finding("ok", "no TLS", bound)
    if reach.tls_us is None:
        return unknown(bound)
    cure = "kept connections hide it from all requests but the first; else a server with less to do"
    return judged(reach.tls_us <= TLS_US, _ms(reach.tls_us), bound, cure)


def target_rtt(reach: Reach) -> Finding:
    bound = f"<= {_ms(RTT_US)}"
    if not reach.rtts_us:
        return unknown(bound)
    times = sorted(reach.rtts_us)
    middle = times[len(times) // 2]
    value = f"{_ms(middle)} ({_ms(times[0])} to {_ms(times[-1])})"
    cure = "measure from nearer the server, or read server_ttft_ms: it leaves the round trip out"
    return judged(middle <= RTT_US, value, bound, cure)


def target_loss(reach: Reach) -> Finding:
    bound = "no segment sent again"
    if not reach.handshakes:
        return unknown(bound)
    value = f"{reach.retransmits} lost or sent again over {reach.handshakes} connection{'s' * (reach.handshakes > 1)}"
    cure = "find the lossy link (mtr --tcp); each loss is a stall of 200 ms or more in TTFT or ITL"
    return judged(not reach.retransmits, value, bound, cure)


def target_keep_alive(reach: Reach) -> Finding:
    bound = "a second request on the same connection"
    if reach.kept is None:
        return Finding("unknown", reach.detail or None, bound)
    cure = "let the server, or what is before it, keep connections (keep-alive timeout); else TTFT holds a connect at times"
    return judged(reach.kept, reach.detail, bound, cure)


TARGET_CHECKS: Final[tuple[tuple[str, str, Callable[[Reach], Finding]], ...]] = (
    ("dns", "a slow or missing name server delays every new connection", target_dns),
    ("tcp", "without a connection there is nothing to measure", target_tcp),
    ("tls", "a handshake that fails ends every request; a slow one is in the first TTFT of each connection", target_tls),
    ("rtt", "the round trip is in every TTFT, and none of it is the server's", target_rtt),
    ("loss", "a lost segment stalls a stream for a retransmission timeout, and looks like a slow server", target_loss),
    ("keep_alive", "a connection that is closed after each reply puts a connect, or a failure, into the next request", target_keep_alive),
)  # fmt: skip


def of_target(judge: Callable[[Reach], Finding], reach: Reach) -> Callable[[Facts], Finding]:
    """The check of one target as a check of the facts."""
    return lambda facts: judge(reach)
