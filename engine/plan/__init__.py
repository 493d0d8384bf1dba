"""A resolved plan as values, and the small grammars its parts are written in: units, SLO expressions, addresses, templates."""
