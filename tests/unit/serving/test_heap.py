"""The memory of the process: told where the system tells it, given back where the C library can."""

from __future__ import annotations

from mmap import mmap

from resilient_ai._serving.heap import resident_bytes, trim_heap


def test_what_the_process_holds(tmp_path):
    """It grows by what is held; a system that tells nothing, or nonsense, is no reason to fail."""
    before = resident_bytes()
    with mmap(-1, 1 << 25) as held:  # an array might get memory that was given back and never taken away
        held.write(bytes(1 << 25))
        assert resident_bytes() - before > 1 << 24
    assert resident_bytes(tmp_path / "nowhere") is None
    (tmp_path / "statm").write_text("many")
    assert resident_bytes(tmp_path / "statm") is None


def test_giving_back_is_always_possible(monkeypatch):
    """Another C library than the one that can is no reason to fail either."""
    trim_heap()
    monkeypatch.setattr("ctypes.CDLL", lambda _: object())
    trim_heap()
