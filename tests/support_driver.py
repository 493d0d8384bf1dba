"""The driver of a run whose hosts are in another network namespace: `python support_driver.py PLAN ADDRESS COMMAND...`.

Prints the driver's manifest as JSON. COMMAND stands before that of each agent.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import msgspec

from llm_latency_lens.cli.launch import launched
from llm_latency_lens.cli.options import plan_from
from llm_latency_lens.engine.hosts.launcher import AGENT, LocalHosts
from llm_latency_lens.engine.runs.interrupts import Interrupts
from llm_latency_lens.engine.runs.rundir import run_id_of


def main(arguments: Sequence[str]) -> None:
    plan_path, address, *prefix = arguments
    plan = plan_from(plan_path, {})
    assert plan.hosts.count is not None
    with Interrupts() as interrupts, launched(plan, run_id_of("netns"), interrupts, prices=[]) as launch:
        command = [*prefix, sys.executable, *AGENT]
        hosts = LocalHosts(plan.hosts.count, launch.segment_dir, frozenset(), address=address, command=command)
        manifest = launch.driver(lambda: None, hosts).run()
        print(msgspec.json.encode(manifest).decode())


if __name__ == "__main__":
    main(sys.argv[1:])
