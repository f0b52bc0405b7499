from __future__ import annotations

import hashlib

import pytest
from cli_kit import rows_of, run

from resilient_ai._models import catalogue
from resilient_ai._models.cards import ModelCard, ModelFile, ModelSource

FILES = {"tokenizer.json": b"{}", "model.safetensors": b"weights"}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A catalogue of one model, whose files lie in a folder of their own."""
    home = tmp_path / "elsewhere"
    home.mkdir()
    for name, content in FILES.items():
        (home / name).write_bytes(content)
    roles = {"tokenizer.json": "tokenizer", "model.safetensors": "weights"}
    files = tuple(
        ModelFile(name, roles[name], sha256=hashlib.sha256(content).hexdigest(), size=len(content))
        for name, content in FILES.items()
    )
    card = ModelCard(
        name="tiny",
        kind="embedding",
        family="bert",
        dimension=4,
        pooling="mean",
        aliases=("Tiny/One",),
        files=files,
        sources=(ModelSource("folder", str(home)),),
        licence="MIT",
    )
    monkeypatch.setattr(
        "resilient_ai._models.registry.builtin_catalogue", lambda: catalogue.Catalogue([card])
    )
    return home


def test_list(service, folder):
    """The list has a row a model, for people and for programs."""
    [row] = rows_of(run(service, "models", "list", "--json"))
    assert row == {
        "name": "tiny",
        "kind": "embedding",
        "dimension": 4,
        "max_tokens": 512,
        "available": True,
        "licence": "MIT",
        "sources": [f"folder:{folder}"],
    }
    head, line = run(service, "models", "list").stdout.splitlines()
    assert head.split() == ["name", "kind", "dimension", "max_tokens", "available", "licence", "sources"]
    assert line.split() == ["tiny", "embedding", "4", "512", "yes", "MIT", f"folder:{folder}"]


def test_verify_all_well(service, folder):
    """Every file is read and named; all well is exit code 0."""
    result = run(service, "models", "verify", "tiny")
    assert result.exit_code == 0
    assert [line.split()[0] for line in result.stdout.splitlines()] == ["ok", "ok"]


def test_verify_finds_what_is_wrong(service, folder):
    """An altered and a missing file are named, and the exit code is 1."""
    (folder / "model.safetensors").write_bytes(b"WEIGHTS")
    (folder / "tokenizer.json").unlink()
    result = run(service, "models", "verify", "tiny", "--json")
    assert result.exit_code == 1
    assert {row["file"]: row["verdict"] for row in rows_of(result)} == {
        "tokenizer.json": "missing",
        "model.safetensors": "altered",
    }


def test_pull_and_path_print_the_folder(service, folder):
    """What is at hand is not fetched again; stdout has the folder alone."""
    assert run(service, "models", "pull", "Tiny/One").stdout == f"{folder}\n"
    assert run(service, "models", "path", "tiny").stdout == f"{folder}\n"


def test_path_of_a_missing_model(service, folder, tmp_path):
    """A model that is nowhere has the path it would be fetched to, and stderr says how."""
    (folder / "tokenizer.json").unlink()
    result = run(service, "models", "path", "tiny")
    assert result.stdout == f"{tmp_path / 'models' / 'tiny'}\n"
    assert "resilient-ai models pull tiny" in result.stderr


def test_remove_needs_a_yes(service, folder, tmp_path):
    """Nothing is deleted unless somebody says so; what is not ours stays in any case."""
    own = tmp_path / "models" / "tiny"
    own.mkdir(parents=True)
    (own / "tokenizer.json").write_bytes(b"{}")
    refused = run(service, "models", "remove", "tiny")
    assert refused.exit_code == 2
    assert "--yes" in refused.stderr
    assert own.exists()
    result = run(service, "models", "remove", "tiny", "--yes")
    assert result.exit_code == 0
    assert "2 bytes freed" in result.stderr
    assert not own.exists()
    assert (folder / "model.safetensors").exists()


def test_show(service, folder):
    """All fields of the card, whether it is here, and where."""
    [row] = rows_of(run(service, "models", "show", "tiny", "--json"))
    assert row["pooling"] == "mean"
    assert row["path"] == str(folder)
    assert "model.safetensors (7 bytes)" in run(service, "models", "show", "tiny").stdout


@pytest.mark.parametrize("command", ["pull", "verify", "path", "remove", "show"])
def test_unknown_models(service, folder, command):
    """An unknown name is the model's error, with the nearest name; nothing is on stdout."""
    result = run(service, "models", command, "tinny")
    assert result.exit_code == 1
    assert "Did you mean tiny" in result.stderr
    assert result.stdout == ""
