"""Every failure text known from the field, and what it has to be taken for."""

from __future__ import annotations

import pytest

from resilient_ai._resilience.failures import Classifier, FailureClass, default_patterns

ORT = "[ONNXRuntimeError] : "
RUNNING = "Non-zero status code returned while running Add node. Name:'add' Status Message: "
ARENA = (
    "/onnxruntime_src/onnxruntime/core/framework/bfc_arena.cc:360 void* "
    "onnxruntime::BFCArena::AllocateRawInternal(size_t, bool, onnxruntime::Stream*) "
)
CLASSIFIER = Classifier()


def cuda(code: int, message: str, expr: str = "cudaMemcpyAsync(dst, src, n)", lib: str = "CUDA") -> str:
    """The text of a failed CUDA call as ONNX Runtime words it."""
    return (
        f"{ORT}1 : FAIL : {lib} failure {code}: {message} ; GPU=0 ; hostname=box ; "
        f"file=/onnxruntime_src/onnxruntime/core/providers/cuda/gpu_data_transfer.cc ; line=63 ; expr={expr};"
    )


CORPUS = {
    FailureClass.OOM: [
        f"{ORT}1 : FAIL : {RUNNING}{ARENA}Failed to allocate memory for requested buffer of size 268435456",
        f"{ORT}6 : RUNTIME_EXCEPTION : {RUNNING}{ARENA}Failed to allocate memory for requested buffer of size 64",
        f"Error in execution: {RUNNING}{ARENA}Failed to allocate memory for requested buffer of size 67108864",
        f"{ORT}1 : FAIL : {RUNNING}{ARENA}Available memory of 62914304 is smaller than requested bytes of 268435456",
        f"{ORT}1 : FAIL : {RUNNING}{ARENA}Failed to find a free memory block despite calling Extend. rounded_bytes=256",
        "cudaMallocFromPoolAsync failed: out of memory",
        cuda(2, "out of memory", "cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking)"),
        cuda(2, "out of memory", "cudaHostAlloc((void**)&p, size, cudaHostAllocDefault)"),
        cuda(2, "out of memory", "cudaSetDevice(GetDeviceId())"),
        (
            f"{ORT}6 : RUNTIME_EXCEPTION : Exception during initialization: CUBLAS failure 3: "
            "CUBLAS_STATUS_ALLOC_FAILED ; GPU=0 ; hostname=box ; expr=cublasCreate(&cublas_handle_);"
        ),
        cuda(4002, "CUDNN_STATUS_ALLOC_FAILED", lib="CUDNN"),
        "CUDA out of memory. Tried to allocate 2.00 GiB (GPU 0; 23.69 GiB total capacity)",
        "std::bad_alloc",
    ],
    FailureClass.POISONED: [
        f"{ORT}1 : FAIL : {RUNNING}{ARENA}Failed to allocate memory for requested buffer of size 4585490524328388608",
        f"{ORT}1 : FAIL : {RUNNING}{ARENA}Failed to allocate memory for requested buffer of size 140737488355328",
        cuda(700, "an illegal memory access was encountered"),
        cuda(
            700,
            "an illegal memory access was encountered",
            "cudaStreamSynchronize(static_cast<cudaStream_t>(h))",
        ),
        cuda(700, "an illegal memory access was encountered", "cudaEventDestroy(event_)"),
        cuda(702, "the launch timed out and was terminated"),
        cuda(710, "device-side assert triggered"),
        cuda(714, "hardware stack error"),
        cuda(715, "an illegal instruction was encountered"),
        cuda(716, "misaligned address"),
        cuda(717, "operation not supported on global/shared address space"),
        cuda(718, "invalid program counter"),
        cuda(719, "unspecified launch failure"),
        cuda(719, "unspecified launch failure", "cudaSetDevice(GetDeviceId())"),
        cuda(721, "an error that does not exist yet"),
        "CUDA error cudaErrorIllegalAddress:an illegal memory access was encountered",
        "CUDA error: device-side assert triggered",
        (
            f"{RUNNING}{ARENA}Failed to allocate memory for requested buffer of size 64; CUDA failure 700: "
            "an illegal memory access was encountered ; GPU=0 ; expr=cudaMalloc(&p, size)"
        ),
        (
            "This leaves the process in an inconsistent state and any further CUDA work will return the same error. "
            "To continue using CUDA, the process must be terminated and relaunched."
        ),
    ],
    FailureClass.WORKER_DIED: [
        (
            "terminate called after throwing an instance of 'onnxruntime::OnnxRuntimeException'\n  what(): "
            "CUDA failure 700: an illegal memory access was encountered ; GPU=0 ; expr=cudaEventDestroy(event_);"
        ),
        "worker exited with code -11",
        "worker exited with code -6",
        "worker exited with code -7",
        "worker exited with code -9",
        "[Errno 32] Broken pipe",
        "[Errno 104] Connection reset by peer",
    ],
    FailureClass.DEVICE_FAULT: [
        cuda(214, "uncorrectable ECC error encountered"),
        "uncorrectable ECC error encountered",
        cuda(220, "uncorrectable NVLink error detected during the execution"),
        cuda(999, "unknown error", "cudaSetDevice(info_.device_id)"),
        cuda(46, "all CUDA-capable devices are busy or unavailable"),
        "all CUDA-capable devices are busy or unavailable",
        cuda(802, "system not yet initialized"),
        "Failed to initialize NVML: Unknown Error",
        "NVML: GPU is lost",
        "NVRM: Xid (PCI:0000:01:00): 79, GPU has fallen off the bus.",
    ],
    FailureClass.ENVIRONMENT: [
        (
            f"{ORT}1 : FAIL : {RUNNING}CUDA error cudaErrorNoKernelImageForDevice:no kernel image is available for "
            "execution on the device"
        ),
        cuda(209, "no kernel image is available for execution on the device"),
        cuda(
            35,
            "CUDA driver version is insufficient for CUDA runtime version",
            "cudaSetDevice(info_.device_id)",
        ),
        cuda(34, "CUDA driver is a stub library"),
        cuda(218, "a PTX JIT compilation failed"),
        cuda(222, "the provided PTX was compiled with an unsupported toolchain."),
        cuda(223, "PTX JIT compilation was disabled"),
        cuda(803, "system has unsupported display driver / cuda driver combination"),
        cuda(804, "forward compatibility was attempted on non supported HW"),
        cuda(100, "no CUDA-capable device is detected", "cudaGetDeviceCount(&num_devices)"),
        cuda(101, "invalid device ordinal", "cudaSetDevice(GetDeviceId())"),
        (
            "[E:onnxruntime:Default, provider_bridge_ort.cc:2458 TryGetProviderInfo_CUDA] Failed to load library "
            "/venv/onnxruntime/capi/libonnxruntime_providers_cuda.so with error: libcublasLt.so.13: cannot open "
            "shared object file: No such file or directory"
        ),
        (
            "Failed to load library /venv/libonnxruntime_providers_cuda.so with error: libcuda.so.1: cannot open "
            "shared object file: No such file or directory"
        ),
        (
            "Failed to load library /venv/libonnxruntime_providers_cuda.so with error: /venv/libcudnn.so.9: "
            "undefined symbol: cudnnGetVersion"
        ),
        (
            "[W:onnxruntime:Default, onnxruntime_pybind_state.cc:974] Failed to create CUDAExecutionProvider. "
            "Require cuDNN 9.* and CUDA 13.*. Please install all dependencies."
        ),
        (
            f"{ORT}1 : FAIL : This session contains graph nodes that are assigned to the default CPU EP, but fallback "
            "to CPU EP has been explicitly disabled by the user."
        ),
    ],
    FailureClass.FORKED: [
        (
            f"{ORT}1 : FAIL : CUDA failure 3: initialization error ; GPU=32764 ; hostname=box ; "
            "expr=cudaSetDevice(GetDeviceId());"
        ),
        f"{ORT}1 : FAIL : CUDA error executing cudaSetDevice(GetDeviceId())",
    ],
    FailureClass.MPS: [
        cuda(805, "MPS client failed to connect to the MPS control daemon or the MPS server"),
        cuda(807, "the MPS server is not ready to accept new MPS client requests"),
        cuda(808, "the hardware resources required to create MPS client have been exhausted"),
        cuda(809, "the hardware resources required to device connections have been exhausted"),
        cuda(810, "the MPS client has been terminated by the server"),
    ],
    FailureClass.LIB_FAULT: [
        cuda(1001, "CUDNN_STATUS_NOT_INITIALIZED", "cudnnCreate(&cudnn_handle_)", lib="CUDNN"),
        cuda(1, "CUDNN_STATUS_NOT_INITIALIZED", "cudnnCreate(&cudnn_handle_)", lib="CUDNN"),
        cuda(13, "CUBLAS_STATUS_EXECUTION_FAILED", lib="CUBLAS"),
        cuda(3, "CUBLAS_STATUS_NOT_INITIALIZED", lib="CUBLAS"),
        cuda(4, "CUDNN_STATUS_INTERNAL_ERROR", lib="CUDNN"),
        "cuDNN frontend error: no valid execution plans built",
    ],
    FailureClass.EP_BUILD: [
        f"{ORT}11 : EP_FAIL : TensorRT EP failed to create engine from network for fused node: TRTKernel_0",
        f"{ORT}11 : EP_FAIL : TensorRT EP could not deserialize engine from cache: /cache/a.engine",
        f"{ORT}11 : EP_FAIL : TensorRT EP execution context enqueue failed.",
        (
            "*** EP Error ***\nEP Error tensorrt_provider.h:129 RegisterTensorRTPluginsAsCustomOps Please install "
            "TensorRT libraries as mentioned in the GPU requirements page"
        ),
        (
            "Failed to load library /venv/libonnxruntime_providers_tensorrt.so with error: libnvinfer.so.10: cannot "
            "open shared object file: No such file or directory"
        ),
    ],
    FailureClass.CANCELLED: [f"{ORT}1 : FAIL : Exiting due to terminate flag being set to true."],
    FailureClass.SHUTDOWN: [
        cuda(4, "driver shutting down", "cudaEventDestroy(event_)"),
        "driver shutting down",
    ],
    FailureClass.CORRUPT: [
        "The gpu answered with non-finite numbers.",
        "The gpu answered with one vector for different texts.",
        "canary mismatch: cosine 0.31",
        "a vector of zero norm",
    ],
    FailureClass.CALLER: [
        (
            f"{ORT}2 : INVALID_ARGUMENT : Got invalid dimensions for input: input_ids for the following indices\n"
            " index: 1 Got: 4 Expected: 2\n Please fix either the inputs/outputs or the model."
        ),
        f"{ORT}2 : INVALID_ARGUMENT : Unexpected input data type. Actual: (tensor(int64)) , expected: (tensor(float))",
        f"{ORT}2 : INVALID_ARGUMENT : Conflicting session configuration: explicitly added the CPU EP to the session",
        "Required inputs (['input_ids']) are missing from input feed (['attention_mask']).",
        (
            "Error in execution: Invalid rank for input: input_ids Got: 3 Expected: 2 Please fix either the "
            "inputs/outputs or the model."
        ),
    ],
    FailureClass.MODEL: [
        f"{ORT}3 : NO_SUCHFILE : Load model from /models/a.onnx failed:File doesn't exist",
        f"{ORT}7 : INVALID_PROTOBUF : Load model from /models/a.onnx failed:Protobuf parsing failed.",
        f"{ORT}4 : NO_MODEL : no model was loaded",
        f"{ORT}10 : INVALID_GRAPH : This is an invalid model.",
        f"{ORT}9 : NOT_IMPLEMENTED : Could not find an implementation for Gelu(20) node",
    ],
    FailureClass.DEVICE_RESET: [f"{ORT}15 : DEVICE_RESET : the subsystem was restarted"],
    FailureClass.HANG: ["The gpu did not answer within 30 s.", "the batch was declared hung after 10 s"],
    FailureClass.TRANSIENT: ["[Errno 11] Resource temporarily unavailable", cuda(600, "device not ready")],
    FailureClass.UNKNOWN: [
        "",
        "something nobody has seen yet",
        cuda(701, "too many resources requested for launch"),
        cuda(709, "context is destroyed"),
        "CUDA failure 70: a number that only begins like one",
        f"{ORT}1 : FAIL : the worker of section 2 has 700 nodes",
    ],
}
CASES = [
    pytest.param(text, expected, id=f"{expected}-{n}")
    for expected, texts in CORPUS.items()
    for n, text in enumerate(texts)
]


@pytest.mark.parametrize(("text", "expected"), CASES)
def test_a_known_text_has_its_class(text, expected):
    """A text that the field has shown is taken for what it was, whatever class of error carries it."""
    for error in (RuntimeError(text), type("Fail", (Exception,), {})(text)):
        assert CLASSIFIER.classify(error).failure_class is expected


def test_the_corpus_covers_every_class():
    """No class of failure is without an example text."""
    assert set(CORPUS) == set(FailureClass)


def test_every_pattern_is_needed():
    """Each pattern decides some text of the corpus or of the list here, so none is dead."""
    more = (
        "worker exited with code -9",
        "CUDA_ERROR_ILLEGAL_ADDRESS",
        "Specified provider 'CUDAExecutionProvider' is not in available provider names.",
    )
    used = {CLASSIFIER.classify_text(text).pattern for texts in CORPUS.values() for text in texts}
    used |= {CLASSIFIER.classify_text(text).pattern for text in more}
    assert {pattern.name for pattern in default_patterns()} <= used


def test_pattern_names_are_unique():
    """A name in a log leads to one pattern."""
    names = [pattern.name for pattern in default_patterns()]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("libcublasLt.so.13: cannot open shared object file", 'pip install "onnxruntime-gpu[cuda,cudnn]"'),
        ("libcublasLt.so.13: cannot open shared object file", "libcublasLt.so.13 is missing"),
        ("libcuda.so.1: cannot open shared object file", "Install the driver"),
        ("CUDA failure 35: CUDA driver version is insufficient", "Update the driver"),
        ("CUDA failure 100: no CUDA-capable device is detected", "CUDA_VISIBLE_DEVICES"),
        ("cudaErrorNoKernelImageForDevice:no kernel image", "pip install --upgrade"),
        ("CUDA failure 807: the MPS server is not ready", "Multi-Process Service"),
        ("'CUDAExecutionProvider' is not in available provider names", "pip uninstall"),
    ],
)
def test_the_hint_says_what_to_do(text, word):
    """A failure that a person has to heal names what is missing and the command or step that helps."""
    assert word in CLASSIFIER.classify_text(text).hint


@pytest.mark.parametrize(
    "failure_class", [FailureClass.ENVIRONMENT, FailureClass.DEVICE_FAULT, FailureClass.MPS]
)
def test_no_human_case_is_without_a_hint(failure_class):
    """Where only a person can help, there is always a hint."""
    assert all(pattern.hint for pattern in default_patterns() if pattern.failure_class is failure_class)
