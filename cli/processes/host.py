"""The process of a load host: `python -m llm_latency_lens.cli.processes.host`, started by a launcher (engine.hosts).

Its child carries the host's part of the run out, with this process's stdin. When the child was killed, what it left in
tmpfs is completed to a report of its own, as `lens recover` does, and stderr says where that is.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from types import FrameType

COMMAND = (sys.executable, "-m", "llm_latency_lens.cli.processes.part")


def main() -> int:
    with subprocess.Popen(COMMAND, stdin=0) as part:

        def pass_on(number: int, _frame: FrameType | None) -> None:
            part.send_signal(number)

        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, pass_on)
        code = part.wait()
    if code < 0:
        print(f"lens: this host's part was ended by signal {-code}; {completed(part.pid)}", file=sys.stderr)
    return code if code >= 0 else 1


def completed(pid: int) -> str:
    """Completes what the supervisor of this pid left; says what came of it."""
    from ...engine.errors import LensError
    from ...engine.runs.manifest import SEGMENTS
    from ...engine.runs.rundir import leftovers
    from ..recover import finish, in_one_line

    for left in leftovers(SEGMENTS):
        if left.head is not None and left.head.pids.get("supervisor") == pid:
            try:
                return in_one_line(left.directory, finish(left.directory))
            except LensError as error:
                return str(error)
    return "it had not begun"


if __name__ == "__main__":
    sys.exit(main())
