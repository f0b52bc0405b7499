"""How many cores this process may really use: affinity and cgroup limits, not what the host has.

A container that sees 64 cores and may use 2 runs three times slower with 64 threads than with 2.
"""

from __future__ import annotations

import hashlib
import os
import platform
from pathlib import Path

__all__ = ["cpu_identity", "usable_cores"]


def usable_cores(*, proc: Path = Path("/proc"), cgroup_root: Path = Path("/sys/fs/cgroup")) -> int:
    """Return the number of cores this process may keep busy, at least 1.

    The smaller of the CPU affinity and the tightest CPU quota of the cgroups (version 1 or 2) the
    process is in. A fractional quota is rounded down: a thread that is throttled half of the time
    slows the others down at every barrier.
    """
    limits = [_affinity(), *_quotas(proc, cgroup_root)]
    return max(1, int(min(limits)))


def cpu_identity(*, proc: Path = Path("/proc")) -> str:
    """The name of the CPU's model, and a few digits that change with what it can do."""
    found = {"model name": platform.processor() or platform.machine(), "flags": ""}
    for line in reversed(_read(proc / "cpuinfo").splitlines()):
        name, _, value = line.partition(":")
        found[name.strip()] = value.strip()
    # A virtual machine's name may say little, and hide what the model has.
    return f"{found['model name']} {hashlib.sha256(found['flags'].encode()).hexdigest()[:8]}"


def _affinity() -> float:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _quotas(proc: Path, root: Path) -> list[float]:
    """Every CPU quota, in cores, on the path from the process's cgroup up to the root."""
    found = []
    for line in _read(proc / "self" / "cgroup").splitlines():
        _, _, entry = line.partition(":")
        controllers, _, path = entry.partition(":")
        if not path:
            continue
        if controllers == "":
            found += [_quota_v2(folder) for folder in _ancestry(root, path)]
        elif "cpu" in controllers.split(","):
            found += [_quota_v1(folder) for folder in _ancestry(root / "cpu", path)]
    return [quota for quota in found if quota is not None]


def _ancestry(root: Path, path: str) -> list[Path]:
    """The cgroup's folder and its parents; only the root inside a container with a private view."""
    inside = root / path.lstrip("/")
    if ".." in inside.parts:
        return [root]
    return [inside, *(parent for parent in inside.parents if parent.is_relative_to(root))]


def _quota_v2(folder: Path) -> float | None:
    quota, _, period = _read(folder / "cpu.max").strip().partition(" ")
    return _cores(quota, period)


def _quota_v1(folder: Path) -> float | None:
    return _cores(_read(folder / "cpu.cfs_quota_us").strip(), _read(folder / "cpu.cfs_period_us").strip())


def _cores(quota: str, period: str) -> float | None:
    """Quota over period; None for "max", -1 (no limit) or anything unreadable."""
    try:
        cores = int(quota) / int(period)
    except (ValueError, ZeroDivisionError):
        return None
    return cores if cores > 0 else None


def _read(path: Path) -> str:
    try:
        # Names of cgroups are bytes like all file names, and must find their folder again.
        return path.read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:
        return ""
