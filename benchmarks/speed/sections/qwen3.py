"""Qwen3-Embedding 0.6B."""

from __future__ import annotations

from functools import partial

from speed.sections.large import measure_large

measure = partial(measure_large, kind="qwen3")
