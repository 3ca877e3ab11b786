# Two commands: `make demo` runs the demonstration sweep, `make test` checks everything. Both set up first.
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PYTHON ?= python3
# Compiled modules make every later start several seconds faster.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test lint types unit setup lock clean

demo: $(READY)
	@HF_HUB_OFFLINE=1 $(BIN)/python -m harness -m sweep=demo

test: lint types unit

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)
	$(BIN)/mypy

# Three on two cores: tests that kill and wait leave room. In the order of `testpaths`, fast ones first.
unit: $(READY)
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder

setup: $(READY)

# The lock file names exact versions; the project itself is installed in place, without resolving anything again.
$(READY): requirements.lock pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	test -x $(BIN)/uv || $(BIN)/python -m pip install --quiet uv
	UV_HTTP_TIMEOUT=300 $(BIN)/uv pip install --quiet --python $(BIN)/python -r requirements.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --editable .
	touch $@

lock:
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --extra dev --no-header --no-annotate \
		--no-emit-index-url pyproject.toml --output-file requirements.lock

clean:
	rm -rf $(VENV) runs .mypy_cache .pytest_cache .ruff_cache
