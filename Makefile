# `make check` is what CI runs. PYTHON and VENV may be given: make check PYTHON=python3.12 VENV=/tmp/venv
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: check soak
check: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest

# What takes too long for CI: fifty rounds of kill -9, ten minutes of fuzzing.
soak: $(VENV)/.dev
	AIVSREAL_ROUNDS=50 $(BIN)/python -m pytest -s tests/test_results.py -k kill_9
	$(BIN)/python tests/fuzz.py --seconds 600

$(VENV)/.dev: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --disable-pip-version-check --quiet -e '.[dev]'
	touch $@
