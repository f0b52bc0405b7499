"""How a worker is started: with which interpreter, and in which environment.

A worker on the host's own interpreter finds the modules that the host finds, and is told by variables
what the host was told by options. One on another interpreter finds its own: nothing that leads to
the host's may reach it. Neither takes anything from the current folder, which may hold anything.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final, cast

from resilient_ai.errors import DeviceUnavailable

__all__ = ["worker_command", "worker_env"]

_MODULE: Final = "resilient_ai._workers.child"

# Others may be programs that Python is embedded in, which would start once more.
_INTERPRETER: Final = re.compile(r"python|pypy", re.IGNORECASE)

# The settings are the host's; among them may be secrets of other programs, which share the prefix.
_SETTINGS: Final = "AI_"

# Meant for people at a prompt, or, as an error for every warning, the end of a worker for something
# that nobody sees.
_NEVER: Final = frozenset({"PYTHONINSPECT", "PYTHONSTARTUP", "PYTHONWARNINGS"})

# Where one interpreter finds its modules; another one would find the wrong ones.
_OF_ONE_INTERPRETER: Final = frozenset(
    {"PYTHONPATH", "PYTHONHOME", "PYTHONPLATLIBDIR", "PYTHONEXECUTABLE", "__PYVENV_LAUNCHER__", "VIRTUAL_ENV"}
)

_ALWAYS: Final = {"PYTHONSAFEPATH": "1", "PYTHONUNBUFFERED": "1"}

# Only kernels that are used take memory of the card; ONNX Runtime starts no thread that reports home.
_UNLESS_SAID: Final = {"CUDA_MODULE_LOADING": "LAZY", "ORT_DISABLE_TELEMETRY": "1"}


def worker_command(python: str | None) -> list[str]:
    """The command that starts a worker, but for the number of its stream.

    `python` is an interpreter's path or name, None for the one that runs this program.

    Raises:
        DeviceUnavailable: This program has none that could be started again: it is frozen, or it
            embeds Python.
    """
    return [_expanded(python) if python else _own_interpreter(), "-m", _MODULE]


def worker_env(environ: Mapping[str, str], *, python: str | None) -> dict[str, str]:
    """The environment of a worker on `python`, made from the host's, which stays as it is."""
    env = {name: value for name, value in environ.items() if not _is_kept_back(name)}
    if _is_own(python):
        env |= _told_by_options()
        env["PYTHONPATH"] = os.pathsep.join(_module_folders(environ.get("PYTHONPATH", "")))
    else:
        env = _without_bundle({name: env[name] for name in env.keys() - _OF_ONE_INTERPRETER})
    return _UNLESS_SAID | env | _ALWAYS


def _own_interpreter() -> str:
    own = sys.executable
    if own and not getattr(sys, "frozen", False) and _INTERPRETER.search(Path(own).name):
        return own
    raise DeviceUnavailable(
        f"this program has no Python of its own to run the GPU's worker with (sys.executable is {own!r}). "
        "Set AI_WORKER_PYTHON=/path/to/python of an environment in which resilient-ai is installed, or "
        "AI_GPU_IN_PROCESS=true to use the GPU inside this program, which is less safe"
    )


def _expanded(python: str) -> str:
    # A path object would drop the "./" that tells a file of the current folder from a name to search for.
    return os.path.expanduser(python)  # noqa: PTH111


def _is_own(python: str | None) -> bool:
    """Whether `python` runs this program. By name: environments link to the same file, and differ."""
    if not python:
        return True
    return bool(sys.executable) and _expanded(python) == sys.executable


def _is_kept_back(name: str) -> bool:
    if name.upper().startswith(_SETTINGS) or name in _NEVER:
        return True
    # The host was told (-E, -I) to take no orders by such variables, so it passes none on.
    return bool(sys.flags.ignore_environment) and name.startswith("PYTHON")


def _told_by_options() -> dict[str, str]:
    """What the host was told by options that concern a worker, as variables."""
    told = {"PYTHONUTF8": str(sys.flags.utf8_mode)}
    if sys.dont_write_bytecode:
        told["PYTHONDONTWRITEBYTECODE"] = "1"
    if sys.flags.no_user_site:
        told["PYTHONNOUSERSITE"] = "1"
    if sys.pycache_prefix:
        told["PYTHONPYCACHEPREFIX"] = sys.pycache_prefix
    return told


def _module_folders(named: str) -> list[str]:
    """Where this program finds its modules, in order; of `sys.path` what a variable can carry.

    The current folder is left out, unless the user's PYTHONPATH (`named`) has it in full, or this
    library lies in it.
    """
    library = Path(__file__).absolute().parents[3]
    wanted = {library, *(Path(entry) for entry in named.split(os.pathsep))}
    folders = [folder for folder in _existing() if folder in wanted or not _is_here(folder)]
    return list(map(str, dict.fromkeys([*folders, library])))


def _existing() -> Iterator[Path]:
    """The folders and archives of `sys.path`, in full; a variable has no way to write their separator."""
    for entry in cast("list[object]", sys.path):  # anything may be there; what is no text is not looked at
        if isinstance(entry, str):
            with suppress(OSError):  # the current folder was deleted, say
                folder = Path(entry).absolute()
                if folder.exists() and os.pathsep not in str(folder):
                    yield folder


def _is_here(folder: Path) -> bool:
    with suppress(OSError):
        return folder.samefile(os.curdir)
    return False


def _without_bundle(env: dict[str, str]) -> dict[str, str]:
    """Undo what PyInstaller does for its bundle's libraries, which are not another interpreter's."""
    if hasattr(sys, "_MEIPASS"):
        env.pop("LD_LIBRARY_PATH", None)
        if (original := env.pop("LD_LIBRARY_PATH_ORIG", None)) is not None:
            env["LD_LIBRARY_PATH"] = original
    return env
