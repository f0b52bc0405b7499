"""What users import is there, says what it is, and costs nothing heavy."""

from __future__ import annotations

import inspect

import pytest
from serving_kit import run_python

import resilient_ai as rai

PROMISED = {
    "AIService",
    "AISettings",
    "AllBackendsFailed",
    "AsyncAIService",
    "BufferPool",
    "ConfigurationError",
    "DeadlineExceeded",
    "DeviceFailed",
    "DeviceUnavailable",
    "Embeddings",
    "Health",
    "InvalidInput",
    "ModelCard",
    "ModelCorrupt",
    "ModelFile",
    "ModelNotFound",
    "ModelRegistry",
    "ModelSource",
    "Overloaded",
    "RankedDocument",
    "Ranking",
    "ResilientAIError",
    "ServiceClosed",
    "__version__",
    "similarity",
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
    """Both faces have the same calls."""
    assert CALLS | {"submit_embed", "submit_rerank"} >= {n for n in vars(service) if not n.startswith("_")} >= CALLS


def test_sync_calls_are_documented():
    """Every call of the service has its contract."""
    for name in CALLS | {"submit_embed", "submit_rerank"}:
        if name != "settings":
            assert inspect.getdoc(getattr(rai.AIService, name)), name


def test_both_faces_take_the_same_options():
    """Arguments of the asynchronous calls are those of the synchronous ones."""
    for name in ("embed", "embed_query", "embed_documents", "embed_stream", "rerank"):
        sync, other = (inspect.signature(getattr(face, name)).parameters for face in (rai.AIService, rai.AsyncAIService))
        assert list(sync) == list(other), name


@pytest.mark.slow
def test_importing_is_light():
    """Importing the library brings no heavy package along and gives no warning."""
    done = run_python(
        "import sys, warnings; warnings.simplefilter('error'); import resilient_ai\n"
        "heavy = {'torch', 'onnx', 'onnxruntime', 'huggingface_hub', 'rich', 'pyarrow', 'transformers', 'typer'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    assert done.stdout.strip() == "[]", done.stderr
    assert done.stderr == ""
