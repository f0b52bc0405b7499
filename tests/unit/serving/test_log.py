"""The library's log goes the host's ways and never to stdout."""

from __future__ import annotations

import logging

import pytest

from resilient_ai._telemetry.log import log, set_level
from serving_kit import run_python


@pytest.fixture(autouse=True)
def level():
    logger = logging.getLogger("resilient_ai")
    before = logger.level
    set_level("debug")
    yield
    logger.setLevel(before)


def test_fields_are_told_twice(caplog):
    """Fields stand in the text for readers and in the record for programs."""
    log.warning("breaker opened", device="gpu", failures=3)
    (record,) = caplog.records
    assert record.getMessage() == "breaker opened device='gpu' failures=3"
    assert record.fields == {"device": "gpu", "failures": 3}
    assert (record.name, record.levelname) == ("resilient_ai", "WARNING")


@pytest.mark.parametrize("text", ["100 % full", "%s and %d", "{x} {}", "%(name)s"])
def test_percent_signs(caplog, text):
    """No sign in a text or field is taken for a place to fill in."""
    log.warning(text, field=text)
    assert caplog.records[0].getMessage() == f"{text} field={text!r}"


def test_no_fields(caplog):
    """Without fields the text stands alone."""
    log.info("plain")
    assert caplog.messages == ["plain"]


def test_levels(caplog):
    """What is below the level is not made at all."""
    set_level("error")
    log.warning("hidden")
    log.error("shown")
    assert caplog.messages == ["shown"]


@pytest.mark.slow
def test_nothing_on_stdout():
    """Stdout may carry the host's own protocol: warnings go to stderr, also when logging is not set up."""
    done = run_python(
        "from resilient_ai._telemetry.log import log; log.warning('shown', a=1); log.error('x')"
    )
    assert done.stdout == ""
    assert done.stderr.splitlines() == ["shown a=1", "x"]
