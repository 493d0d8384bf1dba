"""How often `lens compare` raises a false alarm on real runs, and what it finds: `lens run` against simulators.

    python -m benches.compare_real [--pairs 40] [--seconds 8] [--only alarms,power] [--keep DIR]

Three simulators, two of them equal and one with +5 % at the median of TTFT and +15 % at its p99, are measured in turns in
random order, one run of each per round, the seed of a round the same for all three. The machine may be busy: what it does
to one of the runs is part of the question.

    pairs    single runs of the equal systems, compared by their blocks
    groups   the same runs in groups of 5 against 5, compared run by run
    power    at the number of runs that the spread of all rounds recommends, in as many groups as there are
"""

from __future__ import annotations

import argparse
import math
import random
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from llm_latency_lens.collectors.compare import Compared, effect_of, runs_needed
from llm_latency_lens.engine.errors import LensError
from llm_latency_lens.exporters.compare.questions import Named, questions_of
from llm_latency_lens.exporters.compare.read import read_run
from llm_latency_lens.exporters.compare.run import compare_runs
from tests.support_lens import LENS, environment
from tests.support_simulator import simulator

MEDIAN_MS: Final = 20.0
SIGMA: Final = 0.3
SLOWER: Final = {"ttft_ms.p50": 1.05, "ttft_ms.p99": 1.15}
GROUP: Final = 5
Z99: Final = 2.3263


def slower() -> str:
    """The lognormal TTFT whose median and p99 are those of SLOWER."""
    sigma = SIGMA + math.log(SLOWER["ttft_ms.p99"] / SLOWER["ttft_ms.p50"]) / Z99
    return f"lognormal:{MEDIAN_MS * SLOWER['ttft_ms.p50']}:{sigma}"


def measure(url: str, out: Path, *, seconds: float, rate: float, seed: int) -> Path:
    """One `lens run`; its run directory."""
    load = ["--rate", f"{rate}", "--arrivals", "poisson", "--duration", f"{seconds}s", "--workers", "1"]
    flags = ["--base-url", f"{url}/v1", "--model", "m", "--seed", str(seed), "--quiet", "--out", str(out)]
    subprocess.run([*LENS, "run", *load, *flags], env=environment(), check=True)
    return (out / "latest").resolve()


def compared(
    base: Sequence[Path], candidate: Sequence[Path], metrics: Sequence[str] = (), margin: float = 0.05
) -> Compared:
    return compare_runs(base, candidate, margin=margin, metrics=metrics)[0]


def alarms(answers: Sequence[Compared]) -> str:
    """How many name a difference, and which."""
    named = [
        f"{each.metric} {each.statistic} {(each.ratio or 1) - 1:+.1%}"
        for answer in answers
        for each in answer.comparisons
        if each.verdict in ("worse", "better")
    ]
    found = sum(any(each.verdict in ("worse", "better") for each in answer.comparisons) for answer in answers)
    return f"{found} of {len(answers)}" + (f" ({', '.join(named)})" if named else "")


def groups(runs: Sequence[Path], size: int) -> list[Sequence[Path]]:
    return [runs[k : k + size] for k in range(0, len(runs) - size + 1, size)]


def power(metric: str, base: Sequence[Path], candidate: Sequence[Path]) -> str:
    margin = SLOWER[metric] - 1
    sides = [[read_run(path) for path in runs] for runs in (base, candidate)]
    (question,) = questions_of(*sides, margin=margin, wanted=[Named.parse(metric)])[0]
    effect = effect_of(question.base, question.candidate)
    if effect is None:
        return f"{metric}: the runs are too short for it"
    n = runs_needed(effect, margin=margin, comparisons=len(SLOWER))
    if n is None or n > len(base):
        return f"{metric} {SLOWER[metric] - 1:+.0%}: {n} runs recommended, more than were made"
    answers = [
        next(
            each
            for each in compared(one, other, [*SLOWER], margin).comparisons
            if f"{each.metric}.{each.statistic}" == metric
        )
        for one, other in zip(groups(base, n), groups(candidate, n), strict=True)
    ]
    found = sum(each.verdict == "worse" for each in answers)
    return f"{metric} {SLOWER[metric] - 1:+.0%}: {n} runs recommended, found in {found} of {len(answers)} groups of {n}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--pairs", type=int, default=40)
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--rate", type=float, default=80.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", default="alarms,power")
    parser.add_argument("--keep", type=Path, help="where the runs go; without it they are removed")
    given = parser.parse_args()
    drawn = random.Random(given.seed)
    ttfts = {"base": f"lognormal:{MEDIAN_MS}:{SIGMA}", "equal": f"lognormal:{MEDIAN_MS}:{SIGMA}", "slower": slower()}
    for name, part in (("equal", "alarms"), ("slower", "power")):
        if part not in given.only:
            del ttfts[name]
    runs: dict[str, list[Path]] = {name: [] for name in ttfts}
    with ExitStack() as stack:
        out = given.keep or Path(stack.enter_context(TemporaryDirectory(prefix="lens-compare-")))
        urls = {
            name: stack.enter_context(simulator(ttft_ms=ttft, itl_ms=1, tokens=10)).base_url
            for name, ttft in ttfts.items()
        }
        for number in range(given.pairs):
            seed = drawn.getrandbits(31)
            for name in drawn.sample([*ttfts], len(ttfts)):
                runs[name].append(measure(urls[name], out / name, seconds=given.seconds, rate=given.rate, seed=seed))
            if sys.stderr.isatty():
                print(f"\r{number + 1} of {given.pairs} rounds", end="", file=sys.stderr, flush=True)
        base = runs["base"]
        states = [read_run(path).report.verdict.state for made in runs.values() for path in made]
        print(f"runs    {len(states)}, of which {states.count('INVALID')} INVALID: the client was disturbed")
        try:
            if "alarms" in given.only:
                single = [compared([one], [other]) for one, other in zip(base, runs["equal"], strict=True)]
                print(f"pairs   alarms between equal systems: {alarms(single)}")
                several = zip(groups(base, GROUP), groups(runs["equal"], GROUP), strict=True)
                print(f"groups  alarms between equal systems: {alarms([compared(*sides) for sides in several])}")
            if "power" in given.only:
                for metric in SLOWER:
                    print(f"power   {power(metric, base, runs['slower'])}")
        except LensError as error:
            sys.exit(f"compare_real: {error}")


if __name__ == "__main__":
    main()
