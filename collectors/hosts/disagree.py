"""Do all hosts of a run measure the same? Each is held against the others together. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from ...engine.metrics import SCALES
from ..compare import Observed, Question, compare
from ..confidence import confidence
from ..ladder import Blocks, joined
from ..run_ladders import RunLadders
from .member import METRIC, Member

MARGIN: Final = 0.1  # a difference that does not matter
STATISTIC: Final = "p50"  # of what a host's own way to the server changes, the most certain


def disagreement(members: Sequence[Member], ladders: RunLadders, measured: Sequence[bool]) -> str:
    """Which hosts' median time to first token differs from that of the others, in words; empty where none does.

    A difference counts where it is significant over all hosts (Holm) and not surely within MARGIN.
    """
    blocks = [ladders.blocks(lambda key: measured[key[0]], member.times) for member in members]
    questions = []
    for i, member in enumerate(members):
        rest = joined([each for k, each in enumerate(blocks) if k != i and each is not None])
        mine, others = _observed(blocks[i]), _observed(rest)
        if mine is not None and others is not None:
            questions.append(Question(member.state.name, METRIC, STATISTIC, [others], [mine], MARGIN))
    found = [
        f"{each.target} {each.candidate:.3f} ms, the others {each.base:.3f} ms"
        for each in compare(questions, base=["others"], candidate=["host"], margin=MARGIN).comparisons
        if each.verdict in ("worse", "better") and each.candidate is not None and each.base is not None
    ]
    return f"the {STATISTIC} of {METRIC} differs between hosts: {'; '.join(found)}" if found else ""


def _observed(blocks: Blocks | None) -> Observed | None:
    """The statistic with its interval; None where the blocks cannot give one."""
    if blocks is None or not blocks.size:
        return None
    found = confidence(blocks).intervals.get(STATISTIC)
    if found is None or found.low is None or found.high is None:
        return None
    scale = SCALES[METRIC]
    return Observed(found.value / scale, found.low / scale, found.high / scale)
