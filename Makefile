# Everything works from a fresh clone: the virtual environment is made where it is missing.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
READY := $(VENV)/.ready

.PHONY: run sweep test test-long checks benchmarks clean

run: $(INSTALLED)
	$(BIN)/bkray run pipelines/recipes/quickstart.yaml --out runs

sweep: $(INSTALLED)
	$(BIN)/bkray sweep tune/sweeps/quickstart.yaml --out runs

PYTEST := $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --durations 10

test: $(READY)
	$(PYTEST) -m 'not long'

test-long: $(READY)
	$(PYTEST) -m long

checks: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# All but the two that need text of their own (see tests/benchmarks/README.md).
benchmarks: $(READY)
	for script in $(filter-out %/bench_transfer.py %/bench_memory.py,$(wildcard tests/benchmarks/bench_*.py)); do OMP_NUM_THREADS=1 $(BIN)/python $$script || exit 1; done

# torch first and pinned, so that nothing else decides which build of it comes.
$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "bkray needs Python 3.11 or newer, this is " + sys.version.split()[0] + ": make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt torch
	$(BIN)/python -m pip install --quiet -c constraints.txt -e .
	touch $(INSTALLED)

# What tests and checks need beside.
$(READY): $(INSTALLED)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	touch $(READY)

clean:
	rm -rf $(VENV) build *.egg-info
