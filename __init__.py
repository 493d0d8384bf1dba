"""LLM Latency Lens: a latency profiler and load generator for LLM APIs."""

from .engine import __version__

__all__ = ["__version__"]
