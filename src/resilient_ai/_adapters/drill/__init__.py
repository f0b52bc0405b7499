"""Make a service's device fail on purpose, fault by fault, while traffic flows, and count what callers get.

::

    requests ──> traffic (threads) ──> service ──> device, made to fail by plan
                       │ calls
                       └──> tally ──> report (JSON, table)

`run.run_drill` does it, `report` has what came of it, `command` is the way there from the command
line. Nothing is imported here, because the command line imports this package before it knows
what is wanted of it.
"""
