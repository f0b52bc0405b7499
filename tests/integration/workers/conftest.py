"""A model and a place to work for the programs of this folder's tests."""

from __future__ import annotations

import pytest
from host_kit import EMBED, MODEL, Workplace, write_model


@pytest.fixture(scope="session")
def store(tmp_path_factory):
    """A model folder that was used before, so that it has all that a first use writes."""
    folder = tmp_path_factory.mktemp("models")
    write_model(folder / MODEL)
    place = Workplace(tmp_path_factory.mktemp("first"), folder)
    place.run("-c", EMBED)
    return folder


@pytest.fixture
def place(tmp_path, store):
    """Somewhere to start programs; none of their processes and no file of theirs may be left."""
    made = Workplace(tmp_path, store)
    yield made
    try:
        made.until_nothing_is_left()
    finally:
        made.clear()
