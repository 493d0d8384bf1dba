"""What is asked: one Item for each slot of the schedule, rendered by the dialects, sent by the workers.

An item is a pure function of (seed, phase, slot) and the workload's file, so worker k of N makes those of its slots
k, k+N, k+2N, ... alone, and the union over the workers is the same for any N. Memory is bounded for files of any size;
no file is read through before the first item. Nothing here knows of clocks, sockets or schedules.
"""

from __future__ import annotations

from .cautions import cautions
from .sessions import Session
from .source import Item, Source, source_of
from .tokenizer import Calibration, tokenizer_of

__all__ = ["Calibration", "Item", "Session", "Source", "cautions", "source_of", "tokenizer_of"]
