"""One of the repeated runs, as a process of its own: `python -m llm_latency_lens.cli.repeat.run_process`.

On stdin comes a RunOrder. The live view and warnings go to stderr; stdout gets one line if the run fails, the reason.
It is started with SIGINT, SIGTERM and SIGHUP blocked, and unblocks them when it can handle them. When the starter dies
the run is ended as by SIGTERM, with its summary.
"""

from __future__ import annotations

import os
import signal
import sys

from ...engine.errors import LensError
from ...engine.frames import read_frame
from ...engine.process import die_with_parent
from ...engine.runs.interrupts import SIGNALS, Interrupts
from ..main import open_standard_streams
from .order import RunOrder


def main() -> int:
    """Entry of the process."""
    open_standard_streams()
    answer = os.dup(1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # the run's own table: what is printed is the comparison
    with Interrupts() as interrupts:
        try:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
            order = read_frame(0, RunOrder)
            die_with_parent(order.parent, signal.SIGTERM)
            from ..run import carry_out

            return carry_out(
                order.plan,
                interrupts,
                as_json=False,
                quiet=order.quiet,
                strict=False,
                beside=order.beside,
                run_id=order.run_id,
                warn=order.warn,
            )
        except LensError as error:
            os.write(answer, str(error).encode())
            return error.exit_code
        except KeyboardInterrupt:
            return 130
        except EOFError:
            return 1


if __name__ == "__main__":
    sys.exit(main())
