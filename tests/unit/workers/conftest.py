"""Workers of the tests' own."""

from __future__ import annotations

import pytest

from worker_kit import Workplace


@pytest.fixture
def workplace():
    """Makes places with a worker in them, which are closed when the test ends."""
    made = []

    def make(**options):
        made.append(Workplace(**options))
        return made[-1]

    yield make
    for each in made:
        each.close()
