"""Whatever happens to a worker, in whatever order: what it says of itself is what a simple model says."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from resilient_ai._resilience.waiting import DeviceHung, LaneBusy
from resilient_ai._telemetry.events import WorkerAbandoned, WorkerLost, WorkerStarted
from resilient_ai._workers.host.backend import WorkerBackend
from resilient_ai._workers.host.life import WorkerDied
from resilient_ai._workers.wire import Frame, Kind, ProtocolError
from resilient_ai.errors import DeviceUnavailable, ModelNotFound, ServiceClosed
from worker_kit import (
    EMBEDDER,
    LONG,
    RANKER,
    Workplace,
    batch,
    right_answer,
    sudden_death,
    until,
)

MODELS = {model.name: model for model in (EMBEDDER, RANKER)}
names = st.sampled_from(sorted(MODELS))

# How a start or a loading goes, and what whoever asked for it hears.
GREETINGS = {
    "well": ({}, None),
    "refused": (
        {"hello": lambda peer, frame: peer.fail(frame, DeviceUnavailable("no driver"))},
        DeviceUnavailable,
    ),
    "dies": ({"hello": sudden_death}, WorkerDied),
    "nonsense": ({"hello": lambda peer, frame: peer.send(Frame(Kind.STATE, frame.id))}, ProtocolError),
}
LOADINGS = {
    "well": ({}, None),
    "refused": ({"load": lambda peer, frame: peer.fail(frame, ModelNotFound("no file"))}, ModelNotFound),
    "dies": ({"load": sudden_death}, WorkerDied),
}


class WorkerMachine(RuleBasedStateMachine):
    """A worker over fake processes, and the model: what is up, what is loaded, what has happened."""

    def __init__(self):
        super().__init__()
        self.place = Workplace()
        self.worker = self.place.worker
        self.deaths = []
        self.worker.on_death(self.deaths.append)
        self.backends = {name: WorkerBackend(self.worker, model) for name, model in MODELS.items()}
        self.greeting = self.loading = "well"
        # The model.
        self.is_up = False
        self.loaded = set()
        self.users = set()
        self.is_closed = False
        self.stuck = None
        self.starts = self.spawned = self.lost = self.abandoned = 0

    def teardown(self):
        self.place.close()

    # -- what is asked of it ---------------------------------------------------------------------------

    @rule(greeting=st.sampled_from(sorted(GREETINGS)), loading=st.sampled_from(sorted(LOADINGS)))
    def decide(self, greeting, loading):
        """How what comes next is to go."""
        self.greeting, self.loading = greeting, loading

    @rule(name=names)
    def prepare(self, name):
        """It comes about, or fails as was decided; what failed can be tried again."""
        expected = self._expect(name)
        if expected is None:
            life = self.worker.prepare(MODELS[name])
            assert life.is_up
            assert self.worker.life_with(name) is life
        else:
            with pytest.raises(expected):
                self.worker.prepare(MODELS[name])
        self.greeting = self.loading = "well"
        self._settle()

    @rule(name=names, rows=st.integers(1, 3))
    def run(self, name, rows):
        """A batch is answered rightly, or refused at once."""
        asked = batch(*([7, row] for row in range(rows)), model=MODELS[name])
        if self.is_up and name in self.loaded:
            answer = self.backends[name].run_within(asked, patience=LONG, hang_after=LONG)
            np.testing.assert_array_equal(answer.values, right_answer(asked))
        else:
            with pytest.raises(WorkerDied):
                self.backends[name].run_within(asked, patience=LONG, hang_after=LONG)

    @precondition(lambda self: self.is_up)
    @rule(name=names)
    def leave_early(self, name):
        """A caller's patience ends before the answer comes: nothing comes of that."""
        if name not in self.loaded:
            return
        kept = []
        self.place.process.peer.script["run"] = lambda peer, frame: kept.append(frame)
        with pytest.raises(LaneBusy):
            self.backends[name].run_within(batch(model=MODELS[name]), patience=0.002, hang_after=LONG)
        until(lambda: kept)
        del self.place.process.peer.script["run"]
        self.place.process.peer.answer(kept[0])
        until(lambda: self.backends[name].under_way() is None)

    # -- what happens to it ----------------------------------------------------------------------------

    @precondition(lambda self: self.is_up)
    @rule()
    def die(self):
        self.place.process.die()
        self._lose()

    @precondition(lambda self: self.is_up)
    @rule(stubborn=st.booleans())
    def hang(self, stubborn):
        """It is given up, and may not even end when it is killed."""
        process = self.place.process
        process.stubborn = stubborn
        self.worker._watch.life.fail(DeviceHung("it hangs"))
        if stubborn:
            self.stuck = process
            self.abandoned += 1
        self._lose()

    @precondition(lambda self: self.stuck is not None)
    @rule()
    def come_loose(self):
        """A process that could not be killed ends after all."""
        self.stuck.die()
        self.stuck = None

    @rule(name=names)
    def leave(self, name):
        """The last model that leaves takes the process along."""
        self.worker.leave(name)
        self.users.discard(name)
        self.loaded.discard(name)
        if self.is_up and not self.users:
            self.is_up, self.loaded = False, set()
        self._settle()

    @precondition(lambda self: self.starts > 1)
    @rule()
    def close(self):
        self.worker.close(LONG)
        self.is_closed, self.is_up, self.loaded = True, False, set()
        self._settle()

    # -- the model -------------------------------------------------------------------------------------

    def _expect(self, name):
        """What preparing a model raises; takes note of what it brings about."""
        self.users.add(name)
        if self.is_closed:
            return ServiceClosed
        if self.stuck is not None:
            return DeviceUnavailable
        if not self.is_up:
            self.spawned += 1
            self.place.script, error = GREETINGS[self.greeting]
            if error is not None:
                return error
            self.is_up, self.loaded = True, set()
            self.starts += 1
        if name in self.loaded:
            return None
        script, error = LOADINGS[self.loading]
        self._play(script)
        if error is None:
            self.loaded.add(name)
        elif error is WorkerDied:
            self.is_up, self.loaded = False, set()
            self.lost += 1
        return error

    def _play(self, script):
        """Have the process that is up, or the one to come, follow a script."""
        self.place.script = dict(script)
        if self.place.processes:
            self.place.process.peer.script = self.place.script

    def _lose(self):
        self.is_up, self.loaded = False, set()
        self.lost += 1
        self._settle()

    def _settle(self):
        """Wait for the end of what is ending."""
        expected = "up" if self.is_up else "abandoned" if self.stuck is not None else "none"
        until(lambda: self.worker.state().state == expected)

    @initialize()
    def begin(self):
        assert self.worker.state().state == "none"

    @invariant()
    def tells_the_truth(self):
        """State, models and counts are those of the model."""
        state = self.worker.state()
        if self.is_up:
            assert (state.state, state.pid) == ("up", self.place.process.pid)
        elif self.stuck is not None:
            assert (state.state, state.pid) == ("abandoned", self.stuck.pid)
        else:
            assert (state.state, state.pid) == ("none", None)
        assert set(state.models) == self.loaded
        assert state.restarts == max(0, self.spawned - 1)

    @invariant()
    def tells_of_all_that_happens(self):
        """Each start, each death of a process that was up, and each that could not be killed, once."""
        counts = [len(self.place.of(kind)) for kind in (WorkerStarted, WorkerLost, WorkerAbandoned)]
        assert counts == [self.starts, self.lost, self.abandoned]
        assert len(self.deaths) == self.lost

    @invariant()
    def leaves_nothing_behind(self):
        """Of all its processes only the one that is up, or stuck, is there; of the others nothing is open."""
        alive = [each for each in self.place.processes if not each.ended.is_set()]
        assert len(alive) == (self.is_up or self.stuck is not None)
        held = [each for each in self.place.processes if "release" not in each.told]
        assert len(held) <= 1


WorkerMachine.TestCase.settings = settings(max_examples=80, stateful_step_count=25, deadline=None)
TestWorkerMachine = WorkerMachine.TestCase
