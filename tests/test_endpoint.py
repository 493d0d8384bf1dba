"""Which addresses a target's connections go to, and for how long they are believed."""

from __future__ import annotations

import socket

import pytest

from llm_latency_lens.engine.clock import Clock
from llm_latency_lens.engine.plan.plan import Target
from llm_latency_lens.engine.wire.endpoint import DNS_TTL_NS, Endpoint


def made(base_url: str, clock: Clock) -> Endpoint:
    return Endpoint(Target(name="t", provider="openai", base_url=base_url), {}, clock)


def test_a_name_is_asked_again_after_a_while() -> None:
    """A provider moves its name to other addresses during a long run; every connection asking would cost each a lookup."""
    now = [10**12]
    name = made("http://api.example.com/v1", lambda: now[0])
    assert not name.fresh
    name.resolved([(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("192.0.2.1", 80))])
    now[0] += DNS_TTL_NS - 1
    assert name.fresh
    now[0] += 1
    assert not name.fresh
    name.resolved([(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("192.0.2.2", 80))])
    assert name.fresh
    assert [address.sockaddr[0] for address in name.addresses] == ["192.0.2.2"]


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]"])
def test_an_address_is_never_asked_for(host: str) -> None:
    """An IP address in the URL needs no resolver, however long the run."""
    literal = made(f"http://{host}:8000/v1", lambda: 1 << 62)
    assert literal.fresh
