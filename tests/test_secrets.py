"""Keys of every provider against a server that echoes all that it receives: no output, file, log, argv or error holds one."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from llm_latency_lens.engine.dialects.table import DIALECTS
from tests.support_lens import LENS, finish, lens, manifest_of, running

KEYS = {name: f"key-of-{name}-7f3a9c51d2" for name in DIALECTS}
OTHERS = {"HEADER": "header-secret-81b0c4", "TOKEN": "influx-secret-5d77ae", "PASSWORD": "proxy-secret-c0ffee"}
SECRETS = [*KEYS.values(), *OTHERS.values()]


class Echo(http.server.BaseHTTPRequestHandler):
    """Returns everything it was sent, in its head and its body; every other time in an error event of a stream."""

    protocol_version = "HTTP/1.1"
    count = 0

    def do_POST(self) -> None:
        reported = self.rfile.read(int(self.headers["Content-Length"])).decode("latin-1")
        said = f"{self.path} {' '.join(f'{name}: {value}' for name, value in self.headers.items())}"
        Echo.count += 1
        error = {"type": "error", "error": {"type": "invalid", "message": said}, "message": said, "asked": reported}
        if Echo.count % 2:
            self._answer(401, "application/json", json.dumps(error), said)
        else:
            self._answer(200, "text/event-stream", f"event: error\ndata: {json.dumps(error)}\n\n", said)

    def _answer(self, status: int, kind: str, text: str, said: str) -> None:
        body = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("X-Request-Id", said)
        self.send_header("X-RateLimit-Remaining", said)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None: ...


@pytest.fixture
def echo() -> Iterator[str]:
    Echo.count = 0
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Echo)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def plan_of(url: str) -> str:
    targets = []
    for name in DIALECTS:
        more = ", http: {path: /x, body: {a: b}, framing: sse, text: /t, error: /error}" if name == "http" else ""
        key = f"${{KEY_{name.replace('-', '_').upper()}}}"
        targets.append(
            f'  - {{name: {name}, provider: {name}, base_url: "{url}", model: m, api_key: "{key}", '
            f'headers: {{X-Extra: "${{HEADER}}"}}{more}}}'
        )
    return "\n".join(["targets:", *targets, "load: {rate: 40}", "duration: 3s", ""])


def variables() -> dict[str, str]:
    return OTHERS | {f"KEY_{name.replace('-', '_').upper()}": key for name, key in KEYS.items()}


def leaked(content: bytes) -> list[str]:
    return [secret for secret in SECRETS if secret.encode() in content]


@pytest.mark.slow
def test_what_a_server_echoes_is_masked_wherever_it_could_stand(echo: str, tmp_path: Path) -> None:
    (tmp_path / "plan.yaml").write_text(plan_of(echo))
    program = ["env", *(f"{name}={value}" for name, value in variables().items()), *LENS]
    with running("plan.yaml", cwd=tmp_path, program=program) as process:
        segments, _ = manifest_of(tmp_path)
        family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
        assert len(family) >= 3  # supervisor, collector, worker
        for each in family:
            assert not leaked(" ".join(each.cmdline()).encode()), each
        for path in segments.iterdir():
            assert not leaked(path.read_bytes()), path
        ended = finish(process, timeout=120)
    assert ended.code == 1
    summary = ended.summary
    assert sum(summary["requests"]["failed"].values()) == summary["requests"]["sent"] == 120
    assert len(summary["errors"]) >= len(DIALECTS)
    assert any("***" in error["message"] for error in summary["errors"])
    outputs = [ended.stdout, ended.stderr]
    for arguments in (
        ("validate", "plan.yaml"),
        ("validate", "plan.yaml", "--json"),
        ("report", "runs/latest", "--to", "csv"),
        ("report", "runs/latest", "--to", "json"),
    ):
        reported = lens(*arguments, cwd=tmp_path, env=variables())
        assert reported.code == 0, reported.stderr
        outputs += [reported.stdout, reported.stderr]
    assert not leaked("".join(outputs).encode())
    files = [path for path in (tmp_path / "runs").rglob("*") if path.is_file()]
    assert {"summary.json", "report.html", "plan.json", "requests.msgpack", "log.jsonl"} <= {
        each.name for each in files
    }
    for path in files:
        assert not leaked(path.read_bytes()), path


@pytest.mark.slow
def test_a_database_that_echoes_its_token_is_masked(echo: str, tmp_path: Path) -> None:
    export = f'export: {{influxdb: {{url: "{echo}", org: o, bucket: b, token: "${{TOKEN}}"}}}}\n'
    (tmp_path / "plan.yaml").write_text(plan_of(echo) + export)
    ended = lens("run", "plan.yaml", cwd=tmp_path, env=variables())
    assert ended.code == 1
    assert "refused the token (401" in ended.stderr
    assert not leaked((ended.stdout + ended.stderr).encode())


@pytest.mark.parametrize(
    "wrong",
    [
        'targets: [{name: t, base_url: "http://127.0.0.1:1/v1", model: m, api_key: "${HEADER}", modle: x}]',
        'targets: [{name: t, base_url: "http://127.0.0.1:1/v1", model: m, proxy: "http://me:${PASSWORD}@127.0.0.1:1"}]',
        'targets: [{name: t, base_url: "http://me:${PASSWORD}@127.0.0.1:1/v1", model: m}]',
        'targets: [{name: t, base_url: "http://127.0.0.1:1/v1", model: m, headers: {"X ${HEADER}": y, A: "${HEADER}\\n"}}]',
        'target: {base_url: "http://127.0.0.1:1/v1", model: m}\nexport: {influxdb: {url: "u", token: "${TOKEN}", x: 1}}',
    ],
)
def test_no_error_tells_a_secret(wrong: str, tmp_path: Path) -> None:
    (tmp_path / "plan.yaml").write_text(f"{wrong}\nload: {{rate: 1}}\nduration: 1s\n")
    ended = lens("run", "plan.yaml", cwd=tmp_path, env=variables())
    assert ended.code in (1, 2)
    assert len(ended.stderr.splitlines()) == 1
    assert not leaked((ended.stdout + ended.stderr).encode())
