"""What the tests need beyond Python packages: Debian's servers and browser, fetched once into build/servers or installed.

`python -m tests.bootstrap` (part of `make test`). Does nothing where everything is there already.
"""
