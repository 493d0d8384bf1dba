"""The lens' own sockets: TLS, proxies, IPv6, stale connections, large bodies, timeouts, DNS. Real peers, scripted where needed."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgpack
import pytest
import trustme

from tests.support_lens import accounts, lens, measured
from tests.support_server import DONE, HEAD, REPLY, USAGE, answer, chunk, event, read_request, reset, scripted
from tests.support_simulator import simulator

pytestmark = pytest.mark.slow


def rows(cwd: Path) -> list[dict[str, Any]]:
    with (cwd / "runs" / "latest" / "requests.msgpack").open("rb") as file:
        return list(msgpack.Unpacker(file))


def serve(sock: socket.socket, _number: int) -> None:
    while answer(sock):
        pass


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """(authority, certificate of localhost, its key)"""
    folder = tmp_path_factory.mktemp("tls")
    authority = trustme.CA()
    certificate = authority.issue_cert("localhost", "127.0.0.1")
    authority.cert_pem.write_to_path(str(folder / "ca.pem"))
    certificate.cert_chain_pems[0].write_to_path(str(folder / "cert.pem"))
    certificate.private_key_pem.write_to_path(str(folder / "key.pem"))
    return folder / "ca.pem", folder / "cert.pem", folder / "key.pem"


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
def test_tls_keeps_the_kernel_clock_and_its_own_phase(
    host: str, certificates: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    """TLS must neither cost the kernel's time stamps nor count as connect time."""
    authority, certificate, key = certificates
    with simulator(
        flags=("--certfile", str(certificate), "--keyfile", str(key)), ttft_ms=10, itl_ms=5, tokens=6
    ) as sim:
        summary = measured(
            "--base-url", f"https://{host}:{sim.port}/v1", "--model", "m", "--requests", "20", "--concurrency", "4",
            "--ca-file", str(authority), cwd=tmp_path,
        )  # fmt: skip
    accounts(summary["requests"])
    assert summary["requests"]["ok"] == 20
    assert summary["client"]["clock"] == "kernel"
    assert summary["metrics"]["tls_ms"]["count"] == summary["metrics"]["tcp_ms"]["count"] == 4
    assert all(row["tls"] for row in rows(tmp_path))


def test_a_certificate_nobody_trusts_is_one_line_with_the_way_out(
    certificates: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    """Self-signed test servers are common; the message names both flags."""
    _, certificate, key = certificates
    with simulator(flags=("--certfile", str(certificate), "--keyfile", str(key)), ttft_ms=1, itl_ms=1, tokens=2) as sim:
        target = ("--base-url", f"https://localhost:{sim.port}/v1", "--model", "m", "--requests", "2")
        refused = lens("run", *target, cwd=tmp_path)
        accepted = lens("run", "--json", *target, "--insecure", cwd=tmp_path)
    assert refused.code == 1
    assert "--ca-file" in refused.stderr
    assert "--insecure" in refused.stderr
    assert len(refused.stderr.strip().splitlines()) == 1
    assert accepted.code == 0


def test_ipv6_is_a_target_like_any_other(tmp_path: Path) -> None:
    """Brackets in URLs and four-part socket addresses are easily forgotten."""
    with simulator(flags=("--host", "::1"), ttft_ms=1, itl_ms=1, tokens=3) as sim:
        summary = measured("--base-url", f"http://[::1]:{sim.port}/v1", "--model", "m", "--requests", "5", cwd=tmp_path)
    assert summary["requests"]["ok"] == 5


@contextmanager
def connect_proxy(credentials: bytes) -> Iterator[tuple[int, list[bytes]]]:
    """An HTTP proxy that opens tunnels for who knows the credentials; gives its port and the heads it saw."""
    heads: list[bytes] = []

    def script(sock: socket.socket, _number: int) -> None:
        head = read_request(sock)
        heads.append(head)
        if credentials not in head:
            sock.sendall(b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n")
            return
        host, _, port = head.split(b" ")[1].decode().rpartition(":")
        with socket.create_connection((host.strip("[]"), int(port))) as upstream:
            sock.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
            back = threading.Thread(target=relay, args=(upstream, sock))
            back.start()
            relay(sock, upstream)
            back.join()

    with scripted(script) as server:
        yield server.port, heads


def relay(source: socket.socket, sink: socket.socket) -> None:
    try:
        while piece := source.recv(1 << 16):
            sink.sendall(piece)
        sink.shutdown(socket.SHUT_WR)
    except OSError:
        return


def test_an_https_target_goes_through_a_proxy_with_credentials(
    certificates: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    """Company networks: CONNECT with credentials, which stay out of every file."""
    authority, certificate, key = certificates
    with (
        simulator(flags=("--certfile", str(certificate), "--keyfile", str(key)), ttft_ms=2, itl_ms=1, tokens=3) as sim,
        connect_proxy(b"Proxy-Authorization: Basic dXNlcjpwQHNz") as (port, heads),
    ):
        target = (
            "--base-url",
            f"https://localhost:{sim.port}/v1",
            "--model",
            "m",
            "--requests",
            "6",
            "--concurrency",
            "2",
        )
        proxied = ("--ca-file", str(authority), "--proxy", f"http://user:p%40ss@127.0.0.1:{port}")
        summary = measured(*target, *proxied, cwd=tmp_path)
        refused = lens("run", *target, "--ca-file", str(authority), "--proxy", f"http://127.0.0.1:{port}", cwd=tmp_path)
    assert summary["requests"]["ok"] == 6
    assert all(head.startswith(b"CONNECT localhost:") for head in heads)
    assert "p@ss" not in (tmp_path / "runs" / "latest" / "plan.json").read_text()
    assert refused.code == 1
    assert "407" in refused.stderr


def test_a_stale_connection_is_no_failure_and_no_latency(tmp_path: Path) -> None:
    """The server closes after each reply, 30 ms later, while announcing keep-alive."""

    def script(sock: socket.socket, _number: int) -> None:
        if answer(sock):
            threading.Event().wait(0.03)
            reset(sock)

    with scripted(script) as server:
        summary = measured(
            "--base-url", server.base_url, "--model", "m", "--requests", "30", "--concurrency", "3", cwd=tmp_path
        )
    accounts(summary["requests"])
    assert summary["requests"]["ok"] == 30
    assert summary["client"]["stale_resends"] >= 1
    assert summary["metrics"]["ttft_ms"]["max"] < 1000


def test_fresh_connections_are_as_many_as_requests(tmp_path: Path) -> None:
    """The option exists to measure connection set-up: no connection may be reused."""
    with scripted(serve) as server:
        summary = measured(
            "--base-url", server.base_url, "--model", "m", "--requests", "12", "--fresh-connections", cwd=tmp_path
        )
        assert server.connections == 12 + 1  # and the one that looked whether the server is there
    assert summary["metrics"]["tcp_ms"]["count"] == 12


def test_a_large_body_goes_out_in_pieces_and_whole(tmp_path: Path) -> None:
    """Prompts of MBs do not fit a send buffer; a lost rest would hang the request."""
    prompt = tmp_path / "prompt.jsonl"
    prompt.write_text('{"prompt": "' + "light " * 1_000_000 + '"}\n')
    received: list[int] = []

    def script(sock: socket.socket, _number: int) -> None:
        while request := read_request(sock):
            received.append(len(request))
            sock.sendall(REPLY)

    with scripted(script) as server:
        summary = measured(
            "--base-url", server.base_url, "--model", "m", "--requests", "3", "--concurrency", "1",
            "--prompts", str(prompt), cwd=tmp_path,
        )  # fmt: skip
    assert summary["requests"]["ok"] == 3
    assert min(received) > 6_000_000


TIMEOUTS = [
    ((), "timeout_total", ("--timeout", "400ms")),
    ((HEAD,), "timeout_first_token", ("--timeout", "5s", "--first-token-timeout", "300ms")),
    ((HEAD, chunk(event("a"))), "timeout_total", ("--timeout", "400ms", "--first-token-timeout", "300ms")),
]


@pytest.mark.parametrize(("said", "outcome", "limits"), TIMEOUTS)
def test_a_timeout_says_what_was_missing(
    said: tuple[bytes, ...], outcome: str, limits: tuple[str, ...], tmp_path: Path
) -> None:
    """No token and too few tokens are different faults of a server."""
    release = threading.Event()

    def script(sock: socket.socket, _number: int) -> None:
        if read_request(sock):
            for piece in said:
                sock.sendall(piece)
            release.wait(10)

    with scripted(script) as server:
        ended = lens(
            "run", "--json", "--base-url", server.base_url, "--model", "m", "--requests", "2", *limits, cwd=tmp_path
        )
        release.set()
    requests = ended.summary["requests"]
    accounts(requests)
    assert requests["failed"] == {outcome: 2}
    for row in rows(tmp_path):
        assert 299 <= row["e2e_ms"] < 800  # the deadline counts from just before the send stamp


def test_events_that_share_a_read_are_coalesced_and_never_invented(tmp_path: Path) -> None:
    """Three tokens in one write: their order is known, their times are not."""

    def script(sock: socket.socket, _number: int) -> None:
        while read_request(sock):
            sock.sendall(HEAD + chunk(event("first")))
            threading.Event().wait(0.03)
            sock.sendall(chunk(event("a")) + chunk(event("b")) + chunk(event("c")))
            threading.Event().wait(0.03)
            sock.sendall(chunk(event("d")))
            threading.Event().wait(0.03)
            sock.sendall(chunk(USAGE + DONE) + b"0\r\n\r\n")

    with scripted(script) as server:
        summary = measured(
            "--base-url", server.base_url, "--model", "m", "--requests", "10", "--concurrency", "1", cwd=tmp_path
        )
    itl = summary["metrics"]["itl_ms"]
    assert itl["count"] == 20  # first to a, an upper bound, and c to d; a to b and b to c are unknown
    assert itl["min"] >= 25
    assert summary["client"]["itl_coalesced_share"] == pytest.approx(2 / 4)
    assert summary["metrics"]["itl_max_ms"]["max"] < 100


def test_a_reply_split_anywhere_is_the_same_reply(tmp_path: Path) -> None:
    """The complete client over a real socket, cut at every seventh byte."""
    cuts = iter(range(1, len(REPLY), 7))

    def script(sock: socket.socket, _number: int) -> None:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while read_request(sock):
            cut = next(cuts, 1)
            sock.sendall(REPLY[:cut])
            threading.Event().wait(0.002)
            sock.sendall(REPLY[cut:])

    with scripted(script) as server:
        summary = measured(
            "--base-url", server.base_url, "--model", "m", "--requests", str(len(REPLY) // 7), "--concurrency", "1",
            cwd=tmp_path,
        )  # fmt: skip
    assert summary["requests"]["ok"] == len(REPLY) // 7
    assert summary["tokens"]["output"] == 3 * (len(REPLY) // 7)


def test_a_name_is_resolved_and_its_time_is_its_own(tmp_path: Path) -> None:
    """A slow resolver must not look like a slow server."""
    with simulator(ttft_ms=1, itl_ms=1, tokens=2) as sim:
        summary = measured(
            "--base-url", f"http://localhost:{sim.port}/v1", "--model", "m", "--requests", "4", cwd=tmp_path
        )
    assert summary["requests"]["ok"] == 4
    assert summary["metrics"]["dns_ms"]["count"] >= 1
