"""What a plan asked for beside what came of it."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from llm_latency_lens.collectors.asked import asks_for_shared_prefixes, draws, prompt_length_ratio
from llm_latency_lens.engine.plan.plan import Load, Phase, Shape, Workload
from llm_latency_lens.engine.runs.manifest import PhaseTimes
from tests.support_collector import SECOND, fields, plan, series


@pytest.mark.parametrize(
    ("workload", "asks"),
    [
        ({"kind": "synthetic"}, False),
        ({"kind": "prompt"}, False),
        ({"kind": "synthetic", "prefix": "unique"}, False),
        ({"kind": "synthetic", "prefix": "shared"}, True),
        ({"kind": "sessions"}, True),
        ({"kind": "trace"}, True),
    ],
)
def test_cached_prompts_count_where_the_plan_does_not_ask_for_them(workload: dict[str, Any], asks: bool) -> None:
    """The same command twice measured the first run's cache: 17 ms became 4, and both were VALID without a word."""
    asked = msgspec.structs.replace(plan(), workload=Workload(**workload))
    assert asks_for_shared_prefixes(asked) is asks


def test_the_prompts_length_is_the_ratio_of_the_sums_and_none_where_nothing_was_asked() -> None:
    """`--input-tokens 100` sent 622 tokens and nothing said so."""
    assert prompt_length_ratio(series(fields(asked_input_tokens=100, input_tokens=622))) == 6.22
    assert prompt_length_ratio(series(fields())) is None


def test_a_draw_that_differs_from_the_rate_is_named() -> None:
    """10.7/s for 12/s looks like a client that does not keep up; it is chance."""
    load = Load(model="open", shapes=(Shape(10 * SECOND, 12.0, 12.0),), arrivals="poisson")
    phase = Phase(name="steady", load=load, duration_ns=10 * SECOND)
    said = draws([phase], [PhaseTimes(planned=107)])
    assert said == "the poisson arrivals of steady drew 107 requests in 10 s, 10.7/s for a nominal 12.0/s"
    assert not draws([phase], [PhaseTimes(planned=118)])
    constant = msgspec.structs.replace(phase, load=msgspec.structs.replace(load, arrivals="constant"))
    counted = msgspec.structs.replace(phase, requests=107)
    assert not draws([constant, counted], [PhaseTimes(planned=107)] * 2)
