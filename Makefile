# fedward: `make simulate` sets everything up and runs the quick start, `make test` sets up and tests.
# ARGS passes further arguments, for example: make test ARGS="tests/unit -k study"

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.fedward-ready
# Without bytecode every start compiles torch from source: 3 more CPU-seconds each.
unexport PYTHONDONTWRITEBYTECODE
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help setup simulate test check bench soak lock clean

help:
	@echo "make simulate  set up and run the quick start: five virtual hospitals, one report"
	@echo "make test      set up and run every test"
	@echo "make check     lint, formatting, types, layers"
	@echo "make bench     measure speed and memory against the baselines"
	@echo "make soak      the full test matrices: hours"
	@echo "make setup     only set up $(VENV); make lock  pin the dependencies anew; make clean  remove $(VENV)"

setup: $(READY)

# Hash-pinned and repeatable: uv, itself pinned in the lock, installs the lock in seconds; pip takes over where uv
# cannot reach the index that pip is configured for.
$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "fedward needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version 2>&1 || true)." \
	       "Install one, then: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	@echo "setting up $(VENV): the first time this takes some minutes and 6 GB of disk"
	@test -x $(BIN)/uv || { \
	  $(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv $(VENV); \
	  awk '/^[^ ]/ {wanted = /^uv==/} wanted' requirements.lock > $(VENV)/uv.lock && \
	  $(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r $(VENV)/uv.lock; }
	@$(BIN)/uv pip install $$(test -t 2 || echo --quiet) --python $(BIN)/python --require-hashes -r requirements.lock || { \
	  echo "uv could not install the lock; trying pip, which takes a few minutes" >&2; \
	  $(BIN)/python -m pip install --quiet --require-hashes -r requirements.lock; }
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --offline --no-deps --no-build-isolation --editable .
	@touch $@

simulate: setup
	$(BIN)/fedward simulate configs/quickstart.yaml --workers 2 $(ARGS)

test: setup
	$(BIN)/python -m pytest $(ARGS)

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

bench: setup
	$(BIN)/python tests/benchmarks/run.py $(ARGS)

soak: setup
	FEDWARD_SOAK=1 $(BIN)/python -m pytest --timeout 0 -m "soak or slow" $(ARGS)

# --universal: one lock for every platform and Python from 3.11 on. A lock names no index.
lock:
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --fork-strategy fewest --extra dev \
	  --generate-hashes --no-header --no-annotate --no-emit-index-url pyproject.toml -o requirements.lock
	@! grep -n '://' requirements.lock || { echo "requirements.lock names a host; remove it" >&2; exit 1; }

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
