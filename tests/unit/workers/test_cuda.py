"""CUDA's own words on its state: asked of what is loaded, never waited for without limit."""

from __future__ import annotations

import sys
import threading

import pytest

from resilient_ai._resilience.failures import Classifier, FailureClass
from resilient_ai._workers.child.cuda import context_fault, loaded_runtime, memory
from serving_kit import run_python

WORDS = {2: b"out of memory", 719: b"unspecified launch failure"}


class FakeRuntime:
    """A libcudart. `left` is the error of an earlier call, `sticky` one that every call gets."""

    def __init__(self, *, left=0, sticky=0, blocks=None):
        self.left, self.sticky, self.blocks = left, sticky, blocks
        self.cards = []

    def cudaGetLastError(self):
        left, self.left = self.left, 0
        return self.sticky or left

    def cudaSetDevice(self, card):
        self.cards.append(card)
        return self.sticky

    def cudaFree(self, pointer):
        assert pointer is None
        return self.sticky or self.left

    def cudaDeviceSynchronize(self):
        if self.blocks is not None:
            self.blocks.wait()
        return self.sticky or self.left

    def cudaMemGetInfo(self, free, total):
        if self.blocks is not None:
            self.blocks.wait()
        free._obj.value, total._obj.value = 3, 7
        return self.sticky

    @staticmethod
    def cudaGetErrorString(code):
        return WORDS.get(code)


@pytest.fixture
def blocked():
    """A card that is busy for ever, or until the test ends."""
    release = threading.Event()
    yield FakeRuntime(blocks=release)
    release.set()


def test_without_cuda():
    """In a process without CUDA there is nothing to tell."""
    if loaded_runtime() is not None:
        pytest.skip("CUDA is loaded in this process")
    assert memory() is None
    assert context_fault() is None


class TestMemory:
    def test_told(self):
        """What is free and what there is, of the card that is asked for."""
        runtime = FakeRuntime()
        assert memory(card=3, runtime=runtime) == (3, 7)
        assert runtime.cards == [3]

    def test_not_told(self):
        """A card that fails tells nothing."""
        assert memory(runtime=FakeRuntime(sticky=719)) is None

    def test_busy(self, blocked):
        """Nor does one that does not answer, and nobody waits for it."""
        assert memory(runtime=blocked, limit=0.01) is None


class TestContext:
    def test_healthy(self):
        """A context that works has no fault; it is that of the card that is asked for."""
        runtime = FakeRuntime()
        assert context_fault(card=2, runtime=runtime) is None
        assert set(runtime.cards) == {2}

    def test_an_error_that_passes(self):
        """An error that some call left behind, and that is gone once it was told, is no fault."""
        runtime = FakeRuntime()
        answers = iter([2, 0, 0])
        runtime.cudaFree = lambda _: next(answers)
        assert context_fault(runtime=runtime) is None

    def test_poisoned(self):
        """An error that every call gets is one, in words that are understood."""
        fault = context_fault(runtime=FakeRuntime(sticky=719))
        assert fault == "CUDA failure 719: unspecified launch failure ; GPU=0"
        assert Classifier().classify_text(fault).failure_class is FailureClass.POISONED

    def test_an_error_without_words(self):
        """Whether or not the runtime has words for it."""
        assert (
            context_fault(runtime=FakeRuntime(sticky=721))
            == "CUDA failure 721: an error without a name ; GPU=0"
        )

    def test_hung(self, blocked):
        """A context that does not answer is a fault, at once, and the next one who asks hears the same."""
        for _ in range(2):
            fault = context_fault(0.01, card=1, runtime=blocked)
            assert fault == "the CUDA context of GPU 1 did not answer within 0.01 s"
            assert Classifier().classify_text(fault).failure_class is FailureClass.HANG
        (waiting,) = [thread for thread in threading.enumerate() if thread.name == "cuda-question"]
        assert waiting.daemon

    def test_well_again(self, blocked):
        """When the answer comes after all, the next question is asked again."""
        assert context_fault(0.01, runtime=blocked) is not None
        blocked.blocks.set()
        assert context_fault(runtime=blocked) is None


class TestLoaded:
    def test_maps_that_cannot_be_read(self, tmp_path):
        """Where the system does not tell what is loaded, there is nothing."""
        assert loaded_runtime(tmp_path / "maps") is None

    def test_a_file_of_that_name(self, tmp_path):
        """A file that is mapped but not loaded is not loaded now."""
        (tmp_path / "libcudart.so.13").write_bytes(b"no library")
        line = f"7f00-7f01 r--p 00000000 00:1f 42   {tmp_path}/libcudart.so.13\n"
        (tmp_path / "maps").write_text(line + "7f02-7f03 rw-p 00000000 00:00 0 \n")
        assert loaded_runtime(tmp_path / "maps") is None

    @pytest.mark.slow
    @pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
    def test_any_version(self, tmp_path):
        """A runtime is found by its name, whatever its version and wherever it was loaded from."""
        done = run_python(
            "import _ctypes, ctypes, shutil, sys\n"
            "from resilient_ai._workers.child.cuda import loaded_runtime\n"
            "path = sys.argv[1] + '/a b/libcudart-5f3a.so.99'\n"
            "shutil.copy(_ctypes.__file__, path)\n"
            "print(loaded_runtime())\n"
            "held = ctypes.CDLL(path)\n"
            "print(loaded_runtime()._name == path)\n",
            _folder(tmp_path / "a b"),
        )
        assert done.stdout.split() == ["None", "True"], done.stderr


def _folder(path):
    path.mkdir()
    return path.parent
