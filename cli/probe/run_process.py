"""One run of a probe, as a process of its own: `python -m llm_latency_lens.cli.probe.run_process`, started by `lens probe`.

On stdin comes a RunOrder, then, if the run is to end before its phase does, the moment: Unix epoch ns as 8 little-endian
bytes. When stdin ends the probe is gone, and the run ends too. Nothing is printed but errors.
"""

from __future__ import annotations

import os
import select
import sys
from time import time_ns
from typing import Final

import msgspec

from ...engine.errors import LensError
from ...engine.frames import read_frame
from ...engine.plan.plan import Plan
from ...engine.runs.interrupts import Interrupts
from ...engine.runs.phases import Alone

MOMENT_BYTES: Final = 8


class RunOrder(msgspec.Struct, frozen=True):
    """A plan with one phase, secrets included, that begins at `starts_wall_ns`, Unix epoch."""

    plan: Plan
    run_id: str
    starts_wall_ns: int


class StopPipe:
    """How the probe ends a run before its time: by a moment on the pipe `fd`, or by its own end."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._ends_ns = 0

    def reason(self) -> str | None:
        """`handed_over` once the moment has come, `stopped` when the probe is gone, None before. Never blocks."""
        if not self._ends_ns and select.select([self._fd], [], [], 0)[0]:
            moment = os.read(self._fd, MOMENT_BYTES)
            if not moment:
                return "stopped"
            self._ends_ns = int.from_bytes(moment, "little")
        return "handed_over" if self._ends_ns and time_ns() >= self._ends_ns else None


def main() -> int:
    """Entry of the process."""
    with Interrupts() as interrupts:
        from ..launch import budget_prices, launched  # with a handler in place: its imports take a moment

        try:
            order = read_frame(0, RunOrder)
            prices = budget_prices(order.plan)
            with launched(order.plan, order.run_id, interrupts, prices=prices) as launch:
                launch.supervisor(StopPipe(0).reason, starts=Alone(order.starts_wall_ns)).run()
        except LensError as error:
            print(f"lens: {error}", file=sys.stderr)
            return error.exit_code
        except (EOFError, KeyboardInterrupt):
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
