"""An example of a dialect in a package of its own: chat completions, read without any of the package's own dialects."""

from __future__ import annotations

import json

from llm_latency_lens import END, TOKEN, VISIBLE, HttpRequest, Prompt, Reply, Target


class PlainReply(Reply):
    """Reads `data: {...}` events."""

    def event(self, data: bytes, name: bytes = b"") -> int:
        if data.strip() == b"[DONE]":
            self.ended = True
            return END
        event = json.loads(data)
        if usage := event.get("usage"):
            self.input_tokens = usage["prompt_tokens"]
            self.output_tokens = usage["completion_tokens"]
        content = [choice["delta"].get("content") for choice in event["choices"]]
        return TOKEN | VISIBLE if any(content) else 0

    def body(self, data: bytes) -> int:
        self.ended = True
        return TOKEN | VISIBLE | END


class PlainChat:
    """The dialect; the entry point names this class."""

    name = "plain-chat"
    default_base_url: str | None = None
    key_variable: str | None = None
    asks = "POST /chat/completions"
    measures = "tokens of the usage"
    limits = "an example"

    def request(self, target: Target, prompt: Prompt) -> HttpRequest:
        asked = {"model": target.model, "messages": prompt.messages, "stream": target.stream}
        body = json.dumps(asked | {"stream_options": {"include_usage": True}} | target.parameters).encode()
        headers = [("Content-Type", "application/json")]
        return HttpRequest("POST", f"{target.base_url.rstrip('/')}/chat/completions", headers, body)

    def reply(self, target: Target, keep_text: bool = False) -> Reply:
        return PlainReply(keep_text)
