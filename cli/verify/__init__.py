"""`lens verify`: a run's times against a packet capture of the same host, an independent witness.

packets.py   a capture file -> TCP segments with the time at which they were captured
streams.py   segments -> byte streams that know when each byte could be read
replies.py   streams -> requests and replies, and when each token event of a reply was complete
compare.py   requests.msgpack against the replies: errors of send, TTFT and every gap
command.py   the command line
"""
