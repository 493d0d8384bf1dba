"""One stretch of a probe as a run of its own: `python -m llm_latency_lens.cli.probe.epoch`, started by `lens probe`.

On stdin comes a Stretch, then, if it is to end before its phase does, the moment: Unix epoch ns as 8 little-endian
bytes. When stdin ends the probe is gone, and the stretch ends too. Nothing is printed but errors.
"""

from __future__ import annotations

import os
import select
import sys
from time import time_ns
from typing import Any, Final

import msgspec

from ...engine.errors import LensError
from ...engine.plan.plan import Plan

HEAD_BYTES: Final = 4
MOMENT_BYTES: Final = 8


class Stretch(msgspec.Struct, frozen=True):
    """What one stretch does: a plan with one phase, secrets included, that begins at `starts_wall_ns`."""

    plan: Plan
    run_id: str
    starts_wall_ns: int


ENCODER: Final = msgspec.msgpack.Encoder()
DECODER: Final = msgspec.msgpack.Decoder(Stretch)


def framed(stretch: Stretch) -> bytes:
    """A Stretch as it goes through the pipe."""
    body = ENCODER.encode(stretch)
    return len(body).to_bytes(HEAD_BYTES, "little") + body


class Reins:
    """How the probe ends a stretch before its time: by a moment on the pipe `fd`, or by its own end."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._ends_ns = 0

    def reason(self) -> str | None:
        """`handed_over` once the moment has come, `stopped` when nobody holds the reins any more."""
        if not self._ends_ns and select.select([self._fd], [], [], 0)[0]:
            moment = os.read(self._fd, MOMENT_BYTES)
            if not moment:
                return "stopped"
            self._ends_ns = int.from_bytes(moment, "little")
        return "handed_over" if self._ends_ns and time_ns() >= self._ends_ns else None


def carry_out(stretch: Stretch, fd: int) -> None:
    """Runs the stretch to its end and closes its books. Raises LensError."""
    from ...engine.runs.rundir import make_run_dir, make_segment_dir, remove_segments
    from ...engine.runs.supervisor import Supervisor, geometry_of, worker_count
    from ..run import budget_prices, collector_command, manifest_of

    plan = stretch.plan
    prices = budget_prices(plan)
    workers = worker_count(plan)
    geometry = geometry_of(plan, workers)
    run_dir = make_run_dir(plan, stretch.run_id)
    segment_dir = make_segment_dir(run_dir)
    manifest = manifest_of(plan, stretch.run_id, run_dir, workers)
    try:
        manifest.write(segment_dir)
        collector = collector_command(segment_dir)
        supervisor = Supervisor(
            plan,
            manifest,
            segment_dir,
            collector,
            geometry,
            prices=prices,
            on_tick=Reins(fd).reason,
            starts_wall_ns=stretch.starts_wall_ns,
        )
        supervisor.run()
    finally:
        if (run_dir / "summary.json").exists() or manifest.state == "starting":  # else the probe recovers it
            remove_segments(run_dir, segment_dir)


def main() -> Any:
    with os.fdopen(0, "rb", buffering=0, closefd=False) as stream:
        size = int.from_bytes(_exactly(stream.fileno(), HEAD_BYTES), "little")
        stretch = DECODER.decode(_exactly(stream.fileno(), size))
    try:
        carry_out(stretch, 0)
    except LensError as error:
        print(f"lens: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def _exactly(fd: int, size: int) -> bytes:
    """`size` bytes and no more: what follows is for Reins."""
    content = b""
    while len(content) < size:
        piece = os.read(fd, size - len(content))
        if not piece:
            sys.exit(1)
        content += piece
    return content


if __name__ == "__main__":
    sys.exit(main())
