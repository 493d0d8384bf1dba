"""One connection to each target before anything is spawned: a wrong address or certificate ends in one clear line.

Sends no request. What it finds is said by TargetError; a target that accepts connections may still refuse requests.
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import Mapping

from ..errors import ProtocolError, TargetError
from ..plan.plan import Plan, Target
from .endpoint import Endpoint
from .tls import describe_tls_error


def check_targets(plan: Plan, environ: Mapping[str, str]) -> None:
    """Connects once to every distinct server of the plan. Raises TargetError naming the target and the way out."""
    seen: set[tuple[str, int, str]] = set()
    timeout_s = plan.limits.connect_timeout_ns / 1e9
    for target in plan.targets:
        endpoint = Endpoint(target, environ)
        key = (endpoint.where, endpoint.next_port, endpoint.next_host)
        if key not in seen:
            seen.add(key)
            _check(target, endpoint, timeout_s)


def _check(target: Target, endpoint: Endpoint, timeout_s: float) -> None:
    try:
        with socket.create_connection((endpoint.next_host, endpoint.next_port), timeout_s) as sock:
            if endpoint.connect_request:
                open_tunnel(sock, endpoint)
            if endpoint.tls_context is not None:
                endpoint.tls_context.wrap_socket(sock, server_hostname=endpoint.server_name).close()
    except (OSError, ProtocolError) as error:
        raise explained(target, endpoint, error, timeout_s) from error


def explained(target: Target, endpoint: Endpoint, error: OSError | ProtocolError, timeout_s: float) -> TargetError:
    """Why there is no connection to a target, and the way out, from what the attempt raised."""
    which = f"target {target.name!r}: "
    via = f" (proxy of {endpoint.where})" if endpoint.proxy else ""
    where = f"{endpoint.next_host}:{endpoint.next_port}{via}"
    match error:
        case socket.gaierror():
            text = f"cannot resolve {endpoint.next_host}: {error.strerror}; check the host name in base_url ({target.base_url})"
        case ConnectionRefusedError():
            text = f"{where} refused the connection; is the server up and the port right?"
        case ssl.SSLError():
            text = describe_tls_error(error, where)
        case TimeoutError():
            text = f"no connection to {where} within {timeout_s:g} s; check address, firewall and proxy"
        case ProtocolError():
            text = str(error)
        case _:
            text = f"cannot connect to {where}: {error.strerror or error}; check address and network"
    return TargetError(which + text)


def open_tunnel(sock: socket.socket, endpoint: Endpoint) -> None:
    """Has the proxy connect to the server. Blocks. Raises OSError, ProtocolError."""
    sock.sendall(endpoint.connect_request)
    tunnel = endpoint.tunnel()
    while not tunnel.feed(sock.recv(1 << 16)):
        pass
