"""TLS without a socket: an SSLObject over two MemoryBIOs, so that the bytes keep the stamps of the reads that brought them."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Final

from ..errors import PlanError

RECORD_BYTES: Final = 1 << 18


def client_context(*, verify: bool = True, ca_file: str | None = None) -> ssl.SSLContext:
    """A client's context: TLS 1.2 or newer, certificates and host names verified unless `verify` is False.

    `ca_file` (PEM) is trusted instead of the system's authorities. Raises PlanError if it cannot be used.
    """
    try:
        context = ssl.create_default_context(cafile=ca_file)
    except FileNotFoundError as error:
        raise PlanError(f"ca_file {ca_file} does not exist; give a PEM file with --ca-file") from error
    except (OSError, ssl.SSLError) as error:
        kind = "a folder" if ca_file and Path(ca_file).is_dir() else "no PEM file with certificates"
        raise PlanError(f"ca_file {ca_file} is {kind}; give a PEM file with --ca-file") from error
    context.set_alpn_protocols(["http/1.1"])
    if not verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


class TlsPipe:
    """One client connection. handshake() until it is done, then encrypt() and decrypt(). No IO, raises ssl.SSLError."""

    __slots__ = ("_established", "_incoming", "_object", "_outgoing")

    def __init__(self, context: ssl.SSLContext, server_name: str) -> None:
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._object = context.wrap_bio(self._incoming, self._outgoing, server_hostname=server_name)
        self._established = False

    def handshake(self, received: bytes) -> tuple[bytes, bool]:
        """(bytes to send, is it done?) after `received`; the first call is with nothing."""
        if received:
            self._incoming.write(received)
        try:
            self._object.do_handshake()
            self._established = True
        except ssl.SSLWantReadError:
            pass
        return self._outgoing.read(), self._established

    def encrypt(self, plain: bytes) -> bytes:
        """The records that carry `plain`."""
        self._object.write(plain)
        return self._outgoing.read()

    def decrypt(self, received: bytes | memoryview) -> bytes:
        """What `received` completes; may be empty (half a record, a session ticket, the end)."""
        self._incoming.write(received)
        pieces: list[bytes] = []
        try:
            while piece := self._object.read(RECORD_BYTES):
                pieces.append(piece)
        except (ssl.SSLWantReadError, ssl.SSLZeroReturnError):
            pass
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def describe_tls_error(error: ssl.SSLError, where: str) -> str:
    """One line for people: what failed at `where`, and the way out."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return (
            f"the certificate of {where} is not valid: {error.verify_message}; "
            "trust its authority with --ca-file FILE, or accept any certificate with --insecure"
        )
    reason = (error.reason or "handshake failed").replace("_", " ").lower()
    hint = (
        "; does the server speak TLS on this port?" if error.reason in ("WRONG_VERSION_NUMBER", "HTTP_REQUEST") else ""
    )
    return f"TLS with {where} failed: {reason}{hint}"
