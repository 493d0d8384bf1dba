"""A capture file (pcap, pcapng) as TCP segments, in the order of the file. The formats are read by dpkt.

Link types: Ethernet (Linux' loopback has it too), Linux cooked (`-i any`, versions 1 and 2), BSD loopback, raw IP.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Final, NamedTuple

import dpkt
from dpkt import ethernet, ip, ip6, loopback, pcap, sll, sll2, tcp

from ...engine.errors import LensError

DAMAGE: Final = (ValueError, dpkt.UnpackError, struct.error, OverflowError)

End = tuple[str, int]  # address, port


class Segment(NamedTuple):
    """One TCP segment. `time_ns` is Unix epoch. `cut` bytes of its payload are not in the capture."""

    time_ns: int
    source: End
    destination: End
    seq: int
    syn: bool
    ack: bool
    payload: bytes
    cut: int


def _raw_ip(packet: bytes) -> Any:
    return ip6.IP6(packet) if packet[:1] and packet[0] >> 4 == 6 else ip.IP(packet)


LINKS: Final[dict[int, Callable[[bytes], Any]]] = {
    pcap.DLT_EN10MB: ethernet.Ethernet,
    pcap.DLT_LINUX_SLL: sll.SLL,
    pcap.DLT_LINUX_SLL2: sll2.SLL2,
    pcap.DLT_NULL: loopback.Loopback,
    pcap.DLT_LOOP: loopback.Loopback,
    pcap.DLT_RAW: _raw_ip,
    101: _raw_ip,  # LINKTYPE_RAW, as files have it; DLT_RAW is the system's own number
}


def segments(path: Path) -> Iterator[Segment]:
    """The TCP segments of a capture. A file that ends inside a packet ends there. Raises LensError."""
    try:
        file = path.open("rb")
    except OSError as error:
        raise LensError(f"{path} cannot be read: {error.strerror}") from None
    with file:
        try:
            reader = pcap.UniversalReader(file)
        except DAMAGE:
            raise LensError(
                f"{path} is no packet capture (pcap or pcapng); record one with: tcpdump -i lo -s 0 -w FILE tcp port PORT"
            ) from None
        link = LINKS.get(reader.datalink())
        if link is None:
            raise LensError(
                f"{path} has link type {reader.datalink()}, known are Ethernet, Linux cooked, loopback and raw IP; "
                "capture on one of those"
            )
        last: Segment | None = None
        while True:
            try:
                moment, packet = next(reader)
            except (StopIteration, *DAMAGE):
                break
            if last is not None:
                yield last
            last = _segment(round(moment * 1_000_000_000), link, packet)
        # A file that was cut off ends inside a packet: what is left of that one is no packet with a short snap length.
        if last is not None and not last.cut:
            yield last


def _segment(time_ns: int, link: Callable[[bytes], Any], packet: bytes) -> Segment | None:
    """None for what is not TCP over IP."""
    try:
        network = link(packet)
        if not isinstance(network, ip.IP | ip6.IP6):
            network = network.data
        if isinstance(network, ethernet.Ethernet):
            network = network.data
    except DAMAGE:
        return None
    if isinstance(network, ip.IP):
        size = network.len - network.hl * 4
    elif isinstance(network, ip6.IP6):
        size = network.plen - sum(len(each) for each in network.extension_hdrs.values() if each is not None)
    else:
        return None
    segment = network.data
    if not isinstance(segment, tcp.TCP):
        return None
    size -= segment.off * 4
    payload = bytes(segment.data)[:size]
    return Segment(
        time_ns,
        (str(ip_address(network.src)), segment.sport),
        (str(ip_address(network.dst)), segment.dport),
        segment.seq,
        bool(segment.flags & tcp.TH_SYN),
        bool(segment.flags & tcp.TH_ACK),
        payload,
        size - len(payload),
    )
