"""`lens quick`: the first measurement of somebody who knows no flag, against real servers."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from llm_latency_lens.cli.quick.command import PORTS, only_server
from llm_latency_lens.cli.quick.servers import Found, Unreachable, base_urls, local_servers, models_at, server_at
from llm_latency_lens.collectors.snapshot import Ci95, Distribution, Reason, Report, Requests, Run, Throughput, Verdict
from llm_latency_lens.engine.errors import PlanError, TargetError
from llm_latency_lens.exporters.answer import answer
from tests.support_databases import free_port
from tests.support_lens import lens
from tests.support_llama import llama_server
from tests.support_simulator import simulator


@contextmanager
def page(status: int, body: bytes, headers: dict[str, str] | None = None) -> Iterator[tuple[int, list[str]]]:
    """An HTTP server that answers every GET alike: its port, and the request lines and keys it has seen."""
    seen: list[str] = []

    class Page(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen.append(f"{self.path} {self.headers.get('Authorization', '')}".strip())
            self.send_response(status)
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Page)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server.server_port, seen
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.slow
def test_a_newcomer_gets_three_sentences_about_a_real_server(tmp_path: Path) -> None:
    """llama.cpp with a tiny model: nothing but its URL is known, the model's name comes from the server."""
    with llama_server(tmp_path) as url:
        ended = lens("quick", url, "--duration", "2s", cwd=tmp_path)
    assert ended.code == 0, ended.stderr
    sentences = ended.stdout.splitlines()
    assert len(sentences) == 3
    assert sentences[0].startswith("The first token comes after ")
    assert "tokens/s over all streams together" in sentences[1]
    assert sentences[2].startswith("This is from ")
    summary = json.loads((tmp_path / "runs/latest/summary.json").read_bytes())
    assert summary["requests"]["ok"] > 0
    assert summary["targets"][0]["model"] in ended.stderr


def test_finding_servers_starts_no_completion() -> None:
    """A completion on a stranger's GPU could evict what it serves; the list of models costs nothing."""
    with simulator() as sim:
        port, silent = sim.port, free_port()
        found = local_servers({port: "a simulator", silent: "nobody"})
        assert found == [Found(f"http://127.0.0.1:{port}/v1", ("sim",), kind="a simulator")]
        assert sim.stats()["requests"] == 0


def test_a_page_that_lists_no_models_is_no_server() -> None:
    """Port 8000 and 8080 are anybody's: a web page, a proxy or a database there must not be measured."""
    for status, body in ((200, b"<html>"), (200, b'{"data": 5}'), (200, b'{"data": [1]}'), (404, b""), (500, b"{}")):
        with page(status, body) as (port, _):
            assert local_servers({port: "x"}) == []
    with page(200, b'{"data": []}') as (port, _):
        answered = models_at(f"http://127.0.0.1:{port}/v1")
        assert isinstance(answered, Unreachable)
        assert "load a model first" in answered.why
    with page(401, b"") as (port, _):
        (found,) = local_servers({port: "x"})
        assert (found.models, found.refused) == ((), 401)


def test_a_key_is_sent_to_the_url_that_was_given_and_never_on_a_redirect(tmp_path: Path) -> None:
    """The key of a hosted API must not reach whatever listens on a port, nor the host that a redirect names."""
    with page(200, b'{"data": [{"id": "m"}]}') as (port, seen):
        local_servers({port: "x"})
        assert seen == ["/v1/models"]
        url = f"http://127.0.0.1:{port}"
        with page(302, b"", {"Location": f"{url}/v1/models"}) as (other, _):
            found = server_at(f"http://127.0.0.1:{other}", {"Authorization": "Bearer k"})
            assert isinstance(found, Found)
            assert found.refused == 302
        assert len(seen) == 1
        ended = lens("quick", url, "--model", "other", cwd=tmp_path, env={"OPENAI_API_KEY": "k"})
        assert (ended.code, "--model other is not served" in ended.stderr) == (2, True)
        assert seen[1:] == ["/v1/models Bearer k"]


@pytest.mark.parametrize(
    ("url", "first"),
    [
        ("h:8000", "http://h:8000/v1"),
        ("http://h:8000/", "http://h:8000/v1"),
        ("https://h/api/v1/", "https://h/api/v1"),
        ("http://h/v1/chat/completions", "http://h/v1"),
        ("http://h/v1/models", "http://h/v1"),
    ],
)
def test_a_url_is_taken_as_people_write_it(url: str, first: str) -> None:
    """Half of the first attempts with an LLM tool end at a missing or doubled /v1."""
    assert base_urls(url)[0] == first


def test_what_cannot_be_measured_is_said_with_a_way_out(tmp_path: Path) -> None:
    """Exit code 2 for what the command line can change, 1 for a server that is not there."""
    with pytest.raises(PlanError, match="must begin with http"):
        base_urls("ftp://h")
    for url in ("http://user:secret@h/v1", "http://h/v1?key=secret"):
        with pytest.raises(PlanError, match="must not hold credentials") as error:
            base_urls(url)
        assert "secret" not in str(error.value)
    assert lens("quick", "", cwd=tmp_path).code == 2  # an unset variable of a script: not any server that is there
    nobody = lens("quick", f"127.0.0.1:{free_port()}", cwd=tmp_path)
    assert (nobody.code, "Connection refused" in nobody.stderr) == (1, True)
    many = json.dumps({"data": [{"id": f"m{i}"} for i in range(30)]}).encode()
    with page(200, many) as (port, _):
        ended = lens("quick", f"127.0.0.1:{port}", cwd=tmp_path)
        assert (ended.code, "lists 30 models" in ended.stderr, "--model NAME" in ended.stderr) == (2, True, True)
    with page(200, b'{"data": [{"id": "text-embed-1"}]}') as (port, _):
        assert "lists no chat model" in lens("quick", f"127.0.0.1:{port}", cwd=tmp_path).stderr
    with page(403, b"") as (port, _):
        assert "--api-key-env NAME" in lens("quick", f"127.0.0.1:{port}", cwd=tmp_path).stderr
    assert not (tmp_path / "runs").exists()
    assert {8000, 30000, 8080, 11434, 1234} <= set(PORTS)


def test_of_several_servers_one_has_to_be_chosen() -> None:
    """Measuring one of two at random would load a machine that somebody else uses; each is named as it is to be typed."""
    one, two = Found("http://127.0.0.1:8000/v1", ("a",)), Found("http://127.0.0.1:8080/v1", ("b", "c"))
    closed = Found("http://127.0.0.1:5000/v1", refused=401)
    assert only_server([one, closed]) == one
    with pytest.raises(PlanError, match="2 servers answer") as error:
        only_server([one, two])
    assert "lens quick http://127.0.0.1:8080/v1   # b, c" in str(error.value)
    with pytest.raises(TargetError, match=r"lens quick http://127\.0\.0\.1:5000/v1 --api-key-env NAME"):
        only_server([closed])
    with pytest.raises(TargetError, match=r"(?s)8000 \(vLLM.*11434 \(Ollama\).*lens run --simulate") as none:
        only_server([])
    assert "lens quick http://HOST:PORT" in str(none.value)


def report(state: str, ok: int, p99_high: float | None) -> Report:
    ttft = Distribution(count=ok, p50=51.0, p95=1234.0, ci95=Ci95(p50=(50.0, 52.0), p99=(1300.0, p99_high)))
    return Report(
        run=Run(id="r", name="quick", version="0", started_at="", duration_s=20.0),
        verdict=Verdict(
            state=state, reasons=[Reason("x", "a note", note=True), Reason("lateness", "the client was late")]
        ),
        requests=Requests(sent=ok, ok=ok, failed={"http_overloaded": 2}),
        throughput=Throughput(output_tokens_per_s=190.0),
        metrics={"ttft_ms": ttft, "decode_tps": Distribution(count=ok, p50=50.0)},
    )


def test_the_last_sentence_says_what_limits_the_numbers() -> None:
    """An answer in three sentences is quoted: it must not sound surer than the verdict."""
    first, flow, sure = answer(report("VALID", 400, 1400.0))
    assert first == "The first token comes after 51.00 ms (median; 19 of 20 requests have it within 1.23 s)."
    assert "50.0 per second in each stream; the server made 190.0 output tokens/s" in flow
    assert "2 more failed: http_overloaded 2" in sure
    assert "[50.00, 52.00] ms" in sure
    assert sure.endswith("this client was not what limited it.")
    assert "a p99 needs more requests" in answer(report("VALID", 100, None))[2]
    assert answer(report("INVALID", 100, None))[2].endswith(": the client was late.")
    assert "too few" in answer(report("INSUFFICIENT", 9, None))[2]
