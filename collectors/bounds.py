"""The bounds of the verdict's rules, for the verdict and for whoever shows the same numbers. Imports nothing heavy."""

from __future__ import annotations

from typing import Final

MINIMUM_OK: Final = 30
CPU_BOUND: Final = 0.9
STEAL_BOUND: Final = 0.05
CPU_NOTICE: Final = 0.8  # from here on the console draws attention to it: the next step of load may invalidate
STEAL_NOTICE: Final = 0.02
LATENESS_FLOOR_MS: Final = 1.0
LATENESS_SHARE: Final = 0.05
CENSORED_BOUND: Final = 0.01
USER_LAG_BOUND_US: Final = 1_000.0
LAG_BOUND_US: Final = 5_000.0
CACHED_BOUND: Final = 0.1  # of the prompt tokens
LENGTH_BOUND: Final = 0.1  # of measured from asked tokens
SERVER_CONDUCT_BOUND: Final = 0.01  # of the replies: fewer may be accidents
IDENTICAL_BOUND: Final = 0.05  # of the replies that were compared
TOKENS_PER_EVENT_BOUND: Final = 1.1  # on average; servers that wait for complete UTF-8 characters are just over 1
BURST_BOUND: Final = 0.01  # of the ok replies
COALESCED_BOUND: Final = 0.5
TTFT_COALESCED_BOUND: Final = 0.05
STARVED_BOUND: Final = 0.05
PAUSE_BOUND: Final = 0.01  # of a tick, in garbage collections or throttled
MEMORY_BOUND: Final = 0.1
WRITE_WAIT_BOUND: Final = 0.1
RETRANSMIT_BOUND: Final = 0.01
RETRANSMIT_MINIMUM: Final = 10
LIMITED_NOTICE: Final = 0.05  # of the measured ticks
LIMITED_BOUND: Final = 0.2
LIMITED_MINIMUM: Final = 3
STOPPED_BOUND: Final = 0.01
