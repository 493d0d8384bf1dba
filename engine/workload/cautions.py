"""What people should know of a plan's workload before it is sent and paid for."""

from __future__ import annotations

from typing import Final

import msgspec

from ..plan.plan import Plan, Target
from .source import limits_in, source_of

_LIMITED: Final = ("anthropic",)  # dialects that send a limit of their own where nobody gives one


def cautions(plan: Plan) -> list[str]:
    """A sentence for each: nothing limits the output, a file's rows overrule the plan. Raises PlanError for bad rows."""
    workload = plan.workload
    # Without the plan's own limit the first item shows what the file says; its text does not matter.
    bare = msgspec.structs.replace(workload, output_tokens=None, tokenizer=None)
    item = next(iter(source_of(msgspec.structs.replace(plan, workload=bare), seed=plan.seed).items(0, 1)))
    found = []
    if item.prompt.max_tokens is not None and workload.output_tokens is not None:
        found.append(
            f"rows of {workload.path} say how many output tokens they ask for; workload.output_tokens holds only for "
            "those that do not"
        )
    if item.prompt.max_tokens is None and workload.output_tokens is None:
        unlimited = [target.name for target in plan.targets if not _limited(target)]
        if unlimited:
            found.append(
                f"nothing limits the output of {', '.join(unlimited)}: a reply is as long as the model likes, and costs "
                "it; set output_tokens (--output-tokens) or max_tokens in the target's parameters"
            )
    return found


def _limited(target: Target) -> bool:
    """Has it a limit that this plan can see? The body of a generic endpoint is its author's own."""
    return target.provider in _LIMITED or target.http is not None or any(limits_in(target.parameters))
