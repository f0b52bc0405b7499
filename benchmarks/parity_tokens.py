"""Are our token ids those of the models' own recipes, run by transformers?

Every text and pair is encoded by the catalogue's cards, and by `transformers.AutoTokenizer` with the
few lines that the authors publish for their model: prompts, special tokens, type ids, truncation.
For Qwen3-Reranker also the split form, whose shared beginning and own ends must make up the same rows.

    python benchmarks/parity_tokens.py
    python benchmarks/parity_tokens.py --record tests/integration/tokens/recorded.json

`--record` writes a hash of what transformers gives for XQuAD; the tests hold the library to it.
Needs XQuAD and the tokenizers in ../shared/data, and the package with the real MiniLM. What spells
control tokens out is left out: there we differ on purpose, see docs/decisions.md.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from harness import Report, argument_parser
from minilm import model_folder
from resilient_ai._inference.tokens import TextEncoder
from resilient_ai._models.catalogue import builtin_catalogue
from resilient_ai.values import Tokens
from texts import XQUAD, docstrings, hard_texts, load_xquad

DATA = XQUAD.parent
LANGUAGES = ("en", "ru", "de", "zh")
DOCSTRINGS = 250
NEVER_READ_WHOLE = re.compile(r"\S{20000}|\s{20000}")
"""Of one endless word, and behind endless blanks, the library reads only so much."""

Row = tuple[list[int], list[int] | None]
"""Ids, and type ids where the model reads them."""

Pairs = list[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Recipe:
    """One model's way from texts (or pairs) to rows: by its card, and by its authors."""

    card: str
    folder: Path
    theirs: Callable[[Any, Sequence[Any], int], list[Row]]
    pairs: bool = False
    query: bool = False

    @property
    def limits(self) -> tuple[int, ...]:
        """The longest row: one that few texts reach, and one that cuts most of them."""
        return (512, 192) if self.pairs else (512, 64)

    @property
    def title(self) -> str:
        return f"{self.card} {'pairs' if self.pairs else 'queries' if self.query else 'documents'}"

    def encoder(self, limit: int) -> TextEncoder:
        card = builtin_catalogue().find(self.card)
        return TextEncoder.load(
            self.folder / "tokenizer.json",
            max_tokens=limit,
            query_share=card.query_share,
            with_types=card.type_ids,
            end_token=card.end_token,
            pair_prompt=card.pair_prompt,
        )

    def ours(self, encoder: TextEncoder, items: Sequence[Any]) -> Tokens:
        card = builtin_catalogue().find(self.card)
        query, document = card.prompt_for("query"), card.prompt_for("document")
        if self.pairs:
            return encoder.encode_pairs(
                [(query.apply(first), document.apply(second)) for first, second in items]
            )
        return encoder.encode([(query if self.query else document).apply(text) for text in items])


def main() -> int:
    parser = argument_parser(__doc__)
    parser.add_argument("--record", type=Path, help="write the hashes of XQuAD's rows to this file")
    options = parser.parse_args()
    if not XQUAD.is_dir():
        parser.error(f"{XQUAD} is not there")
    os.environ["HF_HUB_OFFLINE"] = os.environ["TRANSFORMERS_OFFLINE"] = "1"
    logging.getLogger("transformers").setLevel(logging.ERROR)
    report = Report("parity_tokens", as_json=options.json, peers=("transformers",))
    texts, pairs = xquad()
    extra = [text for kind in hard_texts(seed=options.seed).values() for text in kind]
    extra = [text for text in extra if not NEVER_READ_WHOLE.search(text)]
    extra += docstrings(DOCSTRINGS, seed=options.seed)
    more = list(zip(extra, reversed(extra), strict=True))
    with tempfile.TemporaryDirectory() as folder:
        found = recipes(Path(folder))
        rows = [row for each in found for row in compare(each, pairs + more if each.pairs else texts + extra)]
        recorded = {each.title: record(each, pairs if each.pairs else texts) for each in found}
        check_split(report, next(each for each in found if each.card == "qwen3_reranker"), pairs + more)
    report.table("Rows with the ids (and types) of transformers", rows)
    total, equal = (sum(int(str(row[column])) for row in rows) for column in ("rows", "equal"))
    report.verdict("every row equal", kept=equal == total, found=f"{equal:,} of {total:,}")
    if options.record:
        options.record.parent.mkdir(parents=True, exist_ok=True)
        options.record.write_text(json.dumps(recorded, indent=1) + "\n", encoding="utf-8")
    return report.exit_code


def xquad() -> tuple[list[str], Pairs]:
    """All distinct paragraphs and questions, and each question with its paragraph."""
    texts: list[str] = []
    pairs: Pairs = []
    for language in LANGUAGES:
        paragraphs, questions = load_xquad(language)
        texts += [*paragraphs, *(question.text for question in questions)]
        pairs += [(question.text, paragraphs[question.paragraph]) for question in questions]
    return texts, pairs


def recipes(folder: Path) -> list[Recipe]:
    """Every kind of recipe in the catalogue whose tokenizer is at hand.

    XLM-R's stands in `folder`, with the settings of bge-reranker-v2-m3 beside it.
    """
    for name in ("tokenizer_config.json", "special_tokens_map.json", "config.json"):
        (folder / name).symlink_to(DATA / "bge-reranker-v2-m3" / name)
    (folder / "tokenizer.json").symlink_to(DATA / "xlm-roberta-bge-m3-tokenizer" / "tokenizer.json")
    qwen = DATA / "Qwen3-Embedding-0.6B"
    bert = model_folder()
    return [
        Recipe("qwen3emb", qwen, plain),
        Recipe("qwen3emb", qwen, qwen_queries, query=True),
        Recipe("qwen3_reranker", DATA / "Qwen3-Reranker-0.6B", qwen_pairs, pairs=True),
        Recipe("bge-m3", folder, plain),
        Recipe("bge-reranker-v2-m3", folder, bge_pairs, pairs=True),
        Recipe("bge-small-en-v1.5", bert, bge_queries, query=True),
        Recipe("nomic-embed-text-v1.5", bert, nomic_documents),
        Recipe("e5-small-v2", bert, e5_documents),
        Recipe("ms-marco-MiniLM-L6-v2", bert, bert_pairs, pairs=True),
    ]


def plain(tokenizer: Any, texts: Sequence[str], limit: int) -> list[Row]:
    return [(ids, None) for ids in tokenizer(texts, truncation=True, max_length=limit)["input_ids"]]


def qwen_queries(tokenizer: Any, texts: Sequence[str], limit: int) -> list[Row]:
    task = "Given a web search query, retrieve relevant passages that answer the query"
    return plain(tokenizer, [f"Instruct: {task}\nQuery:{text}" for text in texts], limit)


def bge_queries(tokenizer: Any, texts: Sequence[str], limit: int) -> list[Row]:
    return plain(
        tokenizer,
        [f"Represent this sentence for searching relevant passages: {text}" for text in texts],
        limit,
    )


def nomic_documents(tokenizer: Any, texts: Sequence[str], limit: int) -> list[Row]:
    return plain(tokenizer, [f"search_document: {text}" for text in texts], limit)


def e5_documents(tokenizer: Any, texts: Sequence[str], limit: int) -> list[Row]:
    return plain(tokenizer, [f"passage: {text}" for text in texts], limit)


def qwen_pairs(tokenizer: Any, pairs: Pairs, limit: int) -> list[Row]:
    """Prefix, body and suffix are tokenised one by one; of the body as much is kept as fits between."""
    task = "Given a web search query, retrieve relevant passages that answer the query"
    system = (
        "Judge whether the Document meets the requirements based on the Query and the Instruct provided. "
        'Note that the answer can only be "yes" or "no".'
    )
    prefix = tokenizer.encode(
        f"<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\n", add_special_tokens=False
    )
    suffix = tokenizer.encode(
        "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n", add_special_tokens=False
    )
    bodies = tokenizer(
        [f"<Instruct>: {task}\n<Query>: {query}\n<Document>: {document}" for query, document in pairs],
        truncation="longest_first",
        max_length=limit - len(prefix) - len(suffix),
    )["input_ids"]
    return [(prefix + body + suffix, None) for body in bodies]


def bge_pairs(tokenizer: Any, pairs: Pairs, limit: int) -> list[Row]:
    """The query may take three quarters, then only the document is cut."""
    queries = tokenizer(
        [query for query, _ in pairs], add_special_tokens=False, truncation=True, max_length=limit * 3 // 4
    )
    documents = tokenizer([document for _, document in pairs], add_special_tokens=False)
    start, end = tokenizer.bos_token_id, tokenizer.eos_token_id
    rows: list[Row] = []
    for query, document in zip(queries["input_ids"], documents["input_ids"], strict=True):
        room = limit - 4 - len(query)
        rows.append(([start, *query, end, end, *document[:room], end], None))
    return rows


def bert_pairs(tokenizer: Any, pairs: Pairs, limit: int) -> list[Row]:
    first, second = [query for query, _ in pairs], [document for _, document in pairs]
    found = tokenizer(first, second, truncation="longest_first", max_length=limit)
    return list(zip(found["input_ids"], found["token_type_ids"], strict=True))


def reference(recipe: Recipe) -> Any:
    return _reference(str(recipe.folder))


@cache
def _reference(folder: str) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


def compare(recipe: Recipe, items: Sequence[Any]) -> list[dict[str, object]]:
    tokenizer = reference(recipe)
    rows: list[dict[str, object]] = []
    for limit in recipe.limits:
        encoder = recipe.encoder(limit)
        kept = [item for item in items if not cuts_query(recipe, encoder, item)]
        ours = recipe.ours(encoder, kept)
        theirs = recipe.theirs(tokenizer, kept, limit)
        equal = [own == other for own, other in zip(rows_of(ours), theirs, strict=True)]
        rows.append(
            {
                "recipe": recipe.title,
                "limit": limit,
                "rows": len(kept),
                "of them cut": int(ours.truncated.sum()),
                "tokens": int(ours.lengths.sum()),
                "equal": sum(equal),
            }
        )
    return rows


def cuts_query(recipe: Recipe, encoder: TextEncoder, item: Any) -> bool:
    """Where a query has to be cut, the authors of Qwen3-Reranker cut the whole document away."""
    if recipe.card != "qwen3_reranker":
        return False
    return bool(recipe.ours(encoder, [(item[0], "")]).truncated[0])


def rows_of(tokens: Tokens) -> Iterator[Row]:
    for start, end in pairwise(tokens.offsets):
        types = None if tokens.type_ids is None else tokens.type_ids[start:end].tolist()
        yield tokens.ids[start:end].tolist(), types


def check_split(report: Report, recipe: Recipe, pairs: Pairs) -> None:
    """The shared beginning of a query's rows and each document's own ids, put together again."""
    card = builtin_catalogue().find(recipe.card)
    encoder = recipe.encoder(card.max_tokens)
    pairs = [pair for pair in pairs if not cuts_query(recipe, encoder, pair)]
    theirs = recipe.theirs(reference(recipe), pairs, card.max_tokens)
    equal, shared_tokens, own_tokens = 0, 0, 0
    for (query, document), (whole, _) in zip(pairs, theirs, strict=True):
        shared = encoder.encode_shared(card.prompt_for("query").apply(query), [document])
        assert shared is not None
        own = shared.own.row(0)
        equal += [*shared.prefix.tolist(), *own.tolist()] == whole
        shared_tokens += len(shared.prefix)
        own_tokens += len(own)
    report.say(
        f"\n{shared_tokens / len(pairs):.0f} ids a row are shared, {own_tokens / len(pairs):.0f} are its own"
    )
    report.verdict(
        "shared beginning + own ids = the whole prompt",
        kept=equal == len(pairs),
        found=f"{equal:,} of {len(pairs):,}",
    )


def record(recipe: Recipe, items: Sequence[Any]) -> dict[str, object]:
    """What transformers gives for XQuAD, in one number a limit."""
    tokenizer = reference(recipe)
    found: dict[str, object] = {}
    for limit in recipe.limits:
        rows = recipe.theirs(tokenizer, items, limit)
        digest = hashlib.sha256()
        for ids, types in rows:
            digest.update(np.array([len(ids), *ids, *(types or [])], np.int64).tobytes())
        tokens = sum(len(ids) for ids, _ in rows)
        found[str(limit)] = {"rows": len(rows), "tokens": tokens, "sha256": digest.hexdigest()}
    return found


if __name__ == "__main__":
    sys.exit(main())
