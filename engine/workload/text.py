"""Made-up text of a wanted length in tokens, different from its first words on for every key, in microseconds.

A text is a head and a slice. The head spells its 64-bit key in words: two texts of different keys differ within their
first HEAD words, so a server's prefix cache cannot mistake one for another. The rest is cut out of one tape of random
words, which costs the same for 10 words as for 10,000 (benches/bench_workload.py).
"""

from __future__ import annotations

import random
from array import array
from itertools import accumulate
from math import ceil, log
from typing import Final

from .draw import key_of, mix
from .tokenizer import CHARS_PER_TOKEN, Count
from .words import WORDS

TAPE_WORDS: Final = 16384
HEAD: Final = ceil(64 / (log(len(WORDS)) / log(2)))  # words that spell 64 bits
_FEWEST: Final = 64  # a tokenizer that knows fewer of the words as one token each is fitted text by text
_SLICE: Final = key_of("slice")
_FILLERS: Final = (" a", ".", " the", "a", "!", " x", "\n", "1", ",")


class Prose:
    """Texts by key and length.

    With a tokenizer the length is exact by that tokenizer. Without one a word counts for `calibration` tokens, 1.0
    unless a probe of the provider said otherwise: exact for the vocabularies that WORDS were chosen by, and off by the
    few tokens of the chat template as the provider counts it.

    `salt` changes the heads alone: texts of two salts have the same lengths and rest, and differ from the first words
    on, so that a run finds nothing of the run before in a prefix cache. Equal keys stay equal texts within one salt.
    """

    def __init__(self, count: Count | None = None, calibration: float = 1.0, salt: int = 0) -> None:
        self.count = count
        self._salt = salt
        self.tokens_per_word = calibration if count is None else 1.0
        self._fitted = False
        words = WORDS
        if count is not None:
            words = tuple(word for word in WORDS if count(word) == 1 and count(f"{WORDS[0]} {word}") == 2)
            if len(words) < _FEWEST:
                words, self._fitted = WORDS, True
        self._lay(words)
        if count is not None:
            tokens = count(self._tape)
            # Words that join into one token, or split differently in company: count each text.
            self._fitted = self._fitted or tokens != TAPE_WORDS
            if self._fitted:
                self.tokens_per_word = tokens / TAPE_WORDS

    def _lay(self, words: tuple[str, ...]) -> None:
        self._words = words
        self._head = ceil(64 / (log(len(words)) / log(2)))
        laid = random.Random(0).choices(words, k=TAPE_WORDS)
        self._tape = " ".join(laid)
        self._starts = array("I", accumulate((len(word) + 1 for word in laid), initial=0))

    def text(self, key: int, tokens: int) -> str:
        """The text of `key` with `tokens` tokens, at least one word."""
        if self._fitted:
            return self._fit(key, tokens)
        return self.words(key, max(round(tokens / self.tokens_per_word), 1))

    def words(self, key: int, count: int) -> str:
        """The first `count` words of the endless text of `key`."""
        parts: list[str] = []
        bits = mix(key ^ self._salt)
        for _ in range(min(count, self._head)):
            bits, digit = divmod(bits, len(self._words))
            parts.append(self._words[digit])
        left = count - len(parts)
        start = mix(key ^ _SLICE) % TAPE_WORDS
        while left > 0:
            end = min(start + left, TAPE_WORDS)
            parts.append(self._tape[self._starts[start] : self._starts[end] - 1])
            left -= end - start
            start = 0
        return " ".join(parts)

    def estimate(self, text_chars: int) -> int:
        """Tokens of a text of this many characters that was not made here."""
        return ceil(text_chars / CHARS_PER_TOKEN * (self.tokens_per_word if self.count is None else 1.0))

    def _fit(self, key: int, tokens: int) -> str:
        """By trial: as many words as fit, then single-token fillers. Exact wherever the fillers are such tokens."""
        assert self.count is not None
        words = max(int(tokens / self.tokens_per_word), 1)
        best, best_tokens = self.words(key, 1), 0
        tried: set[int] = set()
        while words not in tried and len(tried) < 16:
            tried.add(words)
            text = self.words(key, words)
            counted = self.count(text)
            if counted == tokens:
                return text
            if best_tokens < counted < tokens:
                best, best_tokens = text, counted
            step = int((tokens - counted) / self.tokens_per_word)
            words = max(words + (step or (1 if counted < tokens else -1)), 1)
        return self._fill(best, tokens)

    def _fill(self, text: str, tokens: int) -> str:
        assert self.count is not None
        counted = self.count(text)
        while counted < tokens:
            for filler in _FILLERS:
                if self.count(text + filler) == counted + 1:
                    text, counted = text + filler, counted + 1
                    break
            else:
                break
        return text
