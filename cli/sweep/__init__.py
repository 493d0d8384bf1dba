"""`lens sweep`: which load a server bears. One ordinary run after the other, each at the load that says most.

`command` reads the options, `asked` and `folder` what is wanted and what is known, `sweeper` carries it out, `rules` end
a point. The search itself is collectors.capacity.
"""
