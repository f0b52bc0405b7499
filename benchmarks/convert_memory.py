"""How much memory does turning a checkpoint into a graph take?

A checkpoint with the shapes of Qwen3-0.6B and random bfloat16 weights is written, then converted in a
process of its own, whose largest resident memory counts. Needs 5 GB of disk.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from harness import Report, argument_parser

MOST = 1.3
HIDDEN, LAYERS, WIDE, VOCABULARY, HEADS, KEY_HEADS, HEAD_SIZE = 1024, 28, 3072, 151669, 16, 8, 128

CONFIG = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "hidden_act": "silu",
    "hidden_size": HIDDEN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KEY_HEADS,
    "head_dim": HEAD_SIZE,
    "intermediate_size": WIDE,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e6,
    "tie_word_embeddings": True,
}

CONVERT = """
import resource, sys
from pathlib import Path
from resilient_ai._models.graphs import ensure_graph
folder = Path(sys.argv[1])
graph = ensure_graph(
    folder, folder / "graphs", family="qwen3", pooling="last_token", head="embedding", precision=sys.argv[2]
)
assert "torch" not in sys.modules
print(graph, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def main() -> int:
    options = argument_parser(__doc__).parse_args()
    report = Report("convert_memory", as_json=options.json)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_checkpoint(folder, np.random.default_rng(options.seed))
        rows = [convert(folder, precision) for precision in ("fp16", "fp32")]
    report.table("Qwen3-0.6B from bfloat16", rows)
    worst = max(float(row["peak / weights"]) for row in rows)
    report.verdict(f"peak memory <= {MOST} x the weights written", kept=worst <= MOST, found=f"{worst:.2f} x")
    return report.exit_code


def convert(folder: Path, precision: str) -> dict[str, float | str]:
    started = time.perf_counter()
    command = [sys.executable, "-c", CONVERT, str(folder), precision]
    told = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    seconds = time.perf_counter() - started
    graph, peak = Path(told[0]), int(told[1]) * 1024
    written = sum(file.stat().st_size for file in graph.parent.glob(f"{graph.name}*"))
    return {
        "precision": precision,
        "weights GB": written / 1e9,
        "seconds": seconds,
        "peak GB": peak / 1e9,
        "peak / weights": peak / written,
    }


def write_checkpoint(folder: Path, random: np.random.Generator) -> None:
    (folder / "config.json").write_text(json.dumps(CONFIG))
    header: dict[str, object] = {}
    end = 0
    for name, shape in shapes():
        start, end = end, end + 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}
    told = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as stream:
        stream.write(len(told).to_bytes(8, "little") + told)
        for _, shape in shapes():
            rows = max(1, 2**22 // math.prod(shape[1:]))
            for at in range(0, shape[0], rows):
                piece = (min(rows, shape[0] - at), *shape[1:])
                values = random.standard_normal(piece, np.float32) * np.float32(0.02)
                stream.write((values.view(np.uint32) >> np.uint32(16)).astype("<u2").tobytes())


def shapes() -> Iterator[tuple[str, tuple[int, ...]]]:
    yield "embed_tokens.weight", (VOCABULARY, HIDDEN)
    for number in range(LAYERS):
        place = f"layers.{number}"
        for part, heads in (("q", HEADS), ("k", KEY_HEADS), ("v", KEY_HEADS)):
            yield f"{place}.self_attn.{part}_proj.weight", (heads * HEAD_SIZE, HIDDEN)
        yield f"{place}.self_attn.o_proj.weight", (HIDDEN, HEADS * HEAD_SIZE)
        yield f"{place}.self_attn.q_norm.weight", (HEAD_SIZE,)
        yield f"{place}.self_attn.k_norm.weight", (HEAD_SIZE,)
        yield f"{place}.mlp.gate_proj.weight", (WIDE, HIDDEN)
        yield f"{place}.mlp.up_proj.weight", (WIDE, HIDDEN)
        yield f"{place}.mlp.down_proj.weight", (HIDDEN, WIDE)
        yield f"{place}.input_layernorm.weight", (HIDDEN,)
        yield f"{place}.post_attention_layernorm.weight", (HIDDEN,)
    yield "norm.weight", (HIDDEN,)


if __name__ == "__main__":
    sys.exit(main())
