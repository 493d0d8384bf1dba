"""Plug-ins of other packages: found by entry points, used in a real run, and named where they are broken."""

from __future__ import annotations

import itertools
import json
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llm_latency_lens.collectors.snapshot import Snapshot
from llm_latency_lens.engine.dialects import Prompt
from llm_latency_lens.engine.dialects.table import dialect_of
from llm_latency_lens.engine.errors import PlanError
from llm_latency_lens.engine.installed import install_command, plugin_of
from llm_latency_lens.engine.plan.plan import Plan, PluginExport, Secret, Target
from llm_latency_lens.engine.plan.written import masked, stripped
from llm_latency_lens.engine.planfile.build import make_plan
from llm_latency_lens.engine.planfile.document import Source
from llm_latency_lens.engine.workload import source_of
from llm_latency_lens.exporters import destination_of
from llm_latency_lens.exporters.spool.tail import Unavailable
from tests.support_lens import accounts, lens, measured
from tests.support_plugins import install, install_examples
from tests.support_server import REPLY, Scripted, read_request, scripted

TARGET: dict[str, Any] = {"name": "t", "base_url": "http://127.0.0.1:1/v1", "model": "m"}


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty directory that packages can be installed into, on sys.path."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    return folder


@pytest.fixture
def server() -> Iterator[Scripted]:
    """Answers everything with a short chat completion, and keeps the requests."""

    def serve(sock: socket.socket, number: int) -> None:
        while request := read_request(sock):
            running.requests.append(request)
            sock.sendall(REPLY)

    with scripted(serve) as running:
        yield running


def plan_of(**document: Any) -> Plan:
    return make_plan({"target": TARGET} | document, Source(), {"TOKEN": "tk-1"})


def test_a_run_uses_dialect_workload_and_exporter_of_other_packages(tmp_path: Path, server: Scripted) -> None:
    """All three at once, in the processes where each belongs: planner, worker, exporter."""
    install_examples(tmp_path / "site")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as statsd:
        statsd.bind(("127.0.0.1", 0))
        statsd.settimeout(30)
        plan = {
            "target": TARGET | {"base_url": server.base_url, "provider": "plain-chat"},
            "workload": {"plugin": "arithmetic", "options": {"limit": 7}},
            "requests": 12,
            "load": {"concurrency": 2},
            "workers": 2,
            "export": {
                "plugin": {
                    "name": "statsd",
                    "url": f"statsd://127.0.0.1:{statsd.getsockname()[1]}",
                    "options": {"prefix": "night"},
                }
            },
        }
        (tmp_path / "plan.json").write_text(json.dumps(plan))
        summary = measured("plan.json", cwd=tmp_path, env={"PYTHONPATH": str(tmp_path / "site")})
        sent = 0
        while sent < 12:
            datagram = statsd.recv(1000).decode()
            assert datagram.startswith("night.ok:")
            sent += int(datagram.removeprefix("night.ok:").removesuffix("|c"))
    accounts(summary["requests"])
    assert summary["requests"]["ok"] == 12
    assert summary["tokens"]["output"] == 3 * 12  # of the usage in REPLY
    assert summary["targets"][0]["provider"] == "plain-chat"
    asked = {json.loads(each.partition(b"\r\n\r\n")[2])["messages"][0]["content"] for each in server.requests}
    assert len(asked) > 6  # 12 draws of 49 sums: each slot has its own
    assert all(text.startswith("What is ") for text in asked)


def test_a_url_with_the_name_of_an_exporter_is_enough(site: Path) -> None:
    """`--export statsd://HOST:PORT`, as for the exporters of this package."""
    install_examples(site)
    plan = plan_of(export="statsd://127.0.0.1:8125")
    assert plan.export == (PluginExport(name="statsd", url=Secret("statsd://127.0.0.1:8125")),)
    with pytest.raises(PlanError, match=r"export must begin with influxdb://, prometheus://, otlp://, statsd://"):
        plan_of(export="graphite://h")


def test_options_are_written_as_the_plan_had_them(site: Path) -> None:
    """plan.json runs again, and neither it nor run.json holds what came from the environment."""
    install_examples(site)
    options = {"limit": 5, "password": "written out", "other": "${TOKEN}"}
    plan = plan_of(
        workload={"plugin": "arithmetic", "options": options},
        export={"plugin": {"name": "statsd", "url": "statsd://h:1", "options": options}},
    )
    document = masked(plan)
    assert document["workload"]["prompts"] == {"plugin": "arithmetic"}
    assert document["workload"]["options"] == {"limit": 5, "password": "***", "other": "${TOKEN}"}
    assert document["export"][0]["plugin"]["options"] == document["workload"]["options"]
    bare = stripped(plan)
    assert "tk-1" not in str(bare)
    assert "written out" not in str(bare)
    del document["workload"]["options"]["password"], document["export"][0]["plugin"]
    document["export"] = []
    again = make_plan(document, Source(), {"TOKEN": "tk-1"})
    assert again.workload.options == {"limit": 5, "other": "tk-1"}


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"workload": {"plugin": "sums"}}, r"has the workload 'sums' .*there are: arithmetic.*\(workload\.plugin\)"),
    ({"workload": {"prompt": "p", "options": {"a": 1}}}, "options is for a workload of an installed package"),
    ({"workload": {"plugin": "arithmetic", "options": 3}}, "options must be a mapping"),
    ({"export": {"plugin": {"url": "statsd://h:1"}}}, "plugin needs name"),
    ({"export": {"plugin": {"name": "nope"}}}, r"has the exporter 'nope' .*there are: statsd"),
    ({"target": TARGET | {"provider": "plain-chatt"}}, "did you mean 'plain-chat'"),
]


@pytest.mark.parametrize(("document", "message"), WRONG, ids=[message[:20] for _, message in WRONG])
def test_a_wrong_name_or_option_is_an_error_that_lists_what_there_is(
    document: dict[str, Any], message: str, site: Path
) -> None:
    install_examples(site)
    with pytest.raises(PlanError, match=message):
        plan_of(**document)


@pytest.mark.parametrize(
    ("module", "problem"),
    [
        ("import no_such_module", "cannot be loaded from broken:made: ModuleNotFoundError"),
        ("made = 3", "is no dialect: it has no name, no default_base_url"),
        ("class made:\n    def __init__(self): raise OSError('no licence')", "constructor: OSError: no licence"),
        ("", "cannot be loaded from broken:made: ModuleNotFoundError"),
    ],
)
def test_a_dialect_that_cannot_be_loaded_names_its_package(
    module: str, problem: str, site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The person at the prompt has written neither package: the error must say whose it is and what to do."""
    monkeypatch.delitem(sys.modules, "broken", raising=False)
    install(site, "broken", "[llm_latency_lens.dialects]\nodd = broken:made\n", module=module, version="2.1")
    with pytest.raises(PlanError, match=f"the dialect 'odd' of the package broken 2.1.*{problem}.*pip install"):
        dialect_of("odd")


def test_two_packages_with_one_name_are_an_error(site: Path) -> None:
    """Which of them is used would depend on the order of sys.path."""
    for package in ("first", "second"):
        install(site, package, "[llm_latency_lens.dialects]\nsame = x:y\n")
    with pytest.raises(PlanError, match=r"'same' is in first 1.0 and in second 1.0; uninstall one"):
        plugin_of("dialect", "same")


RAISING = """
from llm_latency_lens import Reply
class made:
    default_base_url = key_variable = None
    name = asks = measures = limits = "raising"
    def request(self, target, prompt): raise KeyError("model")
    def reply(self, target, keep_text=False): return Raising(keep_text)
class Raising(Reply):
    def event(self, data, name=b""): return None if data == b"none" else 1 / 0
    def body(self, data): return [][1]
"""


def test_what_a_reply_raises_is_its_requests_failure(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An exception in the event loop would end the worker, and its successor would meet the same event."""
    monkeypatch.delitem(sys.modules, "raising", raising=False)
    install(site, "raising", "[llm_latency_lens.dialects]\nraising = raising:made\n", module=RAISING)
    target = Target(name="t", provider="raising", base_url="http://h/v1")
    dialect = dialect_of("raising")
    for data, text in ((b"x", "ZeroDivisionError"), (b"none", "TypeError")):
        reply = dialect.reply(target)
        reply.event(data)
        assert reply.outcome.name == "STREAM_MALFORMED"
        assert text in reply.error
        assert "the package raising 1.0" in reply.error
    reply = dialect.reply(target)
    reply.body(b"")
    assert "IndexError" in reply.error
    with pytest.raises(PlanError, match=r"raising 1\.0 failed in request\(\): KeyError: 'model'"):
        dialect.request(target, Prompt(({"role": "user", "content": "x"},)))


ENDING = """
from llm_latency_lens import Ask, Prompt
class made:
    def __init__(self, options, seed): self.how = options["how"]
    def asks(self, worker, workers, first, phase):
        yield Ask(0, Prompt(({"role": "user", "content": "x"},)))
        if self.how == "odd": yield 5
        if self.how == "raise": raise RuntimeError("no more")
"""


@pytest.mark.parametrize(
    ("how", "problem"),
    [("end", "ends after slot 0"), ("odd", "yields a int"), ("raise", r"failed in asks\(\): RuntimeError: no more")],
)
def test_a_workload_that_stops_or_raises_names_its_package(
    how: str, problem: str, site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker cannot go on without its next item; it must not stand still in silence."""
    monkeypatch.delitem(sys.modules, "ending", raising=False)
    install(site, "ending", "[llm_latency_lens.workloads]\nending = ending:made\n", module=ENDING)
    plan = plan_of(workload={"plugin": "ending", "options": {"how": how}})
    with pytest.raises(PlanError, match=f"the workload 'ending' of the package ending 1.0 {problem}"):
        list(itertools.islice(source_of(plan, seed=1).items(0, 1), 3))


def test_an_exporter_that_raises_is_a_destination_that_is_down(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its ticks wait on disk, and its last error is in the console's last lines, as with a database that is away."""
    monkeypatch.delitem(sys.modules, "lost", raising=False)
    module = (
        "from llm_latency_lens import Destination\nclass made(Destination):\n    name = 'Lost'\n"
        "    def __init__(self, export, *, name, models): pass\n"
        "    def write(self, ticks): raise ValueError('full')\n    def close(self): pass\n"
    )
    install(site, "lost", "[llm_latency_lens.exporters]\nlost = lost:made\n", module=module)
    destination = destination_of(PluginExport(name="lost"), name="n", models={})
    ticks: list[Snapshot] = []
    with pytest.raises(Unavailable, match=r"the exporter 'lost' of the package lost 1\.0 failed in write\(\): .*full"):
        destination.write(ticks)
    made = "def empty(export, **names): return export\ndef strict(export): return export\n"
    problems = {"empty": "is no exporter: it has no keeps_cursor", "strict": "failed in its constructor: TypeError"}
    install(site, "wrong", "", module=made)
    for name, problem in problems.items():
        install(site, f"wrong-{name}", f"[llm_latency_lens.exporters]\n{name} = wrong:{name}\n")
        with pytest.raises(PlanError, match=rf"wrong-{name} 1\.0 {problem}"):
            destination_of(PluginExport(name=name), name="n", models={})


def test_the_list_of_providers_has_those_of_other_packages(tmp_path: Path) -> None:
    """A broken one is listed with its reason, and does not hide the others."""
    site = tmp_path / "site"
    install_examples(site)
    install(site, "broken", "[llm_latency_lens.dialects]\nodd = broken:made\n", module="import no_such_module")
    listed = lens("providers", "--json", cwd=tmp_path, env={"PYTHONPATH": str(site)})
    rows = {row["provider"]: row for row in json.loads(listed.stdout)}
    assert rows["plain-chat"]["limits"] == "an example"
    assert "the package broken 1.0" in rows["odd"]["limits"]
    assert "openai" in rows


ORIGINS = [
    (None, "pip install 'llm-latency-lens[otlp]'"),
    ({"url": "file:///src/my%20lens", "dir_info": {"editable": True}}, "pip install -e '/src/my lens[otlp]'"),
    ({"url": "file:///src/lens", "dir_info": {}}, "pip install '/src/lens[otlp]'"),
    ({"url": "file:///x.whl", "archive_info": {}}, "pip install 'llm-latency-lens[otlp] @ file:///x.whl'"),
    (
        {"url": "https://h/lens", "vcs_info": {"vcs": "git", "commit_id": "c0ffee"}},
        "pip install 'llm-latency-lens[otlp] @ git+https://h/lens@c0ffee'",
    ),
]


@pytest.mark.parametrize(("origin", "command"), ORIGINS, ids=["index", "editable", "folder", "wheel", "repository"])
def test_the_command_for_an_extra_is_right_for_where_the_package_came_from(
    origin: dict[str, Any] | None, command: str, tmp_path: Path
) -> None:
    """`pip install NAME[extra]` would fetch another version from an index, or fail, for those who have a checkout."""
    install(tmp_path, "llm-latency-lens", "")
    if origin is not None:
        (tmp_path / "llm_latency_lens-1.0.dist-info" / "direct_url.json").write_text(json.dumps(origin))
    assert install_command("otlp", [str(tmp_path)]) == command
