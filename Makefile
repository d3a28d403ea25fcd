# make demo | test | lint | bench | results | screenshots. Each sets up .venv first, once.
# Another interpreter (3.10 to 3.13):  make test PYTHON=python3.12
# Options for pip, a mirror for instance: make test PIP_OPTIONS="..."

PYTHON ?= python3
PIP_OPTIONS ?=
VENV := .venv
PY := $(VENV)/bin/python
RUN := $(VENV)/.installed
DEV := $(VENV)/.installed-dev
JOBS ?= 2

.PHONY: demo test lint bench results screenshots

demo: $(RUN)
	$(PY) -m peftseg demo --out demo-out

test: $(DEV)
	OMP_NUM_THREADS=1 $(PY) -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder

lint: $(DEV)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(VENV)/bin/codespell

bench: $(DEV)
	OMP_WAIT_POLICY=PASSIVE $(PY) Testing/bench/bench_train.py
	OMP_WAIT_POLICY=PASSIVE $(PY) Testing/bench/bench_infer.py
	OMP_WAIT_POLICY=PASSIVE $(PY) Testing/bench/bench_job.py
	OMP_WAIT_POLICY=PASSIVE $(PY) Testing/bench/bench_gui.py
	OMP_WAIT_POLICY=PASSIVE $(PY) Testing/bench/bench_methods.py
	OMP_WAIT_POLICY=PASSIVE $(PY) Testing/bench/bench_loss.py
	OMP_WAIT_POLICY=PASSIVE $(PY) Testing/bench/bench_batch.py
	OMP_WAIT_POLICY=PASSIVE $(PY) Testing/bench/bench_dicom.py
	OMP_WAIT_POLICY=PASSIVE $(PY) Testing/bench/bench_inspect.py
	OMP_WAIT_POLICY=PASSIVE $(PY) Testing/bench/bench_site.py

# The pictures of Docs/tutorial.md, from the module on the stand-in for Slicer; the adaptation takes its full time.
screenshots: $(DEV)
	QT_QPA_PLATFORM=offscreen PEFTSEGMENT_TUTORIAL_MINUTES=3 PEFTSEGMENT_SCREENSHOTS=$(CURDIR)/Resources/Screenshots \
		$(PY) -m pytest -q Testing/slicer/test_tutorial.py

# Trains and scores what Docs/results/few_shot.csv does not hold yet (an hour without the file), then prints the tables. Needs the real scans
# (../shared/data, see Docs/results.md) even where nothing is missing. Without them, the tables of the committed rows are printed by
#   .venv/bin/python Testing/bench/real_data.py --stage table --out Docs/results/few_shot.csv --reference LoRA --reference scratch
results: $(RUN)
	$(PY) Testing/bench/real_data.py --stage test --epochs 120 --out Docs/results/few_shot.csv \
		--reference LoRA --reference scratch

$(RUN): pyproject.toml constraints.txt
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PY) -m pip install $(PIP_OPTIONS) -c constraints.txt -e ".[report]"
	touch $@

# What tests and lint need beyond that. setuptools is named for the packaging test, which builds a wheel offline.
$(DEV): $(RUN)
	$(PY) -m pip install $(PIP_OPTIONS) -c constraints.txt -e ".[dev]" "setuptools>=70.1"
	touch $@
