"""The server's size: how many workers this machine, or this container, can carry."""

import logging
import math
import os
from collections.abc import Iterator
from pathlib import Path

log = logging.getLogger(__name__)

CGROUP_ROOT = Path("/sys/fs/cgroup")
OWN_CGROUPS = Path("/proc/self/cgroup")

# Bytes. Of four workers behind a preloading master each took 30 MiB (PSS) idle and 70 under load; the rest is room.
MASTER_BYTES = 64 * 2**20
WORKER_BYTES = 96 * 2**20


def worker_count(*, asked: int | None, connection_limit: int | None = None) -> int:
    """Return the number of workers: what was asked for, else one per processor as far as limits allow.

    A machine without a quota gets two at least, so that one serves while the other is replaced.
    `connection_limit` is the number of workers that there are connections for, where that is limited.
    """
    if asked is not None:
        return asked
    least = 1 if cpu_quota() else 2
    limits = {"processors": max(least, math.floor(effective_cpus()))}
    if (memory := memory_limit_bytes()) is not None:
        limits["memory"] = max(1, int((memory * 0.8 - MASTER_BYTES) // WORKER_BYTES))
    if connection_limit is not None:
        limits["connections"] = max(1, connection_limit)
    count = min(limits.values())
    log.info("workers_counted", extra={"workers": count, "limits": limits})
    return count


def effective_cpus(root: Path = CGROUP_ROOT, own: Path = OWN_CGROUPS) -> float:
    """Return the processors this process may use: its affinity, or the smallest cgroup quota above it."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(float(affinity), cpu_quota(root, own) or math.inf)


def cpu_quota(root: Path = CGROUP_ROOT, own: Path = OWN_CGROUPS) -> float | None:
    """Return the smallest cgroup quota above this process, in processors; None where there is none."""
    return min(_cpu_quotas(root, own), default=None)


def memory_limit_bytes(root: Path = CGROUP_ROOT, own: Path = OWN_CGROUPS) -> int | None:
    """Return the smallest cgroup memory limit above this process, None where there is none."""
    limits = []
    for group in _cgroups("memory", root, own):
        for name in ("memory.max", "memory.limit_in_bytes"):
            text = _read(group / name)
            # Version 1 writes "no limit" as a number near 2**63.
            if text.isdecimal() and int(text) < 2**60:
                limits.append(int(text))
    return min(limits, default=None)


def _cpu_quotas(root: Path, own: Path) -> Iterator[float]:
    for group in _cgroups("cpu", root, own):
        quota, _, period = _read(group / "cpu.max").partition(" ")
        if not quota:
            quota, period = _read(group / "cpu.cfs_quota_us"), _read(group / "cpu.cfs_period_us")
        if quota.isdecimal() and period.isdecimal():
            yield int(quota) / int(period)


def _cgroups(controller: str, root: Path, own: Path) -> Iterator[Path]:
    """Yield this process's cgroup for `controller` and all above it; a quota of any of them binds."""
    for line in _read(own).splitlines():
        hierarchy, controllers, path = line.split(":", 2)
        if hierarchy == "0":
            base = root if (root / "cgroup.controllers").exists() else root / "unified"
        elif controller in controllers.split(","):
            base = next((root / name for name in (controllers, controller) if (root / name).exists()), root)
        else:
            continue
        group = base / path.lstrip("/")
        # Inside a container the path is the host's, and only the root of it is mounted.
        if not group.exists():
            group = base
        yield group
        yield from (above for above in group.parents if above.is_relative_to(base))


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
