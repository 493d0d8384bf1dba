"""A run's ticks into InfluxDB: 1.8+, 2, 3 and VictoriaMetrics, all through `/api/v2/write`. Names here are stable.

Timestamps are the tick's `wall_time_ns`, so a tick that is sent twice overwrites itself. Every point has the tags
`run` (the run's id) and `name` (the plan's name); values that are not known are left out, never written as 0.

    lens_metric    + target, phase, measured, metric (its name in engine.metrics)
                   count:int  mean stddev min max p50 p90 p95 p99 p99_9:float  (in the metric's unit)
                   hdr:string  (with `hdr: true`: the tick's histogram, HdrHistogram V2 compressed, base64, as in
                   intervals.hlog; not with VictoriaMetrics, which has no strings)
    lens_requests  + target, phase, measured
                   planned sent ok failed cancelled unsent attempts in_flight:int
                   input_tokens output_tokens cached_tokens reasoning_tokens:int
                   requests_per_s output_tokens_per_s total_tokens_per_s events_per_s goodput_per_s goodput_share:float
                   cost_usd itl_coalesced_share ttft_coalesced_share connection_reused_share:float
    lens_outcome   + target, phase, measured, outcome (ok, cancelled, each failure)
                   count:int  e2e_mean_ms e2e_p50_ms e2e_p99_ms:float (failures)
    lens_unsent    + target, phase, measured, reason                          count:int
    lens_client    workers ring_drops clock_steps gc_pauses restarts collector_restarts stale_resends clamped
                   gaps_saturated late_renders burst_replies empty_events tcp_retransmits export_failures records_dropped:int
                   cpu_us_per_event lag_p50_us lag_p99_us lag_max_us cpu_utilisation steal_share rss_mb_max
                   itl_coalesced_share:float
    lens_bucket    + target, phase, measured, metric (those of the heat maps)
                   le_10, le_20, ..., le_inf:int  (values above the bound before and up to this one, in ms)
    lens_limited   + reason (ticks in which this client was limited, only)    ticks:int
    lens_run       tick in_flight sent_total ok_total failed_total unsent_total planned_total:int
                   elapsed_s seconds cost_usd_total:float
    lens_server    + target (of those with a metrics_url: what the server's own pages say)
                   requests_running requests_waiting kv_cache_usage prompt_tokens_total generation_tokens_total
                   gpu_utilisation gpu_memory_bytes gpu_power_watts gpu_temperature_c age_s:float  scrape_failures:int
    lens_result   + scope (run, steady, phase, target), target, phase, metric   (one point each, at the end of the run)
                   count:int  mean stddev min max p50 p90 p95 p99 p99_9 n_eff:float  (in the metric's unit)
                   mean_low mean_high p50_low p50_high ... p99_9_low p99_9_high:float  (95 % intervals)
    lens_verdict   + state (VALID, INVALID, INSUFFICIENT)    reasons notes:int            (at the end of the run)
    lens_slo       + expression, state (PASS, FAIL, UNDECIDED)    pass:int (1 or 0)  value low high:float    (at the end of the run)
    lens_annotation  + kind (run, phase, verdict, slo)    title text tags:string  time_end_ms:int  (at the end of the run)
                   what Grafana draws: a phase from its start to its end, the verdict, an SLO that did not hold
                   (of no use in VictoriaMetrics, where text becomes 0)
    lens_check     alive:int                     (one point when a run begins: proves token, organisation and bucket)

`run` is the only tag whose values grow, one a run.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import parse_qs, unquote, urlsplit

import msgspec

from ..collectors.snapshot import Client, Interval, Report, Server, Snapshot
from ..engine.errors import PlanError
from ..engine.metrics import BUCKETS, CLIENT, CLIENT_COUNTERS, RATES, SERVER, SHARES, STATISTICS, TOKEN_KINDS, Field
from ..engine.plan.plan import SECOND, InfluxExport, Secret
from .advice import STATES
from .estimates import estimates, parts, span_ns
from .spool.tail import Destination, Refused, Rejected, Unavailable

if TYPE_CHECKING:
    from collections.abc import Iterator

TIMEOUT_MS: Final = 10_000
HEATED: Final = ("ttft_ms", "e2e_ms", "itl_ms")  # metrics whose buckets are written
WHOLE: Final = frozenset({"workers", "scrape_failures", *CLIENT_COUNTERS})  # health fields that are integers here
LE: Final = {metric: [*(f"le_{bound:g}" for bound in BUCKETS[metric]), "le_inf"] for metric in HEATED}
TOTALS: Final = ("tick", "in_flight", "sent_total", "ok_total", "failed_total", "unsent_total", "planned_total")

# The spec's escapes for tag keys, tag values and field keys; line breaks would end the point.
_ESCAPES: Final = str.maketrans({",": r"\,", "=": r"\=", " ": r"\ ", "\n": r"\ ", "\r": r"\ ", "\t": r"\ "})


class Address(msgspec.Struct, frozen=True):
    """Where points go. `url` never holds the token."""

    url: str
    org: str
    bucket: str
    token: Secret
    verify_tls: bool = True


def address_of(export: InfluxExport) -> Address:
    """Reads `influxdb://[TOKEN@]HOST[:PORT]/[ORG/]BUCKET[?tls=1&insecure=1]`, or an http(s) URL beside org, bucket and token.

    Raises PlanError.
    """
    given = export.token.value if export.token else ""
    parts = urlsplit(export.url.value)
    if parts.scheme in ("http", "https"):
        url = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path.rstrip('/')}"
        query: dict[str, list[str]] = {}
        org, bucket = export.org, export.bucket
        token = given or unquote(parts.username or "")
    elif parts.scheme in ("influxdb", "influxdbs"):
        query = parse_qs(parts.query)
        unknown = sorted(set(query) - {"tls", "insecure", "token"})
        if unknown:
            raise PlanError(f"influxdb URL: unknown parameter {unknown[0]!r}; known: tls, insecure, token")
        path = [unquote(p) for p in parts.path.split("/") if p]
        if not 1 <= len(path) <= 2 or not parts.hostname:
            raise PlanError("influxdb URL must read influxdb://[TOKEN@]HOST[:PORT]/[ORG/]BUCKET[?tls=1]")
        secure = parts.scheme == "influxdbs" or _true(query, "tls")
        host = parts.netloc.rpartition("@")[2]
        url = f"{'https' if secure else 'http'}://{host}" + ("" if parts.port else ":8086")
        org, bucket = (path if len(path) == 2 else ["", path[0]])[:2]
        token = unquote(parts.username or "") or "".join(query.get("token", [])[:1]) or given
        if parts.password:  # InfluxDB 1.8 takes user:password as a token
            token = f"{token}:{unquote(parts.password)}"
    else:
        raise PlanError(f"influxdb: a URL must begin with influxdb://, http:// or https://, got {parts.scheme!r}")
    if not bucket:
        raise PlanError(
            "influxdb: `bucket` is missing (export.influxdb.bucket, or the last part of influxdb://HOST/ORG/BUCKET)"
        )
    verify = not _true(query, "insecure") and export.verify_tls
    return Address(url, org, bucket, Secret(token), verify)


class InfluxDB(Destination[Snapshot]):
    """Writes ticks as line protocol, gzipped, one request a batch. Never retries by itself: the Pump does."""

    def __init__(self, export: InfluxExport, *, name: str) -> None:
        from influxdb_client.client.influxdb_client import InfluxDBClient  # 0.9 s to import: only where it is used
        from influxdb_client.client.write_api import SYNCHRONOUS

        self.address = address_of(export)
        self.name = f"InfluxDB at {self.address.url}"
        self._plan_name = name
        self._client = InfluxDBClient(
            self.address.url,
            token=self.address.token.value or "none",  # the client refuses to have none; 1.x without auth ignores it
            org=self.address.org or "-",
            enable_gzip=True,
            timeout=TIMEOUT_MS,
            verify_ssl=self.address.verify_tls,
            retries=False,
        )
        self._api = self._client.write_api(write_options=SYNCHRONOUS)

    def check(self, run: str) -> None:
        """Writes one `lens_check` point. Raises Refused for a wrong token or bucket, Unavailable if it is down."""
        self._send(f"lens_check{_tags(run=run, name=self._plan_name)} alive=1i {time.time_ns()}".encode())

    def write(self, ticks: list[Snapshot]) -> None:
        self._send(b"\n".join(line.encode() for tick in ticks for line in lines(tick, self._plan_name)))

    def end(self, report: Report) -> None:
        self._send(b"\n".join(line.encode() for line in summary_lines(report)))

    def close(self) -> None:
        self._client.close()  # type: ignore[no-untyped-call]  # the library has no types here

    def _send(self, body: bytes) -> None:
        from influxdb_client.rest import ApiException
        from urllib3.exceptions import HTTPError

        try:
            self._api.write(bucket=self.address.bucket, org=self.address.org or "-", record=body)
        except ApiException as error:
            raise self._explained(error.status or 0, _message(error)) from None
        except (HTTPError, OSError) as error:
            raise Unavailable(f"cannot be reached: {_cause(error)}") from None

    def _explained(self, status: int, message: str) -> Exception:
        """What a status means and what to do about it; the server's words without the token."""
        a = self.address
        said = message.replace(a.token.value, "***") if a.token.value else message
        if status == 401:
            return Refused(f"{self.name} refused the token (401: {said}); check export.influxdb.token")
        if status == 403:
            return Refused(f"{self.name}: the token may not write to bucket {a.bucket!r} (403: {said})")
        if status == 404:
            where = f"bucket {a.bucket!r} in organisation {a.org!r}"
            return Refused(f"{self.name} has no {where} (404: {said}); create it or name another")
        if status in (429, 0) or status >= 500:
            return Unavailable(f"answered {status}: {said}")
        return Rejected(f"{self.name} rejected the points ({status}: {said})")


def lines(tick: Snapshot, name: str) -> Iterator[str]:
    """The points of one tick in line protocol, as the module's docstring lists them."""
    at = tick.wall_time_ns
    own = _tags(run=tick.run, name=name)
    for interval in tick.intervals:
        yield from _interval_lines(interval, tick, name)
    client = tick.client
    fields = _health(client, CLIENT)
    fields += [(f"lag_{f}_us", getattr(client.loop_lag_us, f), "") for f in ("p50", "p99", "max")]
    yield f"lens_client{own} {_fields(fields)} {at}"
    for target, server in tick.servers.items():
        own_tags = _tags(run=tick.run, name=name, target=target)
        yield f"lens_server{own_tags} {_fields(_health(server, SERVER))} {at}"
    totals: list[tuple[str, Any, str]] = [(f, getattr(tick, f), "i") for f in TOTALS]
    totals += [(f, getattr(tick, f), "") for f in ("elapsed_s", "seconds", "cost_usd_total")]
    yield f"lens_run{own} {_fields(totals)} {at}"
    for reason in client.limited_by:
        yield f"lens_limited{_tags(run=tick.run, name=name, reason=reason)} ticks=1i {at}"


def summary_lines(report: Report) -> Iterator[str]:
    """The points of a finished run."""
    yield from _judgement_lines(report)
    yield from _annotation_lines(report)
    _, at = span_ns(report)
    for part in parts(report):
        tags = {"scope": part.scope, "target": part.target, "phase": part.phase}
        for metric, d in part.metrics.items():
            if d.count:
                values: list[tuple[str, Any, str]] = [("count", d.count, "i"), ("n_eff", d.n_eff, "")]
                values += [(f, getattr(d, f), "") for f in STATISTICS]
                values += [(f"{e.statistic}_{e.bound}", e.value, "") for e in estimates(d) if e.bound != "value"]
                own = _tags(run=report.run.id, name=report.run.name, metric=metric, **tags)
                yield f"lens_result{own} {_fields(values)} {at}"


def _judgement_lines(report: Report) -> Iterator[str]:
    _, at = span_ns(report)
    verdict, own = report.verdict, {"run": report.run.id, "name": report.run.name}
    notes = sum(reason.note for reason in verdict.reasons)
    fields = [("reasons", len(verdict.reasons) - notes, "i"), ("notes", notes, "i")]
    yield f"lens_verdict{_tags(**own, state=verdict.state)} {_fields(fields)} {at}"
    for slo in report.slo:
        low, high = slo.ci95 or (None, None)
        values: list[tuple[str, Any, str]] = [("pass", int(slo.state == "PASS"), "i")]
        values += [("value", slo.value, ""), ("low", low, ""), ("high", high, "")]
        yield f"lens_slo{_tags(**own, expression=slo.expression, state=slo.state)} {_fields(values)} {at}"


def _annotation_lines(report: Report) -> Iterator[str]:
    start_ns, end_ns = span_ns(report)
    verdict, run = report.verdict, report.run

    def line(kind: str, title: str, text: str, begin_ns: int, until_ns: int) -> str:
        tags = _tags(run=run.id, name=run.name, kind=kind)
        fields = f"title={_quoted(title)},text={_quoted(text)},tags={_quoted(kind)}"
        # Phases may begin together with the run: the tag `kind` and a nanosecond each keep their points apart.
        return f"lens_annotation{tags} {fields},time_end_ms={until_ns // 1_000_000}i {begin_ns}"

    yield line("run", f"run {run.name}", run.id, start_ns, end_ns)
    for number, phase in enumerate(run.phases):
        begin_ns = start_ns + round(phase.start_s * SECOND)
        text = f"{phase.load} load{'' if phase.measured else ', not measured'}"
        yield line("phase", f"phase {phase.name}", text, begin_ns + number, begin_ns + round(phase.duration_s * SECOND))
    why = "; ".join(reason.detail for reason in verdict.reasons) or STATES[verdict.state]
    yield line("verdict", f"verdict {verdict.state}", why, end_ns, end_ns)
    for number, slo in enumerate(report.slo):
        if slo.state != "PASS":
            text = "" if slo.value is None else f"measured {slo.value:.4g}"
            yield line("slo", f"{slo.state} {slo.expression}", text, end_ns + number, end_ns)


def _quoted(text: str) -> str:
    """A string field of line protocol."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", " ")
    return f'"{escaped}"'


def _health(health: Client | Server, catalogue: dict[str, Field]) -> list[tuple[str, Any, str]]:
    """Its fields; counts as integers."""
    return [(f, getattr(health, f), "i" if f in WHOLE else "") for f in catalogue]


def _interval_lines(interval: Interval, tick: Snapshot, name: str) -> Iterator[str]:
    at, q, t = tick.wall_time_ns, interval.requests, interval.tokens
    measured = "yes" if interval.measured else "no"
    tags = _tags(run=tick.run, name=name, target=interval.target, phase=interval.phase, measured=measured)
    counts = {
        "planned": q.planned,
        "sent": q.sent,
        "ok": q.ok,
        "failed": sum(q.failed.values()),
        "cancelled": q.cancelled,
        "unsent": sum(q.unsent.values()),
        "attempts": q.attempts,
        "in_flight": interval.in_flight,
        **{f"{kind}_tokens": getattr(t, kind) for kind in TOKEN_KINDS},
    }
    fields: list[tuple[str, Any, str]] = [(f, n, "i") for f, n in counts.items()]
    fields += [(f, getattr(interval.throughput, f), "") for f in RATES]
    fields += [("cost_usd", interval.cost.usd, ""), *((f, getattr(interval, f), "") for f in SHARES)]
    yield f"lens_requests{tags} {_fields(fields)} {at}"
    for metric, d in interval.metrics.items():
        if d.count:
            values = [("count", d.count, "i"), *((f, getattr(d, f), "") for f in STATISTICS)]
            payload = f',hdr="{interval.hdr[metric]}"' if metric in interval.hdr else ""
            yield f"lens_metric{tags},metric={metric} {_fields(values)}{payload} {at}"
    for metric, names in LE.items():
        counts_by_bucket = interval.buckets.get(metric, [])
        if len(counts_by_bucket) == len(names):  # else the tick is of a version with other bounds
            values = [(le, n or None, "i") for le, n in zip(names, counts_by_bucket, strict=True)]
            if filled := _fields(values):
                yield f"lens_bucket{tags},metric={metric} {filled} {at}"
    for outcome, n in {"ok": q.ok, "cancelled": q.cancelled, **q.failed}.items():
        if n:
            values = [("count", n, "i")]
            if e2e := interval.failure_e2e_ms.get(outcome):
                values += [(f"e2e_{f}_ms", getattr(e2e, f), "") for f in ("mean", "p50", "p99")]
            yield f"lens_outcome{tags},outcome={outcome} {_fields(values)} {at}"
    for reason, n in q.unsent.items():
        if n:
            yield f"lens_unsent{tags},reason={reason} count={n}i {at}"


def _tags(**values: str) -> str:
    """`,key=value` for each that is not empty, sorted as the server wants them."""
    return "".join(f",{key}={_escaped(values[key])}" for key in sorted(values) if values[key])


def _escaped(text: str) -> str:
    # A backslash before the separator would escape it: the protocol has no way to write one at the end.
    return text.translate(_ESCAPES).rstrip("\\") or "-"


def _fields(values: list[tuple[str, Any, str]]) -> str:
    known = ((name, v, suffix) for name, v, suffix in values if v is not None)
    return ",".join(f"{name}={v:d}i" if suffix else f"{name}={float(v)!r}" for name, v, suffix in known)


def _true(query: dict[str, list[str]], key: str) -> bool:
    return query.get(key, ["0"])[-1].lower() in ("1", "true", "yes", "")


def _message(error: Any) -> str:
    """The server's own words, from JSON (`message`, `error`) or plain text, in one short line."""
    body = error.body if isinstance(error.body, str) else (error.body or b"").decode("utf-8", "replace")
    try:
        answer = msgspec.json.decode(body)
        body = answer.get("message") or answer.get("error") or body if isinstance(answer, dict) else body
    except msgspec.DecodeError:
        pass
    return " ".join(str(body or error.reason or "").split())[:200]


def _cause(error: BaseException) -> str:
    text = str(getattr(error, "reason", None) or error)
    return " ".join(text.split())[:200]
