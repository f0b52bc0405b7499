"""Why a worker did not start, in words that say what to do."""

from __future__ import annotations

import re

from resilient_ai.errors import DeviceFailed, DeviceUnavailable

__all__ = ["explain_start"]

_MISSING = re.compile(r"No module named '?(?P<module>[\w.]{1,100})")
_TOO_OLD = re.compile(r"SyntaxError|cannot import name")


def explain_start(error: DeviceFailed, python: str) -> DeviceFailed | DeviceUnavailable:
    """What a process died of before it was up, as what its interpreter lacks where its last words say so."""
    text = str(error)
    if missing := _MISSING.search(text):
        return DeviceUnavailable(
            f"the worker's interpreter {python} lacks the package {missing['module'].split('.')[0]!r}. "
            f'Install it: {python} -m pip install "resilient-ai[gpu]", or name another in AI_WORKER_PYTHON'
        )
    if _TOO_OLD.search(text):
        return DeviceUnavailable(
            f"the worker's interpreter {python} cannot run this library: it needs Python 3.11 or later, and "
            f"the same version of resilient-ai. Name another one in AI_WORKER_PYTHON. It said:\n{text}"
        )
    return error
