"""Real servers for tests, from Debian's packages, unpacked below build/servers and never installed system-wide.

Each is a context manager on a free loopback port with its data in a folder of the test's; stopped by its pid.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import socket
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import pytest

CACHE = Path(__file__).resolve().parent.parent / "build" / "servers"
LIMIT_S = 30


def unpacked(package: str) -> Path:
    """The folder a Debian package is unpacked in; fetched once for all tests and runs."""
    if shutil.which("apt-get") is None or shutil.which("dpkg") is None:
        pytest.skip(f"{package} is taken from Debian's packages, and this is no Debian")
    CACHE.mkdir(parents=True, exist_ok=True)
    root = CACHE / package
    with (CACHE / f"{package}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not root.exists():
            _fetch(package, root)
    return root


def _fetch(package: str, root: Path) -> None:
    fresh = CACHE / f".{package}.{os.getpid()}"
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir()
    command = ["apt-get", "-o", "APT::Sandbox::User=root", "download", package]
    if subprocess.run(command, cwd=fresh, capture_output=True, check=False).returncode:
        subprocess.run(["apt-get", "update"], capture_output=True, check=True)
        subprocess.run(command, cwd=fresh, capture_output=True, check=True)
    archive = next(fresh.glob("*.deb"))
    subprocess.run(["dpkg", "-x", archive.name, "."], cwd=fresh, check=True)
    archive.unlink()
    fresh.rename(root)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Daemon:
    """A child process on a port that `ready` says yes to."""

    def __init__(self, command: list[str], log: Path, ready: Callable[[], bool]) -> None:
        with log.open("ab") as output:
            self._process = subprocess.Popen(command, stdout=output, stderr=output, stdin=subprocess.DEVNULL)
        deadline = monotonic() + LIMIT_S
        while not ready():
            if self._process.poll() is not None or monotonic() > deadline:
                self.stop()
                raise RuntimeError(f"{command[0]} did not come up:\n{log.read_text()[-2000:]}")
            sleep(0.02)

    def stop(self) -> None:
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2):
            return True
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False


class Influx:
    """InfluxDB 1.6.7 behind an nginx that turns v2 writes into v1 ones and wants `Token TOKEN`."""

    token = "s3cret-token"
    org = "lens"
    bucket = "bench"

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.port, self._inner, self._rpc = free_port(), free_port(), free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._daemons: list[Daemon] = []

    def __enter__(self) -> Influx:
        self.start()
        self.query(f'CREATE DATABASE "{self.bucket}"', post=True)
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Starts it, again too: data and ports stay."""
        folder = self._folder
        (folder / "nginx").mkdir(parents=True, exist_ok=True)
        (folder / "influx.conf").write_text(INFLUX_CONF.format(folder=folder, port=self._inner, rpc=self._rpc))
        (folder / "nginx.conf").write_text(
            NGINX_CONF.format(
                folder=folder / "nginx",
                port=self.port,
                inner=self._inner,
                token=self.token,
                # as root its workers would be `nobody`, who may not write large bodies into the test's folder
                user="user root;" if os.geteuid() == 0 else "",
            )
        )
        influxd = unpacked("influxdb") / "usr" / "bin" / "influxd"
        nginx = unpacked("nginx") / "usr" / "sbin" / "nginx"
        inner = f"http://127.0.0.1:{self._inner}/ping"
        command = [str(influxd), "-config", str(folder / "influx.conf")]
        self._daemons.append(Daemon(command, folder / "influx.log", lambda: answers(inner)))
        command = [str(nginx), "-p", str(folder / "nginx"), "-e", "stderr", "-c", str(folder / "nginx.conf")]
        self._daemons.append(Daemon(command, folder / "nginx.log", lambda: answers(f"{self.url}/ping")))

    def stop(self) -> None:
        while self._daemons:
            self._daemons.pop().stop()

    def query(self, text: str, *, post: bool = False) -> list[dict[str, Any]]:
        """The rows of an InfluxQL query, tags of the series included, times in ns."""
        query = urllib.parse.urlencode({"db": self.bucket, "epoch": "ns", "q": text})
        url = f"http://127.0.0.1:{self._inner}/query?{query}"
        with urllib.request.urlopen(url, data=b"" if post else None, timeout=30) as reply:
            result = json.load(reply)["results"][0]
        if "error" in result:
            raise RuntimeError(result["error"])
        return [
            {**series.get("tags", {}), **dict(zip(series["columns"], row, strict=True))}
            for series in result.get("series", [])
            for row in series["values"]
        ]


class VictoriaMetrics:
    """VictoriaMetrics, single node: takes v2 writes as they are."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._daemon: Daemon | None = None

    def __enter__(self) -> VictoriaMetrics:
        self._folder.mkdir(parents=True, exist_ok=True)
        binary = unpacked("victoria-metrics") / "usr" / "bin" / "victoria-metrics"
        command = [
            str(binary),
            f"-httpListenAddr=127.0.0.1:{self.port}",
            f"-storageDataPath={self._folder / 'data'}",
            "-retentionPeriod=100y",
            "-memory.allowedBytes=64MB",
        ]
        self._daemon = Daemon(command, self._folder / "victoria.log", lambda: answers(f"{self.url}/health"))
        return self

    def __exit__(self, *_: object) -> None:
        if self._daemon:
            self._daemon.stop()

    def series(self, name: str) -> list[dict[str, Any]]:
        """All series of a metric: {metric: labels, values: [...], timestamps: [ms, ...]}."""
        with urllib.request.urlopen(f"{self.url}/internal/force_flush", timeout=10):
            pass
        query = urllib.parse.urlencode({"match[]": name})
        with urllib.request.urlopen(f"{self.url}/api/v1/export?{query}", timeout=10) as reply:
            return [json.loads(line) for line in reply.read().splitlines()]


class PrometheusServer:
    """Prometheus 2.42 that scrapes one page every second, with native histograms if `native`."""

    def __init__(self, folder: Path, page: int, *, native: bool = False) -> None:
        self._folder = folder
        self._page = page
        self._native = native
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._daemon: Daemon | None = None

    def __enter__(self) -> PrometheusServer:
        self._folder.mkdir(parents=True, exist_ok=True)
        config = self._folder / "prometheus.yml"
        config.write_text(PROMETHEUS_CONF.format(page=self._page))
        command = [
            str(unpacked("prometheus") / "usr" / "bin" / "prometheus"),
            f"--config.file={config}",
            f"--storage.tsdb.path={self._folder / 'data'}",
            f"--web.listen-address=127.0.0.1:{self.port}",
            *(["--enable-feature=native-histograms"] if self._native else []),
        ]
        self._daemon = Daemon(command, self._folder / "prometheus.log", self._is_ready)
        return self

    def __exit__(self, *_: object) -> None:
        if self._daemon:
            self._daemon.stop()

    def query(self, expression: str) -> list[dict[str, Any]]:
        """The instant vector of an expression, at the present."""
        query = urllib.parse.urlencode({"query": expression})
        with urllib.request.urlopen(f"{self.url}/api/v1/query?{query}", timeout=10) as reply:
            return list(json.load(reply)["data"]["result"])

    def _is_ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/-/ready", timeout=2):  # 503 until it has read its data
                return True
        except OSError:
            return False

    def targets(self) -> list[dict[str, Any]]:
        """What it scrapes, with `lastError`."""
        with urllib.request.urlopen(f"{self.url}/api/v1/targets", timeout=10) as reply:
            return list(json.load(reply)["data"]["activeTargets"])


PROMETHEUS_CONF = """
global: {{scrape_interval: 500ms, scrape_timeout: 500ms}}
scrape_configs: [{{job_name: lens, static_configs: [{{targets: ["127.0.0.1:{page}"]}}]}}]
"""
INFLUX_CONF = """
reporting-disabled = true
bind-address = "127.0.0.1:{rpc}"
[meta]
  dir = "{folder}/meta"
[data]
  dir = "{folder}/data"
  wal-dir = "{folder}/wal"
[monitor]
  store-enabled = false
[http]
  bind-address = "127.0.0.1:{port}"
  log-enabled = false
  max-body-size = 0
"""

NGINX_CONF = """
daemon off;
{user}
pid {folder}/nginx.pid;
worker_processes 1;
events {{ worker_connections 64; }}
http {{
  access_log off;
  client_body_temp_path {folder}/body;
  proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi;
  scgi_temp_path {folder}/scgi;
  client_max_body_size 64m;
  server {{
    listen 127.0.0.1:{port};
    location = /api/v2/write {{
      default_type application/json;
      if ($http_authorization != "Token {token}") {{
        return 401 '{{"code":"unauthorized","message":"unauthorized access"}}';
      }}
      rewrite ^ /write?db=$arg_bucket&precision=$arg_precision? break;
      proxy_pass http://127.0.0.1:{inner};
    }}
    location / {{ proxy_pass http://127.0.0.1:{inner}; }}
  }}
}}
"""
