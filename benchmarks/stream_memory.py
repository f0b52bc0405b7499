"""Does `embed_stream` run in flat memory, however many texts there are?

Streams short texts (two or three words, made on the fly) and watches the process's resident
memory. The first twentieth of the stream is warm-up; after it, memory may not grow by 30 MB.

    python benchmarks/stream_memory.py                    # a million texts
    python benchmarks/stream_memory.py --texts 200000
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass

import psutil

import resilient_ai as rai
from harness import Report, argument_parser
from minilm import open_service
from texts import short_texts

ALLOWED_GROWTH_MB = 30
SAMPLES = 20


@dataclass(frozen=True, slots=True)
class Sample:
    """Resident memory after so many texts and seconds."""

    texts: int
    seconds: float
    rss_mb: float


def main() -> int:
    parser = argument_parser(__doc__)
    parser.add_argument("--texts", type=int, default=1_000_000, help="how many (default 1,000,000)")
    parser.add_argument("--chunk", type=int, default=256, help="texts in one part (default 256)")
    options = parser.parse_args()
    report = Report("stream_memory", as_json=options.json, peers=("psutil",))
    with open_service() as service:
        samples = watch(service, texts=options.texts, chunk=options.chunk, seed=options.seed)
    report.table("Resident memory", [row(sample) for sample in samples])
    judge(report, samples, total=options.texts)
    return report.exit_code


def watch(service: rai.AIService, *, texts: int, chunk: int, seed: int) -> list[Sample]:
    """Stream all texts; a sample at the start, after each twentieth and at the end."""
    process = psutil.Process()
    started = time.perf_counter()
    samples = [Sample(0, 0.0, process.memory_info().rss / 1e6)]
    done = 0
    for part in service.embed_stream(short_texts(texts, seed=seed), chunk_size=chunk):
        done += len(part)
        if done >= len(samples) * texts / SAMPLES:
            elapsed = time.perf_counter() - started
            samples.append(Sample(done, elapsed, process.memory_info().rss / 1e6))
    if done != texts:
        raise AssertionError(f"{texts} texts went in, {done} came out")
    return samples


def row(sample: Sample) -> dict[str, int | float]:
    rate = sample.texts / sample.seconds if sample.seconds else 0.0
    return {"texts": sample.texts, "seconds": sample.seconds, "texts/s": rate, "RSS MB": sample.rss_mb}


def judge(report: Report, samples: list[Sample], *, total: int) -> None:
    start, warm, middle, end = samples[0], samples[1], samples[len(samples) // 2], samples[-1]
    growth = max(sample.rss_mb for sample in samples[1:]) - warm.rss_mb
    report.verdict(
        f"memory stays flat (less than {ALLOWED_GROWTH_MB} MB more after warm-up)",
        kept=growth < ALLOWED_GROWTH_MB,
        found=f"start {start.rss_mb:.1f}, warm {warm.rss_mb:.1f}, middle {middle.rss_mb:.1f}, "
        f"end {end.rss_mb:.1f} MB; growth {growth:+.1f} MB over {total:,} texts, "
        f"{total / end.seconds:,.0f} texts/s",
    )


if __name__ == "__main__":
    sys.exit(main())
