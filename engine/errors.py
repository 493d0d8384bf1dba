"""The one error root and its leaves, by what failed. Every message names the value, where it stands and the way out."""

from __future__ import annotations


class LensError(Exception):
    """Something a person has to know about. `exit_code` is what `lens` ends with (METRICS: exit codes)."""

    exit_code = 1


class PlanError(LensError):
    """A flag, plan key, file or environment variable is wrong; nothing was started."""

    exit_code = 2


def error_of(text: str, code: int) -> LensError:
    """The error of another process, from its message and the exit code that goes with it."""
    return PlanError(text) if code == PlanError.exit_code else LensError(text)


class TargetError(LensError):
    """The target cannot be reached or refuses to work."""


class OutputError(LensError):
    """A result cannot be written where it was asked for."""


class SegmentError(LensError):
    """A shared-memory segment cannot be made or is not what its header claims."""


class ProtocolError(LensError):
    """A peer sent bytes that are not HTTP, SSE or JSON as its API defines them."""
