"""A real web server on loopback that can be told to misbehave."""

from __future__ import annotations

import hashlib
import re
import threading
from collections import Counter, deque
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "c0ffee" + "0" * 34


@dataclass(frozen=True)
class Fault:
    """What one GET shall suffer. `status` answers at once; `cut` and `stall` stop after n bytes."""

    status: int | None = None
    cut: int | None = None
    stall: int | None = None
    content: bytes | None = None
    headers: tuple[tuple[str, str], ...] = ()


@dataclass
class FileServer:
    """Files by path, the faults that await them, and what was asked for."""

    files: dict[str, bytes] = field(default_factory=dict)
    faults: dict[str, deque[Fault]] = field(default_factory=dict)
    always: dict[str, Fault] = field(default_factory=dict)
    etags: dict[str, str] = field(default_factory=dict)
    requests: list[tuple[str, str, str | None]] = field(default_factory=list)
    ranges: bool = True
    hub: bool = False
    lfs: bool = True
    busy: int = 0
    url: str = ""
    released: threading.Event = field(default_factory=threading.Event)
    stalled: threading.Event = field(default_factory=threading.Event)

    def fail(self, path: str, *faults: Fault) -> None:
        """Let the next GETs of `path` suffer these faults, one each."""
        self.faults[path] = deque(faults)

    def gets(self) -> Counter[str]:
        return Counter(path.lstrip("/") for method, path, _ in self.requests if method == "GET")

    def asked_ranges(self) -> list[str | None]:
        return [wanted for method, _, wanted in self.requests if method == "GET"]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    files: FileServer

    def log_message(self, *_args):
        """Be quiet."""

    def do_HEAD(self):
        self.files.requests.append(("HEAD", self.path, None))
        content = self.files.files.get(self._name())
        if self.files.busy:
            self.files.busy -= 1
            self._empty(503, {})
            return
        if content is None:
            self._empty(404, {"X-Error-Code": "EntryNotFound"})
            return
        self.send_response(200)
        for name, value in self._headers(content).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()

    def do_GET(self):
        wanted = self.headers.get("Range")
        self.files.requests.append(("GET", self.path, wanted))
        name = self._name()
        queue = self.files.faults.get(name)
        fault = queue.popleft() if queue else self.files.always.get(name, Fault())
        content = self.files.files.get(name) if fault.content is None else fault.content
        if fault.status or content is None:
            self._empty(fault.status or 404, dict(fault.headers))
            return
        self._send(content, wanted, fault)

    def _send(self, content, wanted, fault):
        headers = self._headers(content)
        start = int(re.fullmatch(r"bytes=(\d+)-", wanted).group(1)) if wanted and self.files.ranges else 0
        if start and self.headers.get("If-Range") not in {None, headers["ETag"]}:
            start = 0
        if start >= len(content) and start:
            self._empty(416, {"Content-Range": f"bytes */{len(content)}"})
            return
        self.send_response(206 if start else 200)
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        for name, value in {**headers, **dict(fault.headers)}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        self._body(content[start:], fault)

    def _body(self, body, fault):
        stop = fault.cut if fault.cut is not None else fault.stall
        self.wfile.write(body if stop is None else body[:stop])
        self.wfile.flush()
        if fault.stall is not None:
            self.files.stalled.set()
            self.files.released.wait(30)
        if stop is not None:
            self.close_connection = True

    def _headers(self, content):
        name = self._name()
        etag = self.files.etags.get(name, f'"{hashlib.md5(content).hexdigest()}"')
        headers = {"ETag": etag}
        if self.files.hub:
            blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
            truth = self.files.files[name]
            linked = hashlib.sha256(truth).hexdigest() if self.files.lfs else None
            headers |= {"X-Repo-Commit": COMMIT}
            headers |= {"X-Linked-Etag": f'"{linked}"', "X-Linked-Size": str(len(truth))} if linked else {}
            headers |= {} if linked else {"ETag": f'"{blob}"'}
        return headers

    def _name(self):
        path = self.path.lstrip("/")
        return re.sub(r"/resolve/[^/]+/", "/", path) if self.files.hub else path

    def _empty(self, status, headers):
        self.send_response(status)
        for name, value in {**headers, "Content-Length": "0"}.items():
            self.send_header(name, value)
        self.end_headers()


class QuietServer(ThreadingHTTPServer):
    daemon_threads = False  # so that closing waits for them, and none outlives its test

    def handle_error(self, request, client_address):
        """A client that hangs up is part of the tests."""
