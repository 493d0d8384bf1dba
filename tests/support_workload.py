"""Plans that are only a workload, and the asked texts of their items."""

from __future__ import annotations

import json
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Any

from llm_latency_lens.engine.plan.plan import Length, Plan, Target, Workload
from llm_latency_lens.engine.workload import Item, Source, source_of


def target(name: str = "one", **keys: Any) -> Target:
    return Target(name=name, provider="openai", base_url="http://127.0.0.1", **keys)


def source(targets: tuple[Target, ...] = (), seed: int = 7, **workload: Any) -> Source:
    """The source of a plan with this workload."""
    plan = Plan(name="p", targets=targets or (target(),), workload=Workload(**workload), phases=())
    return source_of(plan, seed=seed)


def fixed(tokens: float) -> Length:
    return Length(mean=tokens)


def asked(item: Item) -> str:
    """The item's last user text."""
    content = item.prompt.messages[-1]["content"]
    assert isinstance(content, str)
    return content


def texts(source: Source, count: int, worker: int = 0, workers: int = 1, first: int = 0, phase: int = 0) -> list[str]:
    return [asked(item) for item in islice(source.items(worker, workers, first, phase=phase), count)]


def content_of(item: Item) -> tuple[Any, ...]:
    """All of an item that can be compared; plays its session to the end."""
    played: list[Any] = []
    if item.session:
        played = [item.session.id, item.session.turn]
        while (following := item.session.next("reply")) is not None:
            played.append(following)
    return item.prompt, item.target, item.estimate_tokens, played


def jsonl(path: Path, rows: Iterable[Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def numbered(path: Path, count: int) -> str:
    """A file of prompts `prompt 0`, `prompt 1`, ... of different lengths."""
    return jsonl(path, ({"prompt": f"prompt {i}", "pad": "x" * (i * 37 % 100)} for i in range(count)))
