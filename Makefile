# Every target makes the environment first, so each works on a machine that has only Python 3.11 and make.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: help env demo test check docs zoo validity bench clean

help:  ## Show the targets.
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /: /'

env: $(STAMP)  ## Create .venv with the exact versions of constraints.txt.

$(STAMP): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "prismlens needs Python 3.11; '$(PYTHON)' was not found. Fix: make PYTHON=/path/to/python3.11"; exit 1; }
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if v == (3, 11) else f"prismlens is tested on Python 3.11 only; $(PYTHON) is {v[0]}.{v[1]}. Fix: make PYTHON=/path/to/python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[all]'
	@touch $(STAMP)

demo: $(STAMP)  ## Ask four shipped models, three of known mechanism, whether they use their latents.
	$(BIN)/prismlens demo

test: $(STAMP)  ## Run all tests, file by file on two processes of one thread: the models are too small for more.
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q --numprocesses 2 --dist loadfile

check: $(STAMP)  ## Lint, format, types, and the import contract.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/python -m pytest -q tests/test_contract.py

docs: $(STAMP)  ## Build the documentation into site/; a broken link is an error.
	$(BIN)/mkdocs build --strict

zoo: $(STAMP)  ## Train the shipped models again, into runs/zoo.
	$(BIN)/prismlens zoo --build --out runs/zoo

validity: $(STAMP)  ## Hold the instrument against models of known mechanism and simulated worlds; writes docs/validity.md.
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/validity/run.py

bench: $(STAMP)  ## Measure what hooks, sweeps, patching, probes and training cost; tables, and JSON in benchmarks/records.
	for name in hooks sweep patching probes training; do \
	  echo "== $$name"; \
	  OMP_NUM_THREADS=1 $(BIN)/python benchmarks/$$name.py --json benchmarks/records/$$name.json; \
	done

clean:  ## Remove the environment and caches.
	rm -rf $(VENV) .pytest_cache .ruff_cache .hypothesis
