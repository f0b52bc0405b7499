from __future__ import annotations

from unittest import mock

import pytest


@pytest.fixture(autouse=True)
def patches_end():
    """What `fake_service` patches lasts until the test ends."""
    yield
    mock.patch.stopall()
