"""XLM-R large, as BGE-M3 is."""

from __future__ import annotations

from functools import partial

from speed.sections.large import measure_large

measure = partial(measure_large, kind="xlmr")
