"""Models of their published size and random weights, for what the numbers' values do not change.

The weights are drawn as the published configurations say they were before training. How much rounding
changes an answer does depend on them: the parity checks draw theirs seven times as wide, which no
precision below float32 withstands.

The tokenizers are the real ones, from ../shared/data; without those there is no such model here.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from speed.contestants import Unavailable
from speed.flops import QWEN3_06B, XLM_R_LARGE, Shape
from texts import XQUAD

__all__ = ["LARGE", "LargeModel", "Writer"]

_DATA = XQUAD.parent
_DRAWN = {"initializer_range": 0.02}
"""The deviation that the published configurations of all of them tell."""


@dataclass(frozen=True, slots=True)
class LargeModel:
    """`like` is the model of the catalogue whose recipe it follows; `files` are folders to copy from."""

    name: str
    like: str
    shape: Shape
    recipe: str
    files: tuple[str, ...]

    def missing(self) -> str:
        """What of its tokenizer is not at hand; "" when all is."""
        absent = [name for name in self.files if not (_DATA / name).is_dir()]
        return f"{_DATA / absent[0]} is not there" if absent else ""


LARGE = {
    "qwen3": LargeModel("large-qwen3", "qwen3emb", QWEN3_06B, "mixed", ("Qwen3-Embedding-0.6B",)),
    "xlmr": LargeModel(
        "large-xlmr", "bge-m3", XLM_R_LARGE, "rowwise", ("bge-m3", "xlm-roberta-bge-m3-tokenizer")
    ),
    "reranker": LargeModel("large-reranker", "qwen3_reranker", QWEN3_06B, "mixed", ("Qwen3-Reranker-0.6B",)),
}


class Writer:
    """Writes one of them, in bfloat16 as they are published; made for what it does on the way."""

    def __init__(self, *, kind: str, root: str, seed: int) -> None:
        import torch

        from parity_families import FULL, XLM, Case, make_model
        from parity_families import LARGE as SIZES

        model = LARGE[kind]
        if why := model.missing():
            raise Unavailable(why)
        cases: dict[str, Any] = {
            "qwen3": FULL["qwen3emb"],
            "reranker": FULL["qwen3_reranker"],
            "xlmr": Case(model.name, "xlm-roberta", "XLMRobertaModel", XLM | SIZES, "cls"),
        }
        folder = Path(root) / model.name
        folder.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(seed)
        case = replace(cases[kind], sizes=cases[kind].sizes | _DRAWN)
        with torch.inference_mode():
            make_model(case, folder, half=True, noise=0.0)
        for name in model.files:
            _copy_tokenizer(_DATA / name, folder)
        (folder / "card.toml").write_text(f'like = "{model.like}"\n', encoding="utf-8")


def _copy_tokenizer(source: Path, folder: Path) -> None:
    """All but what says how large the published model is, and its further heads."""
    for file in source.rglob("*"):
        place = file.relative_to(source)
        heads_or_sizes = file.suffix == ".pt" or str(place) == "config.json" or place.parts[0] == "onnx"
        if file.is_file() and not heads_or_sizes:
            (folder / place).parent.mkdir(exist_ok=True)
            shutil.copyfile(file, folder / place)
