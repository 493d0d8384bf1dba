"""`python -m llm_latency_lens.cli` is `lens`."""

from .main import main

main()
