"""`python -m llm_latency_lens.engine.wire.tap` is the tap's process."""

import sys

from .process import main

sys.exit(main())
