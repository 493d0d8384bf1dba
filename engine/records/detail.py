"""What the fixed record of a request has no room for. Apart from record.py, which has to be importable without msgspec."""

from __future__ import annotations

import msgspec


class Detail(msgspec.Struct, omit_defaults=True, gc=False):
    """A msgpack map of what there is, in one or more slots of the ring's detail lane, before the request's record.

    A long reply's text comes in `pieces` details, each with one entry in `texts`; the reader joins them.
    """

    request: int
    phase: int
    message: str = ""
    request_id: str = ""
    finish: str = ""
    headers: dict[str, str] = {}
    prompt_crc: int = 0  # of the request's body, 0 for a reply that has no text to compare
    reply_crc: int = 0  # of the beginning of its text (dialects.Reply)
    texts: list[str] = []
    pieces: int = 0

    def add(self, other: Detail) -> None:
        """Joins another detail of the same request into this one."""
        self.message = other.message or self.message
        self.request_id = other.request_id or self.request_id
        self.finish = other.finish or self.finish
        self.headers |= other.headers
        self.prompt_crc = other.prompt_crc or self.prompt_crc
        self.reply_crc = other.reply_crc or self.reply_crc
        self.texts += other.texts
        self.pieces = other.pieces or self.pieces

    @property
    def text(self) -> str | None:
        """The reply's text as far as it came, None if no piece of it did."""
        return "".join(self.texts) if self.texts else None
