"""The official SDKs as judges: pointed at the simulator they parse everything, streamed or not, and report its truth.

Each SDK runs in an interpreter of its own (they warn, patch and start threads) and prints what it understood.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from llm_latency_lens.engine.simulator.providers.provider import VARIANT, text_of
from tests.support_simulator import Simulator, simulator

VISIBLE = 40  # more than the vocabulary, so every word and escape is used
REASONING = 3
PROMPT = "how fast is the light"
PROMPT_TOKENS = 5

OPENAI = """
from openai import AzureOpenAI, OpenAI
messages = [{"role": "user", "content": PROMPT}]
streaming = {"stream": True, "stream_options": {"include_usage": True}}
options = {"api_key": "k", "max_retries": 0}
openai = OpenAI(base_url=URL + "/v1", **options)
clients = (
    openai,
    AzureOpenAI(azure_endpoint=URL, api_version="2024-10-21", **options),
    OpenAI(base_url=URL + "/openai/v1/", **options),
)
for client in clients:
    text, thought, usage, finish = "", "", None, None
    for chunk in client.chat.completions.create(model="sim", messages=messages, **streaming):
        usage = chunk.usage or usage
        for choice in chunk.choices:
            text += choice.delta.content or ""
            thought += getattr(choice.delta, "reasoning_content", None) or ""
            finish = choice.finish_reason or finish
    report(text, thought, usage.prompt_tokens, usage.completion_tokens, finish)
    reply = client.chat.completions.create(model="sim", messages=messages)
    choice, usage = reply.choices[0], reply.usage
    message = choice.message
    report(message.content, message.reasoning_content, usage.prompt_tokens, usage.completion_tokens, choice.finish_reason)

text, usage, finish = "", None, None
for chunk in openai.completions.create(model="sim", prompt=PROMPT, **streaming):
    usage = chunk.usage or usage
    for choice in chunk.choices:
        text += choice.text
        finish = choice.finish_reason or finish
report(text[len(THOUGHT):], text[:len(THOUGHT)], usage.prompt_tokens, usage.completion_tokens, finish)

numbers, text, thought = [], "", ""
with openai.responses.stream(model="sim", input=PROMPT) as stream:
    for event in stream:
        numbers.append(event.sequence_number)
        if event.type == "response.output_text.delta":
            text += event.delta
        if event.type == "response.reasoning_text.delta":
            thought += event.delta
    final = stream.get_final_response()
assert numbers == list(range(len(numbers))), numbers
assert final.output_text == text, final.output_text
report(text, thought, final.usage.input_tokens, final.usage.output_tokens, final.status)
reply = openai.responses.create(model="sim", input=PROMPT)
thought = "".join(part.text for item in reply.output if item.type == "reasoning" for part in item.content)
report(reply.output_text, thought, reply.usage.input_tokens, reply.usage.output_tokens, reply.status)

def chat(fault):
    headers = {"x-sim-fault": fault}
    list(openai.chat.completions.create(model="sim", messages=messages, extra_headers=headers, **streaming))
for fault in FAULTS:
    try:
        chat(fault)
    except Exception as error:
        report(fault, type(error).__name__)
"""
ANTHROPIC = """
from anthropic import Anthropic
client = Anthropic(base_url=URL, api_key="k", max_retries=0)
asked = dict(model="sim", max_tokens=1000, messages=[{"role": "user", "content": PROMPT}])
streamed = ""
with client.messages.stream(**asked) as stream:
    for piece in stream.text_stream:
        streamed += piece
    final = stream.get_final_message()
assert streamed == "".join(block.text for block in final.content if block.type == "text")
for message in (final, client.messages.create(**asked)):
    text = "".join(block.text for block in message.content if block.type == "text")
    thought = "".join(block.thinking for block in message.content if block.type == "thinking")
    report(text, thought, message.usage.input_tokens, message.usage.output_tokens, message.stop_reason)
for fault in FAULTS:
    try:
        with client.messages.stream(**asked, extra_headers={"x-sim-fault": fault}) as stream:
            stream.get_final_message()
    except Exception as error:
        report(fault, type(error).__name__)
"""
GOOGLE = """
from google import genai
from google.genai.types import HttpOptions
def parts(reply):
    return [part for candidate in reply.candidates for part in candidate.content.parts or []]
def output(usage):
    return usage.candidates_token_count + (usage.thoughts_token_count or 0)
for version in ("v1beta", "v1"):
    client = genai.Client(api_key="k", http_options=HttpOptions(base_url=URL, api_version=version))
    text, thought, usage, finish = "", "", None, None
    for reply in client.models.generate_content_stream(model="sim", contents=PROMPT):
        text += "".join(part.text or "" for part in parts(reply) if not part.thought)
        thought += "".join(part.text or "" for part in parts(reply) if part.thought)
        usage = reply.usage_metadata or usage
        finish = reply.candidates[0].finish_reason or finish
    report(text, thought, usage.prompt_token_count, output(usage), finish.value)
    reply = client.models.generate_content(model="sim", contents=PROMPT)
    usage, thought = reply.usage_metadata, "".join(part.text for part in parts(reply) if part.thought)
    report(reply.text, thought, usage.prompt_token_count, output(usage), reply.candidates[0].finish_reason.value)
"""
COHERE = """
import cohere
client = cohere.ClientV2(base_url=URL, api_key="k")
asked = dict(model="sim", messages=[{"role": "user", "content": PROMPT}])
text, thought, end = "", "", None
for event in client.chat_stream(**asked):
    if event.type == "content-delta":
        text += event.delta.message.content.text or ""
        thought += event.delta.message.content.thinking or ""
    if event.type == "message-end":
        end = event.delta
report(text, thought, end.usage.tokens.input_tokens, end.usage.tokens.output_tokens, end.finish_reason)
reply = client.chat(**asked)
text = "".join(item.text for item in reply.message.content if item.type == "text")
thought = "".join(item.thinking for item in reply.message.content if item.type == "thinking")
report(text, thought, reply.usage.tokens.input_tokens, reply.usage.tokens.output_tokens, reply.finish_reason)
"""
PRELUDE = """
import json, sys, warnings
warnings.simplefilter("ignore")
URL, PROMPT, THOUGHT = sys.argv[1:]
FAULTS = ("429", "401", "400", "500", "529", "error_event", "cut")
def report(*understood):
    print(json.dumps(understood))
"""
SAME = "0" * len(VARIANT)  # in all replies of a simulator with distinct_replies=1
THOUGHT = text_of(REASONING).replace(VARIANT, SAME)
EXPECTED = [text_of(VISIBLE).replace(VARIANT, SAME), THOUGHT, PROMPT_TOKENS, VISIBLE + REASONING]


@pytest.fixture(scope="module")
def running() -> Iterator[Simulator]:
    with simulator(ttft_ms=1, itl_ms=0.1, tokens=VISIBLE, reasoning_tokens=REASONING, distinct_replies=1) as started:
        yield started


def understood_by(sdk: str, running: Simulator) -> list[list[Any]]:
    """What an SDK's script printed: (text, thought, input tokens, output tokens, finish) of replies, then errors."""
    command = [sys.executable, "-c", PRELUDE + sdk, running.base_url, PROMPT, THOUGHT]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.slow
def test_openais_sdk_reads_text_thought_usage_finish_and_errors_as_they_were_sent(running: Simulator) -> None:
    chats, completions, responses = [[*EXPECTED, "stop"]] * 6, [[*EXPECTED, "stop"]], [[*EXPECTED, "completed"]] * 2
    errors = [
        ["429", "RateLimitError"],
        ["401", "AuthenticationError"],
        ["400", "BadRequestError"],
        ["500", "InternalServerError"],
        ["529", "InternalServerError"],
        ["error_event", "APIError"],
        ["cut", "APIConnectionError"],
    ]
    assert understood_by(OPENAI, running) == [*chats, *completions, *responses, *errors]


@pytest.mark.slow
def test_anthropics_sdk_reads_text_thought_usage_finish_and_errors_as_they_were_sent(running: Simulator) -> None:
    errors = [
        ["429", "RateLimitError"],
        ["401", "AuthenticationError"],
        ["400", "BadRequestError"],
        ["500", "InternalServerError"],
        ["529", "OverloadedError"],
        ["error_event", "APIStatusError"],
        ["cut", "RemoteProtocolError"],
    ]
    assert understood_by(ANTHROPIC, running) == [*[[*EXPECTED, "end_turn"]] * 2, *errors]


@pytest.mark.slow
def test_googles_sdk_reads_text_thought_usage_and_finish_as_they_were_sent(running: Simulator) -> None:
    assert understood_by(GOOGLE, running) == [[*EXPECTED, "STOP"]] * 4


@pytest.mark.slow
def test_coheres_sdk_reads_text_thought_usage_and_finish_as_they_were_sent(running: Simulator) -> None:
    assert understood_by(COHERE, running) == [[*EXPECTED, "COMPLETE"]] * 2
