"""The ceiling, the file of a host, and what a run makes of it."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_latency_lens.cli.calibrate.conditions import Conditions, full_grid, quick_grid
from llm_latency_lens.cli.calibrate.session import Extent, Session
from llm_latency_lens.collectors.calibration.ceiling import CeilingSearch
from llm_latency_lens.collectors.calibration.result import Calibration, Ceiling, Point, Quantiles
from llm_latency_lens.collectors.calibration.stored import excess, load, nearest, path_of, store
from llm_latency_lens.collectors.host import describe
from llm_latency_lens.engine import __version__
from llm_latency_lens.engine.errors import OutputError
from llm_latency_lens.engine.planfile.build import make_plan
from llm_latency_lens.engine.planfile.document import Source
from tests.support_lens import lens

HASH = "0123456789abcdef"


def point(streams: int, events_per_s: float, *, tls: bool = False, stalled: bool = False) -> Point:
    known = Quantiles(p50=4.0, p99=20.0, p99_9=50.0, max=80.0)
    return Point(
        streams=streams,
        events_per_s=events_per_s,
        transport="tls" if tls else "tcp",
        mode="steady",
        client_stalls=stalled,
        arrival_error_us=known,
        ttft_error_us=known,
        itl_error_us=known,
        send_to_wire_us=known,
        lateness_us=known,
        cpu_us_per_event=40.0,
        coalesced_share=0.0,
        censored_inside_share=None,
        discarded_share=0.0,
        stamps="segment",
        events=1000,
    )


def calibration(host_hash: str = HASH, version: str = __version__, streams: int = 1000) -> Calibration:
    return Calibration(
        host_hash=host_hash,
        host={},
        version=version,
        at="2026-11-24T20:00:00+00:00",
        quick=True,
        points=[
            point(10, 200),
            point(100, 2_000),
            point(100, 2_000, tls=True),
            point(100, 2_000, stalled=True),
            point(10, 200, stalled=True),
        ],
        ceiling=Ceiling(
            events_per_s_per_worker=20_000.0, requests_per_s_per_worker=4_000.0, streams_per_worker=streams
        ),
        notes=[],
    )


# --- the search -----------------------------------------------------------------------------------------------------


@given(st.floats(100, 1e6), st.floats(0.2, 5), st.floats(0.02, 0.1))
def test_the_search_finds_the_ceiling_wherever_it_begins(true: float, off: float, precision: float) -> None:
    """The first guess comes from one run's CPU time and may be far off."""
    search = CeilingSearch(true * off, precision=precision)
    trials = 0
    while (rate := search.next_rate()) is not None:
        search.add(rate, "holds" if rate <= true else "broken")
        trials += 1
        assert trials < 40
    assert search.bounded
    assert search.value == pytest.approx(true, rel=precision * 1.05)


def test_a_good_guess_needs_two_trials() -> None:
    """Each trial is a run of seconds, and `--quick` has less than a minute."""
    search = CeilingSearch(1000, precision=0.07)
    for outcome in ("holds", "broken"):
        rate = search.next_rate()
        assert rate is not None
        search.add(rate, outcome)  # type: ignore[arg-type]
    assert search.next_rate() is None


def test_disturbed_trials_say_nothing_and_end() -> None:
    """On a machine that never comes to rest the search must neither guess nor go on for ever."""
    search = CeilingSearch(1000, precision=0.05)
    for _ in range(10):
        rate = search.next_rate()
        if rate is None:
            break
        search.add(rate, "disturbed")
    assert search.next_rate() is None
    assert search.value is None


def test_where_the_server_is_full_the_ceiling_is_a_lower_bound() -> None:
    """The client's own limit was not reached: the number must not pass for it."""
    search = CeilingSearch(1000, precision=0.05)
    search.add(950, "holds")
    search.add(1050, "server_limited")
    assert (search.next_rate(), search.value, search.bounded) == (None, 950, False)


# --- the file -------------------------------------------------------------------------------------------------------


def test_the_file_is_where_xdg_says_and_comes_back_as_it_was(tmp_path: Path) -> None:
    """A relative path does not count by the XDG Base Directory Specification."""
    environ = {"XDG_STATE_HOME": str(tmp_path / "state"), "HOME": str(tmp_path)}
    path = store(calibration(), environ)
    assert path == tmp_path / "state" / "llm-latency-lens" / "calibration" / f"{HASH}.json"
    assert load(HASH, __version__, environ).calibration == calibration()
    for given_path in ("", "state"):
        elsewhere = path_of(HASH, {"XDG_STATE_HOME": given_path, "HOME": str(tmp_path)})
        assert elsewhere == tmp_path / ".local/state/llm-latency-lens/calibration" / f"{HASH}.json"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (msgspec.json.encode(calibration(version="0.0.1")), "by version 0.0.1, this is"),
        (b'{"schema": 1, "version": 2}', "damaged"),
        (msgspec.json.encode(calibration())[:-30], "damaged"),
        (b"\xff\xfe", "damaged"),
        (msgspec.json.encode(calibration(host_hash="f" * 16)), "is of host ffffffffffffffff"),
    ],
)
def test_a_file_that_cannot_be_used_is_named_and_ignored(tmp_path: Path, content: bytes, said: str) -> None:
    """A run never depends on it, and never quotes another version's numbers without a word."""
    environ = {"XDG_STATE_HOME": str(tmp_path)}
    path = path_of(HASH, environ)
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    loaded = load(HASH, __version__, environ)
    assert loaded.calibration is None
    assert said in loaded.ignored
    assert str(path) in loaded.ignored


def test_a_place_that_cannot_be_written_is_one_error_with_the_way_out(tmp_path: Path) -> None:
    """After ten minutes of measuring, the message is all that is left."""
    (tmp_path / "llm-latency-lens").write_text("a file")
    with pytest.raises(OutputError, match="XDG_STATE_HOME"):
        store(calibration(), {"XDG_STATE_HOME": str(tmp_path)})


def test_the_nearest_point_is_of_the_same_transport_and_stalls() -> None:
    """Errors over TLS are others than over TCP, however alike the load is."""
    points = calibration().points
    assert nearest(points, streams=8, events_per_s=150, transport="tcp", stalled=False) == points[0]
    assert nearest(points, streams=8, events_per_s=150, transport="tls", stalled=False) == points[2]
    assert nearest(points, streams=900, events_per_s=9e4, transport="tcp", stalled=True) == points[3]
    assert nearest([], streams=1, events_per_s=1, transport="tcp", stalled=False) is None


@pytest.mark.parametrize(
    ("load_keys", "others", "said"),
    [
        ({"concurrency": 3000}, {}, "3000 streams at a time, 1000 are calibrated"),
        ({"concurrency": 1000}, {}, ""),
        ({"rate": {"from": 10, "to": 9000}}, {}, "9000 requests/s, 4000 are calibrated"),
        ({"rate": 300}, {"output_tokens": 100}, "30000 events/s, 20000 are calibrated"),
        ({"rate": 300}, {}, ""),
    ],
)
def test_a_plan_beyond_the_ceiling_is_named_by_what_it_asks(load_keys: dict, others: dict, said: str) -> None:  # type: ignore[type-arg]
    """What a plan does not say, as the rate of a server's events, is not guessed."""
    document = {"targets": [{"base_url": "http://127.0.0.1:1/v1", "model": "m"}], "load": load_keys, "duration": "1s"}
    plan = make_plan(document | ({"workload": others} if others else {}), Source(), {})
    words = excess(plan, 1, calibration())
    assert said in words
    assert bool(words) == bool(said)
    assert not excess(plan, 4, calibration())  # four workers bear it


# --- a run and the command ------------------------------------------------------------------------------------------


def test_a_run_quotes_the_calibration_and_is_warned_beyond_its_ceiling(tmp_path: Path) -> None:
    """The error budget of a run is what this host was measured to have, not a constant of the documentation."""
    environ = {"XDG_STATE_HOME": str(tmp_path / "state")}
    store(calibration(describe()["host_hash"], streams=1), environ)
    arguments = (
        "run",
        "--simulate",
        "--concurrency",
        "2",
        "--requests",
        "4",
        "--workers",
        "1",
        "--json",
        "--output-tokens",
        "5",
    )
    ended = lens(*arguments, cwd=tmp_path, env=environ)
    assert ended.code == 0, ended.stderr
    assert "2 streams at a time, 1 are calibrated" in ended.stderr
    verdict = ended.summary["verdict"]
    quoted = verdict["error_budget"]["calibration"]
    assert (quoted["streams"], quoted["events_per_s"], quoted["arrival_error_us"]["p99"]) == (10, 200.0, 20.0)
    shown = lens("report", "runs/latest", cwd=tmp_path, env=environ)
    assert "error of arrival p50 4.0 p99 20.0 us" in shown.stdout
    assert [reason["note"] for reason in verdict["reasons"] if reason["code"] == "beyond_ceiling"] == [True]

    path = path_of(describe()["host_hash"], environ)
    path.write_bytes(b"{")
    ended = lens(*arguments, cwd=tmp_path, env=environ)
    assert ended.code == 0
    assert f"{path} is damaged and ignored" in ended.stderr
    assert ended.summary["verdict"]["error_budget"]["calibration"] is None


@pytest.mark.slow
def test_a_session_measures_what_fits_and_says_what_it_left_out(tmp_path: Path) -> None:
    """On a slow machine fewer points are a poorer result; points that are silently missing are a wrong one."""
    spoken: list[str] = []
    extent = Extent(
        [Conditions(5, 100.0, 0.3)] * 40, first=1, seconds=0.3, reply_s=0.3, precision=0.2, budget_s=6.5, spare_s=60.0
    )
    made = Session(extent, spoken.append).run(quick=True)
    assert made.host_hash == describe()["host_hash"]
    assert 1 <= len(made.points) < 40
    assert len(spoken) >= len(made.points)
    assert any(note.code == "out_of_time" for note in made.notes)
    keys = json.loads(msgspec.json.encode(made))
    assert {"schema", "host_hash", "host", "version", "at", "points", "ceiling"} <= keys.keys()
    assert keys["points"][0]["events"] > 0


def test_the_grids_hold_every_condition() -> None:
    """A transport or mode that nobody measures is quoted from another one."""
    every = full_grid()
    assert len({*every}) == len(every)
    assert {(each.mode, each.transport) for each in every} == {
        (mode, transport)
        for mode in ("steady", "burst", "heavy_tail", "coalesced", "split")
        for transport in ("tcp", "tls")
    }
    assert {each.client_stalls for each in quick_grid()} == {True, False}
    assert {each.transport for each in quick_grid()} == {"tcp", "tls"}
