"""The simulator's pure parts: scripts and their draws, frames, limits."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_latency_lens.engine.errors import PlanError
from llm_latency_lens.engine.simulator.faults import MID_STREAM
from llm_latency_lens.engine.simulator.framing import ID_BYTES, fill
from llm_latency_lens.engine.simulator.providers import EXACT, GOOGLE, GOOGLE_ARRAY, route
from llm_latency_lens.engine.simulator.providers.provider import Outline, Provider
from llm_latency_lens.engine.simulator.reply.limits import Bucket, Slots
from llm_latency_lens.engine.simulator.reply.template import Templates
from llm_latency_lens.engine.simulator.script import SAMPLES, Samples, script_from, script_of

SECOND = 1_000_000_000
PROVIDERS: list[Provider] = [*{id(provider): provider for provider in EXACT.values()}.values(), GOOGLE, GOOGLE_ARRAY]


def outline(**changes: Any) -> Outline:
    plain: dict[str, Any] = {
        "model": "100% sim", "prompt_tokens": 5, "cached_tokens": 2, "reasoning": 3, "visible": 40, "finish": "stop",
        "usage": "apart", "role_chunk": True, "per_event": 1, "newline": b"\n",
    }  # fmt: skip
    return Outline(**(plain | changes))


def dechunked(body: bytes) -> bytes:
    """The content of a chunked body. Fails on a size that is not the chunk's."""
    content = b""
    while body:
        size, _, rest = body.partition(b"\r\n")
        length = int(size, 16)
        assert rest[length : length + 2] == b"\r\n"
        content += rest[:length]
        body = rest[length + 2 :]
    return content


@given(
    number=st.integers(0, len(PROVIDERS) - 1),
    sent_ns=st.integers(0, 10**19 - 1),
    reasoning=st.integers(0, 5),
    visible=st.integers(0, 40),
    per_event=st.integers(1, 7),
    usage=st.sampled_from(["none", "apart", "in_finish"]),
    finish=st.sampled_from(["stop", "length", "filter"]),
)
@settings(max_examples=150, deadline=None)
def test_frames_are_whole_chunks_of_json_whatever_the_send_time(
    number: int, sent_ns: int, reasoning: int, visible: int, per_event: int, usage: str, finish: str
) -> None:
    """A chunk size that depended on the time would have to be rendered on the hot path."""
    provider = PROVIDERS[number]
    said = outline(reasoning=reasoning, visible=visible, per_event=per_event, usage=usage, finish=finish)
    rendering = Templates().rendering(provider, said)
    request_id = b"0123456789abcdef"
    body = fill(rendering.opening, request_id, sent_ns)
    for index in range(rendering.events):
        frame = rendering.token(index)
        body += frame.format % ((sent_ns, request_id) * frame.stamps)
    content = dechunked(body + fill(rendering.closing, request_id, sent_ns))
    if provider.framing == "array":
        objects = json.loads(content)
    else:
        lines = [line.removeprefix(b"data: ") for line in content.splitlines()]
        objects = [json.loads(line) for line in lines if line.startswith(b"{")]
    assert all(item["sent_ns"] == sent_ns for item in objects)
    assert ID_BYTES not in content
    assert sum(rendering.tokens_of(index) for index in range(rendering.events)) == reasoning + visible
    assert json.loads(fill(rendering.complete, request_id, sent_ns))["sent_ns"] == sent_ns


def test_equal_outlines_share_their_rendering() -> None:
    """A request must find its bytes rendered: rendering is for the first of its kind."""
    templates = Templates()
    assert templates.rendering(GOOGLE, outline()) is templates.rendering(GOOGLE, outline())
    one, other = (templates.rendering(GOOGLE, outline(prompt_tokens=count)) for count in (1, 2))
    assert one.token(4) is other.token(4)


SPREADS = [
    ("uniform:10:20", 15.0, 10.0, 20.0),
    ("exponential:5", 5.0, 0.0, 100.0),
    ("lognormal:50:0.1", 50.25, 25.0, 90.0),
    (7, 7.0, 7.0, 7.0),
    ("exponential:0", 0.0, 0.0, 0.0),
    ("lognormal:0:1", 0.0, 0.0, 0.0),
]


@pytest.mark.parametrize(("spread", "mean", "low", "high"), SPREADS)
def test_samples_have_the_distribution_that_was_asked_for(spread: Any, mean: float, low: float, high: float) -> None:
    """The truth that the client is measured against must itself be true."""
    samples = Samples(spread, name="ttft_ms", seed=1, scale=1000)
    drawn = [samples.at(index) / 1000 for index in range(SAMPLES)]
    assert statistics.fmean(drawn) == pytest.approx(mean, rel=0.02, abs=1e-9)
    assert low <= min(drawn)
    assert max(drawn) <= high


def test_consecutive_requests_use_each_sample_once() -> None:
    """Else a short run would see a part of the distribution only."""
    samples = Samples("uniform:0:1", name="x", seed=1, scale=1 << 60)
    assert len({samples.at(index) for index in range(SAMPLES)}) == len(set(samples.values))


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"ttft": 1}, "ttft"),
    ({"ttft_ms": -1}, "ttft_ms must be >= 0"),
    ({"itl_ms": "uniform:5:1"}, "itl_ms must be a number, uniform:LOW:HIGH"),
    ({"tokens": "lognormal:5"}, "tokens must be"),
    ({"concurrency": 0}, "concurrency must be >= 1"),
    ({"rpm": 0}, "rpm must be > 0"),
    ({"fault_at": 2}, "fault_at must be in 0..1"),
    ({"freeze": [[2, 1]]}, "freeze must be"),
    ({"sequence": ["okay"]}, "faults must be one of"),
    ({"opening": "never"}, "opening"),
]


@pytest.mark.parametrize(("values", "message"), WRONG)
def test_a_wrong_script_names_the_key_and_what_it_may_be(values: dict[str, Any], message: str) -> None:
    """Scripts are written by hand."""
    with pytest.raises(PlanError, match=message):
        script_of(values)


def test_flags_override_the_scripts_file(tmp_path: Path) -> None:
    """One file serves many variations."""
    (tmp_path / "script.json").write_text('{"ttft_ms": 5, "tokens": 9, "faults": {"500": 0.1}}')
    given_flags = {"ttft_ms": "lognormal:5:0.1", "sequence": "ok,429", "freeze": "[[1,2]]", "keep_alive": "false"}
    script = script_from(str(tmp_path / "script.json"), given_flags, ["reset=0.2"])
    assert (script.ttft_ms, script.tokens, script.faults) == ("lognormal:5:0.1", 9, {"500": 0.1, "reset": 0.2})
    assert (script.sequence, script.freeze, script.keep_alive) == (("ok", "429"), ((1.0, 2.0),), False)


ROUTES = [
    ("/v1/chat/completions", "", "openai"),
    ("/v1/completions", "", "openai-completions"),
    ("/v1/responses", "", "openai-responses"),
    ("/openai/v1/chat/completions", "", "openai"),
    ("/openai/deployments/gpt/chat/completions", "api-version=1", "azure-openai"),
    ("/v1/messages", "", "anthropic"),
    ("/v1beta/models/gemini:streamGenerateContent", "alt=sse", "google"),
    ("/v1/models/gemini:streamGenerateContent", "", "google-array"),
    ("/v1/models/gemini:generateContent", "", "google"),
    ("/v1/projects/p/locations/l/publishers/google/models/gemini:streamGenerateContent", "alt=sse", "google"),
    ("/v2/chat", "", "cohere"),
    ("/api/chat", "", "ollama"),
    ("/generate_stream", "", "tgi"),
    ("/plain", "", "plain"),
]


@pytest.mark.parametrize(("path", "query", "name"), ROUTES)
def test_each_apis_path_leads_to_it(path: str, query: str, name: str) -> None:
    """A path that leads elsewhere would test the wrong dialect."""
    found = route(path, query)
    assert found
    assert found[0].name == name


def test_a_bucket_gives_its_rate_and_no_more() -> None:
    """The client is judged by the 429 that follow from it."""
    bucket = Bucket(60, burst_s=1)  # one a second
    now_ns, taken = 1, 0
    for _ in range(1000):
        now_ns += SECOND // 10
        taken += not bucket.take(1, now_ns)
    assert taken == 100


def test_more_than_a_bucket_holds_may_go_when_it_is_full() -> None:
    """Such a request would be refused for ever."""
    bucket = Bucket(60, burst_s=2)
    assert bucket.take(10, SECOND) == 0
    assert bucket.take(1, SECOND) == pytest.approx(9)
    assert (bucket.remaining, bucket.full_in_s) == (0, 10)
    assert bucket.take(1, 11 * SECOND) == 0


def test_slots_serve_first_come_first_served() -> None:
    """Queueing times are compared with theory."""
    slots: Slots[str] = Slots(1, 2)
    assert [slots.enter(name) for name in "abcd"] == [True, False, False, None]
    slots.forget("b")
    assert slots.leave() == "c"
    assert slots.leave() is None
    assert slots.running == 0


def test_every_mid_stream_fault_has_an_error_event_in_every_api() -> None:
    """A fault that one API cannot express would pass untested there."""
    assert "error_event" in MID_STREAM
    for provider in PROVIDERS:
        frame = Templates().rendering(provider, outline()).failure("broke", position=1)
        assert b"broke" in fill(frame, b"0123456789abcdef", 1)
