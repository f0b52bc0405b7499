"""A worker on another interpreter: the right one serves, a wrong one is told and the CPU serves."""

from __future__ import annotations

import json
import shutil
import sys
import venv
from pathlib import Path

import numpy as np
import pytest
from host_kit import finish

import resilient_ai
from resilient_ai import __version__

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("deserted")]

LIBRARY = Path(resilient_ai.__file__).parent
PACKAGES = Path(np.__file__).parents[1]

TELLS = """
served = embed()
health = ai.health()
say(json.dumps([served, health.status, health.warnings]))
"""


def tell(place, python, **settings):
    """By whom a host with a worker on `python` is served, its state, and its warnings."""
    done = finish(place.program(TELLS, AI_WORKER_PYTHON=str(python), **settings))
    return json.loads(done.lines[0])


def warning(place, python, **settings):
    """What a host says whose worker cannot be started on `python`, while the CPU serves."""
    served, status, warnings = tell(place, python, **settings)
    assert (served, status, len(warnings)) == ("cpu", "degraded", 1)
    return warnings[0]


@pytest.fixture
def environment(tmp_path):
    """Make an environment whose Python finds the given folders, and nothing else; returns its Python."""

    def make(*folders):
        venv.create(tmp_path / "environment", symlinks=True)
        python = tmp_path / "environment" / "bin" / "python"
        version = f"python{sys.version_info.major}.{sys.version_info.minor}"
        packages = tmp_path / "environment" / "lib" / version / "site-packages"
        (packages / "folders.pth").write_text("".join(f"{folder}\n" for folder in folders))
        return python

    return make


@pytest.fixture
def other_version(tmp_path):
    """The folder of another version of the library."""
    shutil.copytree(LIBRARY, tmp_path / "other" / LIBRARY.name, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "other" / LIBRARY.name / "_version.py").write_text('__version__ = "0.0.1"\n')
    return tmp_path / "other"


def test_an_environment_of_its_own(place, environment):
    """A worker runs in the environment that AI_WORKER_PYTHON names, and finds its modules there."""
    assert tell(place, environment(LIBRARY.parent, PACKAGES)) == ["simulated", "healthy", []]


@pytest.mark.parametrize("use_gpu", ["auto", "simulated"])
def test_one_that_lacks_the_library(place, environment, use_gpu):
    """An environment without resilient-ai is told with the command that installs it there."""
    python = environment()
    told = warning(place, python, AI_USE_GPU=use_gpu)
    assert f"{python} lacks the package 'resilient_ai'" in told
    assert f"{python} -m pip install" in told


def test_one_that_lacks_a_package(place, environment):
    """So is one in which only a package is missing that the library needs."""
    python = environment(LIBRARY.parent)
    assert f"{python} lacks the package 'numpy'" in warning(place, python, AI_USE_GPU="auto")


def test_one_with_another_version(place, environment, other_version):
    """An environment with another version of the library is told with both versions, and is not used."""
    python = environment(other_version, PACKAGES)
    assert f"{python} has resilient_ai 0.0.1, its host has {__version__}" in warning(place, python)


def test_what_cannot_be_started(place, tmp_path):
    """A path at which there is no program is told as that, with the name of the setting."""
    told = warning(place, tmp_path / "python")
    assert f"{tmp_path / 'python'} could not be started" in told
    assert "AI_WORKER_PYTHON" in told


@pytest.mark.parametrize(
    ("script", "says"),
    [
        ("echo I am no Python; exit 3", "exited with code 3; its last words:\nI am no Python"),
        ("exit 0", "python ended before it said a word to its host: it is no Python"),
        ("exec sleep 600", "did not answer within 0.3 s"),
    ],
    ids=["complains", "ends", "is silent"],
)
def test_what_is_no_python(place, tmp_path, script, says):
    """A program that is none is told by what it did: it ended, with its last words, or said nothing for long."""
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\n{script}\n")
    python.chmod(0o755)
    assert says in warning(place, python, AI_WORKER_PHASE_MS="300")
