"""`python -m llm_latency_lens.cli` is `lens`."""

from llm_latency_lens.cli.main import main

main()
