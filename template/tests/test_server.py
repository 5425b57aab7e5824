"""How many workers a machine or a container can carry."""

import os
from pathlib import Path

import pytest

from app import server


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine of eight processors whose cgroups are in a folder of ours."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    (tmp_path / "own").write_text("")
    return tmp_path


def write(root: Path, files: dict[str, str]) -> None:
    """Write cgroup files."""
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(f"{text}\n")


def cpus(machine: Path) -> float:
    """Ask for the effective processors."""
    return server.effective_cpus(machine, machine / "own")


def memory(machine: Path) -> int | None:
    """Ask for the memory limit in bytes."""
    return server.memory_limit_bytes(machine, machine / "own")


def test_without_cgroups_affinity_decides(machine: Path) -> None:
    assert cpus(machine) == 8
    assert memory(machine) is None


def test_version_2_takes_the_smallest_quota_of_all_ancestors(machine: Path) -> None:
    write(
        machine,
        {
            "own": "0::/system.slice/api.service",
            "cgroup.controllers": "cpu memory",
            "system.slice/cpu.max": "150000 100000",
            "system.slice/memory.max": "2000000000",
            "system.slice/api.service/cpu.max": "400000 100000",
            "system.slice/api.service/memory.max": "max",
        },
    )
    assert cpus(machine) == 1.5
    assert memory(machine) == 2_000_000_000


def test_version_2_in_a_container_has_its_limit_at_the_root(machine: Path) -> None:
    write(
        machine,
        {
            "own": "0::/../../pods/abc",
            "cgroup.controllers": "cpu memory",
            "cpu.max": "200000 100000",
            "memory.max": "536870912",
        },
    )
    assert cpus(machine) == 2
    assert memory(machine) == 536_870_912


def test_version_1_with_joined_controllers(machine: Path) -> None:
    write(
        machine,
        {
            "own": "4:memory:/api\n3:cpu,cpuacct:/api/one",
            "cpu,cpuacct/api/cpu.cfs_quota_us": "300000",
            "cpu,cpuacct/api/cpu.cfs_period_us": "100000",
            "cpu,cpuacct/api/one/cpu.cfs_quota_us": "-1",
            "cpu,cpuacct/api/one/cpu.cfs_period_us": "100000",
            "memory/memory.limit_in_bytes": "9223372036854771712",
            "memory/api/memory.limit_in_bytes": "1000000000",
        },
    )
    assert cpus(machine) == 3
    assert memory(machine) == 1_000_000_000


def test_version_1_without_a_limit(machine: Path) -> None:
    write(
        machine,
        {
            "own": "4:memory:/\n3:cpu:/",
            "cpu/cpu.cfs_quota_us": "-1",
            "memory/memory.limit_in_bytes": "9223372036854771712",
        },
    )
    assert cpus(machine) == 8
    assert memory(machine) is None


def test_both_versions_mounted_at_once(machine: Path) -> None:
    write(
        machine,
        {
            "own": "3:cpu:/\n0::/api",
            "cpu/cpu.cfs_quota_us": "-1",
            "unified/api/cpu.max": "250000 100000",
        },
    )
    assert cpus(machine) == 2.5


@pytest.mark.parametrize(
    ("asked", "cpus", "quota", "memory", "connections", "expected"),
    [
        (7, 1.0, None, None, None, 7),
        (None, 4.0, None, None, None, 4),
        (None, 1.0, None, None, None, 2),
        (None, 1.0, 1.0, None, None, 1),
        (None, 0.5, 0.5, None, None, 1),
        (None, 3.9, 3.9, None, None, 3),
        (None, 8.0, None, 512 * 2**20, None, 3),
        (None, 8.0, None, 64 * 2**20, None, 1),
        (None, 8.0, None, None, 5, 5),
        (None, 8.0, None, None, 0, 1),
    ],
)
def test_workers(
    monkeypatch: pytest.MonkeyPatch,
    asked: int | None,
    cpus: float,
    quota: float | None,
    memory: int | None,
    connections: int | None,
    expected: int,
) -> None:
    monkeypatch.setattr(server, "effective_cpus", lambda: cpus)
    monkeypatch.setattr(server, "cpu_quota", lambda: quota)
    monkeypatch.setattr(server, "memory_limit_bytes", lambda: memory)
    assert server.worker_count(asked=asked, connection_limit=connections) == expected
