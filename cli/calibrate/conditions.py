"""What a run of the calibration is like, as a plan and as flags of the simulator; and the grids of `lens calibrate`."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Final, NamedTuple

from ...collectors.calibration.result import Mode, Transport
from ...engine.plan.plan import Plan
from ...engine.planfile.build import make_plan
from ...engine.planfile.document import Source

MEASURED: Final = "measured"  # name of the phase that is compared
HEAVY_TAIL_SIGMA: Final = 1.2  # of the lognormal gaps: p99 is 16 times the median
EVENTS_PER_WRITE: Final = 4
WRITES_PER_EVENT: Final = 3
SHORT_REPLY_MS: Final = 5.0  # to the one token of a short reply
TLS_OPENING_S: Final = 0.003  # CPU of both ends for a handshake
EVENTS_MIN: Final = 5  # of a reply, so that gaps are measured too


class Conditions(NamedTuple):
    """`events_per_s` token events in all, on so many streams at a time; each reply lasts about `reply_s`.

    With `reply_s` 0 replies are one token long, and `events_per_s` are requests: what costs most per event.
    """

    streams: int
    events_per_s: float
    reply_s: float
    transport: Transport = "tcp"
    mode: Mode = "steady"
    client_stalls: bool = False

    @property
    def tokens(self) -> int:
        """Of a reply."""
        return max(EVENTS_MIN, round(self.reply_s * self.events_per_s / self.streams)) if self.reply_s else 1

    @property
    def gap_ms(self) -> float:
        """The mean time between two tokens of a stream."""
        return 1000 * self.streams / self.events_per_s if self.reply_s else SHORT_REPLY_MS

    @property
    def requests_per_s(self) -> float:
        return self.events_per_s / self.tokens

    @property
    def lasting_s(self) -> float:
        """How long a reply takes."""
        return self.tokens * self.gap_ms / 1000

    @property
    def warmup_s(self) -> float:
        """Until all streams are there and their connections are open."""
        opening_s = self.streams * (TLS_OPENING_S if self.transport == "tls" else 0.0)
        return max(0.3, self.lasting_s) + opening_s


def simulator_flags(conditions: Conditions, log: Path, core: int | None) -> list[str]:
    """The simulator's command line for these conditions."""
    gap = f"{conditions.gap_ms:.6g}"
    if conditions.mode == "heavy_tail":
        gap = f"lognormal:{conditions.gap_ms / math.exp(HEAVY_TAIL_SIGMA**2 / 2):.6g}:{HEAVY_TAIL_SIGMA}"
    flags = ["--log", str(log), "--log-tokens", "--ttft-ms", f"{conditions.gap_ms:.6g}", "--itl-ms", gap]
    flags += ["--tokens", str(conditions.tokens)]
    if core is not None:
        flags += ["--core", str(core)]
    if conditions.transport == "tls":
        flags.append("--tls")
    if conditions.mode == "coalesced":
        flags += ["--events-per-write", str(EVENTS_PER_WRITE)]
    if conditions.mode == "split":
        flags += ["--writes-per-event", str(WRITES_PER_EVENT)]
    return flags


def plan_of(conditions: Conditions, base_url: str, out: Path, *, seconds: float, stamps: str) -> Plan:
    """The plan of the run: a warm-up as long as a reply, so that all streams are there, and `seconds` that count.

    Poisson arrivals, as a load without a rhythm of its own; bursts are a closed loop whose streams all begin at once.
    """
    # The cap keeps an overloaded worker from opening connections without end, which would overload it for good.
    cap = conditions.streams + round(4 * math.sqrt(conditions.streams)) + 10
    load: dict[str, Any] = {"rate": conditions.requests_per_s, "arrivals": "poisson", "max_in_flight": cap}
    if conditions.mode == "burst":
        load = {"concurrency": conditions.streams}
    warmup = {"name": "warmup", "duration": f"{conditions.warmup_s:.3f}s", "load": load, "measure": False}
    document = {
        "name": "calibrate",
        # Whoever the certificate is from: the connection ends in this process's own child.
        "targets": [
            {"name": "simulator", "base_url": f"{base_url}/v1", "model": "sim", "proxy": "", "verify_tls": False}
        ],
        "phases": [warmup, {"name": MEASURED, "duration": f"{seconds:.3f}s", "load": load}],
        "limits": {"drain": f"{conditions.lasting_s * 3 + 2:.3f}s"},
        "workers": {"count": 1},
        "stamps": stamps,
        "output": {"dir": str(out), "token_times": "all"},
    }
    return make_plan(document, Source(), {}, default_name="calibrate")


def quick_grid() -> list[Conditions]:
    """The most important conditions first: what does not fit into the time is left out from the end."""
    few, many = (100, 2_000.0, 1.0), (1_000, 10_000.0, 1.0)
    return [
        Conditions(*many),
        Conditions(*few, client_stalls=True),
        Conditions(*few, transport="tls"),
        Conditions(*few, mode="burst"),
    ]


def full_grid() -> list[Conditions]:
    sizes = [(1_000, 20_000.0, 2.0), (1_000, 5_000.0, 2.0), (100, 5_000.0, 2.0), (100, 1_000.0, 2.0), (10, 500.0, 2.0)]
    transports: tuple[Transport, ...] = ("tcp", "tls")
    modes: tuple[Mode, ...] = ("burst", "heavy_tail", "coalesced", "split")
    steady = [Conditions(*size, transport) for size in sizes for transport in transports]
    others = [Conditions(*size, transport, mode) for mode in modes for size in sizes[1:4:2] for transport in transports]
    stalled = [each._replace(client_stalls=True) for each in (*steady, *others)]
    # In the order of what a slow machine should have measured when the time is over.
    return [*steady, *stalled[:4], *others, *stalled[4:]]
