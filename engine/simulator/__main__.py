"""`python -m llm_latency_lens.engine.simulator`: starts one simulator, in one process or several on one port."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import msgspec

from llm_latency_lens.engine.errors import LensError, PlanError
from llm_latency_lens.engine.simulator.process import Options, serve
from llm_latency_lens.engine.simulator.script import Script, flags, script_of, value_of


def arguments() -> argparse.ArgumentParser:
    """The command line: options of the process, and one flag per key of the script."""
    parser = argparse.ArgumentParser(prog="simulator", description=__doc__, allow_abbrev=False)
    for field in msgspec.structs.fields(Options):
        flag = "--" + field.name.replace("_", "-")
        if field.type is bool:
            parser.add_argument(flag, action="store_true")
        else:
            parser.add_argument(flag, default=field.default)
    parser.add_argument("--script", metavar="FILE", help="JSON file with the script; flags override its keys")
    parser.add_argument("--fault", metavar="NAME=P", action="append", default=[], help="adds to `faults`")
    for flag, key, description in flags():
        parser.add_argument(flag, dest=f"script_{key}", metavar="VALUE", help=description.replace("%", "%%"))
    return parser


def script_from(path: str | None, given: dict[str, str], faults: list[str]) -> Script:
    """The script of a file with flags over it. Raises PlanError."""
    values = {}
    if path:
        try:
            values = msgspec.json.decode(Path(path).read_bytes())
        except (OSError, msgspec.DecodeError) as error:
            raise PlanError(f"simulator script {path}: {error}") from error
    values |= {key: value_of(text) for key, text in given.items()}
    if isinstance(values.get("sequence"), str):
        values["sequence"] = values["sequence"].split(",")
    chances = dict(values.get("faults", {}))
    for text in faults:
        name, _, chance = text.partition("=")
        chances[name] = value_of(chance)
    return script_of(values | {"faults": chances})


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
        sys.stderr.write(f"simulator: {error}\n")
        return getattr(error, "exit_code", 2)


if __name__ == "__main__":
    sys.exit(main())
