"""Are our vectors of all-MiniLM-L6-v2 those of sentence-transformers, and does the batch not matter?

Compares the fp32 path on texts that cover what breaks tokenizers and poolers, beside prose in
five languages. Then each text alone, in random batches, and padded next to the longest text.

    python benchmarks/parity_minilm.py
    python benchmarks/parity_minilm.py --texts 300
"""

from __future__ import annotations

import logging
import os
import sys
from itertools import chain

import numpy as np
from numpy.typing import NDArray

import resilient_ai as rai
from harness import Report, argument_parser
from minilm import MODEL, hosted, model_folder, open_service
from resilient_ai._inference.batching import collate
from resilient_ai._inference.buffers import BufferPool
from texts import XQUAD, docstrings, hard_texts, load_xquad

LEAST_COSINE = 0.99999
MOST_DIFFERENCE = 1e-5
LANGUAGES = ("en", "de", "ru", "zh")
PADDED_ROWS = 8

Vectors = NDArray[np.float32]


def main() -> int:
    parser = argument_parser(__doc__)
    parser.add_argument("--texts", type=int, default=1_000, help="how many texts (default 1,000)")
    options = parser.parse_args()
    peers = ("torch", "transformers", "sentence-transformers")
    report = Report("parity_minilm", as_json=options.json, peers=peers)
    kinds = collect(options.texts, seed=options.seed)
    texts = list(chain.from_iterable(kinds.values()))
    theirs, their_counts = encode_with_sentence_transformers(texts)
    with open_service() as service:
        ours = service.embed(texts)
        compare(report, kinds, ours, theirs, their_counts)
        check_batches(report, service, texts, seed=options.seed)
    return report.exit_code


def collect(total: int, *, seed: int) -> dict[str, list[str]]:
    """The hard texts, then equal parts of XQuAD's languages, then docstrings for the rest."""
    kinds = dict(hard_texts(seed=seed))
    left = total - sum(map(len, kinds.values()))
    for language in LANGUAGES if XQUAD.is_dir() else ():
        paragraphs, questions = load_xquad(language)
        found = [*paragraphs, *(question.text for question in questions)]
        picked = np.random.default_rng(seed).permutation(len(found))[: max(0, left) // 6]
        kinds[f"XQuAD {language}"] = [found[place] for place in picked]
    left = total - sum(map(len, kinds.values()))
    kinds["docstrings"] = docstrings(max(0, left), seed=seed)
    return {kind: texts for kind, texts in kinds.items() if texts}


def encode_with_sentence_transformers(texts: list[str]) -> tuple[Vectors, NDArray[np.int64]]:
    """The reference: vectors and token counts, from the same files and without the network."""
    os.environ["HF_HUB_OFFLINE"] = os.environ["TRANSFORMERS_OFFLINE"] = "1"
    from sentence_transformers import SentenceTransformer

    # It warns of each text that is longer than the model takes; that is what is being tested.
    logging.getLogger("transformers").setLevel(logging.ERROR)
    model = SentenceTransformer(str(model_folder()), device="cpu")
    tokenize = model.preprocess if hasattr(model, "preprocess") else model.tokenize  # renamed in 5.x
    counts = [int(tokenize([text])["attention_mask"].sum()) for text in texts]
    return model.encode(texts, batch_size=16, normalize_embeddings=True), np.array(counts)


def compare(
    report: Report,
    kinds: dict[str, list[str]],
    ours: rai.Embeddings,
    theirs: Vectors,
    their_counts: NDArray[np.int64],
) -> None:
    cosines = cosine_of_rows(ours.vectors, theirs)
    differences = np.abs(ours.vectors - theirs).max(axis=1)
    same_count = ours.token_counts == their_counts
    rows, start = [], 0
    for kind, texts in [*kinds.items(), ("all", list(chain.from_iterable(kinds.values())))]:
        part = slice(0, None) if kind == "all" else slice(start, start + len(texts))
        start += len(texts)
        rows.append(
            {
                "kind": kind,
                "texts": len(texts),
                "cut": int(ours.truncated[part].sum()),
                "cosine min": float(cosines[part].min()),
                "p1": float(np.percentile(cosines[part], 1)),
                "mean": float(cosines[part].mean()),
                "max abs diff": float(differences[part].max()),
                "same token count": f"{int(same_count[part].sum())}/{len(texts)}",
            }
        )
    report.table(f"{MODEL}, fp32, against sentence-transformers", rows)
    least, equal = float(cosines.min()), int(same_count.sum())
    report.verdict(f"cosine at least {LEAST_COSINE}", kept=least >= LEAST_COSINE, found=f"{least:.8f}")
    report.verdict("equal token counts", kept=equal == len(theirs), found=f"{equal} of {len(theirs)}")


def cosine_of_rows(left: Vectors, right: Vectors) -> NDArray[np.float64]:
    """In double precision, so that what is measured is the vectors and not the measuring."""
    one, other = left.astype(np.float64), right.astype(np.float64)
    lengths = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    return np.asarray((one * other).sum(axis=1) / lengths)


def check_batches(report: Report, service: rai.AIService, texts: list[str], *, seed: int) -> None:
    alone = np.concatenate([service.embed([text]).vectors for text in texts])
    ways = {
        "all in one call": service.embed(texts).vectors,
        "random batches": embed_in_random_batches(service, texts, seed=seed),
        "padded to the longest": embed_padded(service, texts),
    }
    differences = {way: np.abs(vectors - alone).max(axis=1) for way, vectors in ways.items()}
    rows = [
        {"each text alone against": way, "max abs diff": float(diff.max()), "median": float(np.median(diff))}
        for way, diff in differences.items()
    ]
    report.table("Does the batch matter?", rows)
    most = float(max(diff.max() for diff in differences.values()))
    report.verdict(
        f"a text's vector moves by at most {MOST_DIFFERENCE} with its batch",
        kept=most <= MOST_DIFFERENCE,
        found=f"{most:.2e}",
    )


def embed_in_random_batches(service: rai.AIService, texts: list[str], *, seed: int) -> Vectors:
    """In random order, in calls of 2 to 40 texts, each run as one batch whatever the lengths."""
    rng = np.random.default_rng(seed)
    order, start = rng.permutation(len(texts)), 0
    found: dict[int, Vectors] = {}
    while start < len(order):
        rows = order[start : start + int(rng.integers(2, 41))]
        found.update(zip(rows.tolist(), run_as_one_batch(service, [texts[row] for row in rows]), strict=True))
        start += len(rows)
    return np.stack([found[row] for row in range(len(texts))])


def embed_padded(service: rai.AIService, texts: list[str]) -> Vectors:
    """Each text in a batch that the longest text pads to the model's limit."""
    longest = max(texts, key=len)
    groups = [texts[start : start + PADDED_ROWS] for start in range(0, len(texts), PADDED_ROWS)]
    return np.concatenate([run_as_one_batch(service, [*group, longest])[:-1] for group in groups])


def run_as_one_batch(service: rai.AIService, texts: list[str]) -> Vectors:
    """Around the dispatcher, which would sort the texts and so leave little to pad."""
    lane = hosted(service).embedding_lane(normalize=True)
    tokens, pool = lane.encode(texts), BufferPool(1 << 26)
    with collate(tokens, np.arange(len(texts)), pool, model=MODEL, task="embed") as batch:
        return lane.backend.run(batch).values


if __name__ == "__main__":
    sys.exit(main())
