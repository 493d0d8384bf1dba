"""The dashboards of systemd/grafana against real databases that hold what the exporters write."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from time import monotonic, sleep

import pytest

from llm_latency_lens.engine.plan.plan import InfluxExport, PrometheusExport, Secret
from llm_latency_lens.exporters.influxdb import InfluxDB
from llm_latency_lens.exporters.prometheus import Prometheus
from tests.support_databases import Influx, PrometheusServer
from tests.support_runs import START_NS, FakeRun

pytestmark = pytest.mark.slow

FOLDER = Path(__file__).resolve().parent.parent / "systemd" / "grafana"


def queries(name: str, key: str) -> Iterator[tuple[str, str]]:
    """Every query of a dashboard with the title of its panel, or the name of its annotation."""
    board = json.loads((FOLDER / f"{name}.json").read_text())
    for panel in board["panels"]:
        for target in panel["targets"]:
            yield panel["title"], target[key]
    for annotation in board["annotations"]["list"]:
        yield annotation["name"], annotation[key]


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
        destination.end(run.report())
        destination.close()
        span = f"time >= {START_NS} AND time <= {START_NS + 60 * 10**9}"
        for title, asked in queries("influxdb", "query"):
            query = asked.replace("$timeFilter", span).replace("$__interval", "5s")
            query = query.replace("$run", run.id).replace("$target", ".*")
            rows = database.query(query)
            values = [v for row in rows for key, v in row.items() if key != "time" and isinstance(v, int | float)]
            assert values, f"{title}: {query}"
        board = json.loads((FOLDER / "influxdb.json").read_text())
        runs = next(v for v in board["templating"]["list"] if v["name"] == "run")
        assert [row["value"] for row in database.query(runs["query"])] == [run.id]


@pytest.mark.parametrize("native", [False, True], ids=["classic", "native"])
def test_every_query_of_the_prometheus_dashboard_finds_what_the_page_shows(tmp_path: Path, *, native: bool) -> None:
    """A renamed series would leave an empty panel that nobody connects with the rename, and a Prometheus that keeps
    native histograms has no `_bucket`."""
    run = FakeRun(ticks=24, targets=2, servers=True)
    page = Prometheus(PrometheusExport(url=Secret("prometheus://:0")), name="fake", models={}).start()
    try:
        with PrometheusServer(tmp_path, page.port, native=native) as server:
            ticks = list(run.snapshots())
            for part in (ticks[:16], ticks[16:]):  # a rate needs two scrapes
                page.write(part)
                deadline = monotonic() + 20
                while not server.query(f"lens_run_tick == {part[-1].tick}"):
                    assert monotonic() < deadline, server.targets()
                    sleep(0.1)
            page.end(run.report())
            while not server.query("lens_slo"):
                assert monotonic() < deadline, server.targets()
                sleep(0.1)
            for title, asked in queries("prometheus", "expr"):
                expression = asked.replace("$__rate_interval", "1m").replace("$target", ".*")
                assert server.query(expression), f"{title}: {expression}"
    finally:
        page.close()
