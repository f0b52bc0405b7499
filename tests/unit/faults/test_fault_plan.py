"""The plan as data: when its rules fire, how it is written, what it refuses."""

from __future__ import annotations

import json
from typing import get_args

import pytest

from resilient_ai._resilience.failures import Classifier, FailureClass
from resilient_ai._resilience.fault_kinds import (
    ERROR_CLASSES,
    Crash,
    DieInPhase,
    Fault,
    StartFault,
    StartSlowly,
)
from resilient_ai._resilience.fault_plan import FaultPlan
from resilient_ai._resilience.process_faults import Breakage, Death, StartPhase
from resilient_ai.errors import ConfigurationError
from resilient_ai.testing import FaultRule, Nan, NoFault, OutOfMemory, RaiseError, SilentCpu, When, batch_of

BATCH = batch_of([1, 2, 3], [4, 5])


def fired(when, *, calls=12, elapsed=0.0, batch=BATCH, seed=0):
    plan = FaultPlan((FaultRule(Nan(), when),), seed=seed)
    return [n for n in range(1, calls + 1) if plan.decide(call=n, elapsed=elapsed, batch=batch)]


class TestWhen:
    def test_always_by_default(self):
        """A rule without conditions fires on every call."""
        assert fired(When(), calls=3) == [1, 2, 3]

    def test_call_numbers(self):
        """Calls are meant by number, by range and by step, and all that is given has to hold."""
        assert fired(When(calls=(2, 5))) == [2, 5]
        assert fired(When(first=10)) == [10, 11, 12]
        assert fired(When(last=2)) == [1, 2]
        assert fired(When(every=4)) == [4, 8, 12]
        assert fired(When(every=4, first=5, last=11)) == [8]

    def test_rate_bounds(self):
        """A rate of 0 never fires, a rate of 1 always."""
        assert fired(When(rate=0.0)) == []
        assert fired(When(rate=1.0), calls=3) == [1, 2, 3]

    @pytest.mark.parametrize(("elapsed", "expected"), [(4.9, False), (5.0, True), (9.9, True), (10.0, False)])
    def test_time_window(self, elapsed, expected):
        """A window includes its start and leaves out its end."""
        assert bool(fired(When(after=5.0, before=10.0), elapsed=elapsed)) is expected

    @pytest.mark.parametrize(
        ("elapsed", "expected"), [(0.0, True), (1.9, True), (2.0, False), (4.9, False), (5.0, True)]
    )
    def test_flapping(self, elapsed, expected):
        """Flapping is on first, then off, then on again."""
        assert bool(fired(When(flap=(2.0, 3.0)), elapsed=elapsed)) is expected

    def test_the_batch(self):
        """Rows, real tokens and shape are conditions too; padding is no token."""
        assert fired(When(min_rows=2), calls=1)
        assert not fired(When(min_rows=3), calls=1)
        assert fired(When(min_tokens=5), calls=1)
        assert not fired(When(min_tokens=6), calls=1)
        assert fired(When(shape=(2, 3)), calls=1)
        assert not fired(When(shape=(3, 2)), calls=1)


class TestRules:
    def test_the_first_that_fires_decides(self):
        """Rules are tried in order, and one that shields keeps the later ones off."""
        plan = FaultPlan(
            (
                FaultRule(NoFault(), When(calls=(1,))),
                FaultRule(Nan(), When(calls=(1, 2))),
                FaultRule(SilentCpu()),
            )
        )
        kinds = [plan.decide(call=n, elapsed=0.0, batch=BATCH) for n in (1, 2, 3)]
        assert kinds == [None, Nan(), SilentCpu()]

    def test_memory_suffices_for_small_batches(self):
        """Out of memory happens above its rows only, so that halves of a batch can succeed."""
        plan = FaultPlan((FaultRule(OutOfMemory(above_rows=2)),))
        assert plan.decide(call=1, elapsed=0.0, batch=BATCH) is None
        assert plan.decide(call=1, elapsed=0.0, batch=batch_of([1], [2], [3])) == OutOfMemory(above_rows=2)

    def test_the_seed_chooses(self):
        """Another seed chooses other calls; the same seed the same."""
        when = When(rate=0.5)
        assert fired(when, calls=64, seed=1) == fired(when, calls=64, seed=1)
        assert fired(when, calls=64, seed=1) != fired(when, calls=64, seed=2)


class TestStarts:
    SLOW, DEAD = StartSlowly(), DieInPhase(phase="session")

    def starts(self, *rules, count=6, elapsed=0.0, seed=0):
        plan = FaultPlan(rules, seed=seed)
        return [plan.decide_start(start=n, elapsed=elapsed) for n in range(1, count + 1)]

    def test_calls_pass_them_over(self):
        """A fault of a start happens to no call, and keeps no later rule from it."""
        plan = FaultPlan((FaultRule(self.DEAD), FaultRule(Nan(), When(calls=(1,)))))
        assert [plan.decide(call=n, elapsed=0.0, batch=BATCH) for n in (1, 2)] == [Nan(), None]

    def test_starts_pass_over_all_others(self):
        """A fault of a call happens to no start, and one that shields calls shields no start."""
        rules = FaultRule(Crash()), FaultRule(NoFault()), FaultRule(self.DEAD, When(first=2))
        assert self.starts(*rules, count=2) == [None, self.DEAD]

    def test_the_first_that_fires_decides(self):
        """Rules are tried in order, as for calls."""
        rules = FaultRule(self.SLOW, When(last=2)), FaultRule(self.DEAD, When(calls=(2, 3)))
        assert self.starts(*rules, count=4) == [self.SLOW, self.SLOW, self.DEAD, None]

    @pytest.mark.parametrize(
        ("when", "expected"),
        [
            (When(every=3), [3, 6]),
            (When(first=3, last=4), [3, 4]),
            (When(after=5.0), []),
            (When(before=5.0), [1, 2, 3, 4, 5, 6]),
            (When(flap=(1.0, 3.0)), []),
            (When(rate=0.0), []),
            (When(min_rows=99, min_tokens=99, shape=(7, 7)), [1, 2, 3, 4, 5, 6]),
        ],
        ids=["every", "range", "after", "before", "flap", "rate", "batches do not matter"],
    )
    def test_conditions_are_those_of_starts(self, when, expected):
        """What is said of calls and of time holds for starts; what is said of batches does not matter."""
        found = self.starts(FaultRule(self.SLOW, when), elapsed=2.0)
        assert [n for n, fault in enumerate(found, start=1) if fault] == expected

    def test_the_seed_chooses(self):
        """With a rate the seed chooses the starts, some and not all."""
        rule = FaultRule(self.SLOW, When(rate=0.5))
        first = self.starts(rule, count=64, seed=1)
        assert first == self.starts(rule, count=64, seed=1) != self.starts(rule, count=64, seed=2)
        assert {None, self.SLOW} == set(first)


class TestJson:
    @pytest.mark.parametrize("name", FaultPlan.presets())
    def test_presets_survive(self, name):
        """Each preset is the same plan after a way through JSON."""
        plan = FaultPlan.preset(name)
        assert FaultPlan.parse(plan.to_json()) == plan

    def test_defaults_are_left_out(self):
        """JSON says what is said, and not what holds anyway."""
        plan = FaultPlan((FaultRule(Nan(rows=1), When(every=3)),), seed=7)
        assert json.loads(plan.to_json()) == {
            "seed": 7,
            "rules": [{"what": {"kind": "nan", "rows": 1}, "when": {"every": 3}}],
        }

    def test_a_file(self, tmp_path):
        """A plan is read from a file, named as a path or as text."""
        path = tmp_path / "plan.json"
        path.write_text('{"rules": [{"what": {"kind": "nan"}}]}', encoding="utf-8")
        assert FaultPlan.parse(path) == FaultPlan.parse(str(path)) == FaultPlan((FaultRule(Nan()),))

    @pytest.mark.parametrize(
        ("text", "named"),
        [
            ('{"rules": [{"what": {"kind": "nan"}, "when": {"every": 0}}]}', "rules.0.when.*every=0"),
            ('{"rules": [{"what": {"kind": "nan"}, "when": {"rate": 1.5}}]}', "when.rate=1.5"),
            ('{"rules": [{"what": {"kind": "nan"}, "when": {"every": "3"}}]}', "rules.0.when.every"),
            ('{"rules": [{"what": {"kind": "nan"}, "when": {"evry": 3}}]}', "rules.0.when.evry"),
            ('{"rules": [{"what": {"kind": "nan", "row": 3}}]}', "rules.0.what.nan.row"),
            ('{"rules": [{"what": {"kind": "naan"}}]}', "rules.0.what.*naan"),
            ('{"rules": [{"when": {}}]}', "rules.0.what"),
            ('{"rules": [{"what": {"kind": "raise", "error": "os.system"}}]}', "error='os.system'"),
            ('{"rules": [{"what": {"kind": "slow", "seconds": -1}}]}', "seconds=-1"),
            ('{"rules": [{"what": {"kind": "hang", "max_seconds": 0}}]}', "max_seconds=0"),
            ('{"rulez": []}', "rulez"),
            ("{", "the whole"),
        ],
    )
    def test_a_wrong_field_is_named(self, text, named):
        """A plan that makes no sense is refused with the name of the field."""
        with pytest.raises(ConfigurationError, match=named):
            FaultPlan.parse(text)

    @pytest.mark.parametrize(
        "make", [lambda: When(every=0), lambda: When(flap=(0.0, 1.0)), lambda: RaiseError(error="x")]
    )
    def test_a_wrong_field_is_refused_in_python_too(self, make):
        """What JSON may not say, the constructor does not take either."""
        with pytest.raises(ConfigurationError, match="must be"):
            make()

    def test_a_missing_file(self, tmp_path):
        """A file that is not there is a configuration error that names it."""
        with pytest.raises(ConfigurationError, match=r"none\.json"):
            FaultPlan.parse(tmp_path / "none.json")


class TestPresets:
    def test_every_kind_has_one(self):
        """A drill that runs all presets has met every kind of fault, and every way of the process ones."""
        faults = [rule.what for name in FaultPlan.presets() for rule in FaultPlan.preset(name).rules]
        assert {type(fault) for fault in faults} == set(get_args(Fault))
        hows = [(fault.kind, fault.how) for fault in faults if hasattr(fault, "how")]
        assert {how for kind, how in hows if kind == "crash"} == set(get_args(Death))
        assert {how for kind, how in hows if kind == "broken_answer"} == set(get_args(Breakage))
        dying = [fault.phase for fault in faults if isinstance(fault, DieInPhase)]
        assert sorted(dying) == sorted(get_args(StartPhase))

    def test_some_need_a_process(self):
        """Without a worker the presets are those none of whose faults would hurt the host."""
        names = FaultPlan.presets(process=False)
        assert set(names) < set(FaultPlan.presets())
        assert {"raise", "hang", "nan", "silent_cpu", "wrong_norm"} <= set(names)
        assert not {"segfault", "stdout_noise", "leak", "slow_start"} & set(names)
        assert not any(FaultPlan.preset(name).needs_process for name in names)

    @pytest.mark.parametrize("name", FaultPlan.presets())
    def test_a_worker_that_does_not_start_was_ended_before(self, name):
        """A preset for starts ends the running worker on its first call, and spares the second start."""
        plan = FaultPlan.preset(name)
        first, second = (plan.decide_start(start=n, elapsed=0.0) for n in (1, 2))
        for_starts = any(isinstance(rule.what, StartFault) for rule in plan.rules)
        assert (first is not None) is for_starts
        assert second is None
        if for_starts:
            assert [plan.decide(call=n, elapsed=0.0, batch=BATCH) for n in (1, 2)] == [
                Crash(how="kill"),
                None,
            ]

    def test_an_unknown_name(self):
        """An unknown preset is refused with the names there are."""
        with pytest.raises(ConfigurationError, match="silent_cpu"):
            FaultPlan.preset("nope")

    @pytest.mark.parametrize(
        ("name", "expected"),
        [
            ("raise", FailureClass.UNKNOWN),
            ("poisoned", FailureClass.POISONED),
            ("device_lost", FailureClass.DEVICE_FAULT),
            ("missing_library", FailureClass.ENVIRONMENT),
            ("worker_died", FailureClass.WORKER_DIED),
            ("transient", FailureClass.TRANSIENT),
            ("caller", FailureClass.CALLER),
        ],
    )
    def test_texts_mean_what_the_name_says(self, name, expected):
        """The errors that presets raise are classified as what they stand for."""
        what = FaultPlan.preset(name).rules[0].what
        error = ERROR_CLASSES[what.error](what.text)
        assert Classifier().classify(error).failure_class is expected

    def test_every_error_can_be_made(self):
        """Each class that a plan may name takes a text."""
        assert all(str(cls("text")) for cls in ERROR_CLASSES.values())
