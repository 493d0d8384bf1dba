"""The dashboards of systemd/grafana against real databases that hold what the exporters write."""

from __future__ import annotations

import json
import re
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llm_latency_lens.engine.plan.plan import InfluxExport, Secret
from llm_latency_lens.exporters.influxdb import InfluxDB
from llm_latency_lens.exporters.prometheus_page import Page
from tests.support_databases import Influx, VictoriaMetrics
from tests.support_runs import START_NS, FakeRun

pytestmark = pytest.mark.slow

FOLDER = Path(__file__).resolve().parent.parent / "systemd" / "grafana"


def panels(name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every query of a dashboard with its panel's title."""
    for panel in json.loads((FOLDER / f"{name}.json").read_text())["panels"]:
        for target in panel["targets"]:
            yield panel["title"], target


@pytest.mark.parametrize("name", ["influxdb", "prometheus"])
def test_a_dashboard_asks_for_its_data_source_and_has_panels_that_do_not_overlap(name: str) -> None:
    """A dashboard is imported into a Grafana whose data source has another name."""
    board = json.loads((FOLDER / f"{name}.json").read_text())
    assert board["templating"]["list"][0]["query"] == name
    taken: set[tuple[int, int]] = set()
    for panel in board["panels"]:
        assert panel["datasource"]["uid"] == "${datasource}"
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken
        taken |= cells
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])


def test_every_query_of_the_influxdb_dashboard_finds_what_the_exporter_writes(tmp_path: Path) -> None:
    """A renamed field would leave an empty panel that nobody connects with the rename."""
    run = FakeRun(ticks=30, targets=2, servers=True)
    with Influx(tmp_path) as database:
        options = {"org": database.org, "bucket": database.bucket, "token": Secret(database.token)}
        destination = InfluxDB(InfluxExport(url=Secret(database.url), **options), name="fake")
        destination.write(list(run.snapshots()))
        destination.close()
        span = f"time >= {START_NS} AND time <= {START_NS + 60 * 10**9}"
        for title, target in panels("influxdb"):
            query = target["query"].replace("$timeFilter", span).replace("$__interval", "5s")
            query = query.replace("$run", run.id).replace("$target", ".*")
            rows = database.query(query)
            values = [v for row in rows for key, v in row.items() if key != "time" and isinstance(v, int | float)]
            assert values, f"{title}: {query}"
        board = json.loads((FOLDER / "influxdb.json").read_text())
        runs = next(v for v in board["templating"]["list"] if v["name"] == "run")
        assert [row["value"] for row in database.query(runs["query"])] == [run.id]


def test_every_query_of_the_prometheus_dashboard_finds_what_the_page_shows(tmp_path: Path) -> None:
    """A renamed series would leave an empty panel that nobody connects with the rename."""
    totals, now = Page({}, "fake"), time.time() - 120  # it hides the newest half minute from queries
    with VictoriaMetrics(tmp_path) as database:
        for tick in FakeRun(ticks=20, targets=2, servers=True).snapshots():
            totals.add(tick)
            at = int((now - (20 - tick.tick)) * 1000)
            body = re.sub(r"(?m)^([^#\n].*)$", rf"\1 {at}", totals.text())
            url = f"{database.url}/api/v1/import/prometheus"
            with urllib.request.urlopen(urllib.request.Request(url, data=body.encode()), timeout=10):
                pass
        with urllib.request.urlopen(f"{database.url}/internal/force_flush", timeout=10):
            pass
        for title, target in panels("prometheus"):
            expression = target["expr"].replace("$__rate_interval", "15s").replace("$target", ".*")
            query = urllib.parse.urlencode({"query": expression, "time": f"{now - 1:.3f}"})
            with urllib.request.urlopen(f"{database.url}/api/v1/query?{query}", timeout=10) as reply:
                result = json.load(reply)["data"]["result"]
            assert result, f"{title}: {expression}"
