"""`lens verify --pcap FILE RUN_DIR`: how far a run's times are from what a packet capture of the same host shows."""

from __future__ import annotations

import sys
from pathlib import Path

import click


@click.command(short_help="Compare a run's times with a packet capture of it.")
@click.argument("run_dir", type=click.Path(path_type=Path))
@click.option(
    "--pcap",
    "capture",
    type=click.Path(path_type=Path),
    required=True,
    metavar="FILE",
    help="The capture, pcap or pcapng, from this host.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def verify(run_dir: Path, capture: Path, *, as_json: bool) -> int:
    """Compare the send, TTFT and every gap of a run with a packet capture.

    The run needs `output: {token_times: all}`; the capture is made beside it, on the same host:

    \b
    tcpdump -i lo -s 0 -w FILE --time-stamp-precision=nano tcp port PORT
    """
    from ...exporters.rundir import damage_named
    from .compare import verify as compared

    with damage_named(run_dir):
        verified = compared(capture, run_dir)
    if as_json:
        from ...collectors.snapshot import ENCODER

        sys.stdout.buffer.write(ENCODER.encode(verified) + b"\n")
        sys.stdout.buffer.flush()
        return 0
    from ...exporters.console.calibration import errors_table
    from ...exporters.console.final import print_out

    rows = {"send": verified.send_error_us, "TTFT": verified.ttft_error_us, "gaps": verified.gap_error_us}
    click.echo(
        f"{verified.requests.compared} requests and {verified.gaps:,} gaps on {verified.connections} connections compared; "
        f"{verified.requests.not_in_capture} not in the capture, {verified.requests.other_events} with other events there, "
        f"{verified.requests.not_compared} sent more than once, {verified.requests.censored_events} events without a stamp "
        "of their own"
    )
    sys.stdout.flush()
    print_out(errors_table("absolute error, us", rows))
    for note in verified.notes:
        click.echo(f"note: {note.detail} ({note.code})")
    return 0
