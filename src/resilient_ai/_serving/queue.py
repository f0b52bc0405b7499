"""The order in which waiting calls are served: urgent ones first, then fair turns."""

from __future__ import annotations

from collections import deque
from typing import Any

from resilient_ai._serving.jobs import Job, Slice

__all__ = ["JobQueue", "urgency"]

_URGENCIES = 3


def urgency(job: Job[Any]) -> int:
    """0 is served first: interactive calls that fit one batch, then larger ones, then bulk."""
    if job.priority == "bulk":
        return 2
    return 0 if len(job.items) <= job.lane.max_rows else 1


class JobQueue:
    """Waiting jobs by urgency. Not thread-safe: its dispatcher guards it.

    Within one urgency jobs take turns: a job that is larger than one wave goes back to the end
    of its line, so a call of a million rows does not hold up the calls behind it.
    """

    def __init__(self) -> None:
        self._lines: tuple[deque[Job[Any]], ...] = tuple(deque() for _ in range(_URGENCIES))

    def __len__(self) -> int:
        """How many calls wait."""
        return sum(map(len, self._lines))

    @property
    def rows(self) -> int:
        """How many rows wait."""
        return sum(job.remaining for line in self._lines for job in line)

    def put(self, job: Job[Any]) -> None:
        self._lines[urgency(job)].append(job)

    def take(self, most_rows: int, *, before: int = _URGENCIES) -> list[Slice]:
        """Take a wave: up to `most_rows` rows of the most urgent jobs that share a lane.

        Only jobs of an urgency below `before`. Jobs nobody waits for are dropped.
        """
        for line in self._lines[:before]:
            wave = self._take_from(line, most_rows)
            if wave:
                return wave
        return []

    def discard_over(self) -> None:
        """Drop the jobs nobody waits for any more."""
        for line in self._lines:
            waiting = [job for job in line if not job.is_over]
            line.clear()
            line.extend(waiting)

    def shed(self) -> Job[Any] | None:
        """Remove and return the bulk job that came last, unless it has begun; None if there is none."""
        bulk = self._lines[-1]
        if not bulk or bulk[-1].taken:
            return None
        return bulk.pop()

    def drain(self) -> list[Job[Any]]:
        """Remove and return every waiting job."""
        jobs = [job for line in self._lines for job in line]
        for line in self._lines:
            line.clear()
        return jobs

    @staticmethod
    def _take_from(line: deque[Job[Any]], most_rows: int) -> list[Slice]:
        wave: list[Slice] = []
        unfinished = []
        room = most_rows
        for _ in range(len(line)):
            job = line.popleft()
            if job.is_over:
                continue
            if not room or (wave and wave[0].job.lane is not job.lane):
                line.append(job)
                continue
            part = job.take(room)
            room -= part.stop - part.start
            wave.append(part)
            if job.remaining:
                unfinished.append(job)
        line.extend(unfinished)
        return wave
