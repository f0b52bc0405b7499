"""How many cores may be used: the tightest of affinity and cgroup quotas."""

from __future__ import annotations

import os

import pytest

from resilient_ai._inference import cores
from resilient_ai._inference.cores import usable_cores


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A machine whose process may run on 16 cores; files are written under `proc` and `cgroup`."""
    monkeypatch.setattr(cores, "_affinity", lambda: 16.0)

    def build(membership, files):
        if membership is not None:
            (tmp_path / "proc" / "self").mkdir(parents=True, exist_ok=True)
            (tmp_path / "proc" / "self" / "cgroup").write_bytes(membership.encode("utf-8", "surrogateescape"))
        for name, text in files.items():
            path = tmp_path / "cgroup" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return usable_cores(proc=tmp_path / "proc", cgroup_root=tmp_path / "cgroup")

    return build


def test_affinity_limits(monkeypatch, tmp_path):
    """Without cgroups the cores of the affinity count."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 3, 5})
    assert usable_cores(proc=tmp_path, cgroup_root=tmp_path) == 3


@pytest.mark.parametrize(("count", "expected"), [(7, 7), (None, 1)])
def test_without_affinity(monkeypatch, tmp_path, count, expected):
    """Where there is no affinity the host's count is taken, and 1 where it is unknown."""
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: count)
    assert usable_cores(proc=tmp_path, cgroup_root=tmp_path) == expected


def test_this_machine():
    """The real answer is at least 1 and no more than the affinity."""
    assert 1 <= usable_cores() <= len(os.sched_getaffinity(0))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("200000 100000\n", 2),
        ("max 100000\n", 16),
        ("250000 100000\n", 2),
        ("50000 100000\n", 1),
        ("6400000 100000\n", 16),
        ("", 16),
        ("nonsense\n", 16),
        ("100000\n", 16),
        ("200000 0\n", 16),
        ("-1 100000\n", 16),
        ("0 100000\n", 16),
    ],
)
def test_version_2_quota(machine, text, expected):
    """A version 2 quota is rounded down to whole cores, at least 1; what cannot be read is no limit."""
    assert machine("0::/\n", {"cpu.max": text}) == expected


def test_version_2_nested(machine):
    """The tightest quota on the way from the process's cgroup to the root counts."""
    files = {"cpu.max": "max 100000", "a/cpu.max": "300000 100000", "a/b/cpu.max": "800000 100000"}
    assert machine("0::/a/b\n", files) == 3


def test_version_2_private_view(machine):
    """A path that leads out of a container's private view means the root of that view."""
    assert machine("0::/../../other\n", {"cpu.max": "400000 100000"}) == 4


def test_the_hosts_path_inside_a_container(machine):
    """A path that only the host knows falls back to the root that is there."""
    assert machine("0::/docker/0123\n", {"cpu.max": "400000 100000"}) == 4


@pytest.mark.parametrize(("quota", "expected"), [("150000", 1), ("500000", 5), ("-1", 16)])
def test_version_1_quota(machine, quota, expected):
    """A version 1 quota counts, -1 is no limit; other controllers' lines are passed over."""
    files = {"cpu/job/cpu.cfs_quota_us": quota, "cpu/job/cpu.cfs_period_us": "100000"}
    membership = "12:memory:/elsewhere\n4:cpu,cpuacct:/job\n2:cpuset:/x\n1:name=systemd:/y\n"
    assert machine(membership, files) == expected


def test_both_versions(machine):
    """On a hybrid host the tighter of both counts."""
    files = {
        "cpu/cpu.cfs_quota_us": "600000",
        "cpu/cpu.cfs_period_us": "100000",
        "cpu.max": "500000 100000",
    }
    assert machine("4:cpu:/\n0::/\n", files) == 5


@pytest.mark.parametrize("membership", [None, "", "garbage\n", "0::\n", "1:cpu\n"])
def test_missing_or_strange_files(machine, membership):
    """Files that are missing or hold something else limit nothing."""
    assert machine(membership, {}) == 16


def test_names_that_are_not_ascii(machine):
    """A cgroup may have any name that a folder may have, bytes that are no text included."""
    assert machine("0::/dienst-ü-\udcff\n", {}) == 16
    assert machine("0::/dienst-ü\n", {"dienst-ü/cpu.max": "300000 100000"}) == 3
