"""The listing: every setting, its value, its origin; nothing secret in it."""

import json
from dataclasses import asdict

import pytest
from hypothesis import given
from hypothesis import strategies as st
from setting_cases import KEYS

from resilient_ai.settings import AISettings
from resilient_ai.settings.masking import MASK, mask_url

SECRET = "https://jo:hunter2@mirror.example:8443/models?token=hunter3#hunter4"  # a made-up one


def test_origins(tmp_path):
    """Each line says where its value came from, in the words a user needs to find it."""
    (tmp_path / "a.toml").write_text("max_length = 64\n")
    found = AISettings.load(
        environ={"AI_CONFIG_FILE": "a.toml", "AI_BATCH_SIZE": "8"}, cwd=tmp_path, use_gpu="never"
    )
    origins = {line.name: line.origin for line in found.report() if line.origin != "default"}
    assert origins == {
        "config_file": "environment AI_CONFIG_FILE",
        "batch_size": "environment AI_BATCH_SIZE",
        "max_length": f"file {tmp_path / 'a.toml'}:max_length",
        "use_gpu": "keyword",
    }


def test_a_line_for_each_setting(tmp_path):
    """The listing is complete, in the order of the reference, and fit for JSON."""
    report = AISettings.load(environ={}, cwd=tmp_path).report()
    assert tuple(line.name for line in report) == KEYS
    assert all(line.variable == f"AI_{line.name.upper()}" and line.description for line in report)
    assert all(line.is_default and line.known and line.origin == "default" for line in report)
    assert json.loads(json.dumps([asdict(line) for line in report]))[2]["value"] == "./models"


def test_a_default_that_was_written_down(tmp_path):
    """`is_default` is about the value, `origin` about who wrote it."""
    found = AISettings.load(environ={"AI_BATCH_SIZE": "32", "AI_MAX_LENGTH": "9"}, cwd=tmp_path)
    lines = {line.name: line for line in found.report()}
    assert (lines["batch_size"].is_default, lines["batch_size"].origin) == (True, "environment AI_BATCH_SIZE")
    assert not lines["max_length"].is_default


def test_unknown_variables_are_listed(tmp_path):
    """A variable without effect has a line that says so and names the one perhaps meant."""
    line = AISettings.load(environ={"AI_BATCHSIZE": "hunter2"}, cwd=tmp_path).report()[-1]
    assert (line.variable, line.value, line.known) == ("AI_BATCHSIZE", MASK, False)
    assert "did you mean AI_BATCH_SIZE?" in line.description


def test_a_secret_is_masked_everywhere(tmp_path):
    """No way of showing settings shows a credential; each shows the host."""
    found = AISettings.load(environ={"AI_MODEL_MIRROR": SECRET}, cwd=tmp_path)
    line = next(line for line in found.report() if line.name == "model_mirror")
    assert line.secret
    for shown in (
        repr(found),
        str(found),
        f"{found.model_mirror}",
        str(found.model_dump()),
        found.model_dump_json(),
        str(line.value),
        repr(found.report()),
        repr(vars(found)),
        repr(found.__pydantic_private__),
    ):
        assert "hunter" not in shown
    assert line.value == "https://***@mirror.example:8443/models?***"
    assert found.mirror_url == SECRET


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://host/path", "https://host/path"),
        ("https://jo@host", "https://***@host"),
        ("https://jo:a@b@host/x", "https://***@host/x"),
        ("https://jo:a/b@host/x", "https://***@host/x"),
        ("https://jo:a?b@host/x", "https://***@host/x"),
        ("https://host?a=b", "https://host?***"),
        ("https://host#f?g", "https://host#***"),
        ("jo:word@host", "***@host"),
        ("a b://jo:word@host", "***@host"),
        ("word", "***"),
        ("", "***"),
    ],
)
def test_masking(url, shown):
    """The host is shown, whatever could be a credential is not."""
    assert mask_url(url) == shown


@given(st.text(st.characters(categories=["L", "N"]), min_size=1), st.text(max_size=20))
def test_nothing_before_the_host_survives(word, tail):
    """Whatever a password is made of, nothing of what stands before the last @ is shown."""
    secret = f"{word}0S3CR3T0{tail}"
    assert "0S3CR3T0" not in mask_url(f"https://jo:{secret}@host/path")
