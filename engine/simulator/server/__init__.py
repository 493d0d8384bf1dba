"""The sockets and processes of a simulator: listening, reading requests, sending bytes at once, TLS, freezes."""
