"""The web server that the tests of this folder download from."""

from __future__ import annotations

import threading

import pytest
from file_server import FileServer, Handler, QuietServer


@pytest.fixture
def server(monkeypatch):
    """A running `FileServer`."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    files = FileServer()
    handler = type("BoundHandler", (Handler,), {"files": files})
    with QuietServer(("127.0.0.1", 0), handler) as running:
        files.url = f"http://127.0.0.1:{running.server_port}"
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield files
        files.released.set()
        running.shutdown()
        thread.join()
