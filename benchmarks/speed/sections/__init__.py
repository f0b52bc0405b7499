"""What `speed.py` measures, a module each with `measure(bench)`, in the order it is run in."""

QUICK = ("minilm", "start", "service", "growth")
FULL = (*QUICK, "qwen3", "xlmr", "reranker", "instant")
