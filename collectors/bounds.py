"""Bounds on the client's own CPU that the verdict, the live view and the report share. Imports nothing heavy."""

from __future__ import annotations

from typing import Final

CPU_BOUND: Final = 0.9  # share of its core that the busiest worker may use; above it the run is INVALID
CPU_WARNING: Final = 0.8  # above it the live view shows the share in yellow
STEAL_BOUND: Final = 0.05  # share of the machine's CPU time taken by the hypervisor; above it the run is INVALID
STEAL_WARNING: Final = 0.02
