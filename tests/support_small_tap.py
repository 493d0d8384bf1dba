"""A run whose tap has a short queue: `support_small_tap.py PLAN QUEUE_BYTES`, everything else as `lens run PLAN --quiet`."""

from __future__ import annotations

import os
import sys

from llm_latency_lens.cli.launch import Stamps, launched
from llm_latency_lens.cli.options import plan_from
from llm_latency_lens.engine.runs.interrupts import Interrupts
from llm_latency_lens.engine.runs.rundir import run_id_of
from llm_latency_lens.engine.runs.tap import TapProcess, servers_of, start_tap


def main(path: str, queue_bytes: int) -> None:
    """The plan says `stamps: read`, so that launched() starts no tap of its own."""
    plan = plan_from(path, {})
    with Interrupts() as interrupts, launched(plan, run_id_of(plan.name), interrupts, prices=()) as launch:
        tap = start_tap(launch.segment_dir, servers_of(plan, os.environ), os.environ, queue_bytes=queue_bytes)
        assert isinstance(tap, TapProcess), tap
        launch.stamps = Stamps(tap)
        try:
            launch.supervisor(lambda: None).run()
        finally:
            tap.close()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
