"""`python -m llm_latency_lens` is the `lens` command."""

from .cli.main import main

if __name__ == "__main__":
    main()
