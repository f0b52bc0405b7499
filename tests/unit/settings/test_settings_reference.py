"""The reference: config/resilient_ai.toml and docs/configuration.md follow from the fields."""

import re
import tomllib
from pathlib import Path

import pytest
from setting_cases import FILE_KEYS, KEYS

from resilient_ai.settings import AISettings, reference
from resilient_ai.settings.report import plain

ROOT = Path(__file__).resolve().parents[3]
TOML = ROOT / "config/resilient_ai.toml"
DOCS = ROOT / "docs/configuration.md"
WRITE = "python -c 'from resilient_ai.settings import reference; print(reference.{}(), end=\"\")'"


def uncommented():
    return re.sub(r"(?m)^# (?=\w+ = )", "", TOML.read_text(encoding="utf-8"))


def test_the_file_is_in_step():
    """config/resilient_ai.toml is what the fields say."""
    assert TOML.read_text(encoding="utf-8") == reference.as_toml(), WRITE.format("as_toml")


def test_the_table_is_in_step():
    """The tables in docs/configuration.md are what the fields say."""
    tables = re.search(
        r"<!-- settings: begin -->\n(.*?)\n<!-- settings: end -->",
        DOCS.read_text(encoding="utf-8"),
        re.DOTALL,
    )
    assert tables[1] == reference.as_markdown(), WRITE.format("as_markdown")


def test_the_text_names_no_unknown_variable():
    """Whatever docs/configuration.md calls AI_... exists."""
    named = set(re.findall(r"AI_[A-Z_]+[A-Z]", DOCS.read_text(encoding="utf-8")))
    assert named == {f"AI_{key.upper()}" for key in KEYS}


def test_the_file_as_it_stands_changes_nothing(tmp_path):
    """The commented file sets no key at all."""
    assert tomllib.loads(TOML.read_text(encoding="utf-8")) == {}


def test_the_uncommented_file_is_the_defaults(tmp_path):
    """With every key uncommented the file has each key once, and gives the defaults."""
    text = uncommented()
    assert tuple(tomllib.loads(text)) == FILE_KEYS
    (tmp_path / "config").mkdir()
    (tmp_path / "config/resilient_ai.toml").write_text(text, encoding="utf-8")
    found = AISettings.load(environ={}, cwd=tmp_path)
    assert found == AISettings.load(environ={"AI_CONFIG_FILE": ""}, cwd=tmp_path.parent)
    assert {line.name for line in found.report() if line.origin.startswith("file")} == set(FILE_KEYS)
    assert all(line.is_default for line in found.report())


@pytest.mark.parametrize("key", FILE_KEYS)
def test_each_key_can_be_uncommented_alone(tmp_path, key):
    """Each line of the file is valid by itself."""
    line = re.search(rf"(?m)^# ({key} = .*)$", TOML.read_text(encoding="utf-8"))[1]
    value = tomllib.loads(line)[key]
    assert value == (
        "" if AISettings.model_fields[key].default is None else plain(AISettings.model_fields[key].default)
    )


def test_every_setting_is_described_once():
    """Each field has a description that ends as a sentence and fits a table, and no two share one."""
    texts = [field.description for field in AISettings.model_fields.values()]
    assert len(set(texts)) == len(KEYS)
    assert all(text.endswith(".") and "|" not in text and "\n" not in text for text in texts)


def test_the_sections_are_places_in_the_list():
    """Each heading stands before a setting that exists, the first of them before the first."""
    assert set(reference.SECTIONS) <= set(KEYS)
    assert next(iter(reference.SECTIONS)) == KEYS[0]
