# Two commands matter: `make demo` and `make test`. Both set up .venv first.
# `make test-fast` is the part that runs no engine: over a minute on two cores.

PYTHON ?= python3
TESTS ?=  # folders or files for test-fast; all by default
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: install demo test test-fast fake-gpu coverage lint types check clean

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

# PyTorch's CUDA build on a card that computes nothing: docs/fake-gpu.md. Needs gcc. FAKE_GPU_VENV
# names an environment with that build; .venv-cuda is made otherwise, of several GB.
FAKE_GPU_VENV ?= .venv-cuda
FAKE_GPU := $(CURDIR)/build/fake_gpu
CUDA_PIP := PIP_CONFIG_FILE=/dev/null PIP_FIND_LINKS= .venv-cuda/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.venv-cuda/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-cuda
	$(CUDA_PIP) torch
	$(CUDA_PIP) -e '.[mlx,cuda,dev]'
	@touch $@

fake-gpu: $(if $(filter .venv-cuda,$(FAKE_GPU_VENV)),.venv-cuda/.installed)
	$(FAKE_GPU_VENV)/bin/python tests/fake_gpu/build.py $(FAKE_GPU_VENV) $(FAKE_GPU)
	QWEN_LOCAL_FAKE_GPU=$(FAKE_GPU) PYTHONPATH=$(CURDIR) OMP_NUM_THREADS=1 $(FAKE_GPU_VENV)/bin/python -m pytest -q -n 2 --dist loadfile tests/fake_gpu $(FAKE_GPU_ARGS)

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: install
	$(BIN)/mypy

check: lint types coverage

clean:
	rm -rf $(VENV) .venv-cuda build *.egg-info .coverage .pytest_cache .mypy_cache .ruff_cache .hypothesis
