"""Embeddings and rerankings that keep coming when the GPU dies.

::

    import resilient_ai as rai

    with rai.AIService.from_env() as ai:
        vectors = ai.embed_documents(["a text", "another"])
        ranking = ai.rerank("a question", ["an answer", "something else"])

Names are imported when they are first used: importing the package itself costs a host nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from resilient_ai._version import __version__

if TYPE_CHECKING:
    from resilient_ai import similarity, testing
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
    from resilient_ai.values import Embeddings, MultiEmbeddings, RankedDocument, Ranking


_MODULES = ("similarity", "testing")
_HOMES = {
    "_inference.buffers": ("BufferPool",),
    "_models.cards": ("ModelCard", "ModelFile", "ModelSource"),
    "_models.registry": ("ModelRegistry",),
    "_resilience.breaker": (
        "BreakerPolicy",
        "CircuitBreaker",
        "FailureRate",
        "Permit",
        "Rejection",
        "State",
        "Transition",
    ),
    "_serving.fallback": ("FallbackManager",),
    "_serving.health": ("Health",),
    "_serving.policy": ("FallbackPolicy",),
    "_serving.stats": ("FallbackStats",),
    "aio": ("AsyncAIService",),
    "errors": (
        "AllBackendsFailed",
        "ConfigurationError",
        "DeadlineExceeded",
        "DeviceFailed",
        "DeviceUnavailable",
        "InvalidInput",
        "ModelCorrupt",
        "ModelNotFound",
        "Overloaded",
        "ResilientAIError",
        "ServiceClosed",
    ),
    "service": ("AIService",),
    "settings": ("AISettings",),
    "values": ("Embeddings", "MultiEmbeddings", "RankedDocument", "Ranking"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

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
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return import_module(f"{__name__}.{name}")
    home = _HOME_OF.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"{__name__}.{home}"), name)
    return value


def __dir__() -> list[str]:
    return __all__
