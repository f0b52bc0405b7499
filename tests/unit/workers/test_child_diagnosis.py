"""Which errors a worker survives, and which it has to die of."""

from __future__ import annotations

import threading

import pytest

from resilient_ai._resilience.failures import Classifier, FailureClass
from resilient_ai._workers.child.diagnosis import Examiner
from resilient_ai._workers.messages import error_frame, read_error
from resilient_ai.errors import DeviceFailed, InvalidInput, ModelCorrupt, ModelNotFound

OOM = (
    "[ONNXRuntimeError] : 1 : FAIL : Non-zero status code returned while running Add node. Name:'' Status "
    "Message: bfc_arena.cc:360 void* onnxruntime::BFCArena::AllocateRawInternal(size_t, bool, "
    "onnxruntime::Stream*) Failed to allocate memory for requested buffer of size {size}"
)
ILLEGAL = (
    "CUDA failure 700: an illegal memory access was encountered ; GPU=0 ; hostname=h ; file=x.cc ; line=63 ; "
    "expr=cudaMemcpyAsync(...);"
)
DOUBTFUL = {
    "out of memory": OOM.format(size=1 << 20),
    "library": "CUDNN failure 5000: CUDNN_STATUS_EXECUTION_FAILED ; GPU=0",
    "unknown": "something that was never seen before",
    "long": "never seen before " * 1000,
}


class Card:
    """Stands in for the device: answers probes as told, and counts them."""

    def __init__(self, fault=None, canary=None):
        self.fault, self.canary_error = fault, canary
        self.probes = self.canaries = 0

    def context_fault(self):
        self.probes += 1
        return self.fault

    def canary(self):
        self.canaries += 1
        if self.canary_error is not None:
            raise self.canary_error

    def examine(self, error, **options):
        return Examiner(self.context_fault, **options).examine(error, self.canary)


@pytest.mark.parametrize(
    "text",
    [
        ILLEGAL,
        "CUDA failure 214: uncorrectable ECC error encountered",
        "TensorRT EP execution context enqueue failed.",
    ],
)
def test_what_needs_another_process_is_fatal(text):
    """Where the text leaves no doubt, nothing is probed: the device may hang by now."""
    card, error = Card(), DeviceFailed(text)
    diagnosis = card.examine(error)
    assert diagnosis.fatal
    assert diagnosis.error is error
    assert (card.probes, card.canaries) == (0, 0)


@pytest.mark.parametrize(
    "error",
    [
        InvalidInput("the graph refused the batch"),
        ModelNotFound("no"),
        ModelCorrupt("no"),
        KeyboardInterrupt(),
    ],
)
def test_what_is_not_the_devices_fault_is_just_told(error):
    """Errors of callers and of models neither end the process nor bother the device."""
    card = Card()
    diagnosis = card.examine(error)
    assert not diagnosis.fatal
    assert diagnosis.error is error
    assert (card.probes, card.canaries) == (0, 0)


@pytest.mark.parametrize("text", [DOUBTFUL["out of memory"], DOUBTFUL["unknown"], DOUBTFUL["long"]])
def test_a_doubtful_error_on_a_healthy_device_is_just_told(text):
    """Out of memory is out of memory when the context answers and a tiny run goes well."""
    card, error = Card(), DeviceFailed(text)
    diagnosis = card.examine(error)
    assert not diagnosis.fatal
    assert diagnosis.error is error
    assert (card.probes, card.canaries) == (1, 1)


def test_a_library_that_failed_needs_another_process_anyway():
    """A healthy context does not mend a library, but the error stays what it is."""
    error = DeviceFailed(DOUBTFUL["library"])
    diagnosis = Card().examine(error)
    assert diagnosis.fatal
    assert diagnosis.error is error


@pytest.mark.parametrize("text", DOUBTFUL.values(), ids=DOUBTFUL)
@pytest.mark.parametrize(
    "card",
    [
        Card(fault="cudaDeviceSynchronize: 700, an illegal memory access was encountered"),
        Card(fault="no answer from the driver in 5 s"),
        Card(canary=DeviceFailed(OOM.format(size=4096))),
        Card(canary=DeviceFailed("x" * 10_000)),
    ],
    ids=["context", "driver", "canary", "long"],
)
def test_a_doubtful_error_on_a_dead_device_is_poison_for_the_host_too(text, card):
    """What the probe found makes it fatal, and the host reads that from the text alone."""
    diagnosis = card.examine(DeviceFailed(text))
    assert diagnosis.fatal
    assert str(diagnosis.error).startswith("poisoned: the context probe after DeviceFailed: ")
    arrived = read_error(error_frame(1, diagnosis.error))
    assert Classifier().classify(arrived).failure_class is FailureClass.POISONED


def test_a_context_that_hangs_has_the_worker_replaced():
    """The host reads a hang where the probe found one, from which the same follows."""
    card = Card(fault="the CUDA context of GPU 0 did not answer within 5 s")
    diagnosis = card.examine(DeviceFailed(DOUBTFUL["unknown"]))
    assert diagnosis.fatal
    assert Classifier().classify(diagnosis.error).verdict.replace_worker


def test_a_dead_context_is_not_run_on():
    """The tiny run is left out when the context is known to be dead: it could only hang."""
    card = Card(fault="dead")
    card.examine(DeviceFailed(OOM.format(size=1)))
    assert card.canaries == 0


def test_a_tiny_run_that_hangs_is_not_waited_for():
    """A device that does not answer in time to something tiny is as good as dead."""
    release = threading.Event()
    diagnosis = Examiner(limit=0.01).examine(MemoryError(), release.wait)
    release.set()
    assert diagnosis.fatal
    assert "a tiny run gave no answer in 0.01 s" in str(diagnosis.error)
    assert Classifier().classify(diagnosis.error).failure_class is FailureClass.POISONED


def test_without_a_session_the_context_alone_is_probed():
    """A model that could not be loaded has nothing to run."""
    assert not Examiner().examine(DeviceFailed(DOUBTFUL["unknown"])).fatal
    assert Examiner(lambda: "dead").examine(DeviceFailed(DOUBTFUL["unknown"])).fatal


def test_asking_for_more_than_the_card_has_is_poison():
    """A size that no batch can need was computed from garbage."""
    error = DeviceFailed(OOM.format(size=80 << 30))
    assert Card().examine(error, card_total_bytes=40 << 30).fatal
    assert not Card().examine(error, card_total_bytes=160 << 30).fatal
