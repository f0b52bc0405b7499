"""Make a service's device fail on purpose, fault by fault, while traffic flows, and count what callers get.

::

    requests ──> traffic (threads) ──> service ──> device, made to fail by plan
                       │ calls
                       └──> tally ──> report (JSON, table)
"""

from __future__ import annotations

from resilient_ai._adapters.drill.report import DrillReport, FaultResult, render
from resilient_ai._adapters.drill.run import QUICK, DrillOptions, run_drill

__all__ = ["QUICK", "DrillOptions", "DrillReport", "FaultResult", "render", "run_drill"]
