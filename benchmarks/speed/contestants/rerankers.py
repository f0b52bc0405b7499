"""Qwen3-Reranker by transformers: as its authors' example has it, and with what is easily done better."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import transformers

from rerank_prefix import encoder_of, prompt_of, reference

__all__ = ["TransformersReranker"]


class TransformersReranker:
    """`naive`: whole prompts in the order they come, padded on the left, logits of the whole vocabulary.

    Otherwise documents by length and the logits of the last token alone.
    """

    def __init__(self, *, folder: str, threads: int, naive: bool, batch: int = 8) -> None:
        torch.set_num_threads(threads)
        self._naive, self._batch = naive, batch
        self._model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self._encoder = encoder_of()

    @torch.inference_mode()
    def rerank(self, query: str, documents: list[str]) -> Any:
        query = prompt_of(query)
        if self._naive:
            return reference(self._model, self._encoder, query, documents, self._batch)
        tokens = self._encoder.encode_pairs([(query, document) for document in documents])
        order = np.argsort(-tokens.lengths, kind="stable")
        scores = np.empty(len(documents), np.float32)
        for start in range(0, len(order), self._batch):
            places = order[start : start + self._batch]
            scores[places] = self._scores([tokens.row(int(place)) for place in places])
        return scores

    def lengths(self, query: str, documents: list[str]) -> tuple[int, list[int]]:
        """Tokens that all prompts begin with, and those that each has of its own."""
        encoded = self._encoder.encode_shared(prompt_of(query), documents)
        assert encoded is not None
        return len(encoded.prefix), encoded.own.lengths.tolist()

    def _scores(self, rows: list[Any]) -> Any:
        longest = max(map(len, rows))
        ids = np.zeros((len(rows), longest), np.int64)
        mask = np.zeros_like(ids)
        for place, row in enumerate(rows):
            ids[place, longest - len(row) :], mask[place, longest - len(row) :] = row, 1
        given = {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask)}
        logits = self._model(**given, logits_to_keep=1).logits[:, -1]
        return (logits[:, _YES] - logits[:, _NO]).numpy()


_YES, _NO = 9693, 2152
"""The two answers in Qwen3's vocabulary."""
