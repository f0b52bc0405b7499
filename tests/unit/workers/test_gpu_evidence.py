"""The script that gathers evidence on a card says plainly that there is none, and that is no failure."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from resilient_ai._workers.child.cuda import loaded_runtime


@pytest.mark.slow
def test_without_a_card(repository):
    """Without a card everything that needs one is left out, the rest is told, and the script succeeds."""
    if loaded_runtime() is not None:
        pytest.skip("CUDA is loaded in this process")
    script = repository / "benchmarks" / "gpu_evidence.py"
    done = subprocess.run(
        [sys.executable, script, "--json", "--only", "absent", "trap"],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
        env={"PATH": "/usr/bin:/bin", "CUDA_VISIBLE_DEVICES": ""},
    )
    assert done.returncode == 0, done.stderr
    assert "NO CARD" in done.stderr
    findings = [json.loads(line) for line in done.stdout.splitlines()]
    told = {(row.get("experiment"), row.get("what")): row.get("found") for row in findings}
    assert told["absent", "preflight"].startswith("DeviceUnavailable: ")
    assert told["absent", "preflight: taken for"].startswith("environment")
    assert ("trap", "not tried") in told
