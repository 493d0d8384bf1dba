"""`lens run --repeat N [--against TARGET_OR_URL]`: the same plan several times, each run a process of its own, in turns
against two servers if there is something to compare with. Uses `lens run` and `lens compare` for what they do."""
