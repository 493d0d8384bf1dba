"""What a request gets: a refusal, a fault, a slot in the queue or a reply, sent step by step. No sockets here.

`Service` is what one process's replies share, `Client` all they know of a connection; both are handed down, so that
nothing here knows the server.
"""
