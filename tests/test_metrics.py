"""The catalogue against the types it describes: what has no entry here would be missing from an exporter, unseen."""

from __future__ import annotations

import math

import msgspec

from llm_latency_lens.collectors.snapshot import Client, Distribution, Server, Slice, Throughput, Tokens
from llm_latency_lens.engine.metrics import (
    BUCKETS,
    CLIENT,
    METRICS,
    OUTCOMES,
    RATES,
    SERVER,
    SHARES,
    STATISTICS,
    TOKEN_KINDS,
    UNSENT,
)
from llm_latency_lens.engine.records.record import FIELDS, Outcome, Unsent


def test_every_number_of_the_client_is_in_the_catalogue() -> None:
    """A health counter that no exporter knows of would be lost data that nobody sees."""
    assert {*Client.__struct_fields__} == {*CLIENT, "clock", "stamps", "loop_lag_us", "limited_by"}


def test_every_number_of_a_server_is_in_the_catalogue() -> None:
    """The same for what a target says about itself."""
    assert {*Server.__struct_fields__} == {*SERVER}


def test_statistics_rates_tokens_and_shares_are_the_fields_that_exist() -> None:
    """Exporters read these fields by name: a name that does not exist would end an export in its middle."""
    assert {*Distribution.__struct_fields__} == {*STATISTICS, "count", "n_eff", "ci95"}
    assert {*Throughput.__struct_fields__} == {*RATES}
    assert {*Tokens.__struct_fields__} == {*TOKEN_KINDS, "source"}
    assert {*SHARES} <= {*Slice.__struct_fields__}


def test_every_outcome_and_reason_has_its_help() -> None:
    """The reference's table of outcomes is made of this."""
    explained = [name for group in OUTCOMES.values() for name in group]
    assert sorted(explained) == sorted(outcome.name.lower() for outcome in Outcome if outcome is not Outcome.UNSENT)
    assert [*UNSENT] == [reason.name.lower() for reason in Unsent if reason is not Unsent.NONE]


def test_metrics_lie_between_marks_of_the_record() -> None:
    """A misspelt mark would be a KeyError in the collector, in the middle of a run."""
    marks = {name.removesuffix("_ns") for name, _ in FIELDS if name.endswith("_ns")}
    for metric in METRICS.values():
        assert {metric.start, metric.end} <= marks | {""}, metric.name
        assert bool(metric.start) == bool(metric.end)


def test_bounds_rise_and_are_whole_in_histogram_units() -> None:
    """Prometheus and OTLP take rising bounds only; a bound between two units would move values into another bucket."""
    for name, bounds in BUCKETS.items():
        assert list(bounds) == sorted(set(bounds))
        assert all(math.isclose(bound * METRICS[name].scale, round(bound * METRICS[name].scale)) for bound in bounds)


def test_names_of_exporters_are_unique() -> None:
    """Two metrics under one name would be added up by the database."""
    for names in (
        [metric.prometheus for metric in METRICS.values() if metric.prometheus],
        [metric.otel for metric in METRICS.values() if metric.otel],
        [field.prometheus for field in (*CLIENT.values(), *SERVER.values())],
    ):
        assert len(names) == len(set(names))


def test_the_catalogue_is_light() -> None:
    """Workers and `lens --help` load it: it is plain tuples that msgspec can encode for the reference."""
    assert msgspec.json.encode([metric._asdict() for metric in METRICS.values()])


def test_only_speeds_are_better_when_they_are_higher() -> None:
    """A gate that takes a longer latency for an improvement would be worse than none."""
    assert {name for name, metric in METRICS.items() if metric.higher_is_better} == {"decode_tps", "e2e_tps"}


def test_histograms_of_times_hold_the_bounds_that_the_conventions_advise() -> None:
    """Counts of two clients add up only where both have the bound. The list is that of
    https://github.com/open-telemetry/semantic-conventions-genai/blob/main/docs/gen-ai/gen-ai-metrics.md"""
    advised = {10, 20, 40, 80, 160, 320, 640, 1280, 2560, 5120, 10240, 20480, 40960, 81920}
    named = [metric for metric in METRICS.values() if metric.otel.startswith("gen_ai.")]
    assert {metric.otel for metric in named} == {
        "gen_ai.client.operation.duration",
        "gen_ai.client.operation.time_to_first_chunk",
        "gen_ai.client.operation.time_per_output_chunk",
    }
    for metric in named:
        assert advised <= {*metric.buckets}
        assert metric.prometheus == f"{metric.otel.replace('.', '_')}_seconds"


def test_a_metric_has_a_name_in_both_databases_or_in_none_and_bounds_with_it() -> None:
    """One without bounds would have a histogram of one bucket there."""
    for metric in METRICS.values():
        assert bool(metric.otel) == bool(metric.prometheus) == bool(metric.buckets)
        assert list(metric.buckets) == sorted(set(metric.buckets))
