"""`python -m llm_latency_lens.engine.simulator`: starts one simulator, in one process or several on one port."""

from __future__ import annotations

import argparse
import sys

import msgspec

from ..errors import LensError
from .script import flags, script_from
from .server.process import HELP, Options, serve


def arguments() -> argparse.ArgumentParser:
    """The command line: options of the process, and one flag per key of the script."""
    parser = argparse.ArgumentParser(prog="simulator", description=__doc__, allow_abbrev=False)
    for field in msgspec.structs.fields(Options):
        flag = "--" + field.name.replace("_", "-")
        if field.type is bool:
            parser.add_argument(flag, action="store_true", help=HELP[field.name])
        else:
            parser.add_argument(flag, default=field.default, help=HELP[field.name])
    parser.add_argument("--script", metavar="FILE", help="JSON file with the script; flags override its keys")
    parser.add_argument("--fault", metavar="NAME=P", action="append", default=[], help="adds to `faults`")
    for flag, key, description in flags():
        parser.add_argument(flag, dest=f"script_{key}", metavar="VALUE", help=description.replace("%", "%%"))
    return parser


def main() -> int:
    """Serves until SIGTERM or SIGINT; 0 then."""
    parsed = vars(arguments().parse_args())
    given = {key.removeprefix("script_"): text for key, text in parsed.items() if key.startswith("script_") and text}
    try:
        script = script_from(parsed["script"], given, parsed["fault"])
        names = [field.name for field in msgspec.structs.fields(Options)]
        options = msgspec.convert({name: parsed[name] for name in names}, Options, strict=False)
        return serve(script, options)
    except (LensError, msgspec.ValidationError) as error:
        sys.stderr.write(f"{error}\n")
        return getattr(error, "exit_code", 2)


if __name__ == "__main__":
    sys.exit(main())
