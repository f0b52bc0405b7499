"""Two engines on the same batches, one after the other: do they agree, and which is faster?

What was found is kept for the next start, for it takes seconds and does not change by itself.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Final

from resilient_ai._models.landing import write_whole
from resilient_ai._serving.canary import agreement
from resilient_ai._telemetry.log import log
from resilient_ai.errors import ConfigurationError
from resilient_ai.values import Backend, Batch, FloatArray

__all__ = ["Run", "Trials", "Verdict", "judge", "run_probes"]

_VERSION: Final = 1
_MAX_BYTES: Final = 16 * 1024
_SECONDS: Final = 0.4
"""For the timed passes of one engine; the first pass, in which all is new, comes on top."""
_MOST_PASSES: Final = 100
_SLOW: Final = 2.0
"""A pass that takes this long is not repeated: what is new in the first one does not count beside it."""
_TRIED_AGAIN_AFTER: Final = 86_400.0


@dataclass(frozen=True, slots=True)
class Verdict:
    """How a candidate compares: `reason` says why it may not serve, "" where it may.

    `agreement` is the lowest cosine, or closeness of scores, also between a text alone and in company;
    `speedup` how many times as fast as the reference.
    """

    agreement: float = 0.0
    speedup: float = 0.0
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Run:
    """What a backend answered to each probe, and the best time of each in seconds."""

    answers: tuple[FloatArray, ...]
    seconds: tuple[float, ...]


def run_probes(
    backend: Backend, probes: Sequence[Batch], *, clock: Callable[[], float] = time.perf_counter
) -> Run:
    """Run batches, at least once and for about half a second. The first row of the first runs alone, too.

    Raises:
        ResilientAIError: what the backend raises.
    """
    batches = (_alone(probes[0]), *probes)
    answers, best = _pass(backend, batches, clock)
    if sum(best) >= _SLOW:
        return Run(answers, best)
    best, spent = (math.inf,) * len(batches), 0.0
    for _ in range(_MOST_PASSES):
        _, seconds = _pass(backend, batches, clock)
        best = tuple(map(min, best, seconds))
        spent += sum(seconds)
        if spent >= _SECONDS:
            break
    return Run(answers, best)


def judge(reference: Run, candidate: Run, probes: Sequence[Batch], *, limit: float) -> Verdict:
    """Compare two runs of the same probes; below `limit` there is a reason against the candidate."""
    tasks = (probes[0].task, *(batch.task for batch in probes))
    pairs = list(zip(tasks, candidate.answers, reference.answers, strict=True))
    # A text's answer must not depend on the company it is in, either.
    pairs.append((tasks[0], candidate.answers[1][:1], candidate.answers[0]))
    least = min(
        (agreement(*pair) for pair in pairs), key=lambda value: -math.inf if math.isnan(value) else value
    )
    speedup = sum(reference.seconds) / max(sum(candidate.seconds), 1e-9)
    reason = "" if least >= limit else f"its answers agree to {least:.6f} only, below {limit}"
    return Verdict(least, speedup, reason)


class Trials:
    """Verdicts in a folder, a small file each, by everything they depend on. Thread-safe.

    Several processes may share it. One that ends in the midst of a trial, out of memory or in a crash,
    leaves a note behind, and for a day nobody tries that again.
    """

    def __init__(self, folder: Path, *, wall: Callable[[], float] = time.time) -> None:
        self._folder = folder
        self._wall = wall

    def recall(self, key: Mapping[str, str], *, unfinished: bool = True) -> Verdict | None:
        """What was found before; None where nothing was, or it cannot be read.

        `unfinished` says whether a trial that has begun and not ended counts as one that failed.
        """
        try:
            with self._path(key).open("rb") as file:
                told = json.loads(file.read(_MAX_BYTES))
            if {name: told[name] for name in ("version", *key)} != {"version": _VERSION, **key}:
                return None
            if "begun" in told:
                return self._unfinished(float(told["begun"])) if unfinished else None
            return Verdict(float(told["agreement"]), float(told["speedup"]), str(told["reason"]))
        except (OSError, ValueError, TypeError, KeyError, RecursionError):
            return None

    @contextmanager
    def under_way(self, key: Mapping[str, str]) -> Iterator[Callable[[Verdict], None]]:
        """Note that a trial has begun; call what is given with its verdict. Without one the note goes."""
        verdicts: list[Verdict] = []
        self._write(key, {"begun": self._wall()})
        try:
            yield verdicts.append
        finally:
            if verdicts:
                self._write(key, asdict(verdicts[-1]))
            else:
                with suppress(OSError):
                    self._path(key).unlink(missing_ok=True)

    def _unfinished(self, begun: float) -> Verdict | None:
        if not 0 <= self._wall() - begun < _TRIED_AGAIN_AFTER:
            return None
        return Verdict(reason="a process that tried it is not done, or did not survive it")

    def _path(self, key: Mapping[str, str]) -> Path:
        name = hashlib.sha256(json.dumps(dict(key), sort_keys=True).encode()).hexdigest()[:24]
        return self._folder / f"engine-{name}.json"

    def _write(self, key: Mapping[str, str], content: Mapping[str, object]) -> None:
        told = json.dumps({"version": _VERSION, **key, **content})
        try:
            write_whole(self._path(key), told.encode())
        except ConfigurationError as exc:
            log.info("what was learned of the CPU's engines is not kept", error=str(exc))


def _pass(
    backend: Backend, batches: Sequence[Batch], clock: Callable[[], float]
) -> tuple[tuple[FloatArray, ...], tuple[float, ...]]:
    answers, seconds = [], []
    for batch in batches:
        started = clock()
        answers.append(backend.run(batch).values)
        seconds.append(clock() - started)
    return tuple(answers), tuple(seconds)


def _alone(batch: Batch) -> Batch:
    """The first row by itself, without the padding it needs beside others."""
    size = int(batch.lengths[0])
    return replace(
        batch,
        input_ids=batch.input_ids[:1, :size],
        attention_mask=batch.attention_mask[:1, :size],
        lengths=batch.lengths[:1],
        type_ids=None if batch.type_ids is None else batch.type_ids[:1, :size],
    )
