"""Checks of limits, memory, rights and the interpreter. Pure."""

from __future__ import annotations

from typing import Final

from ...engine.runs.placement import FREE_SHARE
from .facts import Facts
from .finding import Finding, judged, unknown

MEGABYTE: Final = 1_000_000
NOT_OPTIMIZED: Final = "not built with --enable-optimizations"


def descriptors(facts: Facts) -> Finding:
    wanted = facts.needs.descriptors_per_worker
    limit = facts.system.descriptors
    planned = facts.needs.planned
    bound = f">= {wanted} files for a worker" + ("" if planned else ", for 10,000 streams")
    if limit is None:
        return unknown(bound)
    cure = f"ulimit -Hn {wanted} as root, LimitNOFILE={wanted} in a unit, --ulimit nofile={wanted} for a container"
    value = f"{limit} (hard limit)"
    return judged(limit >= wanted, value, bound, cure, otherwise="fail" if planned else "warn")


def tmpfs_room(facts: Facts) -> Finding:
    needs, free = facts.needs, facts.system.tmpfs_free_bytes
    wanted, least = needs.ring_bytes, needs.workers * needs.rings.within(0, needs.workers).bytes
    bound = f">= {wanted / FREE_SHARE / MEGABYTE:,.0f} MB for the rings, {least / MEGABYTE:,.0f} MB at least"
    if free is None:
        return Finding("fail", "no tmpfs", bound, f"mount -t tmpfs tmpfs {facts.system.tmpfs}")
    where = facts.system.tmpfs
    cure = f"mount -o remount,size=50% {where}, --shm-size for a container, or `lens recover` for what dead runs left there"
    value = f"{free / MEGABYTE:,.0f} MB free in {where}"
    return judged(free * FREE_SHARE >= wanted, value, bound, cure, otherwise="fail" if free < least else "warn")


def memory(facts: Facts) -> Finding:
    needs, free = facts.needs, facts.system.memory_free_bytes
    bound = f">= {needs.memory_bytes / MEGABYTE:,.0f} MB: rings, workers, collector"
    if free is None:
        return unknown(bound)
    cure = "free memory, fewer workers, or a higher memory.max of the control group"
    enough = free >= needs.ring_bytes + 100 * MEGABYTE
    return judged(
        free >= needs.memory_bytes,
        f"{free / MEGABYTE:,.0f} MB available",
        bound,
        cure,
        otherwise="warn" if enough else "fail",
    )


def priority(facts: Facts) -> Finding:
    bound = "workers may raise their priority"
    nice, real_time = facts.system.may_raise_priority, facts.system.may_run_in_real_time
    if nice is None:
        return unknown(bound)
    value = {True: "niceness", False: "no niceness"}[nice] + {True: " and real time", False: ", no real time"}[
        bool(real_time)
    ]
    cure = "LimitNICE=-10 and LimitRTPRIO=1 in a unit, --cap-add SYS_NICE for a container, or setcap cap_sys_nice+ep on the interpreter"
    return judged(nice or bool(real_time), value, bound, cure)


def segment_stamps(facts: Facts) -> Finding:
    bound = "packet sockets allowed"
    refusal = facts.system.tap_refusal
    if refusal is None:
        return unknown(bound)
    if not refusal:
        return Finding("ok", "possible", bound)
    return Finding("warn", "one stamp per read", bound, refusal)


def python(facts: Facts) -> Finding:
    found = facts.system.python
    bound = "an optimized release build, no debugging on"
    slow = [*found.slow, *([NOT_OPTIMIZED] if found.unoptimized else [])]
    cure = "a build of the distribution, or PYTHON_CONFIGURE_OPTS=--enable-optimizations pyenv install; unset PYTHON*"
    return judged(not slow, ", ".join([found.version, *slow]), bound, cure)


def uvloop(facts: Facts) -> Finding:
    version = facts.system.python.uvloop
    bound = "installed"
    cure = "pip install uvloop"
    return judged(version is not None, version or "missing", bound, cure, otherwise="fail")
