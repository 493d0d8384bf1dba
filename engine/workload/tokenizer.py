"""Counting tokens without a network: a tokenizer.json file, a vocabulary that toktok-rs has built in, or a guess that
the provider's own `prompt_tokens` put right. The libraries are loaded only where the plan names a tokenizer.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from ..errors import PlanError
from ..installed import missing_extra

CHARS_PER_TOKEN: Final = 4  # of English text; OpenAI's own rule of thumb

Count = Callable[[str], int]


def tokenizer_of(name: str) -> Count:
    """The token count of a text by the tokenizer `name`: the path of a tokenizer.json, or a toktok vocabulary.

    Special tokens that a server's chat template adds are not counted. Raises PlanError.
    """
    if name.endswith(".json") or "/" in name or Path(name).is_file():
        return _of_file(name)
    return _of_vocabulary(name)


def _of_file(path: str) -> Count:
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise missing_extra("tokenizer", f"{path} (workload.tokenizer)") from error
    if not Path(path).is_file():
        raise PlanError(f"no such file: {path} (workload.tokenizer)")
    try:
        tokenizer: Any = Tokenizer.from_file(path)
    except Exception as error:  # the library raises bare Exception
        raise PlanError(f"{path} is no tokenizer.json: {error} (workload.tokenizer)") from error
    # A file saved from a training pipeline may cut at 512 tokens or pad to them: every count would be 512.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return lambda text: len(tokenizer.encode(text, add_special_tokens=False).ids)


def _of_vocabulary(name: str) -> Count:
    try:
        import toktok
    except ImportError as error:
        raise missing_extra("tokenizer", f"vocabulary {name!r} (workload.tokenizer)") from error
    try:
        toktok.batch_count([""], name, threads=1)
    except KeyError as error:
        raise PlanError(
            f"{name!r} is neither a tokenizer.json nor a vocabulary: {error.args[0]} (workload.tokenizer)"
        ) from error

    def count(text: str) -> int:
        counted: int = toktok.batch_count([text], name, threads=1)[0]
        return counted

    return count


class Calibration:
    """How many real prompt tokens one estimated token turned out to be, by the provider's own `prompt_tokens`.

    `factor` is the ratio of the sums, 1.0 before anything was observed; what a chat template adds is part of it. Texts
    must not depend on when replies come, so a run takes one factor from the plan (`workload.calibration`): observe a
    probe request first, then plan.
    """

    __slots__ = ("estimated", "real")

    def __init__(self) -> None:
        self.estimated = 0
        self.real = 0

    def observe(self, estimated: int, real: int) -> None:
        """One request: what was estimated for its prompt, and what the provider counted."""
        if estimated > 0 and real > 0:
            self.estimated += estimated
            self.real += real

    @property
    def factor(self) -> float:
        return self.real / self.estimated if self.estimated else 1.0
