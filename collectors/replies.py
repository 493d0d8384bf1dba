"""Does the server do what it was asked to, and what it says? Counts of the replies, and the verdict's rules over them.

A note is information, with its numbers, not an accusation: an honest server may decode speculatively, and a model may
end by itself. What was measured is then something else than the plan says, and that is what people have to know. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from ..engine.metrics import SCALES
from ..engine.plan.plan import Plan
from ..engine.records.record import Outcome
from .asked import asks_for_shared_prefixes
from .bounds import (
    CACHED_BOUND,
    IDENTICAL_BOUND,
    LENGTH_BOUND,
    SERVER_CONDUCT_BOUND,
    TOKENS_PER_EVENT_BOUND,
)
from .rule import Rule
from .series import Series, Slab, Tally
from .snapshot import Replies
from .statistics import share


def replies_of(plan: Plan, totals: Slab, measured: Series, by_phase: Mapping[int, Series]) -> Replies:
    """What the rules look at: of the measured phases, and the share of cached prompt tokens in each phase."""
    tally = measured.tally
    finish = {
        "stop": int(tally[Tally.FINISH_STOP]),
        "length": int(tally[Tally.FINISH_LENGTH]),
        "other": int(tally[Tally.FINISH_OTHER]),
    }
    finish["missing"] = int(tally[Outcome.OK]) - sum(finish.values())
    silent = [i for i, target in enumerate(plan.targets) if target.http is not None and not target.http.finish]
    expected = sum(
        int(series.tally[Outcome.OK])
        for (phase, target), series in totals.series.items()
        if target in silent and plan.phases[phase].measure
    )
    per_event = measured.metrics.get("tokens_per_event")
    cached = {
        plan.phases[i].name: share(series.tally[Tally.CACHED], series.tally[Tally.INPUT])
        for i, series in by_phase.items()
    }
    return Replies(
        finish=finish,
        missing_expected=expected,
        length_asked=int(tally[Tally.LENGTH_ASKED]),
        shorter=int(tally[Tally.SHORTER]),
        longer=int(tally[Tally.LONGER]),
        cut_short=int(tally[Tally.CUT_SHORT]),
        output_ratio=share(tally[Tally.MEASURED_OUTPUT], tally[Tally.ASKED_OUTPUT]),
        ended_early=any({"ignore_eos", "min_tokens"} & target.parameters.keys() for target in plan.targets),
        compared=int(tally[Tally.REPLY_COMPARED]),
        identical=int(tally[Tally.IDENTICAL_REPLY]),
        repeated_prompts=int(tally[Tally.REPEATED_PROMPT]),
        counted=int(tally[Tally.BY_PROVIDER]),
        usage_under_events=int(tally[Tally.USAGE_UNDER_EVENTS]),
        tokens_per_event=per_event.mean / SCALES["tokens_per_event"] if per_event and per_event.mean else None,
        cached_share=None if asks_for_shared_prefixes(plan) else share(tally[Tally.CACHED], tally[Tally.INPUT]),
        cached_by_phase=cached,
    )


REPLY_RULES: Final[tuple[Rule[Replies], ...]] = (
    Rule(
        "cached_prompts",
        "over 10 % of the prompt tokens came from the provider's cache, where the plan asks for no shared prefixes",
        lambda r: (r.cached_share or 0) > CACHED_BOUND,
        lambda r: (
            f"{r.cached_share:.0%} of the prompt tokens came from the provider's cache{_by_phase(r)}: the times to the "
            "first token are those of a warm cache; ask with prompts that differ from their beginning on (workload.salt)"
        ),
    ),
    Rule(
        "output_length",
        "over 10 % more or fewer output tokens than were asked for, over all replies or in over 10 % of them",
        lambda r: (
            abs((r.output_ratio or 1) - 1) > LENGTH_BOUND or _part(r.shorter + r.longer, r.length_asked) > LENGTH_BOUND
        ),
        lambda r: (
            f"replies had {r.output_ratio or 0:.2f} times the output tokens that were asked for: {r.shorter} of "
            f"{r.length_asked} are over {LENGTH_BOUND:.0%} shorter, {r.longer} longer; "
            + (
                "the server does not keep to the limit that it was given"
                if r.longer
                else "the server ends replies early although the plan forbids it"
                if r.ended_early
                else "the model ends by itself; where the server allows it, set ignore_eos or min_tokens in the target's "
                "parameters"
            )
        ),
    ),
    Rule(
        "cut_short",
        "over 1 % of the replies say that they ended at their token limit, and are over 10 % shorter than was asked",
        lambda r: _part(r.cut_short, r.length_asked) > SERVER_CONDUCT_BOUND,
        lambda r: (
            f"{r.cut_short} of {r.length_asked} replies ended at a token limit that is lower than the one asked for: the "
            "server has a limit of its own"
        ),
    ),
    Rule(
        "finish_missing",
        "over 1 % of the ok replies name no finish reason, where their API has one",
        lambda r: _part(_missing(r), r.ok) > SERVER_CONDUCT_BOUND,
        lambda r: f"{_missing(r)} of {r.ok} replies do not say why they ended: whether they are complete is not known",
    ),
    Rule(
        "identical_replies",
        "over 5 % of the replies of at least 16 tokens equal an earlier reply to another prompt",
        lambda r: _part(r.identical, r.compared) > IDENTICAL_BOUND,
        lambda r: (
            f"{r.identical} of {r.compared} replies equal an earlier one to a different prompt: the server replays stored "
            "replies, or does not read its prompts"
        ),
    ),
    Rule(
        "repeated_prompts",
        "over 10 % of the measured requests ask a prompt that the warm-up has asked before",
        lambda r: _part(r.repeated_prompts, r.ok) > CACHED_BOUND,
        lambda r: (
            f"{r.repeated_prompts} of {r.ok} measured requests asked a prompt of the warm-up again: a server that keeps "
            "prompts or replies answers them from its cache; give the warm-up prompts of its own"
        ),
    ),
    Rule(
        "usage_under_events",
        "in over 1 % of the replies the provider counts over 10 % fewer output tokens than events that carried one",
        lambda r: _part(r.usage_under_events, r.counted) > SERVER_CONDUCT_BOUND,
        lambda r: (
            f"{r.usage_under_events} of {r.counted} replies came in more events than the provider counts tokens: its "
            "usage is too low, and so are tokens/s and cost; tpot_ms is too high"
        ),
    ),
    Rule(
        "tokens_per_event",
        "an event carries over 1.1 output tokens on average: speculative decoding, or a server that batches events",
        lambda r: (r.tokens_per_event or 0) > TOKENS_PER_EVENT_BOUND,
        lambda r: (
            f"an event carries {r.tokens_per_event:.2f} output tokens on average (with speculative decoding, the "
            "acceptance length): itl_ms is the time between events, tpot_ms the time per token"
        ),
    ),
)


def _part(count: int, of: int) -> float:
    return count / of if of else 0.0


def _missing(r: Replies) -> int:
    return max(0, r.finish.get("missing", 0) - r.missing_expected)


def _by_phase(r: Replies) -> str:
    """The cached share of each phase, where there are several."""
    if len(r.cached_by_phase) < 2:
        return ""
    shares = (f"{name} {'unknown' if each is None else f'{each:.0%}'}" for name, each in r.cached_by_phase.items())
    return f" ({', '.join(shares)})"
