"""What is wrong with a card is told before a session is made on it, by name and with the way out."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from resilient_ai._inference.runtime import Build
from resilient_ai._inference.session import GpuOptions
from resilient_ai._resilience.failures import Classifier, FailureClass
from resilient_ai._workers.child import preflight
from resilient_ai._workers.child.preflight import CardInfo, gpu_options, inspect, memory_limit
from resilient_ai._workers.messages import DeviceSpec
from resilient_ai.errors import ConfigurationError, DeviceUnavailable

CUDA = "CUDAExecutionProvider"
BUILD = Build("onnxruntime-gpu", "1.31.1", "13.0", (CUDA, "CPUExecutionProvider"), Path("/nowhere"))
GIB = 1 << 30
COMPUTE_MODE, MAJOR, MINOR, MPS = 20, 75, 76, 133
WORDS = {
    2: b"out of memory",
    46: b"CUDA-capable device(s) is/are busy or unavailable",
    100: b"no CUDA-capable device is detected",
    803: b"system has unsupported display driver / cuda driver combination",
    805: b"MPS client failed to connect to the MPS control daemon or the MPS server",
    999: b"unknown error",
}


class FakeDriver:
    """A libcuda: its calls return 0, or what `fails` has for them by name; `calls` are in order."""

    def __init__(self, *, version=13000, count=2, attributes=None, **fails):
        self.fails, self.calls, self.current = fails, [], None
        self.version, self.count = version, count
        self.attributes = {COMPUTE_MODE: 0, MAJOR: 9, MINOR: 0, MPS: 0} | (attributes or {})

    def __getattr__(self, name):
        if not name.startswith("cu"):
            raise AttributeError(name)

        def call(*arguments):
            self.calls.append(name)
            return self.fails.get(name) or getattr(self, f"_{name}")(*arguments)

        return call

    def _cuDriverGetVersion(self, found):
        found._obj.value = self.version

    def _cuInit(self, _flags):
        pass

    def _cuDeviceGetCount(self, found):
        found._obj.value = self.count

    def _cuDeviceGet(self, found, ordinal):
        found._obj.value = 100 + ordinal

    def _cuDeviceGetName(self, text, _length, card):
        assert card.value >= 100
        text.value = b"NVIDIA Fake"

    def _cuDeviceGetAttribute(self, found, which, _card):
        if which not in self.attributes:
            return 1
        found._obj.value = self.attributes[which]
        return 0

    def _cuDevicePrimaryCtxRetain(self, context, _card):
        context._obj.value = 0x7FFF_DEAD_BEEF

    def _cuCtxSetCurrent(self, context):
        self.current = context and context.value

    def _cuMemGetInfo_v2(self, free, total):
        assert self.current == 0x7FFF_DEAD_BEEF
        free._obj.value, total._obj.value = 130 * GIB, 140 * GIB

    def _cuGetErrorString(self, code, text):
        text._obj.value = WORDS.get(code)
        return 0 if code in WORDS else 1


def look(driver, *, card=0, build=BUILD, environ=None):
    spec = DeviceSpec(name="gpu", kind="cuda", card=card)
    return inspect(spec, load=lambda _: driver, build=build, environ={} if environ is None else environ)


def refusal(*arguments, **options):
    """The error of a card that is refused, and what it is taken for."""
    with pytest.raises(DeviceUnavailable) as caught:
        look(*arguments, **options)
    return str(caught.value), Classifier().classify(caught.value)


@pytest.fixture(autouse=True)
def no_real_cuda(monkeypatch, tmp_path):
    """Neither a daemon of the machine's nor its libraries play a part."""
    monkeypatch.setattr(preflight, "_MPS_PIPES", str(tmp_path))
    monkeypatch.setattr(preflight, "preload_libraries", lambda: ())


class TestHealthy:
    def test_no_card(self):
        """A worker on the CPU has nothing to look at."""
        assert inspect(DeviceSpec(name="simulated", kind="cpu"), load=pytest.fail) is None

    def test_a_card(self):
        """A card that can be used is described, its context counted as used."""
        driver = FakeDriver()
        found = look(driver, card=1)
        assert found == CardInfo("NVIDIA Fake", 140 * GIB, 130 * GIB, "9.0")
        assert driver.current is None

    def test_the_drivers_age_is_asked_first(self):
        """A driver that is too old is not asked for more than its age."""
        driver = FakeDriver(version=12080)
        refusal(driver)
        assert driver.calls == ["cuDriverGetVersion"]

    def test_a_newer_driver(self):
        """A driver newer than the build runs it."""
        older = Build("onnxruntime-gpu", "1.26.0", "12.8", BUILD.providers, BUILD.folder)
        assert look(FakeDriver(attributes={MAJOR: 6}), build=older).capability == "6.0"

    def test_an_old_driver_that_knows_less(self):
        """What a driver cannot tell of its card is no reason to refuse it."""
        driver = FakeDriver(cuDeviceGetAttribute=1)
        assert look(driver).capability == "0.0"


class TestMissing:
    def test_the_gpu_build(self):
        """An ONNX Runtime without CUDA is named, before anything is loaded."""
        build = Build("onnxruntime", "1.31.1", None, ("CPUExecutionProvider",), Path("/nowhere"))
        with pytest.raises(DeviceUnavailable, match=r"onnxruntime 1\.31\.1 has no GPU support") as caught:
            inspect(DeviceSpec(name="gpu", kind="cuda"), load=pytest.fail, build=build)
        failure = Classifier().classify(caught.value)
        assert failure.failure_class is FailureClass.ENVIRONMENT
        assert 'pip install "onnxruntime-gpu[cuda,cudnn]"' in failure.hint

    def test_the_driver(self):
        """A machine without a driver is told apart from one without libraries."""

        def load(name):
            raise OSError(f"{name}: cannot open shared object file: No such file or directory")

        with pytest.raises(DeviceUnavailable, match=r"NVIDIA driver.*libcuda\.so\.1") as caught:
            inspect(DeviceSpec(name="gpu", kind="cuda"), load=load, build=BUILD)
        failure = Classifier().classify(caught.value)
        assert (failure.failure_class, failure.pattern) == (FailureClass.ENVIRONMENT, "driver-missing")
        assert "docker run --gpus all" in failure.hint

    @pytest.mark.parametrize(
        ("why", "pattern"),
        [
            ("libcublas.so.13: cannot open shared object file: No such file or directory", "library-missing"),
            ("/opt/libcublas.so.13: undefined symbol: cublasLtGetVersion", "library-unusable"),
        ],
    )
    def test_a_library(self, monkeypatch, why, pattern):
        """Every library that does not load is named, the first with the linker's reason."""
        missing = {"libcublas.so.13": why, "libcurand.so.10": "no"}
        monkeypatch.setattr(preflight, "missing_libraries", lambda _library, *, load: missing if load else {})
        text, failure = refusal(FakeDriver())
        assert why in text
        assert "libcurand.so.10" in text
        assert (failure.failure_class, failure.pattern) == (FailureClass.ENVIRONMENT, pattern)
        assert "libcublas.so.13" in failure.hint
        assert "pip install" in failure.hint


REFUSALS = [
    ("driver-too-old", FailureClass.ENVIRONMENT, {"version": 12080}, "supports CUDA up to 12.8"),
    ("driver-mismatch", FailureClass.ENVIRONMENT, {"cuDriverGetVersion": 34}, "CUDA error 34"),
    ("driver-mismatch", FailureClass.ENVIRONMENT, {"cuInit": 803}, "CUDA error 803"),
    ("no-device", FailureClass.ENVIRONMENT, {"cuInit": 100}, "no CUDA-capable device"),
    ("no-device", FailureClass.ENVIRONMENT, {"count": 0}, "no CUDA-capable device"),
    ("no-device", FailureClass.ENVIRONMENT, {"count": 1}, "only GPU 0 is there"),
    ("no-device", FailureClass.ENVIRONMENT, {"count": 3, "card": 5}, "there are 3, from GPU 0 to GPU 2"),
    ("mps", FailureClass.MPS, {"cuDevicePrimaryCtxRetain": 805}, "MPS client failed"),
    ("device-busy", FailureClass.DEVICE_FAULT, {"cuDevicePrimaryCtxRetain": 46}, "busy or unavailable"),
    ("unknown-device-error", FailureClass.DEVICE_FAULT, {"cuInit": 999}, "unknown error"),
]


@pytest.mark.parametrize(("pattern", "failure_class", "how", "words"), REFUSALS)
def test_refused_with_a_hint(pattern, failure_class, how, words):
    """Each thing that stands in the way is told apart, and its hint adds what the text does not say."""
    card = how.get("card", 1)
    driver = FakeDriver(**{key: value for key, value in how.items() if key != "card"})
    text, failure = refusal(driver, card=card)
    assert words in text
    assert (failure.pattern, failure.failure_class) == (pattern, failure_class)
    assert failure.hint
    assert failure.hint not in text
    assert "pip install" not in text


@pytest.mark.parametrize(
    ("how", "words", "command"),
    [
        ({"attributes": {COMPUTE_MODE: 2}}, "compute mode 'prohibited'", "nvidia-smi -i 1 -c DEFAULT"),
        (
            {"attributes": {MAJOR: 7}},
            "CUDA 13.0 starts at 7.5",
            'pip install "onnxruntime-gpu[cuda,cudnn]<1.27"',
        ),
        ({"cuDevicePrimaryCtxRetain": 2}, "no room even for a CUDA context", "nvidia-smi"),
        ({"cuMemGetInfo_v2": 2}, "no room even for a CUDA context", "nvidia-smi"),
    ],
)
def test_refused_with_a_command(how, words, command):
    """Where no pattern has a hint, the text has the command; a full card is not a batch too large."""
    text, failure = refusal(FakeDriver(**how), card=1)
    assert words in text
    assert command in text
    assert "GPU 1 (NVIDIA Fake)" in text
    assert (failure.failure_class, failure.hint) == (FailureClass.ENVIRONMENT, "")


@pytest.mark.parametrize("how", [{"cuInit": 100}, {"count": 0}, {"count": 1}])
def test_what_hides_cards(how):
    """Where cards are not to be seen, the variable that hides them is told."""
    text, _ = refusal(FakeDriver(**how), card=1, environ={"CUDA_VISIBLE_DEVICES": ""})
    assert "(CUDA_VISIBLE_DEVICES is '')" in text


class TestNotes:
    def test_mps_by_the_driver(self):
        """A card that is shared through MPS is used, and said to be at the mercy of the others."""
        (note,) = look(FakeDriver(attributes={MPS: 1, COMPUTE_MODE: 3})).notes
        assert "Multi-Process Service" in note

    @pytest.mark.parametrize("running", [True, False])
    def test_mps_by_its_pipes(self, tmp_path, running):
        """So is one whose driver cannot tell, where the daemon's pipe is."""
        if running:
            os.mkfifo(tmp_path / "control")
        driver = FakeDriver(attributes={MPS: 0})
        notes = look(driver, environ={"CUDA_MPS_PIPE_DIRECTORY": str(tmp_path)}).notes
        assert any("Multi-Process Service" in note for note in notes) is running

    def test_exclusive(self):
        """That nobody else can use the card is worth a note."""
        (note,) = look(FakeDriver(attributes={COMPUTE_MODE: 3})).notes
        assert "exclusive process" in note


class TestLimits:
    def test_memory(self):
        """The share is one of what is free."""
        assert memory_limit(0.8, 100 * GIB) == 80 * GIB
        assert memory_limit(1, 7) == 7

    @pytest.mark.parametrize("fraction", [0, -0.1, 1.01, float("nan")])
    def test_no_share(self, fraction):
        """A share that is none is refused."""
        with pytest.raises(ConfigurationError, match=str(fraction)):
            memory_limit(fraction, GIB)

    @pytest.mark.parametrize(("choice", "asked"), [("auto", "auto"), ("true", True), ("false", False)])
    def test_options(self, choice, asked):
        """Sessions are made as the spec says, within what is free."""
        spec = DeviceSpec(
            name="gpu:1",
            kind="cuda",
            card=1,
            memory_fraction=0.5,
            allow_growth=False,
            tensorrt=choice,
            tensorrt_cache="/engines",
        )
        assert gpu_options(spec, CardInfo("NVIDIA Fake", 4 * GIB, 2 * GIB)) == GpuOptions(
            device_id=1,
            memory_limit=GIB,
            allow_growth=False,
            tensorrt=asked,
            tensorrt_cache=Path("/engines"),
        )
