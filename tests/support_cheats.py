"""Servers that do something else than they were asked, and honest ones: scripts of the simulator, and what to expect."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from llm_latency_lens.collectors.replies import REPLY_RULES
from tests.support_lens import lens
from tests.support_simulator import simulator

CODES = frozenset(rule.code for rule in REPLY_RULES)
FAST: dict[str, Any] = {"ttft_ms": 3, "itl_ms": 0.5, "tokens": 40}
ASKED = ("--input-tokens", "50", "--output-tokens", "40")


class Case(NamedTuple):
    """A server and how it is measured; `codes` are the notes about its replies that the verdict must have."""

    name: str
    script: dict[str, Any]
    codes: frozenset[str]
    arguments: Sequence[str] = ASKED
    words: str = ""  # stand in the first of the notes
    prompts: Sequence[str] = ()


def _case(name: str, codes: str, arguments: Sequence[str] = ASKED, words: str = "", **script: Any) -> Case:
    return Case(name, FAST | script, frozenset(codes.split()), arguments, words)


_TWO = ("tell me about light in some detail", "tell me about sound in some detail")
CHEATS = (
    _case("one stored reply for every prompt", "identical_replies", distinct_replies=1),
    _case("a few stored replies in turn", "identical_replies", distinct_replies=4),
    _case("ends early", "output_length", tokens="uniform:5:30", words="shorter"),
    _case("claims a limit that nobody asked for", "output_length cut_short", tokens=20, finish="length"),
    _case("ignores max_tokens", "output_length", tokens=80, obey_max_tokens=False, words="longer"),
    _case("some replies are short", "output_length", tokens="uniform:30:60", words="0.9"),
    _case("several tokens in an event", "tokens_per_event", tokens_per_event=8, words="8.00 output tokens"),
    _case("counts too few tokens", "usage_under_events output_length", usage_factor=0.5),
    _case("counts too many tokens", "output_length tokens_per_event", usage_factor=3),
    _case("cached after the warm-up", "cached_prompts", (*ASKED, "--warmup", "0.3s"), "warmup", cached_share=0.9, cached_after=40),
    _case("does not say why it ended", "finish_missing", finish="none"),
    Case("is asked the warm-up's prompts again", FAST, frozenset({"repeated_prompts"}), ("--warmup", "0.3s"), "", _TWO),
)  # fmt: skip
HONEST = (
    _case("temperature 0: equal prompts, equal replies", "", ("--prompt", "how fast is light?")),
    Case("short answers that are alike", FAST | {"tokens": 3, "distinct_replies": 1}, frozenset(), (), "", _TWO),
    _case("speculative decoding", "tokens_per_event", tokens_per_event=3),
    _case("ends by itself where no length was asked", "", ("--input-tokens", "50"), tokens="lognormal:40:0.5"),
    _case("thinks first, warms up, counts right", "", (*ASKED, "--warmup", "0.3s"), reasoning_tokens=10, tokens=30),
)


def notes_on(case: Case, folder: Path) -> dict[str, str]:
    """The verdict's notes about the replies of that server, by code: a real run of 60 requests."""
    arguments = [*case.arguments]
    if case.prompts:
        file = folder / "prompts.jsonl"
        file.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in case.prompts))
        arguments += ["--prompts", str(file)]
    with simulator(**case.script) as running:
        ended = lens(
            "run", "--json", "--base-url", f"{running.base_url}/v1", "--model", "m", "--requests", "60",
            "--concurrency", "6", *arguments, cwd=folder,
        )  # fmt: skip
    assert ended.code == 0, ended.stderr
    reasons = ended.summary["verdict"]["reasons"]
    return {reason["code"]: reason["detail"] for reason in reasons if reason["code"] in CODES}
