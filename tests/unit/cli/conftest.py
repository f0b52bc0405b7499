from __future__ import annotations

import os

import pytest
from cli_kit import FakeService


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch, tmp_path):
    """No setting, file or model of this machine reaches a test."""
    for name in [name for name in os.environ if name.startswith("AI_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AI_MODEL_PATH", str(tmp_path / "models"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def service():
    return FakeService()
