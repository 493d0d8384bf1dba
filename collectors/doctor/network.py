"""The passive part of the network: interfaces that carry the targets, their queues and offloads, ports and sysctls."""

from __future__ import annotations

import array
import fcntl
import re
import socket
import struct
from collections.abc import Iterable
from contextlib import suppress
from typing import Final

import psutil

from .facts import Interface, Irq, Network
from .machine import Machine
from .needs import Needs

NET: Final = "sys/class/net"
IPV4: Final = "proc/sys/net/ipv4"
SIOCETHTOOL: Final = 0x8946
ETHTOOL_GCOALESCE: Final = 0x0E  # struct ethtool_coalesce: rx_coalesce_usecs is word 1, use_adaptive_rx word 11
ETHTOOL_GFLAGS: Final = 0x25
ETHTOOL_GGRO: Final = 0x2B
ETH_FLAG_LRO: Final = 1 << 15
COALESCE_WORDS: Final = 23
# Frames that were lost, not those that nobody wanted: rx_dropped counts unknown protocols, too.
LOST: Final = ("rx_missed_errors", "rx_fifo_errors", "rx_over_errors", "rx_errors")
DISCARD_PORT: Final = 9
DEFAULT_ROUTE: Final = "00000000"


def read_network(machine: Machine, needs: Needs) -> Network:
    names = carrying(machine, needs)
    reserved = machine.text(f"{IPV4}/ip_local_reserved_ports")
    ports = machine.numbers(f"{IPV4}/ip_local_port_range")
    slow_start = machine.number(f"{IPV4}/tcp_slow_start_after_idle")
    return Network(
        interfaces=None if names is None else tuple(_interface(machine, name) for name in names),
        ports=_free_ports(ports, reserved or "") if ports and len(ports) == 2 else None,
        time_wait=_time_wait(machine.text("proc/net/sockstat")),
        somaxconn=machine.number("proc/sys/net/core/somaxconn"),
        tcp_rmem=_three(machine.numbers(f"{IPV4}/tcp_rmem")),
        tcp_wmem=_three(machine.numbers(f"{IPV4}/tcp_wmem")),
        slow_start_after_idle=None if slow_start is None else bool(slow_start),
        conntrack_count=machine.number("proc/sys/net/netfilter/nf_conntrack_count"),
        conntrack_max=machine.number("proc/sys/net/netfilter/nf_conntrack_max"),
    )


def carrying(machine: Machine, needs: Needs) -> tuple[str, ...] | None:
    """The interfaces on the way to the targets, or of the default route; loopback left out. None: not known."""
    if not needs.addresses or not machine.real:
        routes = machine.text("proc/net/route")
        if routes is None:
            return None
        rows = [line.split() for line in routes.splitlines()[1:]]
        return tuple(sorted({row[0] for row in rows if len(row) > 2 and row[1] == DEFAULT_ROUTE}))
    local = {source for address in needs.addresses if (source := _source_of(address))}
    if not local:
        return None
    try:
        interfaces = psutil.net_if_addrs()
    except OSError:  # no AF_NETLINK, as in a hardened unit
        return () if needs.loopback_only else None
    names = {name for name, entries in interfaces.items() for e in entries if str(e.address).partition("%")[0] in local}
    return tuple(sorted(name for name in names if name != "lo"))


def _source_of(address: str) -> str:
    """The local address that the kernel would use; a connected UDP socket sends nothing. Empty: no route."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as sock:
        sock.connect((address, DISCARD_PORT))
        return str(sock.getsockname()[0]).partition("%")[0]
    return ""


def _interface(machine: Machine, name: str) -> Interface:
    at = f"{NET}/{name}"
    node = machine.number(f"{at}/device/numa_node")
    flush_ns = machine.number(f"{at}/gro_flush_timeout")
    gro = lro = None
    coalesce = None
    if machine.real:
        gro_word, flags = _ethtool(name, ETHTOOL_GGRO, 2), _ethtool(name, ETHTOOL_GFLAGS, 2)
        gro = None if gro_word is None else bool(gro_word[1])
        lro = None if flags is None else bool(flags[1] & ETH_FLAG_LRO)
        coalesce = _ethtool(name, ETHTOOL_GCOALESCE, COALESCE_WORDS)
    return Interface(
        name=name,
        node=None if node is None or node < 0 else node,
        irqs=_irqs(machine, name),
        rps_cpus=_masks(machine, at, "rx-*", "rps_cpus"),
        xps_cpus=_masks(machine, at, "tx-*", "xps_cpus"),
        gro_flush_us=None if flush_ns is None else flush_ns / 1000,
        gro=gro,
        lro=lro,
        rx_usecs=coalesce[1] if coalesce else None,
        adaptive_rx=bool(coalesce[11]) if coalesce else None,
        packets=machine.number(f"{at}/statistics/rx_packets"),
        drops=lost_frames(machine, name),
    )


def lost_frames(machine: Machine, name: str) -> int | None:
    """Received frames that hardware or driver lost since boot."""
    counts = [machine.number(f"{NET}/{name}/statistics/{counter}") for counter in LOST]
    known = [count for count in counts if count is not None]
    return max(known) if known else None  # rx_errors contains the others with most drivers


def _masks(machine: Machine, at: str, queues: str, file: str) -> frozenset[int] | None:
    """The CPUs of all queues together; None if no queue shows its mask."""
    found = [machine.mask(f"{at}/queues/{queue.name}/{file}") for queue in machine.listed(f"{at}/queues", queues)]
    known = [mask for mask in found if mask is not None]
    return frozenset().union(*known) if known else None


def _irqs(machine: Machine, name: str) -> tuple[Irq, ...] | None:
    """The interrupts of the interface's device: by its MSI vectors, or those that /proc/interrupts lists under its name."""
    at = f"{NET}/{name}/device"
    numbers = [each.name for each in machine.listed(f"{at}/msi_irqs") or machine.listed(f"{at}/../msi_irqs")]
    labels = _labels(machine)
    if not numbers:
        numbers = [number for number, label in labels.items() if re.search(rf"(?<!\w){re.escape(name)}(?!\w)", label)]
    found = []
    for number in numbers:
        cpus = machine.cpus(f"proc/irq/{number}/effective_affinity_list") or machine.cpus(
            f"proc/irq/{number}/smp_affinity_list"
        )
        if cpus and number.isdigit():
            found.append(Irq(int(number), labels.get(number, ""), cpus))
    return tuple(sorted(found, key=lambda irq: irq.number)) or None


def _labels(machine: Machine) -> dict[str, str]:
    """The handlers of each numbered line of /proc/interrupts."""
    lines = [line.split() for line in (machine.text("proc/interrupts") or "").splitlines()[1:]]
    return {words[0].rstrip(":"): words[-1] for words in lines if words and words[0].rstrip(":").isdigit()}


def interrupts_of_devices(text: str) -> dict[int, int]:
    """Interrupts of all devices by CPU since boot, from /proc/interrupts; the kernel's own, such as LOC, left out."""
    lines = text.splitlines()
    cpus = [int(word.removeprefix("CPU")) for word in lines[0].split()] if lines else []
    counts = dict.fromkeys(cpus, 0)
    for line in lines[1:]:
        words = line.split()
        if words and words[0].rstrip(":").isdigit():
            for cpu, count in zip(cpus, words[1:], strict=False):
                counts[cpu] += int(count) if count.isdigit() else 0
    return counts


def _ethtool(name: str, command: int, words: int) -> tuple[int, ...] | None:
    """The words of a SIOCETHTOOL read; None where the driver does not know the command."""
    block = array.array("B", struct.pack("I", command) + bytes(4 * (words - 1)))
    request = struct.pack("16sP", name.encode()[:15], block.buffer_info()[0]) + bytes(16)
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            fcntl.ioctl(sock, SIOCETHTOOL, request)
    except OSError:
        return None
    return struct.unpack(f"{words}I", block)


def _free_ports(limits: tuple[int, ...], reserved: str) -> int:
    low, high = limits
    taken: set[int] = set()
    for part in reserved.split(","):
        first, _, last = part.strip().partition("-")
        if first.isdigit():
            taken.update(range(max(low, int(first)), min(high, int(last or first)) + 1))
    return max(0, high - low + 1 - len(taken))


def _time_wait(sockstat: str | None) -> int | None:
    match = re.search(r"^TCP:.* tw (\d+)", sockstat or "", re.MULTILINE)
    return int(match[1]) if match else None


def _three(values: Iterable[int] | None) -> tuple[int, int, int] | None:
    """The three numbers of tcp_rmem and tcp_wmem."""
    found = tuple(values or ())
    return (found[0], found[1], found[2]) if len(found) == 3 else None
