"""`python -m llm_latency_lens.engine.worker INDEX`, as the supervisor starts it. INDEX is for people who look at ps."""

import sys

from .process import main

sys.exit(main())
