"""The address that is listened on."""

from __future__ import annotations

import socket

import pytest

from resilient_ai._adapters.http.server import _listen, _url
from resilient_ai.errors import ConfigurationError


def test_a_free_port_is_taken_and_told():
    """Port 0 is any free one, and the URL names it."""
    with _listen("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        assert _url(listener) == f"http://127.0.0.1:{port}"
        socket.create_connection(("127.0.0.1", port)).close()


def test_localhost_is_the_ipv4_one():
    """A name with several addresses is listened on at the one that most clients try."""
    with _listen("localhost", 0) as listener:
        assert listener.family == socket.AF_INET


def test_ipv6_urls_have_brackets():
    """An IPv6 address is a URL's host in brackets."""
    try:
        listener = _listen("::1", 0)
    except ConfigurationError:
        pytest.skip("this machine has no IPv6")
    with listener:
        assert _url(listener) == f"http://[::1]:{listener.getsockname()[1]}"


@pytest.mark.parametrize(
    ("host", "port"), [("127.0.0.1", 70_000), ("127.0.0.1", -1), ("no-such-host.invalid", 0), ("x" * 300, 0)]
)
def test_an_impossible_address_is_a_configuration_error(host, port):
    """What cannot be listened on is named, with what to do."""
    with pytest.raises(ConfigurationError, match="choose another --host or --port") as caught:
        _listen(host, port)
    assert f"{host}:{port}" in str(caught.value)


def test_a_taken_port_is_a_configuration_error():
    """Two servers cannot share a port."""
    with _listen("127.0.0.1", 0) as first, pytest.raises(ConfigurationError, match="in use"):
        _listen("127.0.0.1", first.getsockname()[1])
