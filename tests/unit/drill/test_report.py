"""How calls become the numbers of the report."""

from __future__ import annotations

import json

import pytest
from drill_kit import call
from hypothesis import given
from hypothesis import strategies as st

from resilient_ai._adapters.drill.report import Course, DrillReport, FaultResult, render, tally

FIELDS = [
    "fault",
    "requests",
    "right",
    "typed_errors",
    "wrong",
    "lost",
    "first_answer_ms",
    "added_p50_ms",
    "added_p99_ms",
    "back_on_device_s",
    "worker_ready_s",
]
OUTCOMES = ("right", "typed_error", "wrong", "lost")


def course(**changes):
    values = {
        "fault": "nan",
        "device": "gpu",
        "on": 10.0,
        "off": 20.0,
        "first_failure": 10.5,
        "back_after": 1.0,
    }
    return Course(**(values | changes))


def result(**changes):
    values = dict.fromkeys(FIELDS, 0) | {"fault": "nan", "requests": 3, "right": 3}
    return FaultResult(**(values | changes))


@given(st.lists(st.tuples(st.floats(0, 30), st.floats(0, 5), st.sampled_from(OUTCOMES))))
def test_every_call_is_counted_once(drawn):
    """The four counts are those of the outcomes, and their sum is the number of calls."""
    calls = [call(begun, begun + took, outcome) for begun, took, outcome in drawn]
    found = tally(course(alone=(call(0, 1),)), calls)
    counts = (found.right, found.typed_errors, found.wrong, found.lost)
    assert counts == tuple(sum(each.outcome == kind for each in calls) for kind in OUTCOMES)
    assert found.requests == sum(counts) == len(calls)


def test_the_first_answer_is_one_that_the_failed_device_did_not_make_before():
    """From the first failure to the next right answer of another device, or to a later call."""
    calls = [
        call(10.0, 10.4, served_by=["cpu"]),  # before the failure
        call(10.4, 10.51, served_by=["gpu"]),  # computed before, handed over after
        call(10.4, 10.6, "wrong", served_by=["cpu"]),
        call(10.4, 10.7, served_by=["cpu"]),  # failed over
        call(10.65, 10.8, served_by=["gpu"]),
    ]
    assert tally(course(), calls).first_answer_ms == pytest.approx(200)
    assert tally(course(), [*calls[:3], calls[4]]).first_answer_ms == pytest.approx(300)


def test_what_never_happened_has_no_number():
    """Without a failure, a right answer, a CPU to compare with or a return there is None, not zero."""
    assert tally(course(first_failure=None), [call(11, 12)]).first_answer_ms is None
    assert tally(course(), [call(11, 12, "lost")]).first_answer_ms is None
    assert tally(course(), [call(11, 12)]).added_p50_ms is None
    assert tally(course(alone=(call(0, 1),)), [call(30, 31)]).added_p99_ms is None
    assert tally(course(back_after=None), []).back_on_device_s is None


def test_added_latency_is_that_of_answers_during_the_fault():
    """Percentiles of answered calls that began during the fault, less those of the CPU alone."""
    during = [call(11, 11 + took / 100) for took in range(1, 101)]
    others = [call(9, 19), call(20, 29), call(12, 19, "typed_error")]
    alone = (call(0, 0.1), call(1, 1.1))
    found = tally(course(alone=alone), [*during, *others])
    assert found.added_p50_ms == pytest.approx(505 - 100)
    assert found.added_p99_ms == pytest.approx(990.1 - 100)


def test_the_report_has_exactly_the_promised_fields():
    """Programs read `faults` with these fields each, and `service`."""
    found = json.loads(json.dumps(DrillReport((result(),), {"model": "m"}).to_dict()))
    assert list(found) == ["faults", "service"]
    assert [list(fault) for fault in found["faults"]] == [FIELDS]
    assert found["service"] == {"model": "m"}


@pytest.mark.parametrize(
    ("changes", "passed"),
    [({}, True), ({"typed_errors": 3}, True), ({"wrong": 1}, False), ({"lost": 1}, False)],
    ids=["all right", "typed errors", "one wrong", "one lost"],
)
def test_a_drill_passes_without_wrong_and_lost_calls(changes, passed):
    """Typed errors are answers too; wrong answers and lost calls are not."""
    assert DrillReport((result(), result(**changes)), {}).passed is passed


def test_people_get_a_table_with_a_judgement():
    """A line for each fault, a dash where there is no number, and the sum below."""
    report = DrillReport((result(fault="hang", first_answer_ms=None, wrong=2, added_p50_ms=1234.5),), {})
    lines = render(report).splitlines()
    assert lines[0].split()[:3] == ["fault", "requests", "right"]
    assert lines[1].split() == ["hang", "3", "3", "0", "2", "0", "-", "1,234", "0", "0", "0"]
    assert lines[-2] == ""
    assert lines[-1] == "FAILED: 3 calls under 1 fault, 2 wrong, 0 lost"


def test_people_read_which_errors_there_were():
    """Below the table stands, for each fault that led to errors, which and how many."""
    report = DrillReport((result(),), {"errors": {"nan": {}, "hang": {"overloaded": 2, "error": 1}}})
    assert render(report).splitlines()[-2] == "errors under hang: 2 x overloaded, 1 x error"
