"""The Python API: what `import llm_latency_lens` offers, and the pytest fixture. The package's own `__init__` names it and
loads it when it is used. Nothing else in the package imports it."""
