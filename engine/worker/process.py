"""The process of a worker: limits and signals, its share from stdin, orders until the order to stop.

It dies with its supervisor: by prctl, and by the end of file on stdin where the supervisor was gone before the call.
"""

from __future__ import annotations

import asyncio
import gc
import os
import signal
from pathlib import Path
from typing import Final

import uvloop

from ..clock import keep_stamps_on
from ..errors import LensError
from ..frames import Frames, frame, read_frame
from ..process import die_with_parent, raise_descriptor_limit, raise_priority, run_in_real_time
from ..records.layout import Geometry, State
from ..records.record import Outcome, Unsent
from ..records.writer import SegmentWriter
from ..runs.control import Order, Share, Word
from .worker import Worker

NICENESS: Final = -10  # runs before what shares its core: its timers and sends are what is measured
STDIN: Final = 0
STDOUT: Final = 1
READ_BYTES: Final = 1 << 16


def say(word: Word) -> None:
    """Sends a word to the supervisor."""
    os.write(STDOUT, frame(word))


def obey(worker: Worker, order: Order, stopped: asyncio.Future[None]) -> None:
    """Carries out one order of the supervisor."""
    match order.do:
        case "phase":
            worker.ledger.segment.ticks.start(order.origin_ns, worker.plan.output.tick_ns)
            worker.begin(order.phase, order.at_ns, order.first)
        case "drain":
            worker.stop(Unsent[order.reason.upper()])
        case "cancel":
            worker.stop(Unsent.STOPPED)
            worker.abort(Outcome.CANCELLED if order.reason == "cancelled" else Outcome.IN_FLIGHT)
        case "stop":
            if not stopped.done():
                stopped.set_result(None)


async def serve(share: Share) -> None:
    """Works until the order to stop, or until the supervisor is gone."""
    loop = asyncio.get_running_loop()
    stopped: asyncio.Future[None] = loop.create_future()
    segment = SegmentWriter.create(
        Path(share.segment), Geometry(*share.geometry), worker=share.worker, incarnation=share.incarnation
    )
    worker = Worker(share, segment, say)
    frames = Frames(Order)

    def orders_arrived() -> None:
        piece = os.read(STDIN, READ_BYTES)
        if not piece:
            os._exit(1)
        try:
            for order in frames.feed(piece):
                obey(worker, order, stopped)
        except LensError as error:
            worker.give_up(error)

    loop.add_reader(STDIN, orders_arrived)
    loop.add_reader(worker.reactor.epoll.fileno(), worker.turn)
    loop.add_signal_handler(signal.SIGTERM, worker.stop, Unsent.STOPPED)
    gc.collect()
    gc.freeze()
    gc.disable()  # Health collects at idle points
    gc.callbacks.append(worker.health.on_gc)
    worker.work()
    say(Word(say="ready"))
    await stopped
    gc.callbacks.remove(worker.health.on_gc)
    loop.remove_reader(worker.reactor.epoll.fileno())
    loop.remove_reader(STDIN)
    worker.close()
    segment.close(State.DONE)


def main() -> int:
    """Entry of the process; returns its exit code."""
    die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal's Ctrl-C is the supervisor's to answer
    raise_descriptor_limit()
    try:
        share = read_frame(STDIN, Share)
        if not (share.realtime and run_in_real_time()):
            raise_priority(NICENESS)
        stamps = keep_stamps_on()
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(serve(share))
        stamps.close()
    except LensError as error:
        say(Word(say="failed", text=str(error), code=error.exit_code))
        return error.exit_code
    return 0
