"""The tap: a process that keeps a clone of every received segment, so that the kernel keeps every segment's time stamp.

While nobody reads a TCP socket, the kernel merges arriving segments into one buffer and keeps only the latest receive
stamp (`tcp_try_coalesce` in net/ipv4/tcp_input.c). It does not merge into a buffer that somebody else holds a clone of.
An AF_PACKET socket holds such a clone of each packet until it is read (packet(7)), so as long as the tap leaves packets
in its queue for longer than a worker may be late, each segment keeps its own stamp and chunk-exact reads bring them out
one by one. The tap never reads payload: it drops packets from its queue once they are old enough.

    filters   the classic BPF program that selects the servers' segments
    packets   the packet sockets and how their queue is emptied
    process   the process: addresses in on stdin, one line of readiness out, a status file for the collector
"""
