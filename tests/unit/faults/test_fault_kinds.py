"""Faults as values: what they refuse, and how they travel to a worker."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import get_args

import pytest

from resilient_ai._resilience.fault_kinds import (
    BrokenAnswer,
    Crash,
    DieInPhase,
    Fault,
    HoldGil,
    Leak,
    Nan,
    Noise,
    StartFault,
    StartSlowly,
    WrongNorm,
    WrongValues,
    fault_from_meta,
    fault_meta,
)
from resilient_ai.errors import ConfigurationError


@pytest.mark.parametrize("fault", [cls() for cls in get_args(Fault)], ids=lambda fault: fault.kind)
def test_a_fault_comes_back_as_its_equal(fault):
    """What is written for a worker is JSON, and is read back as the same fault."""
    assert fault_from_meta(json.loads(json.dumps(fault_meta(fault)))) == fault


@pytest.mark.parametrize(
    ("meta", "named"),
    [
        ({}, "kind None"),
        ({"kind": "naan"}, "kind 'naan'"),
        ({"kind": ["nan"]}, "kind .*nan"),
        ({"kind": "nan", "row": 1}, "row"),
        ({"kind": "nan", "rows": "one"}, "rows"),
        ({"kind": "nan", "rows": 0}, "rows=0"),
        ({"kind": "crash", "how": "trip"}, "how='trip'"),
        ({"kind": "crash", "how": ["kill"]}, "how="),
    ],
    ids=["none", "unknown", "no name", "field", "type", "value", "way", "way of another type"],
)
def test_what_is_no_fault_is_refused(meta, named):
    """An unknown kind, field or value is a configuration error that names it."""
    with pytest.raises(ConfigurationError, match=named):
        fault_from_meta(meta)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Crash(how="trip"),
        lambda: Crash(how="exit", code=256),
        lambda: Crash(how="exit", code=-1),
        lambda: HoldGil(seconds=0),
        lambda: HoldGil(seconds=float("inf")),
        lambda: BrokenAnswer(how="torn"),
        lambda: Noise(bytes=0),
        lambda: Leak(megabytes=0),
        lambda: WrongNorm(scale=0),
        lambda: WrongValues(seed=-1),
        lambda: StartSlowly(phase="sessions"),
        lambda: StartSlowly(seconds=float("nan")),
        lambda: DieInPhase(phase=""),
        lambda: DieInPhase(how="trip"),
        lambda: DieInPhase(code=999),
    ],
)
def test_nonsense_is_refused(make):
    """A field that makes no sense is refused when the fault is made."""
    with pytest.raises(ConfigurationError, match="must be"):
        make()


def test_each_kind_says_whether_it_needs_a_process():
    """What ends, stops or floods a process, or belongs to its start, needs one of its own."""
    needing = {cls for cls in get_args(Fault) if cls.needs_process}
    assert needing == {BrokenAnswer, Crash, DieInPhase, HoldGil, Leak, Noise, StartSlowly}
    assert {cls for cls in needing if issubclass(cls, StartFault)} == {DieInPhase, StartSlowly}
    assert not Nan().needs_process
    assert Crash().needs_process


@pytest.mark.slow
def test_a_worker_reads_them_without_pydantic():
    """An interpreter that only a worker runs in may lack what plans are parsed with."""
    program = (
        "import sys; sys.modules['pydantic'] = None\n"
        "from resilient_ai._workers.child.mischief import read_fault\n"
        "assert read_fault({'kind': 'crash', 'how': 'kill'}).how == 'kill'"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
