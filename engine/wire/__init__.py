"""Sockets and protocols: connections with kernel time stamps, HTTP/1.1, SSE, TLS, proxies and pools."""
