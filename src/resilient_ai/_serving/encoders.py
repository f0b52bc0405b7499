"""The encoder of a model, as its card has it."""

from __future__ import annotations

import json
from functools import partial
from typing import Any

from resilient_ai._inference.tokens import TextEncoder
from resilient_ai._models.cards import ModelCard
from resilient_ai._models.installed import InstalledModel
from resilient_ai._serving.gradual import GradualEncoder, keep_index, read_index
from resilient_ai._serving.hosting import Encoder, has_room
from resilient_ai.errors import ConfigurationError, ModelCorrupt

__all__ = ["make_encoder", "make_gradual_encoder", "vocabulary_size"]


def make_encoder(installed: InstalledModel, max_tokens: int) -> TextEncoder:
    """The tokenizer of a model, as its card has it; raises `ConfigurationError` where the two do not fit."""
    options = _encoder_options(installed, max_tokens)
    encoder = TextEncoder.load(installed.file("tokenizer"), **options)
    _check_encoder(installed.card, encoder, max_tokens)
    return encoder


def make_gradual_encoder(installed: InstalledModel, max_tokens: int) -> Encoder:
    """As `make_encoder`; from the second start on a large tokenizer is read after the first texts."""
    tokenizer = installed.file("tokenizer")
    digest = installed.sha256[tokenizer.relative_to(installed.folder).as_posix()]
    place = installed.cache_dir / f"tokenizer-{digest[:12]}.excerpts"
    load = partial(make_encoder, installed, max_tokens)
    excerpts = read_index(tokenizer, place)
    if excerpts is None:
        whole = load()
        keep_index(tokenizer, place)
        return whole
    encoder = GradualEncoder(excerpts, partial(TextEncoder, **_encoder_options(installed, max_tokens)), load)
    try:
        _check_encoder(installed.card, encoder, max_tokens)
    except BaseException:
        encoder.close()
        raise
    return encoder


def _encoder_options(installed: InstalledModel, max_tokens: int) -> dict[str, Any]:
    card = installed.card
    return {
        "max_tokens": max_tokens,
        "query_share": card.query_share,
        "with_types": card.type_ids,
        "vocabulary": vocabulary_size(installed),
        "end_token": card.end_token,
        "pair_prompt": card.pair_prompt,
    }


def _check_encoder(card: ModelCard, encoder: Encoder, max_tokens: int) -> None:
    for template in (card.query_prompt, card.document_prompt):
        if found := sorted(token for token in encoder.control_tokens if token in template):
            raise ConfigurationError(
                f"Model card {card.name!r}: {found[0]} in a prompt is text like any other; control tokens "
                "count in a pair_prompt's prefix and suffix alone."
            )
    if not has_room(card, encoder, card.prompt_for("query")):
        raise ConfigurationError(
            f"a limit of {max_tokens} tokens leaves no room for a query beside the prompt of {card.name!r}; "
            "raise AI_MAX_LENGTH"
        )


def vocabulary_size(installed: InstalledModel) -> int | None:
    """How many token ids the model has rows for, as its config.json says; None where it says nothing."""
    config = next((path for path in installed.files.get("config", ()) if path.name == "config.json"), None)
    if config is None:
        return None
    try:
        size = json.loads(config.read_text(encoding="utf-8")).get("vocab_size")
    except (OSError, ValueError, AttributeError) as exc:
        raise ModelCorrupt(f"{config} is not a usable config.json: {exc}") from exc
    return size if isinstance(size, int) else None
