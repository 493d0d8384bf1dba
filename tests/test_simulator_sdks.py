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

from llm_latency_lens.engine.simulator.providers import text_of
from tests.support_simulator import Simulator, simulator

VISIBLE = 40  # more than the vocabulary, so every word and escape is used
REASONING = 3
PROMPT = "how fast is the light"
PROMPT_TOKENS = 5

OPENAI = """
from openai import OpenAI
client = OpenAI(base_url=URL + "/v1", api_key="k", max_retries=0)
"""
AZURE = """
from openai import AzureOpenAI
client = AzureOpenAI(azure_endpoint=URL, api_version="2024-10-21", api_key="k", max_retries=0)
"""
AZURE_V1 = """
from openai import OpenAI
client = OpenAI(base_url=URL + "/openai/v1/", api_key="k", max_retries=0)
"""
CHAT = """
messages = [{"role": "user", "content": PROMPT}]
text, thought, usage, finish = "", "", None, None
for chunk in client.chat.completions.create(model="sim", messages=messages, stream=True, stream_options={"include_usage": True}):
    usage = chunk.usage or usage
    for choice in chunk.choices:
        text += choice.delta.content or ""
        thought += getattr(choice.delta, "reasoning_content", None) or ""
        finish = choice.finish_reason or finish
whole = client.chat.completions.create(model="sim", messages=messages)
message = whole.choices[0].message
tell(text, thought, usage.prompt_tokens, usage.completion_tokens, finish)
tell(message.content, message.reasoning_content, whole.usage.prompt_tokens, whole.usage.completion_tokens, whole.choices[0].finish_reason)
"""
COMPLETIONS = """
text, usage, finish = "", None, None
for chunk in client.completions.create(model="sim", prompt=PROMPT, stream=True, stream_options={"include_usage": True}):
    usage = chunk.usage or usage
    for choice in chunk.choices:
        text += choice.text
        finish = choice.finish_reason or finish
whole = client.completions.create(model="sim", prompt=PROMPT)
tell(text, "", usage.prompt_tokens, usage.completion_tokens, finish)
tell(whole.choices[0].text, "", whole.usage.prompt_tokens, whole.usage.completion_tokens, whole.choices[0].finish_reason)
"""
RESPONSES = """
numbers = []
text, thought = "", ""
with client.responses.stream(model="sim", input=PROMPT) as stream:
    for event in stream:
        numbers.append(event.sequence_number)
        if event.type == "response.output_text.delta":
            text += event.delta
        if event.type == "response.reasoning_text.delta":
            thought += event.delta
    final = stream.get_final_response()
assert numbers == list(range(len(numbers))), numbers
assert final.output_text == text, final.output_text
tell(text, thought, final.usage.input_tokens, final.usage.output_tokens, final.status)
whole = client.responses.create(model="sim", input=PROMPT)
thought = "".join(part.text for item in whole.output if item.type == "reasoning" for part in item.content)
tell(whole.output_text, thought, whole.usage.input_tokens, whole.usage.output_tokens, whole.status)
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
    tell(text, thought, message.usage.input_tokens, message.usage.output_tokens, message.stop_reason)
"""
GOOGLE = """
from google import genai
from google.genai.types import HttpOptions
client = genai.Client(api_key="k", http_options=HttpOptions(base_url=URL, api_version=VERSION))
text, thought, usage, finish = "", "", None, None
def parts(reply):
    return [part for candidate in reply.candidates for part in candidate.content.parts or []]
for reply in client.models.generate_content_stream(model="sim", contents=PROMPT):
    text += "".join(part.text or "" for part in parts(reply) if not part.thought)
    thought += "".join(part.text or "" for part in parts(reply) if part.thought)
    usage = reply.usage_metadata or usage
    finish = reply.candidates[0].finish_reason or finish
tell(text, thought, usage.prompt_token_count, usage.candidates_token_count + (usage.thoughts_token_count or 0), finish.value)
whole = client.models.generate_content(model="sim", contents=PROMPT)
usage, thought = whole.usage_metadata, "".join(part.text for part in parts(whole) if part.thought)
tokens = usage.candidates_token_count + (usage.thoughts_token_count or 0)
tell(whole.text, thought, usage.prompt_token_count, tokens, whole.candidates[0].finish_reason.value)
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
tell(text, thought, end.usage.tokens.input_tokens, end.usage.tokens.output_tokens, end.finish_reason)
whole = client.chat(**asked)
text = "".join(item.text for item in whole.message.content if item.type == "text")
thought = "".join(item.thinking for item in whole.message.content if item.type == "thinking")
tell(text, thought, whole.usage.tokens.input_tokens, whole.usage.tokens.output_tokens, whole.finish_reason)
"""
PRELUDE = """
import json, sys, warnings
warnings.simplefilter("ignore")
URL, PROMPT = sys.argv[1:]
def tell(*understood):
    print(json.dumps(understood))
"""


def understood_by(sdk: str, running: Simulator) -> list[list[Any]]:
    """What an SDK's script told: (text, thought, input tokens, output tokens, finish) of each reply."""
    command = [sys.executable, "-c", PRELUDE + sdk, running.base_url, PROMPT]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture(scope="module")
def plain() -> Iterator[Simulator]:
    with simulator(ttft_ms=1, itl_ms=0.1, tokens=VISIBLE) as running:
        yield running


@pytest.fixture(scope="module")
def thinking() -> Iterator[Simulator]:
    with simulator(ttft_ms=1, itl_ms=0.1, tokens=VISIBLE, reasoning_tokens=REASONING) as running:
        yield running


SDKS = [
    pytest.param(OPENAI + CHAT, "stop", id="openai chat"),
    pytest.param(AZURE + CHAT, "stop", id="azure deployment"),
    pytest.param(AZURE_V1 + CHAT, "stop", id="azure v1"),
    pytest.param(OPENAI + RESPONSES, "completed", id="openai responses"),
    pytest.param(ANTHROPIC, "end_turn", id="anthropic"),
    pytest.param(GOOGLE.replace("VERSION", "'v1beta'"), "STOP", id="google v1beta"),
    pytest.param(GOOGLE.replace("VERSION", "'v1'"), "STOP", id="google v1"),
    pytest.param(COHERE, "COMPLETE", id="cohere"),
]


@pytest.mark.parametrize(("sdk", "finish"), SDKS)
def test_an_sdk_reads_text_thought_usage_and_finish_as_they_were_sent(
    sdk: str, finish: str, thinking: Simulator
) -> None:
    expected = [text_of(VISIBLE), text_of(REASONING), PROMPT_TOKENS, VISIBLE + REASONING, finish]
    assert understood_by(sdk, thinking) == [expected, expected]


def test_the_completions_sdk_reads_text_usage_and_finish_as_they_were_sent(plain: Simulator) -> None:
    expected = [text_of(VISIBLE), "", PROMPT_TOKENS, VISIBLE, "stop"]
    assert understood_by(OPENAI + COMPLETIONS, plain) == [expected, expected]
