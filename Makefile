# Two commands matter: `make demo` and `make test`. Both set up .venv first.
# `make test-fast` is the part that runs no engine: over a minute on two cores.

PYTHON ?= python3
TESTS ?=  # folders or files for test-fast; all by default
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: install demo test test-fast coverage lint types check clean

install: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("Python 3.11 or newer is needed; name one with: make PYTHON=python3.12 ...")'
	@echo "installing into $(VENV): PyTorch, MLX and what they need; minutes, on a slow network"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[mlx,cuda,dev]'
	@touch $(INSTALLED)

demo: install
	$(BIN)/qwen-local demo

# A file of tests stays with one process, for what it makes once; one thread each leaves both cores
# to the processes.
PYTEST := env -u PYTHONDONTWRITEBYTECODE OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto --maxprocesses 4 --dist loadfile

test: install
	$(PYTEST)

# The same, measured against the floor in pyproject.toml.
coverage: install
	$(PYTEST) --cov --cov-report=

test-fast: install
	$(PYTEST) -m "not slow" $(TESTS)

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: install
	$(BIN)/mypy

check: lint types coverage

clean:
	rm -rf $(VENV) build *.egg-info .coverage .pytest_cache .mypy_cache .ruff_cache .hypothesis
