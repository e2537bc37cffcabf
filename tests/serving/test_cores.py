"""levi_serve.cores."""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from levi_serve.cores import lower_priority, lowest_priority, usable_cores

AFFINITY = len(os.sched_getaffinity(0))


def cgroup(tmp_path: Path, line: str, files: dict[str, str]) -> int:
    (tmp_path / "cgroup").write_text(line + "\n")
    for name, text in files.items():
        path = tmp_path / "fs" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return usable_cores(tmp_path / "cgroup", tmp_path / "fs")


def test_without_quota_the_affinity_mask_counts(tmp_path: Path) -> None:
    """With no cgroup, or one without a limit, every core of the affinity mask is usable."""
    assert usable_cores(tmp_path / "none", tmp_path) == AFFINITY
    assert cgroup(tmp_path, "0::/app", {"app/cpu.max": "max 100000"}) == AFFINITY


def test_quota_of_the_own_group(tmp_path: Path) -> None:
    """A quota of one and a half cores (cgroup 2) leaves one thread, since a second would be throttled."""
    assert cgroup(tmp_path, "0::/app", {"app/cpu.max": "150000 100000"}) == 1


def test_quota_of_a_group_above(tmp_path: Path) -> None:
    """The tightest quota on the way up holds, wherever it is set; less than one core still gives one thread."""
    assert cgroup(tmp_path, "0::/a/b", {"a/b/cpu.max": "max 100000", "a/cpu.max": "50000 100000"}) == 1


def test_quota_of_cgroup_version_1(tmp_path: Path) -> None:
    """The older files are read too, and -1 means no limit."""
    files = {"cpu/app/cpu.cfs_quota_us": "100000", "cpu/app/cpu.cfs_period_us": "100000"}
    assert cgroup(tmp_path, "4:cpu,cpuacct:/app", files) == 1
    files["cpu/app/cpu.cfs_quota_us"] = "-1"
    assert cgroup(tmp_path, "4:cpu,cpuacct:/app", files) == AFFINITY


def test_quota_above_the_affinity_mask(tmp_path: Path) -> None:
    """A generous quota does not give more threads than the affinity mask has cores."""
    assert cgroup(tmp_path, "0::/", {"cpu.max": "6400000 100000"}) == AFFINITY


def test_priorities_are_the_threads_own() -> None:
    """Each is of the thread that asks for it; the others of the process keep theirs."""

    def mine() -> tuple[int, int]:
        return os.sched_getscheduler(0), os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    before = mine()
    with ThreadPoolExecutor(1, initializer=lower_priority) as lower:
        assert lower.submit(mine).result() == (before[0], max(10, before[1]))
    with ThreadPoolExecutor(1, initializer=lowest_priority) as lowest:
        assert lowest.submit(mine).result()[0] == os.SCHED_IDLE
    assert mine() == before
