"""OpenVINO serves where it is there, right and faster, which is found out once; else ONNX Runtime does."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest

from resilient_ai._serving.engines import Engines
from resilient_ai._serving.trials import Trials, Verdict
from resilient_ai._telemetry.events import EngineChosen, EventBus
from resilient_ai.errors import ConfigurationError, DeviceFailed, ModelCorrupt
from resilient_ai.testing import FakeBackend, FakeClock, batch_of

pytest.importorskip("onnxruntime")

PROBES = (batch_of([1, 2, 3], [4]), batch_of([5] * 8))


@dataclass
class FakeOpenVino:
    """An OpenVINO that is there or not, and opens what the kit has made ready."""

    made: object
    there: bool = True
    bf16: bool = True
    opened: list = field(default_factory=list)

    def version(self):
        return "1.0" if self.there else None

    def computes_in_bf16(self):
        return self.bf16

    def require(self):
        if not self.there:
            raise ConfigurationError("pip install 'resilient-ai[openvino]'")

    def open(self, graph, *, threads, numbers, pooling, precision):
        self.opened.append((numbers, precision))
        if isinstance(self.made, Exception):
            raise self.made
        return self.made


class Kit:
    """Two fake engines that take as long as they are told to, and what chooses between them."""

    def __init__(self, tmp_path, *, vino=0.1, onnx=0.2, compute=None, **options):
        self.clock, self.wall = FakeClock(), FakeClock()
        self.graph = tmp_path / "model.onnx"
        self.big()
        self.vino = FakeBackend("cpu", compute=compute, before=self.takes(vino))
        self.openvino = FakeOpenVino(self.vino, **options)
        self.onnx_seconds, self.onnx = onnx, []
        self.trials = Trials(tmp_path / "hints", wall=self.wall)
        self.told = []

    def big(self, size=17 * 2**20):
        with self.graph.open("wb") as file:
            file.truncate(size)

    def takes(self, seconds):
        return lambda _: self.clock.tick(seconds)

    def open_onnx(self):
        self.onnx.append(FakeBackend("cpu", before=self.takes(self.onnx_seconds)))
        return self.onnx[-1]

    def open(self, engine="auto", precision="auto", agreement=None):
        events = EventBus()
        events.subscribe(self.told.append)
        engines = Engines(
            engine, precision, 2, self.trials, events, self.openvino, agreement, clock=self.clock
        )
        backend = engines.open(self.graph, pooling=None, probes=lambda: PROBES, onnx=self.open_onnx)
        return "openvino" if backend is self.vino else "onnxruntime"

    @property
    def left_open(self):
        return [each for each in (self.vino, *self.onnx) if not each.closed]


def other_answers(batch):
    """What a device would say that has it all wrong."""
    return np.eye(16, dtype=np.float32)[np.arange(batch.rows)]


def by_company(batch):
    """Right answers to one text alone, and others in company."""
    answers = FakeBackend().run(batch).values
    return answers if batch.rows == 1 else answers + 0.05


class TestChoice:
    def test_the_faster_one_serves(self, tmp_path):
        """An engine that is right and faster serves; the other one is closed again, and it is told once."""
        kit = Kit(tmp_path)
        assert kit.open() == "openvino"
        assert kit.left_open == [kit.vino]
        (event,) = kit.told
        assert isinstance(event, EngineChosen)
        assert (event.engine, round(event.speedup, 3)) == ("openvino", 2.0)
        assert event.agreement == pytest.approx(1)
        assert kit.openvino.opened == [("bf16", "")]

    def test_what_is_hardly_faster(self, tmp_path):
        """An engine that is faster by a twentieth only does not serve."""
        kit = Kit(tmp_path, vino=0.19, onnx=0.2)
        assert kit.open() == "onnxruntime"
        assert kit.left_open == [kit.onnx[-1]]

    @pytest.mark.parametrize("compute", [other_answers, by_company, lambda b: np.full((b.rows, 16), np.nan)])
    def test_wrong_answers(self, tmp_path, compute):
        """An engine whose answers differ, or move with their batch, does not serve however fast it is."""
        kit = Kit(tmp_path, vino=0.001, compute=compute)
        assert kit.open() == "onnxruntime"
        assert "agree" in kit.told[0].reason

    def test_a_limit_of_ones_own(self, tmp_path):
        """What agrees too little by itself serves where the user says that it is enough, and is tried anew."""

        def nearly(batch):
            return FakeBackend().run(batch).values + 0.02

        assert Kit(tmp_path, compute=nearly).open() == "onnxruntime"
        assert Kit(tmp_path, compute=nearly).open(agreement=0.9) == "openvino"

    @pytest.mark.parametrize("error", [ModelCorrupt("no such operator"), ConfigurationError("broken")])
    def test_a_graph_it_cannot_load(self, tmp_path, error):
        """Where it cannot load the graph, ONNX Runtime serves, and the reason is told."""
        kit = Kit(tmp_path)
        kit.openvino.made = error
        assert kit.open() == "onnxruntime"
        assert kit.told[0].reason == str(error)

    def test_a_reference_that_fails(self, tmp_path):
        """Where ONNX Runtime itself fails with a probe nothing can be compared, and it serves what it can."""
        kit = Kit(tmp_path)
        kit.takes = lambda _: lambda _: fail(DeviceFailed("too long"))
        assert kit.open() == "onnxruntime"
        assert "too long" in kit.told[0].reason
        assert kit.left_open == [kit.vino, kit.onnx[-1]]

    def test_a_run_that_fails(self, tmp_path):
        """Where its first run fails, ONNX Runtime serves and it is closed."""
        kit = Kit(tmp_path)
        kit.vino.fail_with(DeviceFailed("broken"))
        assert kit.open() == "onnxruntime"
        assert kit.left_open == [kit.onnx[-1]]

    @pytest.mark.parametrize(
        ("engine", "precision", "options"),
        [
            ("auto", "auto", {"there": False}),
            ("auto", "fp32", {}),
            ("auto", "fp16", {}),
            ("onnxruntime", "auto", {}),
        ],
    )
    def test_nothing_to_try(self, tmp_path, engine, precision, options):
        """Without OpenVINO, in float32, and where ONNX Runtime is asked for, nothing is tried."""
        kit = Kit(tmp_path, **options)
        assert kit.open(engine, precision) == "onnxruntime"
        assert (kit.told, kit.openvino.opened, len(kit.onnx)) == ([], [], 1)

    def test_small_graphs(self, tmp_path):
        """A graph that is small is not tried."""
        kit = Kit(tmp_path)
        kit.big(1000)
        assert kit.open() == "onnxruntime"
        assert kit.openvino.opened == []

    def test_a_cpu_without_bf16(self, tmp_path):
        """Without bfloat16 there is no gain: ONNX Runtime serves and OpenVINO loads nothing."""
        kit = Kit(tmp_path, bf16=False)
        assert kit.open() == "onnxruntime"
        assert kit.openvino.opened == []
        assert "bfloat16" in kit.told[0].reason

    def test_int8(self, tmp_path):
        """A graph in int8 runs as it is, with the rest of it in float32, where OpenVINO is asked for by name."""
        kit = Kit(tmp_path)
        assert kit.open(precision="int8") == "onnxruntime"
        assert kit.openvino.opened == []
        assert kit.open("openvino", "int8") == "openvino"
        assert kit.openvino.opened == [("f32", "int8")]


class TestDemands:
    def test_slow_but_asked_for(self, tmp_path):
        """AI_CPU_ENGINE=openvino serves also where it is slower, and in float32 where that is asked for."""
        kit = Kit(tmp_path, vino=1.0)
        assert kit.open("openvino", "fp32") == "openvino"
        assert kit.openvino.opened == [("f32", "")]

    def test_wrong_answers(self, tmp_path):
        """It never serves wrong answers: the error says how wrong they are, and nothing is left open."""
        kit = Kit(tmp_path, compute=other_answers)
        with pytest.raises(ConfigurationError, match=r"AI_CPU_ENGINE=openvino cannot be had.*agree to"):
            kit.open("openvino")
        assert kit.left_open == []

    @pytest.mark.parametrize(
        ("engine", "precision", "options", "told"),
        [
            ("openvino", "auto", {"there": False}, r"resilient-ai\[openvino\]"),
            ("auto", "bf16", {"there": False}, r"resilient-ai\[openvino\]"),
            ("auto", "bf16", {"bf16": False}, "this CPU does not compute in bfloat16"),
            ("onnxruntime", "bf16", {}, "AI_CPU_ENGINE"),
        ],
    )
    def test_what_is_missing(self, tmp_path, engine, precision, options, told):
        """What cannot be had is told with what to do."""
        with pytest.raises(ConfigurationError, match=told):
            Kit(tmp_path, **options).open(engine, precision)


class TestMemory:
    def test_tried_once(self, tmp_path):
        """A second start takes the verdict of the first, and opens only what serves."""
        kit = Kit(tmp_path)
        kit.open()
        before = len(kit.onnx)
        assert kit.open() == "openvino"
        assert len(kit.onnx) == before
        assert len(kit.told) == 2

    def test_tried_again(self, tmp_path):
        """Another graph under the same name, or another precision, is tried anew."""
        kit = Kit(tmp_path)
        kit.open()
        kit.big(20 * 2**20)
        kit.open()
        kit.open(precision="bf16")
        assert len(kit.onnx) == 3

    def test_fails_after_its_trial(self, tmp_path):
        """An engine that passed once and fails to load later is left out, not the model."""
        kit = Kit(tmp_path)
        kit.open()
        kit.openvino.made = ModelCorrupt("gone")
        assert kit.open() == "onnxruntime"

    def test_a_trial_that_killed_its_process(self, tmp_path):
        """A trial that never ended is not repeated for a day, unless OpenVINO is asked for by name."""
        kit = Kit(tmp_path)

        class Killed(BaseException):
            pass

        notes = []
        kit.openvino.open = lambda *_, **__: notes.extend((tmp_path / "hints").iterdir()) or fail(Killed)
        with pytest.raises(Killed):
            kit.open()
        (note,) = notes
        assert not note.exists()  # an interrupt can still tidy up; a kill cannot
        key = {"cpu": "x"}
        killed = kit.trials.under_way(key)
        killed.__enter__()
        assert "survive" in kit.trials.recall(key).reason
        assert kit.trials.recall(key, unfinished=False) is None
        kit.wall.tick(86_401)
        assert kit.trials.recall(key) is None
        killed.__exit__(None, None, None)

    @pytest.mark.parametrize("content", [b"", b"[]", b"{", b'{"version": 1}', b'{"version": 2, "cpu": "x"}'])
    def test_notes_that_make_no_sense(self, tmp_path, content):
        """A note that cannot be read is as none."""
        trials, key = Trials(tmp_path), {"cpu": "x"}
        with trials.under_way(key) as settle:
            settle(Verdict(0.9, 2.0, "why"))
        assert trials.recall(key) == Verdict(0.9, 2.0, "why")
        (note,) = tmp_path.iterdir()
        note.write_bytes(content)
        assert trials.recall(key) is None

    def test_a_folder_that_cannot_be_written(self, tmp_path):
        """Where notes cannot be kept the trial counts all the same."""
        kit = Kit(tmp_path)
        (tmp_path / "hints").write_text("a file")
        assert kit.open() == "openvino"


def fail(error):
    raise error
