"""Embeddings and rerankings that keep coming when the GPU dies.

::

    import resilient_ai as rai

    with rai.AIService.from_env() as ai:
        vectors = ai.embed_documents(["a text", "another"])
        ranking = ai.rerank("a question", ["an answer", "something else"])
"""

from resilient_ai import similarity
from resilient_ai._inference.buffers import BufferPool
from resilient_ai._models.cards import ModelCard, ModelFile, ModelSource
from resilient_ai._models.registry import ModelRegistry
from resilient_ai._resilience.breaker import (
    BreakerPolicy,
    CircuitBreaker,
    FailureRate,
    Permit,
    Rejection,
    State,
    Transition,
)
from resilient_ai._serving.fallback import FallbackManager
from resilient_ai._serving.health import Health
from resilient_ai._serving.policy import FallbackPolicy
from resilient_ai._serving.stats import FallbackStats
from resilient_ai.aio import AsyncAIService
from resilient_ai.errors import (
    AllBackendsFailed,
    ConfigurationError,
    DeadlineExceeded,
    DeviceFailed,
    DeviceUnavailable,
    InvalidInput,
    ModelCorrupt,
    ModelNotFound,
    Overloaded,
    ResilientAIError,
    ServiceClosed,
)
from resilient_ai.service import AIService
from resilient_ai.settings import AISettings
from resilient_ai.values import Embeddings, RankedDocument, Ranking

__version__ = "0.1.0"

__all__ = [
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
]
