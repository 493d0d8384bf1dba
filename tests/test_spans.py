"""Spans and their traceparent: the ids that the server saw are the ids of the spans, whoever computes them."""

from __future__ import annotations

import http.server
import importlib.util
import json
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from llm_latency_lens.engine.plan.plan import OtlpExport, Secret
from llm_latency_lens.engine.records.trace import trace_context
from tests.support_databases import Daemon, answers, free_port
from tests.support_lens import lens, measured
from tests.support_server import REPLY, read_request, scripted

pytest.importorskip("opentelemetry.exporter.otlp.proto.http", reason="the otlp extra is not installed")
PARENT = re.compile(rb"\r\ntraceparent: 00-([0-9a-f]{32})-([0-9a-f]{16})-(0[01])\r\n")


def test_the_context_of_a_request_is_its_own_and_always_the_same() -> None:
    """The worker and the exporter compute it apart from each other, and no two requests may share a trace."""
    contexts = [trace_context("run", phase, request, 0.25) for phase in (0, 1) for request in range(5000)]
    assert contexts == [trace_context("run", phase, request, 0.25) for phase in (0, 1) for request in range(5000)]
    assert len({context.trace_id for context in contexts}) == len({context.span_id for context in contexts}) == 10_000
    assert trace_context("other", 0, 0, 1.0).trace_id != contexts[0].trace_id
    assert 0.22 < sum(context.sampled for context in contexts) / 10_000 < 0.28
    assert all(trace_context("run", 0, request, 1.0).sampled for request in range(1000))
    assert not any(trace_context("run", 0, request, 0.0).sampled for request in range(1000))


@pytest.mark.parametrize(
    ("url", "endpoint"),
    [
        ("otlp://h", "http://h:4318/v1/traces"),
        ("otlp://h:99/v1/metrics", "http://h:99/v1/traces"),
        ("https://h/api/v1/metrics", "https://h/api/v1/traces"),
        ("otlps://h:99/custom", "https://h:99/custom/v1/traces"),
    ],
)
def test_spans_go_beside_the_metrics(url: str, endpoint: str) -> None:
    """A collector has one address, and a path for each signal (OTLP specification)."""
    from llm_latency_lens.exporters.otlp_spans import traces_endpoint

    assert traces_endpoint(OtlpExport(url=Secret(url))) == endpoint


def listening(heads: list[bytes]) -> Any:
    """A script that keeps each request's head and answers it."""

    def serve(sock: socket.socket, _number: int) -> None:
        while head := read_request(sock):
            heads.append(head)
            sock.sendall(REPLY)

    return serve


@contextmanager
def receiver(*, refuse_first: bool = False) -> Iterator[tuple[str, list[Any]]]:
    """An OTLP/HTTP receiver that decodes spans by the official schema; `refuse_first` answers the first push with 503."""
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    spans: list[Any] = []
    refused = [not refuse_first]

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            status = 200
            if self.path == "/v1/traces":
                if refused[0]:
                    found = ExportTraceServiceRequest.FromString(body)
                    spans.extend(s for r in found.resource_spans for scope in r.scope_spans for s in scope.spans)
                else:
                    refused[0], status = True, 400
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Quiet."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"otlp://127.0.0.1:{server.server_port}", spans
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def plan(base_url: str, collector: str, share: float) -> str:
    return json.dumps(
        {
            "target": {"name": "t", "base_url": base_url, "model": "m"},
            "requests": 40,
            "load": {"concurrency": 2},
            "export": {"otlp": {"url": collector, "spans": share}},
        }
    )


def attributes(span: Any) -> dict[str, Any]:
    return {each.key: getattr(each.value, each.value.WhichOneof("value")) for each in span.attributes}


@pytest.mark.slow
@pytest.mark.parametrize("refuse_first", [False, True], ids=["taken", "refused once"])
def test_each_request_is_one_span_in_the_trace_that_its_header_named(tmp_path: Path, refuse_first: bool) -> None:
    """That is what joins our span to the server's; a push that failed is sent again, with the same ids."""
    heads: list[bytes] = []
    with scripted(listening(heads)) as server, receiver(refuse_first=refuse_first) as (collector, spans):
        (tmp_path / "plan.json").write_text(plan(server.base_url, collector, 1.0))
        summary = measured("plan.json", cwd=tmp_path)
        if not refuse_first:
            pushed = sorted(spans, key=lambda span: str(span.span_id))
            spans.clear()
            again = lens("report", "runs/latest", "--to", collector, cwd=tmp_path)
            assert (again.code, "40 spans to OTLP spans" in again.stderr) == (0, True), again.stderr
            assert sorted(spans, key=lambda span: str(span.span_id)) == pushed, "an old run can be sent to a new place"
    assert summary["requests"]["ok"] == 40
    seen = [match.groups() for head in heads if (match := PARENT.search(head))]
    assert len(seen) == len(heads) == 40
    assert {flags for _, _, flags in seen} == {b"01"}
    sent = {(span.trace_id.hex().encode(), span.span_id.hex().encode()) for span in spans}
    assert sent == {(trace, span) for trace, span, _ in seen}
    assert len(spans) == 40, "no span twice"
    for span in spans:
        known = attributes(span)
        assert (span.name, span.kind) == ("chat m", 3)  # SPAN_KIND_CLIENT
        assert known["gen_ai.operation.name"] == "chat"
        assert (known["gen_ai.provider.name"], known["gen_ai.request.model"]) == ("openai", "m")
        assert (known["gen_ai.usage.input_tokens"], known["gen_ai.usage.output_tokens"]) == (5, 3)
        assert span.start_time_unix_nano < span.end_time_unix_nano
        (first,) = [event for event in span.events if event.name == "lens.first_token"]
        ttft_ms = (first.time_unix_nano - span.start_time_unix_nano) / 1e6
        assert ttft_ms == pytest.approx(known["lens.ttft_ms"], abs=1e-3)
        assert known["gen_ai.response.time_to_first_chunk"] == pytest.approx(known["lens.ttft_ms"] / 1e3)


@pytest.mark.slow
def test_a_share_of_the_requests_becomes_spans_and_the_others_say_that_they_do_not(tmp_path: Path) -> None:
    """A server that follows the flag keeps the traces that exist here, and no others."""
    heads: list[bytes] = []
    with scripted(listening(heads)) as server, receiver() as (collector, spans):
        (tmp_path / "plan.json").write_text(plan(server.base_url, collector, 0.5))
        measured("plan.json", cwd=tmp_path)
    seen = [match.groups() for head in heads if (match := PARENT.search(head))]
    assert len(seen) == 40
    assert {trace for trace, _, flags in seen if flags == b"01"} == {s.trace_id.hex().encode() for s in spans}
    assert 0 < len(spans) < 40


@pytest.mark.slow
def test_a_header_is_sent_only_where_it_was_asked_for(tmp_path: Path) -> None:
    """A run must not change what a provider sees; a header of the user's own is left alone."""
    heads: list[bytes] = []
    with scripted(listening(heads)) as server:
        load = ["--base-url", server.base_url, "--model", "m", "--requests", "2"]
        measured(*load, cwd=tmp_path)
        measured(*load, "--traceparent", cwd=tmp_path)
        measured(*load, "--traceparent", "--header", "Traceparent: mine", cwd=tmp_path)
    assert not any(b"traceparent" in head.lower() for head in heads[:2])
    assert all(PARENT.search(head) for head in heads[2:4])
    assert all(b"Traceparent: mine" in head and not PARENT.search(head) for head in heads[4:])


@pytest.mark.slow
def test_a_real_collector_decodes_the_spans(tmp_path: Path) -> None:
    """rotel, which knows nothing of this tool, prints the request that it was told of."""
    found = importlib.util.find_spec("rotel")
    if found is None or found.origin is None:
        pytest.skip("rotel, a development dependency, is not installed")
    rotel = str(Path(found.origin).with_name("rotel-agent"))
    endpoint, grpc, log = free_port(), free_port(), tmp_path / "rotel.log"
    command = [rotel, "start", "--debug-log", "traces", "--debug-log-verbosity", "detailed", "--exporter", "blackhole"]
    command += ["--otlp-http-endpoint", f"127.0.0.1:{endpoint}", "--otlp-grpc-endpoint", f"127.0.0.1:{grpc}"]
    heads: list[bytes] = []
    collector = Daemon(command, log, lambda: answers(f"http://127.0.0.1:{endpoint}/"))
    try:
        with scripted(listening(heads)) as server:
            (tmp_path / "plan.json").write_text(plan(server.base_url, f"otlp://127.0.0.1:{endpoint}", 1.0))
            measured("plan.json", cwd=tmp_path)
    finally:
        collector.stop()
    text = re.sub(r"\x1b\[[0-9;]*m", "", log.read_text())
    seen = {match[1].decode() for head in heads if (match := PARENT.search(head))}
    assert seen <= set(re.findall(r"[0-9a-f]{32}", text.lower()))
    assert "gen_ai.request.model" in text
