"""URLs of targets and proxies: their parts, and errors that show no credentials."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_latency_lens.engine.errors import PlanError
from llm_latency_lens.engine.plan.address import Address, parse_url, shown

URLS: list[tuple[str, str, Address]] = [
    ("a port of its own", "http://h:8000/v1", Address("http", "h", 8000, "h:8000", "/v1", "", None, None)),
    ("http's port", "http://h/v1", Address("http", "h", 80, "h", "/v1", "", None, None)),
    ("https' port", "https://h", Address("https", "h", 443, "h", "", "", None, None)),
    (
        "the default port is not sent to the server",
        "https://h:443",
        Address("https", "h", 443, "h", "", "", None, None),
    ),
    ("the other's usual port is", "http://h:443", Address("http", "h", 443, "h:443", "", "", None, None)),
    ("slashes at the end", "http://h/a/b//", Address("http", "h", 80, "h", "/a/b", "", None, None)),
    (
        "host and scheme know no case",
        "HTTP://API.Example",
        Address("http", "api.example", 80, "api.example", "", "", None, None),
    ),
    ("a path knows case", "http://h/V1", Address("http", "h", 80, "h", "/V1", "", None, None)),
    ("escapes of a path stay", "http://h/a%2Fb", Address("http", "h", 80, "h", "/a%2Fb", "", None, None)),
    ("a query", "http://h/a?b=c", Address("http", "h", 80, "h", "/a", "b=c", None, None)),
    ("IPv4", "http://127.0.0.1:1", Address("http", "127.0.0.1", 1, "127.0.0.1:1", "", "", None, None)),
    ("IPv6", "http://[::1]:8000/v1", Address("http", "::1", 8000, "[::1]:8000", "/v1", "", None, None)),
    ("IPv6 without port", "http://[::1]", Address("http", "::1", 80, "[::1]", "", "", None, None)),
    (
        "a name beyond ASCII",
        "https://b\u00fccher.example",
        Address("https", "xn--bcher-kva.example", 443, "xn--bcher-kva.example", "", "", None, None),
    ),
    ("credentials", "http://u:p@h:1", Address("http", "h", 1, "h:1", "", "", "u", "p")),
    ("escapes in credentials", "http://u%40x:p%3A%2F@h", Address("http", "h", 80, "h", "", "", "u@x", "p:/")),
    ("a user alone", "http://u@h", Address("http", "h", 80, "h", "", "", "u", None)),
    ("an empty password", "http://u:@h", Address("http", "h", 80, "h", "", "", "u", "")),
    ("the highest port", "http://h:65535", Address("http", "h", 65535, "h:65535", "", "", None, None)),
]
WRONG: list[tuple[str, str, str]] = [
    ("no scheme", "h:8000/v1", "must begin with http:// or https://"),
    ("no scheme and no port", "localhost", "must begin with http:// or https://"),
    ("another scheme", "ftp://h", "must begin with http:// or https://"),
    ("no host", "http://", "names no host"),
    ("no host before the port", "http://:80", "names no host"),
    ("no host before the path", "http:///v1", "names no host"),
    ("a port that is none", "http://h:abc", "is not a URL"),
    ("a port too high", "http://h:65536", "is not a URL"),
    ("port 0", "http://h:0", "port must be 1 to 65535"),
    ("a bracket that is not closed", "http://[::1", "is not a URL"),
    ("a blank", "http://h/a b", "must not hold spaces"),
    ("a line break", "http://h/a\r\nX: 1", "must not hold spaces or control characters"),
    ("a NUL", "http://h/\0", "must not hold spaces or control characters"),
    ("nothing", "", "must begin with http:// or https://"),
    ("a name that is a blank to IDNA", "http://\u00af", "is not a host name"),
    ("a name with brackets", "http://{host}", "is not a host name"),
    ("a path beyond ASCII", "http://h/\u00e9", "outside ASCII written as %XX"),
    ("a name that no DNS can hold", "http://\u00fc" + "a" * 70 + ".example", "is not a host name"),
]


@pytest.mark.parametrize(("why", "url", "address"), URLS, ids=[row[0] for row in URLS])
def test_a_url_is_taken_apart(why: str, url: str, address: Address) -> None:
    assert parse_url(url) == address


@pytest.mark.parametrize(("why", "url", "message"), WRONG, ids=[row[0] for row in WRONG])
def test_a_url_that_is_none_is_refused_with_the_reason(why: str, url: str, message: str) -> None:
    with pytest.raises(PlanError, match=f"^proxy.*{message}"):
        parse_url(url, what="proxy")


@pytest.mark.parametrize(
    "url", ["ftp://user:hunter2@h", "http://user:hunter2@h:0", "http://user:hunter2@h/a b", "http://user:hunter2@:80"]
)
def test_no_error_shows_credentials(url: str) -> None:
    with pytest.raises(PlanError) as error:
        parse_url(url)
    assert "hunter2" not in str(error.value)
    assert "user" not in str(error.value)


def test_a_url_is_shown_without_credentials() -> None:
    assert shown("http://u:p@h/v1") == "http://***@h/v1"
    assert shown("http://h/v1") == "http://h/v1"
    assert shown("http://u:p@ss@h") == "http://***@h"
    assert shown("http://u:p/ss@h") == "http://***@h"  # no URL, but somebody's password


@given(st.text(max_size=30), st.sampled_from(["", "http://", "https://h", "http://u:p@", "http://["]))
def test_any_text_is_an_address_or_a_plan_error(text: str, start: str) -> None:
    try:
        address = parse_url(start + text)
    except PlanError:
        return
    assert address.host.isascii()
    assert 0 < address.port < 65536
    assert not any(character <= " " for character in address.authority + address.path + address.query)
