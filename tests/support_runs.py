"""Fake runs whose numbers hang together: intervals, report, records and a live segment directory, from one seed."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from llm_latency_lens.collectors.histogram import Histogram
from llm_latency_lens.collectors.series import Series, Tally
from llm_latency_lens.collectors.snapshot import (
    ENCODER,
    Client,
    ErrorSample,
    Interval,
    Lag,
    PhaseReport,
    Reason,
    Report,
    Run,
    Server,
    Slo,
    Snapshot,
    TargetReport,
    Verdict,
)
from llm_latency_lens.collectors.statistics import buckets, native_buckets, slice_of
from llm_latency_lens.engine.metrics import SCALES, SHARES
from llm_latency_lens.engine.plan.plan import Load, Phase, Plan, Shape, Target, Workload
from llm_latency_lens.engine.records.record import Outcome
from llm_latency_lens.engine.runs.manifest import Manifest, PhaseTimes

START_NS = 1_700_000_000_000_000_000
SECOND = 1_000_000_000
RATE = 20
PRICES_OF = "2025-10-01"


class FakeRun:
    """`ticks` seconds of `targets` targets at 20 requests/s each, written out piece by piece or whole."""

    def __init__(
        self,
        *,
        ticks: int = 30,
        targets: int = 2,
        names: Sequence[str] = (),
        seed: int = 7,
        rate: int = RATE,
        name: str = "fake",
        servers: bool = False,
    ) -> None:
        self.ticks = ticks
        self.names = [*names] or [f"target-{k}" for k in range(targets)]
        self.rate = rate
        self.name = "fake"
        self.servers = servers  # does every target's own metrics page say something?
        self.id = f"20231114T221320Z-fake-ab{seed:02x}"
        self._seed = seed
        self._totals = {t: Series() for t in self.names}

    def snapshots(self) -> Iterator[Snapshot]:
        """One a tick; afterwards `report` says what they add up to."""
        rng = np.random.default_rng(self._seed)
        ok = failed = 0
        for tick in range(self.ticks):
            intervals = [self._interval(rng, k, tick) for k in range(len(self.names))]
            ok += sum(i.requests.ok for i in intervals)
            failed += sum(sum(i.requests.failed.values()) for i in intervals)
            yield Snapshot(
                run=self.id,
                tick=tick,
                wall_time_ns=START_NS + (tick + 1) * SECOND,
                elapsed_s=float(tick + 1),
                seconds=1.0,
                state="done" if tick == self.ticks - 1 else "running",
                phase="steady",
                in_flight=sum(i.in_flight for i in intervals),
                sent_total=ok + failed,
                ok_total=ok,
                failed_total=failed,
                unsent_total=0,
                planned_total=self.ticks * self.rate * len(self.names),
                cost_usd_total=ok * 0.0002,
                intervals=intervals,
                client=self._client(float(rng.uniform(8, 30)), limited_by={"steal": 1} if tick % 20 == 19 else {}),
                servers={name: self._server(tick) for name in self.names} if self.servers else {},
            )

    def _server(self, tick: int) -> Server:
        waiting = tick % 7
        return Server(
            requests_running=8,
            requests_waiting=waiting,
            kv_cache_usage=0.1 * waiting,
            gpu_utilisation=0.9,
            prompt_tokens_total=1000.0 * tick,
            generation_tokens_total=500.0 * tick,
        )

    def _interval(self, rng: np.random.Generator, k: int, tick: int) -> Interval:
        name, bad = self.names[k], int(rng.binomial(self.rate, 0.02))
        n = self.rate - bad
        wave = 1 + 0.25 * np.sin(tick / 9) + (0.9 if tick % 37 > 33 else 0)
        ttft = rng.lognormal(np.log(45 * (1 + 0.4 * k) * wave), 0.25, n)
        itl = rng.gamma(16, 20 / 16, n * 30) * wave**0.5
        e2e = ttft + itl.reshape(n, 30).sum(axis=1)
        late = rng.lognormal(np.log(0.08), 0.4, n)
        values = {
            "ttft_ms": ttft,
            "ttft_scheduled_ms": ttft + late,
            "ttfo_ms": ttft,
            "ttfb_ms": ttft * 0.4,
            "e2e_ms": e2e,
            "e2e_scheduled_ms": e2e + late,
            "tpot_ms": (e2e - ttft) / 30,
            "itl_ms": itl,
            "itl_max_ms": itl.reshape(n, 30).max(axis=1),
            "decode_tps": 30_000 / (e2e - ttft),
            "e2e_tps": 31_000 / e2e,
            "lateness_ms": late,
            "client_lateness_ms": late,
            "rtt_ms": np.full(n, 0.35),
            "server_ttft_ms": ttft - 0.35,
            "provider_ms": ttft * 0.8,
            "tokens_per_event": np.full(n, 1.5),
            "cost_usd": np.full(n, 0.0002),
        }
        series = Series()
        for metric, sample in values.items():
            series.metrics[metric] = histogram(metric, sample)
        if bad:
            series.failures[Outcome.HTTP_RATE_LIMITED] = histogram("e2e_ms", rng.uniform(3, 9, bad))
        for place, count in {
            Outcome.OK: n,
            Outcome.HTTP_RATE_LIMITED: bad,
            Tally.ATTEMPTS: self.rate,
            Tally.INPUT: 120 * n,
            Tally.OUTPUT: 31 * n,
            Tally.CACHED: 20 * n,
            **dict.fromkeys((Tally.INPUT_KNOWN, Tally.OUTPUT_KNOWN, Tally.CACHED_KNOWN, Tally.REASONING_KNOWN), n),
            Tally.BY_PROVIDER: n,
            Tally.EVENTS: 33 * n,
            Tally.GAPS: len(itl) + len(itl) // 80,
            Tally.GAPS_COALESCED: len(itl) // 80,
            Tally.STREAMS: n,
            Tally.REUSED: n - n // 40,
            Tally.OPENED: n // 40,
            Tally.PRICED: n,
            Tally.PICO_USD: 200_000_000 * n,
        }.items():
            series.tally[place] = count
        self._totals[name].add(series)
        return Interval(
            target=name,
            phase="steady",
            measured=True,
            in_flight=int(rng.integers(5, 30)),
            counts=series.counts(),
            moments=series.moments(),
            buckets=buckets(series),
            native=native_buckets(series),
            **slice_of(series, 1.0, conditions=False, date=PRICES_OF),
        )

    def _client(self, lag: float, limited_by: dict[str, int] | None = None) -> Client:
        return Client(
            limited_by=limited_by or {},
            workers=2,
            clock="kernel",
            cpu_us_per_event=14.2,
            loop_lag_us=Lag(p50=lag / 2, p99=lag, max=lag * 9),
            cpu_utilisation=0.31,
            steal_share=0.001,
            rss_mb_max=38.5,
            itl_coalesced_share=0.012,
        )

    def report(self) -> Report:
        """The summary of the ticks written so far."""
        targets = [self._target(name) for name in self.names]
        total = Series()
        for each in self._totals.values():
            total.add(each)
        seconds = float(self.ticks)
        numbers = slice_of(total, seconds, conditions=False, date=PRICES_OF)
        report = Report(
            run=Run(
                id=self.id,
                name=self.name,
                version="0.1.0",
                started_at="2023-11-14T22:13:20Z",
                duration_s=seconds,
                load="open",
                seed=7,
                plan_sha256="5f" * 32,
                host={
                    "hostname": "bench-1",
                    "kernel": "6.1.0",
                    "cpu": "AMD EPYC 9654",
                    "cores": 16,
                    "python": "3.11.2",
                },
            ),
            verdict=Verdict(
                state="VALID",
                reasons=[Reason("few_ticks", "p99.9 needs 3,688 independent requests, there are fewer")],
                error_budget={"arrival_us_p99": 14.0, "steal_share": 0.001, "clock_us": 0.15, "coalesced_share": 0.012},
            ),
            **{name: value for name, value in numbers.items() if name not in SHARES},
            targets=targets,
            slo=[
                Slo("ttft_ms.p99 <= 500", 97.3, "PASS"),
                Slo("error_rate <= 0.01", 0.0213, "FAIL"),
                Slo("request: ttft_ms <= 800 and tpot_ms <= 40", None, "UNDECIDED"),
            ],
            client=self._client(14.0),
            errors=[
                ErrorSample(
                    target=t.name,
                    outcome="http_rate_limited",
                    count=t.requests.failed.get("http_rate_limited", 0),
                    message="Rate limit reached for requests: limit 20, used 20, try again in 60 ms.",
                    http_status=429,
                )
                for t in targets
                if t.requests.failed
            ],
        )
        report.run.phases = [
            PhaseReport(
                name="steady",
                load="open",
                measured=True,
                start_s=0.0,
                duration_s=seconds,
                window_s=seconds,
                **numbers,
            )
        ]
        return report

    def _target(self, name: str) -> TargetReport:
        numbers = slice_of(self._totals[name], float(self.ticks), conditions=False, date=PRICES_OF)
        return TargetReport(name=name, provider="openai", model="llama-3.1-8b-instruct", **numbers)

    def records(self, count: int) -> Iterator[dict[str, Any]]:
        """Request maps in the form of requests.msgpack."""
        for i in range(count):
            send = START_NS + i * SECOND // self.rate
            yield {
                "request": i,
                "phase": "steady",
                "target": self.names[i % len(self.names)],
                "outcome": "ok" if i % 50 else "http_rate_limited",
                "message": None if i % 50 else 'limit "20", try, later\nplease',
                "send_ns": send,
                "ttft_ms": 45.5 + i % 7,
                "e2e_ms": 640.25 + i % 11,
                "input_tokens": 120,
                "output_tokens": 31 if i % 50 else None,
            }

    def write(self, folder: Path, *, records: int = 200) -> Report:
        """A finished run's directory; gives its report."""
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "intervals.jsonl").open("wb") as file:
            for snapshot in self.snapshots():
                file.write(ENCODER.encode(snapshot) + b"\n")
        with (folder / "requests.msgpack").open("wb") as file:
            for record in self.records(records):
                file.write(msgspec.msgpack.encode(record))
        report = self.report()
        (folder / "plan.json").write_text(json.dumps({"name": self.name, "targets": [{"name": n} for n in self.names]}))
        (folder / "summary.json").write_bytes(ENCODER.encode(report))
        return report

    def manifest(self) -> Manifest:
        targets = tuple(Target(name=n, provider="openai", base_url="http://127.0.0.1:1/v1") for n in self.names)
        load = Load(model="open", shapes=(Shape(self.ticks * SECOND, 20.0, 20.0),))
        phases = (Phase(name="steady", load=load, duration_ns=self.ticks * SECOND),)
        plan = Plan(name=self.name, targets=targets, workload=Workload(), phases=phases)
        return Manifest(
            run_id=self.id,
            run_dir="",
            version="0.1.0",
            plan=plan,
            plan_sha256="5f" * 32,
            workers=2,
            started_at="2023-11-14T22:13:20Z",
            phases=[PhaseTimes(start_ns=1)],
        )

    def write_segment(self, folder: Path, *, until: int) -> None:
        """What the live view polls, as it was after `until` ticks."""
        folder.mkdir(parents=True, exist_ok=True)
        for snapshot in self.snapshots():
            if snapshot.tick == until:
                break
        self.manifest().write(folder)
        (folder / "snapshot.json").write_bytes(ENCODER.encode(snapshot))
        (folder / "report.json").write_bytes(ENCODER.encode(self.report()))


def histogram(metric: str, values: np.ndarray) -> Histogram:
    """A sample in the metric's unit as the collector keeps it."""
    made = Histogram()
    made.record(np.rint(values * SCALES[metric]).astype(np.int64))
    return made
