"""The ways a simulated reply goes wrong, by name. What each does to a reply is in reply.py and admission.py."""

from __future__ import annotations

from email.utils import formatdate
from typing import Final, NamedTuple

OK: Final = "ok"


class Refusal(NamedTuple):
    """A fault that is an HTTP error instead of a reply."""

    status: int
    message: str
    retry: str = ""  # form of the Retry-After: seconds, date, ms, or none


REFUSALS: Final = {
    "429": Refusal(429, "Rate limit reached for requests", "seconds"),
    "429_date": Refusal(429, "Rate limit reached for requests", "date"),
    "429_ms": Refusal(429, "Rate limit reached for requests", "ms"),
    "400": Refusal(400, "Simulated invalid request"),
    "401": Refusal(401, "Incorrect API key provided"),
    "403": Refusal(403, "Not allowed to use this model"),
    "404": Refusal(404, "The model does not exist"),
    "500": Refusal(500, "The server had an error while processing your request"),
    "503": Refusal(503, "The engine is currently overloaded, please try again later", "seconds"),
    "529": Refusal(529, "Overloaded"),
}

# Faults that happen after some tokens were sent (`fault_at` of the reply).
ERROR_EVENT: Final = "error_event"  # an error event inside the 200 stream, then the body ends cleanly
TRUNCATE: Final = "truncate"  # the body ends cleanly without the API's terminal marker
CUT: Final = "cut"  # FIN in mid-body: chunked coding without its last chunk
RESET: Final = "reset"  # half an event, then RST
STALL: Final = "stall"  # nothing more is sent, the connection stays
MALFORMED: Final = "malformed_json"  # one event's JSON is broken, the stream goes on
MID_STREAM: Final = frozenset({ERROR_EVENT, TRUNCATE, CUT, RESET, STALL, MALFORMED})

# Faults of the connection or the head.
EMPTY: Final = "empty"  # closes before any byte of the reply
BAD_HTTP: Final = "bad_http"  # a head that is no HTTP
SLOW_HEAD: Final = "slow_head"  # the head comes `slow_head_ms` late
KEEP_ALIVE_LIE: Final = "keep_alive_lie"  # complete reply, announces keep-alive, closes: what llama.cpp's server does

# Quirks: complete replies in an unusual form.
SPLIT: Final = "split"  # every byte in its own write
NO_USAGE: Final = "no_usage"
ONE_CHUNK: Final = "one_chunk"  # the entire text in one event
CRLF: Final = "crlf"  # line ends of the event stream
COMMENTS: Final = "comments"  # pings or comments before the first token and between tokens
CONTENT_FILTER: Final = "content_filter"  # ends as filtered

OTHERS: Final = (
    ERROR_EVENT, TRUNCATE, CUT, RESET, STALL, MALFORMED, EMPTY, BAD_HTTP, SLOW_HEAD, KEEP_ALIVE_LIE, SPLIT, NO_USAGE,
    ONE_CHUNK, CRLF, COMMENTS, CONTENT_FILTER,
)  # fmt: skip
FAULTS: Final = (OK, *REFUSALS, *OTHERS)


def retry_headers(form: str, seconds: float, *, wall_s: float) -> list[tuple[str, str]]:
    """The Retry-After headers in one of the forms in use (RFC 9110 10.2.3; retry-after-ms is OpenAI's and Azure's)."""
    if form == "seconds":
        return [("retry-after", f"{seconds:g}")]
    if form == "date":
        return [("retry-after", formatdate(wall_s + seconds, usegmt=True))]
    if form == "ms":
        return [("retry-after-ms", f"{seconds * 1000:g}"), ("retry-after", f"{seconds:g}")]
    return []
