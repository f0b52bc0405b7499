"""The rules of the house that the import contracts alone cannot hold."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src" / "resilient_ai"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
CONTRACTS = {contract["name"]: contract for contract in PROJECT["tool"]["importlinter"]["contracts"]}


def test_no_module_is_a_drawer_for_anything():
    """Every module has a noun for a name; none is where things go that have no place."""
    drawers = {"utils", "util", "common", "helpers", "misc", "core"}
    assert [path for path in PACKAGE.rglob("*") if path.stem in drawers] == []


def test_every_part_has_its_layer():
    """The contract names each top-level module once and is exhaustive, so a new one needs a place."""
    contract = CONTRACTS["One way only"]
    layers = [name for layer in contract["layers"] for name in layer.split(" | ")]
    parts = {
        path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()
    }
    assert contract["exhaustive"] is True
    assert sorted(layers) == sorted(parts - {"__init__", "__main__"})


def test_the_stages_have_theirs():
    """The stages of inference are listed one by one, too."""
    contract = CONTRACTS["The stages of inference do not know each other"]
    layers = [name for layer in contract["layers"] for name in layer.split(" | ")]
    assert contract["exhaustive"] is True
    assert sorted(layers) == sorted(
        path.stem for path in (PACKAGE / "_inference").glob("*.py") if path.stem != "__init__"
    )


def test_one_module_speaks_onnx_runtime():
    """The exception to the rule is the one that finds and tames it, and nothing else."""
    contract = CONTRACTS["One module speaks ONNX Runtime"]
    assert contract["ignore_imports"] == ["resilient_ai._inference.runtime -> onnxruntime"]


@pytest.mark.parametrize("lock", ["dev", "bench", "model"])
def test_lock_files_name_no_host(lock):
    """Everything is pinned with a hash, and no index or host is named."""
    text = (ROOT / "requirements" / f"{lock}.lock").read_text(encoding="utf-8")
    assert "://" not in text
    pins = [block for block in text.split("\n") if block and block[0].isalnum()]
    assert pins
    assert all("==" in pin for pin in pins)
    assert text.count("--hash=sha256:") >= len(pins)
