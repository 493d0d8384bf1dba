"""TLS over bytes alone: against an ssl server object, records cut anywhere, certificates verified."""

from __future__ import annotations

import ssl
from pathlib import Path

import pytest
import trustme

from llm_latency_lens.engine.errors import PlanError
from llm_latency_lens.engine.wire.tls import TlsPipe, client_context, describe_tls_error


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def ca_file(authority: trustme.CA, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("tls") / "ca.pem"
    authority.cert_pem.write_to_path(path)
    return str(path)


class Server:
    """The other end: an SSLObject that takes and gives bytes."""

    def __init__(self, authority: trustme.CA, name: str = "localhost", **limits: ssl.TLSVersion) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert(name).configure_cert(context)
        context.set_alpn_protocols(["h2", "http/1.1"])
        for key, version in limits.items():
            setattr(context, key, version)
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self.incoming, self.outgoing, server_side=True)
        self.done = False

    def handshake(self, received: bytes) -> bytes:
        self.incoming.write(received)
        if not self.done:
            try:
                self.tls.do_handshake()
                self.done = True
            except ssl.SSLWantReadError:
                pass
        return self.outgoing.read()

    def send(self, plain: bytes) -> bytes:
        self.tls.write(plain)
        return self.outgoing.read()

    def receive(self, received: bytes) -> bytes:
        self.incoming.write(received)
        return self.tls.read(1 << 20)

    def close(self) -> bytes:
        with pytest.raises(ssl.SSLWantReadError):  # it waits for the client's close
            self.tls.unwrap()
        return self.outgoing.read()


def connected(server: Server, context: ssl.SSLContext, name: str = "localhost", step: int = 1 << 20) -> TlsPipe:
    """A pipe after its handshake, whose bytes arrived `step` at a time."""
    pipe = TlsPipe(context, name)
    out, done = pipe.handshake(b"")
    assert out
    assert not done
    for _ in range(10):
        answer = server.handshake(out)
        out = b""
        for i in range(0, len(answer), step):
            more, done = pipe.handshake(answer[i : i + step])
            out += more
        if done and server.done:
            break
    assert done
    if out:
        assert server.handshake(out) == b""
    return pipe


VERSIONS = [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3]


@pytest.mark.parametrize("step", [1, 7, 1 << 20])
@pytest.mark.parametrize("version", VERSIONS)
def test_both_directions_carry_bytes_however_records_are_cut(
    authority: trustme.CA, ca_file: str, version: ssl.TLSVersion, step: int
) -> None:
    """TCP cuts TLS records anywhere."""
    server = Server(authority, maximum_version=version)
    pipe = connected(server, client_context(ca_file=ca_file), step=step)
    assert server.tls.version() == version.name.replace("_", ".")
    assert server.receive(pipe.encrypt(b"POST / HTTP/1.1\r\n\r\n")) == b"POST / HTTP/1.1\r\n\r\n"
    wire = server.send(b"data: a\n\n") + server.send(b"data: b\n\n")
    assert b"".join(pipe.decrypt(wire[i : i + step]) for i in range(0, len(wire), step)) == b"data: a\n\ndata: b\n\n"


def test_half_a_record_gives_nothing_yet(authority: trustme.CA, ca_file: str) -> None:
    """Half a record is no error and no byte."""
    server = Server(authority)
    pipe = connected(server, client_context(ca_file=ca_file))
    wire = server.send(b"hello")
    assert pipe.decrypt(wire[:-1]) == b""
    assert pipe.decrypt(memoryview(wire)[-1:]) == b"hello"
    assert pipe.decrypt(b"") == b""


def test_a_read_of_many_records_gives_all_of_them(authority: trustme.CA, ca_file: str) -> None:
    """Bytes left inside the TLS object would wait for a read that never comes."""
    server = Server(authority)
    pipe = connected(server, client_context(ca_file=ca_file))
    plain = bytes(range(256)) * 4096  # 64 records and more
    assert pipe.decrypt(server.send(plain)) == plain
    large = pipe.encrypt(plain)
    assert server.receive(large) + b"".join(server.receive(b"") for _ in range(len(plain) // (1 << 14) - 1)) == plain


def test_the_servers_close_is_the_end_and_no_error(authority: trustme.CA, ca_file: str) -> None:
    """close_notify ends a reply that only the close delimits."""
    server = Server(authority)
    pipe = connected(server, client_context(ca_file=ca_file))
    assert pipe.decrypt(server.send(b"bye") + server.close()) == b"bye"
    assert pipe.decrypt(b"") == b""


def test_the_protocol_is_http_1_1_although_the_server_would_speak_2(authority: trustme.CA, ca_file: str) -> None:
    """The client speaks HTTP/1.1 only: ALPN must say so."""
    server = Server(authority)
    connected(server, client_context(ca_file=ca_file))
    assert server.tls.selected_alpn_protocol() == "http/1.1"


def test_a_certificate_of_an_unknown_authority_is_refused_with_the_way_out(authority: trustme.CA) -> None:
    """Verification is on, and the message names the flags."""
    with pytest.raises(ssl.SSLCertVerificationError) as error:
        connected(Server(authority), client_context())
    reported = describe_tls_error(error.value, "h:443")
    assert reported.startswith("the certificate of h:443 is not valid: ")
    assert "--ca-file" in reported
    assert "--insecure" in reported


@pytest.mark.parametrize(
    ("certificate", "name", "fits"),
    [
        ("localhost", "localhost", True),
        ("localhost", "other.example", False),
        ("*.api.example", "v1.api.example", True),
        ("*.api.example", "api.example", False),
        ("127.0.0.1", "127.0.0.1", True),
        ("127.0.0.1", "127.0.0.2", False),
        ("::1", "::1", True),
    ],
)
def test_the_certificate_must_be_of_the_host_that_was_asked(
    authority: trustme.CA, ca_file: str, certificate: str, name: str, fits: bool
) -> None:
    """A valid certificate of another host is an attack or a mistake."""
    server, context = Server(authority, certificate), client_context(ca_file=ca_file)
    if fits:
        connected(server, context, name)
    else:
        with pytest.raises(ssl.SSLCertVerificationError, match="mismatch"):
            connected(server, context, name)


def test_without_verification_any_certificate_will_do(authority: trustme.CA) -> None:
    """--insecure has to accept what test servers have."""
    connected(Server(authority), client_context(verify=False), "other.example")


def test_verification_is_on_unless_turned_off() -> None:
    """API keys go over this connection."""
    context = client_context()
    assert (context.verify_mode, context.check_hostname) == (ssl.CERT_REQUIRED, True)
    assert context.minimum_version >= ssl.TLSVersion.TLSv1_2


def test_a_record_that_was_changed_on_the_way_is_an_error(authority: trustme.CA, ca_file: str) -> None:
    """Corrupted bytes must not become tokens."""
    server = Server(authority)
    pipe = connected(server, client_context(ca_file=ca_file))
    wire = bytearray(server.send(b"hello"))
    wire[-1] ^= 1
    with pytest.raises(ssl.SSLError) as error:
        pipe.decrypt(bytes(wire))
    assert describe_tls_error(error.value, "h:443").startswith("TLS with h:443 failed: ")


def test_a_server_without_tls_is_told_so() -> None:
    """https:// to a plain port is a common mistake; the message asks about it."""
    pipe = TlsPipe(client_context(), "localhost")
    pipe.handshake(b"")
    with pytest.raises(ssl.SSLError) as error:
        pipe.handshake(b"HTTP/1.1 400 Bad Request\r\n\r\n")
    assert describe_tls_error(error.value, "h:80").endswith("does the server speak TLS on this port?")


def test_a_ca_file_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    """Missing, a folder or no PEM: each has its own message."""
    junk = tmp_path / "junk.pem"
    junk.write_text("no certificate")
    for path, reason in [(tmp_path / "missing", "does not exist"), (tmp_path, "is a folder"), (junk, "is no PEM file")]:
        with pytest.raises(PlanError, match=f"ca_file {path} {reason}.*--ca-file"):
            client_context(ca_file=str(path))
