"""The official SDKs and our dialects read the same simulator's replies: same text, thought, tokens and finish.

Each SDK runs in an interpreter of its own (they warn, patch and start threads) and prints what it understood; our
dialect's own request is sent as it is rendered, and its reply is read in one piece and cut in two in many places.
"""

from __future__ import annotations

import http.client
import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest

from llm_latency_lens.engine.dialects import Prompt
from llm_latency_lens.engine.dialects.table import DIALECTS
from llm_latency_lens.engine.plan.plan import Target
from tests.support_dialects import fresh, read, read_whole, target
from tests.support_simulator import Simulator, simulator

PROMPT = "how fast is the light"
SCRIPT: dict[str, Any] = {"ttft_ms": 1, "itl_ms": 0.1, "tokens": 40, "reasoning_tokens": 3, "distinct_replies": 1}

PRELUDE = """
import json, sys, warnings
warnings.simplefilter("ignore")
URL, PROMPT = sys.argv[1:]
def report(text, thought, given, said, finish):
    print(json.dumps([text, thought, given, said, finish]))
"""
CHAT = """
def ask(client):
    text, thought, usage, finish = "", "", None, None
    for chunk in client.chat.completions.create(model="sim", messages=[{"role": "user", "content": PROMPT}],
                                                stream=True, stream_options={"include_usage": True}):
        usage = chunk.usage or usage
        for choice in chunk.choices:
            text += choice.delta.content or ""
            thought += getattr(choice.delta, "reasoning_content", None) or ""
            finish = choice.finish_reason or finish
    report(text, thought, usage.prompt_tokens, usage.completion_tokens, finish)
"""
SDKS = {
    "openai": CHAT
    + """
from openai import OpenAI
ask(OpenAI(base_url=URL + "/v1", api_key="k", max_retries=0))
""",
    "azure-openai": CHAT
    + """
from openai import AzureOpenAI
ask(AzureOpenAI(azure_endpoint=URL, api_version="2024-10-21", api_key="k", max_retries=0))
""",
    "openai-completions": """
from openai import OpenAI
text, usage, finish = "", None, None
for chunk in OpenAI(base_url=URL + "/v1", api_key="k", max_retries=0).completions.create(
        model="sim", prompt=PROMPT, stream=True, stream_options={"include_usage": True}):
    usage = chunk.usage or usage
    for choice in chunk.choices:
        text += choice.text
        finish = choice.finish_reason or finish
report(text, "", usage.prompt_tokens, usage.completion_tokens, finish)
""",
    "openai-responses": """
from openai import OpenAI
text, thought = "", ""
with OpenAI(base_url=URL + "/v1", api_key="k", max_retries=0).responses.stream(model="sim", input=PROMPT) as stream:
    for event in stream:
        text += event.delta if event.type == "response.output_text.delta" else ""
        thought += event.delta if event.type == "response.reasoning_text.delta" else ""
    final = stream.get_final_response()
report(text, thought, final.usage.input_tokens, final.usage.output_tokens, final.status)
""",
    "anthropic": """
from anthropic import Anthropic
client = Anthropic(base_url=URL, api_key="k", max_retries=0)
with client.messages.stream(model="sim", max_tokens=1000, messages=[{"role": "user", "content": PROMPT}]) as stream:
    final = stream.get_final_message()
text = "".join(block.text for block in final.content if block.type == "text")
thought = "".join(block.thinking for block in final.content if block.type == "thinking")
report(text, thought, final.usage.input_tokens, final.usage.output_tokens, final.stop_reason)
""",
    "google": """
from google import genai
from google.genai.types import HttpOptions
client = genai.Client(api_key="k", http_options=HttpOptions(base_url=URL, api_version="v1beta"))
text, thought, usage, finish = "", "", None, None
for reply in client.models.generate_content_stream(model="sim", contents=PROMPT):
    for part in reply.candidates[0].content.parts or []:
        text += "" if part.thought else part.text or ""
        thought += part.text or "" if part.thought else ""
    usage = reply.usage_metadata or usage
    finish = reply.candidates[0].finish_reason or finish
report(text, thought, usage.prompt_token_count, usage.candidates_token_count + usage.thoughts_token_count, finish.value)
""",
    "cohere": """
import cohere
text, thought, end = "", "", None
for event in cohere.ClientV2(base_url=URL, api_key="k").chat_stream(
        model="sim", messages=[{"role": "user", "content": PROMPT}]):
    if event.type == "content-delta":
        text += event.delta.message.content.text or ""
        thought += event.delta.message.content.thinking or ""
    if event.type == "message-end":
        end = event.delta
report(text, thought, end.usage.tokens.input_tokens, end.usage.tokens.output_tokens, end.finish_reason)
""",
}
BASES = {"openai": "/v1", "openai-completions": "/v1", "openai-responses": "/v1"}


@pytest.fixture(scope="module")
def running() -> Iterator[Simulator]:
    with simulator(**SCRIPT) as started:
        yield started


def understood_by(sdk: str, running: Simulator) -> list[Any]:
    command = [sys.executable, "-c", PRELUDE + SDKS[sdk], running.base_url, PROMPT]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    reported: list[Any] = json.loads(done.stdout)
    return reported


def fetched(asked: Target, running: Simulator) -> tuple[bytes, str]:
    """(body, content type) of the reply to the request as the dialect renders it."""
    prompt = Prompt(({"role": "user", "content": PROMPT},), max_tokens=1000)
    request = DIALECTS[asked.provider].request(asked, prompt)
    where = urlsplit(request.url)
    connection = http.client.HTTPConnection("127.0.0.1", running.port, timeout=20)
    try:
        connection.request(request.method, f"{where.path}?{where.query}", request.body, dict(request.headers))
        reply = connection.getresponse()
        body = reply.read()
        assert reply.status == 200, body
        return body, reply.headers["content-type"]
    finally:
        connection.close()


@pytest.mark.slow
@pytest.mark.parametrize("provider", SDKS)
def test_the_dialect_reads_what_the_sdk_reads(provider: str, running: Simulator) -> None:
    expected = understood_by(provider, running)
    base_url = running.base_url + BASES.get(provider, "")
    for stream in (True, False):
        asked = target(provider, base_url, model="sim", stream=stream)
        body, content_type = fetched(asked, running)
        if stream:
            got = read(fresh(provider), [body], content_type)
            assert got.tokens == SCRIPT["tokens"] + SCRIPT["reasoning_tokens"]
            for cut in range(1, len(body), 97):
                assert read(fresh(provider), [body[:cut], body[cut:]], content_type) == got
        else:
            got = read_whole(fresh(provider), body)
        assert [got.text, got.thought, got.input, got.output, got.finish] == expected
        assert got.finished


def test_google_without_sse_is_an_array_that_reads_the_same(running: Simulator) -> None:
    base = "/v1beta/models/sim:streamGenerateContent"
    body = json.dumps({"contents": [{"parts": [{"text": PROMPT}]}]})
    connection = http.client.HTTPConnection("127.0.0.1", running.port, timeout=20)
    replies = []
    for path in (base, f"{base}?alt=sse"):
        connection.request("POST", path, body)
        reply = connection.getresponse()
        replies.append(read(fresh("google"), [reply.read()], reply.headers["content-type"]))
    connection.close()
    assert replies[0] == replies[1]
    assert replies[0].finished
