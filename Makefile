# make demo | test | lint | bench | results. Each sets up .venv first, once.
# Another interpreter (3.10 to 3.13):  make test PYTHON=python3.12
# Torch without CUDA on Linux:         make test PIP_OPTIONS="--extra-index-url https://download.pytorch.org/whl/cpu"

PYTHON ?= python3
PIP_OPTIONS ?=
VENV := .venv
PY := $(VENV)/bin/python
STAMP := $(VENV)/.installed
JOBS ?= 2

.PHONY: demo test lint bench results

demo: $(STAMP)
	$(PY) -m peftseg demo --out demo-out

test: $(STAMP)
	OMP_NUM_THREADS=1 $(PY) -m pytest -n $(JOBS)

lint: $(STAMP)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(VENV)/bin/codespell

bench: $(STAMP)
	$(PY) Testing/bench/real_data.py --stage test --out Docs/results/few_shot.csv

results: $(STAMP)
	$(PY) Testing/bench/real_data.py --stage table --out Docs/results/few_shot.csv

# setuptools is named for the packaging test, which builds a wheel offline.
$(STAMP): pyproject.toml constraints.txt
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PY) -m pip install $(PIP_OPTIONS) -c constraints.txt -e ".[dev]" "setuptools>=70.1"
	touch $@
