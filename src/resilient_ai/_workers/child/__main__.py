"""A worker's process: `python -m resilient_ai._workers.child FD`.

FD is the file descriptor of a connected socket, at whose other end the host is.

::

    host ──frames──> main thread ─┬─> model A's thread: load, run, run ... ──frames──> host
                     (reception)  ├─> model B's thread
                                  └─> clerk: greeting, reports
                     lifeline: is the parent still there?

Any thread may hang in native code, but not the first and the last: they never call any. The process
always ends by `os._exit`: tidying up touches a device that may be dead, and then aborts or hangs.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from typing import NoReturn

from resilient_ai._workers.child.lifeline import DeadMansSwitch, Lifeline
from resilient_ai._workers.child.surroundings import adopt_socket, settle_signals, take_over_streams

__all__ = ["main"]


def main(arguments: Sequence[str]) -> NoReturn:
    """Serve the host at the other end of the socket until it wants no more, or is gone."""
    if len(arguments) != 1:
        sys.exit(
            "usage: python -m resilient_ai._workers.child FD\nA host starts this; it is of no use by hand."
        )
    try:
        take_over_streams()
        settle_signals()
        switch = DeadMansSwitch()
        Lifeline(switch).start()
        _serve(arguments[0], switch)
    except BaseException:  # noqa: BLE001 - the log is where the host looks
        traceback.print_exc()
    os._exit(1)


def _serve(descriptor: str, switch: DeadMansSwitch) -> None:
    # Only now, so that a crash of a native library at its import leaves a stack in the log.
    from resilient_ai._workers.channel import Channel  # noqa: PLC0415 - as above
    from resilient_ai._workers.child.outbox import Outbox  # noqa: PLC0415
    from resilient_ai._workers.child.reception import Reception  # noqa: PLC0415

    channel = Channel(adopt_socket(descriptor))
    Reception(channel, Outbox(channel), switch).run()


if __name__ == "__main__":
    main(sys.argv[1:])
