"""One pull of a model at a time, over all threads and processes that share the folder."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from resilient_ai._models.landing import make_folder, write_whole, writing
from resilient_ai.errors import DeadlineExceeded

__all__ = ["exclusive"]


@contextmanager
def exclusive(folder: Path, name: str, timeout: float) -> Iterator[None]:
    """Hold the lock of one model while the block runs.

    The lock belongs to the operating system, so a holder that is killed frees it. Waiting is
    polling, bounded by `timeout` seconds.

    Raises:
        DeadlineExceeded: another one held the lock all the while; the message says who.
        ConfigurationError: the lock file cannot be made.
    """
    # Here, for a model whose files are all at hand is used without a lock.
    from filelock import FileLock, Timeout  # noqa: PLC0415

    make_folder(folder)
    path, holder = folder / f"{name}.lock", folder / f"{name}.holder"
    lock = FileLock(path, timeout=timeout)
    with writing(path):
        try:
            lock.acquire(poll_interval=0.1)
        except Timeout as exc:
            raise DeadlineExceeded(
                f"Model {name!r} has been worked on by {_describe(holder)}, and {timeout:g} s passed. "
                "Wait for it to finish, or end that process: the lock goes with it."
            ) from exc
    try:
        write_whole(holder, _encoded_self())
        yield
    finally:
        holder.unlink(missing_ok=True)
        lock.release()


def _encoded_self() -> bytes:
    since = time.strftime("%Y-%m-%d %H:%M:%S %z")
    return json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "since": since}).encode()


def _describe(holder: Path) -> str:
    try:
        who = json.loads(holder.read_bytes())
        return f"process {who['pid']} on {who['host']} since {who['since']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"
