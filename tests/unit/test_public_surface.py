"""What users import is there, says what it is, and costs nothing heavy."""

from __future__ import annotations

import inspect

import pytest

import resilient_ai as rai
from serving_kit import run_python

PROMISED = {
    "AIService",
    "AISettings",
    "AllBackendsFailed",
    "AsyncAIService",
    "BreakerPolicy",
    "BufferPool",
    "CircuitBreaker",
    "ConfigurationError",
    "DeadlineExceeded",
    "DeviceFailed",
    "DeviceUnavailable",
    "Embeddings",
    "FailureRate",
    "FallbackManager",
    "FallbackPolicy",
    "FallbackStats",
    "Health",
    "InvalidInput",
    "ModelCard",
    "ModelCorrupt",
    "ModelFile",
    "ModelNotFound",
    "ModelRegistry",
    "ModelSource",
    "MultiEmbeddings",
    "Overloaded",
    "Permit",
    "RankedDocument",
    "Ranking",
    "Rejection",
    "ResilientAIError",
    "ServiceClosed",
    "State",
    "Transition",
    "__version__",
    "similarity",
    "testing",
}
CALLS = {
    "load",
    "embed",
    "embed_query",
    "embed_documents",
    "embed_stream",
    "rerank",
    "health",
    "close",
    "from_env",
    "settings",
    "registry",
}


def test_names():
    """The root has the promised names and no others, sorted."""
    assert set(rai.__all__) == PROMISED
    assert list(rai.__all__) == sorted(rai.__all__)
    assert all(hasattr(rai, name) for name in PROMISED)


@pytest.mark.parametrize("name", sorted(PROMISED - {"__version__"}))
def test_docstrings(name):
    """Every public name says what it is."""
    assert inspect.getdoc(getattr(rai, name)), name


@pytest.mark.parametrize("service", [rai.AIService, rai.AsyncAIService])
def test_the_calls(service):
    """Both faces have the promised calls; the synchronous one hands out futures besides."""
    assert {name for name in vars(service) if not name.startswith("_")} >= CALLS
    assert hasattr(service, "submit_embed") == hasattr(service, "submit_rerank") == (service is rai.AIService)


def test_calls_are_documented():
    """Every public call of the service has its contract."""
    for name, value in vars(rai.AIService).items():
        if not name.startswith("_") and name != "settings":
            assert inspect.getdoc(value), name


def test_both_faces_take_the_same_options():
    """Arguments of the asynchronous calls are those of the synchronous ones."""
    for name in ("embed", "embed_query", "embed_documents", "embed_stream", "rerank"):
        sync, other = (
            inspect.signature(getattr(face, name)).parameters for face in (rai.AIService, rai.AsyncAIService)
        )
        assert list(sync) == list(other), name


@pytest.mark.slow
def test_importing_is_light():
    """Importing the library and its service brings no heavy package along and gives no warning."""
    done = run_python(
        "import sys, warnings; warnings.simplefilter('error'); from resilient_ai import AIService\n"
        "heavy = {'torch', 'onnx', 'onnxruntime', 'openvino', 'huggingface_hub', 'rich', 'pyarrow', 'pydantic',\n"
        "         'transformers', 'typer'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    assert done.stdout.strip() == "[]", done.stderr
    assert done.stderr == ""
