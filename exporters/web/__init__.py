"""Local web pages: the report of a run while it goes on (`live`), and the runs of a directory (`view`).

`listen` binds and names an address, `serving` runs an aiohttp application in a thread, `guard` refuses strangers.
`library` knows the runs of a directory, `listing` and `curve` draw them. Reads run directories; changes nothing in them.
"""
