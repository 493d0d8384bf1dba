from __future__ import annotations

import csv
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner

from llm_latency_lens.cli.report import report
from llm_latency_lens.collectors.snapshot import ENCODER, Ci95
from llm_latency_lens.engine.errors import LensError, OutputError
from llm_latency_lens.exporters import csv as lens_csv
from tests.support_hdr import write_hlog
from tests.support_runs import FakeRun


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    FakeRun(ticks=10, targets=2).write(folder, records=300)
    return folder


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_every_request_is_a_row_with_the_keys_of_its_record(run_dir: Path, tmp_path: Path) -> None:
    assert lens_csv.write_requests(run_dir, tmp_path / "r.csv") == 300
    rows = read(tmp_path / "r.csv")
    reported = list(FakeRun(ticks=10, targets=2).records(300))
    assert [list(row) for row in rows] == [list(record) for record in reported]
    assert [float(row["ttft_ms"]) for row in rows] == [record["ttft_ms"] for record in reported]
    assert rows[0]["message"] == reported[0]["message"]  # quotes, commas and line breaks
    assert rows[0]["output_tokens"] == ""  # absent is empty, not 0


def test_metrics_of_every_part_come_with_their_intervals(tmp_path: Path) -> None:
    """What people compare in a spreadsheet are the percentiles of runs, and without intervals they compare noise."""
    made = FakeRun(ticks=10, targets=2).write(tmp_path)
    ttft = made.metrics["ttft_ms"]
    ttft.n_eff, ttft.ci95 = 300.5, Ci95(p99=(50.5, None))
    (tmp_path / "summary.json").write_bytes(ENCODER.encode(made))
    lens_csv.write_metrics(tmp_path, tmp_path / "m.csv")
    rows = read(tmp_path / "m.csv")
    assert {row["part"] for row in rows} == {"run", "phase", "target"}
    (row,) = (row for row in rows if (row["part"], row["metric"]) == ("run", "ttft_ms"))
    assert (float(row["p99"]), int(row["count"])) == (ttft.p99, ttft.count)
    assert (row["n_eff"], row["p99_low"], row["p99_high"], row["p50_low"]) == ("300.5", "50.5", "", "")


def test_rotated_parts_come_in_order(run_dir: Path, tmp_path: Path) -> None:
    for name, first in (
        ("requests.000000000000.msgpack", 0),
        ("requests.000000000002.msgpack", 2),
        ("requests.msgpack", 4),
    ):
        (tmp_path / name).write_bytes(b"".join(msgspec.msgpack.encode({"request": first + k}) for k in range(2)))
    lens_csv.write_requests(tmp_path, tmp_path / "r.csv")
    assert [row["request"] for row in read(tmp_path / "r.csv")] == list("012345")


def test_text_that_a_spreadsheet_would_run_gets_an_apostrophe(tmp_path: Path) -> None:
    """A server's error message such as `=HYPERLINK(...)` must not be a formula when the file is opened."""
    cells = {"a": "=1+1", "b": "+1", "c": "-x", "d": "@SUM(A1)", "e": "\tx", "f": -1.5, "g": "a=b", "h": ""}
    (tmp_path / "requests.msgpack").write_bytes(msgspec.msgpack.encode(cells))
    lens_csv.write_requests(tmp_path, tmp_path / "r.csv")
    assert [*read(tmp_path / "r.csv")[0].values()] == ["'=1+1", "'+1", "'-x", "'@SUM(A1)", "'\tx", "-1.5", "a=b", ""]


def test_a_torn_last_record_is_left_out(run_dir: Path, tmp_path: Path) -> None:
    whole = (run_dir / "requests.msgpack").read_bytes()
    (tmp_path / "requests.msgpack").write_bytes(whole[:-5])
    assert lens_csv.write_requests(tmp_path, tmp_path / "r.csv") == 299


def test_every_interval_is_a_row_equal_to_the_tick(run_dir: Path, tmp_path: Path) -> None:
    assert lens_csv.write_intervals(run_dir, tmp_path / "i.csv") == 20
    rows = read(tmp_path / "i.csv")
    ticks = [json.loads(line) for line in (run_dir / "intervals.jsonl").read_text().splitlines()]
    expected = [i["metrics"]["e2e_ms"]["p99"] for tick in ticks for i in tick["intervals"]]
    assert [float(row["e2e_ms_p99"]) for row in rows] == expected
    assert sum(int(row["ok"]) for row in rows) == json.loads((run_dir / "summary.json").read_bytes())["requests"]["ok"]


def test_a_folder_that_cannot_be_written_is_a_clear_error(run_dir: Path) -> None:
    with pytest.raises(OutputError, match="cannot be written"):
        lens_csv.write_intervals(run_dir, Path("/proc/none/i.csv"))


@pytest.mark.slow
def test_many_requests_are_written_in_constant_memory(tmp_path: Path) -> None:
    """Prints what a million rows would cost; the bound holds for any number."""
    one = list(FakeRun(ticks=10, targets=2).records(1000))
    block = b"".join(msgspec.msgpack.encode(record) for record in one)
    with (tmp_path / "requests.msgpack").open("wb") as file:
        for _ in range(100):
            file.write(block)
    code = (
        "import sys, resource; from pathlib import Path; from llm_latency_lens.exporters import csv, rundir;"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss;"
        "n = csv.write_requests(Path(sys.argv[1]), Path(sys.argv[1]) / 'r.csv');"
        "print(n, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    began = time.perf_counter()
    out = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True).stdout
    count, grown_kb = (int(word) for word in out.split())
    as_json = sum(len(msgspec.json.encode(record)) for record in one)
    print(
        f"100,000 rows in {time.perf_counter() - began:.1f} s; MessagePack is {len(block) / as_json:.2f} of JSON's size"
    )
    assert count == 100_000
    assert grown_kb < 20_000
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss > 0


def test_report_tells_a_run_in_every_format(run_dir: Path, tmp_path: Path) -> None:
    write_hlog(run_dir, {"ttft_ms/target-0": [[50_000_000] * 3, [60_000_000]]})
    pytest.importorskip("pyarrow", reason="the parquet extra is not installed")
    for to, files in {
        "csv": ["intervals.csv", "requests.csv"],
        "parquet": ["requests.parquet"],
        "html": ["report.html"],
        "hdr": ["ttft_ms-target-0.hgrm"],
    }.items():
        done = CliRunner().invoke(report, [str(run_dir), "--to", to, "--out", str(tmp_path)], catch_exceptions=False)
        assert done.exit_code == 0
        assert all((tmp_path / name).stat().st_size for name in files)
    assert "60.0" in (tmp_path / "ttft_ms-target-0.hgrm").read_text()
    import pyarrow.parquet as pq

    table = pq.read_table(tmp_path / "requests.parquet").to_pylist()
    assert table == list(FakeRun(ticks=10, targets=2).records(300))


def test_report_as_json_prints_the_summary_and_nothing_else(run_dir: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "llm_latency_lens.cli", "report", str(run_dir), "--to", "json"],
        capture_output=True,
        check=True,
    )
    assert json.loads(done.stdout) == json.loads((run_dir / "summary.json").read_bytes())
    assert done.stderr == b""


def test_report_names_what_it_does_not_know(run_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(LensError, match="'xls' does not exist"):
        report.main([str(run_dir), "--to", "xls"], standalone_mode=False)
    with pytest.raises(LensError, match="has no summary"):
        report.main([str(tmp_path), "--to", "json"], standalone_mode=False)
