from __future__ import annotations

import fcntl
import os
import stat

import pytest

from resilient_ai import ConfigurationError
from resilient_ai._adapters.cli.landing import LandingFile, is_replaceable


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_nothing_under_the_name_until_the_end(tmp_path):
    """The target appears complete when the block ends, not before."""
    target = tmp_path / "out"
    with LandingFile(target) as file:
        file.write(b"content")
        file.flush()
        assert names(tmp_path) == [".out.part"]
    assert target.read_bytes() == b"content"
    assert names(tmp_path) == ["out"]


def test_left_overs_are_taken_over(tmp_path):
    """What a killed process left is emptied and used by the next run with the same target."""
    (tmp_path / ".out.part").write_bytes(b"much longer left-over")
    with LandingFile(tmp_path / "out") as file:
        file.write(b"new")
    assert (tmp_path / "out").read_bytes() == b"new"
    assert names(tmp_path) == ["out"]


def test_one_writer_a_target(tmp_path):
    """A second run with the same target is refused while the first one writes, and harms nothing."""
    with LandingFile(tmp_path / "out") as file:
        file.write(b"first")
        with pytest.raises(ConfigurationError, match="another process"), LandingFile(tmp_path / "out"):
            pytest.fail("two own one file")
        file.write(b" still")
    assert (tmp_path / "out").read_bytes() == b"first still"


def test_a_name_that_landed_meanwhile_is_not_written_to(tmp_path, monkeypatch):
    """Between opening and locking the owner may rename the file; the finished one is then left alone."""
    target, hidden = tmp_path / "out", tmp_path / ".out.part"
    hidden.write_bytes(b"finished by another")
    real, raced = fcntl.flock, []

    def flock(handle, operation):
        if not raced:
            raced.append(hidden.rename(target))
        real(handle, operation)

    monkeypatch.setattr(fcntl, "flock", flock)
    with LandingFile(target) as file:
        assert target.read_bytes() == b"finished by another"
        file.write(b"mine")
    assert target.read_bytes() == b"mine"


def test_file_systems_without_locks_are_good_enough(tmp_path, monkeypatch):
    """Where locks are not supported the file is written all the same."""

    def flock(handle, operation):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", flock)
    with LandingFile(tmp_path / "out") as file:
        file.write(b"x")
    assert (tmp_path / "out").read_bytes() == b"x"


def test_links_are_followed_and_modes_kept(tmp_path):
    """A link stays a link; what it leads to is replaced and keeps its permissions."""
    (tmp_path / "real").write_bytes(b"old")
    (tmp_path / "real").chmod(0o640)
    (tmp_path / "link").symlink_to("real")
    with LandingFile(tmp_path / "link") as file:
        file.write(b"new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_bytes() == b"new"
    assert stat.S_IMODE((tmp_path / "real").stat().st_mode) == 0o640


def test_a_planted_link_is_not_followed(tmp_path):
    """A link under the hidden name is refused, so nobody's file is emptied through it."""
    (tmp_path / "precious").write_bytes(b"mine")
    (tmp_path / ".out.part").symlink_to("precious")
    with pytest.raises(ConfigurationError), LandingFile(tmp_path / "out"):
        pytest.fail("followed the link")
    assert (tmp_path / "precious").read_bytes() == b"mine"


def test_new_files_obey_the_umask(tmp_path):
    """A new file has the permissions that any program would give it."""
    before = os.umask(0o027)
    try:
        with LandingFile(tmp_path / "out") as file:
            file.write(b"x")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == 0o640


def test_devices_are_not_replaceable(tmp_path):
    """A device, a named pipe: not to be renamed over."""
    os.mkfifo(tmp_path / "pipe")
    assert not is_replaceable(tmp_path / "pipe")
    assert is_replaceable(tmp_path / "new")
