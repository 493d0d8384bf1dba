"""What the processes of a run ask of the kernel for themselves: to die with their parent, descriptors, priority."""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal
import sys
from collections.abc import Collection, Mapping
from typing import Final

PR_SET_PDEATHSIG: Final = 1
KEY_NAMES: Final = ("_KEY", "_TOKEN", "_SECRET", "_PASSWORD")  # how names of environment variables with secrets end


def die_with_parent(parent: int | None = None, sent: signal.Signals = signal.SIGKILL) -> None:
    """Has the kernel send `sent` to this process when its parent ends, however it ends (prctl(2), PR_SET_PDEATHSIG).

    With `parent`, the pid that the starter had when it started this process, exits at once if that one has already
    ended: a parent that died before the call would never be noticed.
    """
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, sent, 0, 0, 0)
    if parent is not None and os.getppid() != parent:
        sys.exit(1)


class RunQueue:
    """How long the calling thread has been ready to run and without a CPU (proc(5), schedstat, second field)."""

    def __init__(self) -> None:
        self._fd = -1
        with contextlib.suppress(OSError):  # a kernel without CONFIG_SCHED_INFO, or no /proc
            self._fd = os.open("/proc/thread-self/schedstat", os.O_RDONLY | os.O_CLOEXEC)

    def waited_ns(self) -> int:
        """The wait since the thread's start, 0 where the kernel does not say. 2 us."""
        if self._fd < 0:
            return 0
        fields = os.pread(self._fd, 96, 0).split()
        return int(fields[1]) if len(fields) > 1 else 0

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __del__(self) -> None:
        self.close()


def raise_descriptor_limit() -> int:
    """Raises the soft limit of open files to the hard one (setrlimit(2)); returns the limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def run_in_real_time() -> bool:
    """Asks for SCHED_RR, lowest priority: before everything of normal priority on its cores (sched(7)). False where the
    system does not permit it (CAP_SYS_NICE, RLIMIT_RTPRIO, a cgroup without a share of real time)."""
    with contextlib.suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_RR | os.SCHED_RESET_ON_FORK, os.sched_param(1))
        return True
    return False


def raise_priority(niceness: int) -> bool:
    """Sets this process's niceness where the system permits it (root, CAP_SYS_NICE, RLIMIT_NICE); False where not."""
    with contextlib.suppress(PermissionError):
        os.setpriority(os.PRIO_PROCESS, 0, niceness)
        return True
    return False


def environ_without_keys(environ: Mapping[str, str], secrets: Collection[str] = ()) -> dict[str, str]:
    """`environ` without API keys: for children that need none, so that their /proc/PID/environ and crash dumps hold
    none. A variable goes by its name (KEY_NAMES) or because its value is one of `secrets`. HF_TOKEN stays: the
    collector may need it to load a tokenizer."""
    return {
        name: value
        for name, value in environ.items()
        if value not in secrets and (name == "HF_TOKEN" or not name.upper().endswith(KEY_NAMES))
    }
