"""What this process may really use and need not keep: CPU cores, whose quotas containers hide from `os.cpu_count`,
priority and memory.
"""

from __future__ import annotations

import ctypes
import os
import threading
from contextlib import suppress
from pathlib import Path

_NICE = 10


def usable_cores(cgroup: Path = Path("/proc/self/cgroup"), mount: Path = Path("/sys/fs/cgroup")) -> int:
    """Cores in the affinity mask, but no more than the tightest cgroup quota above this process allows; at least 1."""
    cores = len(os.sched_getaffinity(0))
    quotas = [quota for group in _groups(cgroup) for quota in _quotas(mount, group)]
    return max(1, min([cores, *(int(quota) for quota in quotas)]))


def lower_priority() -> None:
    """Let the calling thread wait for the others of this process where cores are scarce: the event loop comes first."""
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)


def lowest_priority() -> None:
    """Let the calling thread run only while nobody else of this process wants the core. A thread of a merely lower
    priority is left on it until its slice ends, some milliseconds.
    """
    os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))


def give_back() -> None:
    """Return freed memory to the system. Each thread that loads a version has heaps of its own, which the C library
    would otherwise keep for the next one.
    """
    with suppress(AttributeError):  # another C library than GNU's
        ctypes.CDLL(None).malloc_trim(0)


def _groups(cgroup: Path) -> list[str]:
    """The paths of this process's control groups that may limit its CPU (version 2: one; version 1: the `cpu` one)."""
    try:
        lines = cgroup.read_text().splitlines()
    except OSError:
        return []
    fields = [line.split(":", 2) for line in lines]
    return [path for _, controllers, path in fields if not controllers or "cpu" in controllers.split(",")]


def _quotas(mount: Path, group: str) -> list[float]:
    """Quotas in cores of a group and of all groups above it, where the mount shows them."""
    quotas = []
    for level in (Path(group), *Path(group).parents):
        relative = level.relative_to("/")
        quotas += [_version2(mount / relative / "cpu.max"), _version1(mount / "cpu" / relative)]
    return [quota for quota in quotas if quota is not None]


def _version2(file: Path) -> float | None:
    try:
        quota, period = file.read_text().split()
    except (OSError, ValueError):
        return None
    return None if quota == "max" else int(quota) / int(period)


def _version1(folder: Path) -> float | None:
    try:
        quota = int((folder / "cpu.cfs_quota_us").read_text())
        period = int((folder / "cpu.cfs_period_us").read_text())
    except (OSError, ValueError):
        return None
    return None if quota < 0 else quota / period
