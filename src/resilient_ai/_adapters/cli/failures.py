"""What a user sees of an error, one line and an exit code, wherever in the program it arose."""

from __future__ import annotations

import signal
import sys
import traceback
from typing import Any

import typer
from typer.core import TyperGroup

from resilient_ai._adapters.cli.console import mute_stdout, tell
from resilient_ai._adapters.cli.session import Session
from resilient_ai.errors import ResilientAIError

__all__ = ["FAILED", "Program", "Stopped"]

FAILED = 1
"""The service, a device or a model failed, or was found not to be as it should."""

USAGE = 2
INTERNAL = 70
CLOSED_PIPE = 128 + signal.SIGPIPE


class Stopped(KeyboardInterrupt):
    """Raised in the main thread by a signal that asks the program to end."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class Program(TyperGroup):
    """The root command: ends every run with a documented exit code and at most one line of error."""

    def invoke(self, ctx: Any) -> Any:
        # Caught here, not in `main`: typer has ideas of its own about Ctrl-C and closed pipes.
        try:
            return super().invoke(ctx)
        except (typer.Exit, typer.Abort):
            raise
        except (Exception, KeyboardInterrupt) as exc:
            if _is_usage_error(exc):
                raise
            raise typer.Exit(
                report(exc, debug=isinstance(ctx.obj, Session) and ctx.obj.is_debugging)
            ) from exc

    def main(self, *args: Any, standalone_mode: bool = True, **extra: Any) -> Any:
        try:
            answer = super().main(*args, **{**extra, "standalone_mode": False})
            code = answer if isinstance(answer, int) else 0
        except (Exception, KeyboardInterrupt) as exc:  # noqa: BLE001 - what arose before any command ran
            code = report(exc)
        if standalone_mode:
            sys.exit(code)
        return code


def report(error: BaseException, *, debug: bool = False) -> int:
    """Say on stderr what went wrong, and return the exit code for it."""
    if debug:
        tell("".join(traceback.format_exception(error)).rstrip())
    if isinstance(error, BrokenPipeError):
        mute_stdout()
        return CLOSED_PIPE
    if isinstance(error, KeyboardInterrupt | typer.Abort):
        number = error.number if isinstance(error, Stopped) else signal.SIGINT
        tell(f"error[interrupted]: stopped by {signal.Signals(number).name}")
        return 128 + number
    code, kind, message = _explain(error)
    tell(f"error[{kind}]: {' '.join(message.split())}")
    return code


def _explain(error: BaseException) -> tuple[int, str, str]:
    """Exit code, name of the error for machines, message for people."""
    if isinstance(error, ResilientAIError):
        return (USAGE if error.whose == "caller" else FAILED), error.code, str(error)
    if _is_usage_error(error):
        return USAGE, "usage", _usage_message(error)
    if isinstance(error, OSError) and error.filename is None:
        # Every file of ours is translated where it is opened; what is left is help that found no room.
        mute_stdout()
        return USAGE, "configuration", f"stdout cannot be written: {error.strerror or error}"
    return (
        INTERNAL,
        "internal",
        f"{type(error).__name__}: {error} (a bug; `resilient-ai --debug ...` shows where)",
    )


def _is_usage_error(error: BaseException) -> bool:
    # By shape: the class is click's or typer's own, which of them depends on typer's version.
    return hasattr(error, "format_message") and hasattr(error, "exit_code")


def _usage_message(error: Any) -> str:
    message = error.format_message()
    context = getattr(error, "ctx", None)
    return f"{message} See: {context.command_path} --help" if context else message
