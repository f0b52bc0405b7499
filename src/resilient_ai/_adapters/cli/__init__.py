"""The command line `resilient-ai`: one module a command, over the service.

Results go to stdout, everything else to stderr. Nothing heavy is imported before a command needs
it, so that `--help` answers at once.
"""

from __future__ import annotations

from resilient_ai._adapters.cli.app import app, main

__all__ = ["app", "main"]
