from __future__ import annotations

import pytest

from resilient_ai._adapters.cli.downloads import LineDownloads, bytes_text
from resilient_ai._adapters.cli.meter import LineMeter, Pace
from resilient_ai.testing import FakeClock


def test_pace_knows_rate_and_rest():
    """Rate and remaining time follow from what was done so far."""
    clock = FakeClock()
    pace = Pace(extent=1000, clock=clock)
    assert pace.remaining is None
    clock.tick(2.0)
    pace.advance(50, 250)
    assert (pace.rate, pace.remaining) == (25.0, 6.0)


def test_pace_without_extent_promises_nothing():
    """Of a pipe nobody knows the end."""
    clock = FakeClock()
    pace = Pace(extent=None, clock=clock)
    clock.tick(1.0)
    pace.advance(50, 250)
    assert pace.remaining is None
    assert str(pace) == "embedded 50 texts, 50/s"


def test_lines_come_now_and_then(capsys):
    """A line every ten seconds at most, however many parts there are."""
    clock = FakeClock()
    meter = LineMeter(Pace(extent=100, clock=clock))
    for done in range(1, 26):
        clock.tick(1.0)
        meter.advance(4, 4 * done)
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["embedded 40 texts, 4/s, 40 %, 15 s left", "embedded 80 texts, 4/s, 80 %, 5 s left"]


def test_downloads_say_a_line_a_file(capsys):
    """The end of a file is said at once, its growth every ten seconds."""
    clock = FakeClock()
    progress = LineDownloads(clock)
    for second in range(12):
        clock.tick(1.0)
        progress("model.bin", 1000 * second, None if second < 5 else 20_000)
    progress("model.bin", 20_000, 20_000)
    assert capsys.readouterr().err.splitlines() == [
        "model.bin: 9.0 kB of 20.0 kB",
        "model.bin: 20.0 kB, done",
    ]


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 bytes"), (999, "999 bytes"), (1000, "1.0 kB"), (90_868_373, "90.9 MB")]
)
def test_bytes_for_people(count, text):
    """Sizes are in decimal units."""
    assert bytes_text(count) == text
