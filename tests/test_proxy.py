"""Proxies: which one a target goes through, what is asked of it, what its answer means."""

from __future__ import annotations

import base64

import pytest

from llm_latency_lens.engine.errors import PlanError, ProtocolError
from llm_latency_lens.engine.plan.address import parse_url
from llm_latency_lens.engine.wire.proxy import Tunnel, authorization, connect_request, proxy_for

PROXY = "http://p:3128"
CHOSEN: list[tuple[str, str, str | None, dict[str, str], str | None]] = [
    ("none", "http://h", None, {}, None),
    ("the one that was given", "http://h", PROXY, {}, "p"),
    ("given wins over the environment", "http://h", PROXY, {"http_proxy": "http://q"}, "p"),
    ("given wins over NO_PROXY", "http://h", PROXY, {"no_proxy": "*"}, "p"),
    ("an empty one turns the environment's off", "http://h", "", {"http_proxy": "http://q"}, None),
    ("http_proxy for http", "http://h", None, {"http_proxy": PROXY}, "p"),
    ("HTTP_PROXY too", "http://h", None, {"HTTP_PROXY": PROXY}, "p"),
    ("https_proxy for https", "https://h", None, {"https_proxy": PROXY, "http_proxy": "http://q"}, "p"),
    ("http_proxy is not for https", "https://h", None, {"http_proxy": PROXY}, None),
    ("https_proxy is not for http", "http://h", None, {"https_proxy": PROXY}, None),
    ("lower case first", "http://h", None, {"http_proxy": PROXY, "HTTP_PROXY": "http://q"}, "p"),
    ("all_proxy for both", "https://h", None, {"all_proxy": PROXY}, "p"),
    ("ALL_PROXY", "http://h", None, {"ALL_PROXY": PROXY}, "p"),
    ("the scheme's before all_proxy", "http://h", None, {"http_proxy": PROXY, "all_proxy": "http://q"}, "p"),
    ("an empty variable is none", "http://h", None, {"http_proxy": "", "HTTP_PROXY": PROXY}, "p"),
    ("without a scheme", "http://h", None, {"http_proxy": "p:3128"}, "p"),
]
# why, target, NO_PROXY, is the target excluded?
EXCLUDED: list[tuple[str, str, str, bool]] = [
    ("all", "http://h", "*", True),
    ("the name", "http://api.example", "api.example", True),
    ("names below it", "http://v1.api.example", "api.example", True),
    ("with a dot before", "http://v1.api.example", ".api.example", True),
    ("the name itself with a dot before", "http://api.example", ".api.example", True),
    ("with a star before", "http://v1.api.example", "*.api.example", True),
    ("a name that only ends alike", "http://myapi.example", "api.example", False),
    ("the name is part of another", "http://api.example.org", "api.example", False),
    ("case does not count", "http://API.example", "Api.Example", True),
    ("in a list with blanks", "http://h", "a, h ,b", True),
    ("an empty list", "http://h", "", False),
    ("empty elements", "http://h", ", ,", False),
    ("the port", "http://h:8000", "h:8000", True),
    ("another port", "http://h:8000", "h:9000", False),
    ("the usual port", "https://h", "h:443", True),
    ("an address", "http://127.0.0.1:80", "127.0.0.1", True),
    ("an address with its port", "http://127.0.0.1:81", "127.0.0.1:81", True),
    ("an address with another port", "http://127.0.0.1:81", "127.0.0.1:82", False),
    ("a block", "http://10.1.2.3", "10.0.0.0/8", True),
    ("a block with host bits", "http://10.1.2.3", "10.9.9.9/8", True),
    ("outside a block", "http://11.1.2.3", "10.0.0.0/8", False),
    ("a name is in no block", "http://h", "0.0.0.0/0", False),
    ("IPv6", "http://[::1]", "::1", True),
    ("IPv6 in brackets", "http://[::1]", "[::1]", True),
    ("IPv6 with its port", "http://[::1]:81", "[::1]:81", True),
    ("IPv6 written otherwise", "http://[0:0::1]", "::1", True),
    ("an IPv6 block", "http://[fd00::1]", "fd00::/8", True),
]


@pytest.mark.parametrize(("why", "url", "given", "environ", "host"), CHOSEN, ids=[row[0] for row in CHOSEN])
def test_a_target_has_its_proxy(
    why: str, url: str, given: str | None, environ: dict[str, str], host: str | None
) -> None:
    """The same rules as curl: people set these variables once for all programs."""
    proxy = proxy_for(parse_url(url), given, environ)
    assert (proxy and proxy.host) == host


@pytest.mark.parametrize("variable", ["no_proxy", "NO_PROXY"])
@pytest.mark.parametrize(("why", "url", "patterns", "excluded"), EXCLUDED, ids=[row[0] for row in EXCLUDED])
def test_no_proxy_says_which_targets_are_asked_directly(
    why: str, url: str, patterns: str, excluded: bool, variable: str
) -> None:
    """A local server measured through a proxy would be the proxy's latency."""
    environ = {"all_proxy": PROXY, variable: patterns}
    assert (proxy_for(parse_url(url), None, environ) is None) is excluded


def test_a_proxy_that_is_no_url_is_named_by_its_variable() -> None:
    """The mistake lies in the environment, where nobody looks."""
    with pytest.raises(PlanError, match=r"^https_proxy must begin with http"):
        proxy_for(parse_url("https://h"), None, {"https_proxy": "socks5://p"})
    with pytest.raises(PlanError, match=r"^proxy must begin with http"):
        proxy_for(parse_url("https://h"), "socks5://p", {})


@pytest.mark.parametrize("given", [None, "https://user:hunter2@p"])
def test_a_proxy_that_wants_tls_is_refused_before_it_gets_credentials(given: str | None) -> None:
    """They would go over the network in the clear."""
    with pytest.raises(PlanError, match="must begin with http://, TLS to the proxy itself") as error:
        proxy_for(parse_url("https://h"), given, {"https_proxy": "https://user:hunter2@p"})
    assert "hunter2" not in str(error.value)


def test_connect_names_host_and_port() -> None:
    """IPv6 hosts need brackets in CONNECT (RFC 9112 3.2.3)."""
    assert connect_request("h", 443, parse_url(PROXY)) == b"CONNECT h:443 HTTP/1.1\r\nHost: h:443\r\n\r\n"
    assert connect_request("::1", 8443, parse_url(PROXY)).startswith(
        b"CONNECT [::1]:8443 HTTP/1.1\r\nHost: [::1]:8443\r\n"
    )


@pytest.mark.parametrize(
    ("url", "credentials"),
    [
        ("http://user:pass@p", b"user:pass"),
        ("http://user@p", b"user:"),
        ("http://u%3Aser:p%40ss@p", b"u:ser:p@ss"),
        ("http://us%C3%A9r:p@p", "us\u00e9r:p".encode()),
    ],
)
def test_credentials_go_in_a_header_and_nowhere_else(url: str, credentials: bytes) -> None:
    """A URL with a password in a request line ends in proxy logs."""
    header = b"Proxy-Authorization: Basic " + base64.b64encode(credentials) + b"\r\n"
    request = connect_request("h", 443, parse_url(url))
    assert header in request
    assert request.replace(header, b"") == connect_request("h", 443, parse_url("http://p"))
    assert authorization(parse_url("http://p")) == ()


OPENED = [
    b"HTTP/1.1 200 Connection established\r\n\r\n",
    b"HTTP/1.0 200 OK\r\nVia: p\r\n\r\n",
    b"HTTP/1.1 204\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n",  # RFC 9110 9.3.6: of no meaning after CONNECT
]
REFUSED: list[tuple[str, bytes, str]] = [
    ("no credentials", b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n", "407 Proxy.*give its credentials"),
    ("forbidden", b"HTTP/1.1 403 Forbidden\r\nContent-Length: 5\r\n\r\nsorry", "refused the tunnel: 403 Forbidden$"),
    ("cannot reach the target", b"HTTP/1.1 502\r\n\r\n", "refused the tunnel: 502$"),
    ("no HTTP", b"SSH-2.0-x\r\n\r\n", "does not speak HTTP"),
    ("HTTP/2", b"HTTP/2 200 OK\r\n\r\n", "does not speak HTTP"),
    ("no status", b"HTTP/1.1 yes\r\n\r\n", "does not speak HTTP"),
    ("an empty line", b"\r\n\r\n", "does not speak HTTP"),
    ("data that nobody asked for", b"HTTP/1.1 200 OK\r\n\r\nHTTP/1.1 200 OK", "sent data before"),
]


@pytest.mark.parametrize("answer", OPENED)
def test_a_tunnel_opens_with_the_last_byte_of_the_answer(answer: bytes) -> None:
    """One byte early and the rest of the head would be taken for TLS."""
    tunnel = Tunnel("p:3128")
    opened = [tunnel.feed(answer[i : i + 1]) for i in range(len(answer))]
    assert opened == [False] * (len(answer) - 1) + [True]
    assert Tunnel("p:3128").feed(answer)


@pytest.mark.parametrize(("why", "answer", "message"), REFUSED, ids=[row[0] for row in REFUSED])
def test_a_tunnel_that_does_not_open_says_why_and_which(why: str, answer: bytes, message: str) -> None:
    """407 and 403 need different ways out."""
    with pytest.raises(ProtocolError, match=f"proxy p:3128 .*{message}"):
        Tunnel("p:3128").feed(answer)


def test_a_proxy_that_closes_or_never_ends_its_answer_is_an_error() -> None:
    """Neither a hang nor unbounded memory."""
    with pytest.raises(ProtocolError, match="closed the connection"):
        Tunnel("p").feed(b"")
    tunnel = Tunnel("p")
    with pytest.raises(ProtocolError, match="more than 16384 bytes"):
        any(tunnel.feed(b"a" * 1000) for _ in range(20))
