"""Which servers that cheat, cache or count wrong are seen, and which honest ones are suspected: a real run for each.

usage: python benches/cheats.py
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from tests.support_cheats import CHEATS, HONEST, notes_on


def main() -> None:
    for title, cases in (("must be seen", CHEATS), ("honest", HONEST)):
        right = 0
        for case in cases:
            with tempfile.TemporaryDirectory() as folder:
                notes = notes_on(case, Path(folder))
            held = case.codes <= notes.keys() if cases is CHEATS else case.codes == notes.keys()
            right += held
            print(f"{'ok   ' if held else 'WRONG'} {case.name:46}{', '.join(notes) or '-'}")
        print(f"{title}: {right} of {len(cases)} right\n")


if __name__ == "__main__":
    main()
