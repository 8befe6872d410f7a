# Everything runs in .venv, which each target makes if it is missing or outdated.
PYTHON ?= python3
BIN := .venv/bin
# Two cores: more OpenMP threads than cores are many times slower than too few.
export OMP_NUM_THREADS ?= $(shell nproc)
export HF_HUB_OFFLINE := 1

.PHONY: setup quickstart quickstart-fast test lint docs clean

setup: .venv/installed

.venv/installed: requirements.txt pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

quickstart: setup  ## synthesise a corpus, train CIF and CIF + HieraDist, score
	PATH=$(CURDIR)/$(BIN):$$PATH bash tools/quickstart.sh

quickstart-fast: setup  ## CIF only
	PATH=$(CURDIR)/$(BIN):$$PATH bash tools/quickstart.sh fast

test: setup  ## every test that needs no GPU, on up to four cores
	$(BIN)/python -m pytest -q -m "not gpu" -n auto --maxprocesses 4 --dist worksteal

lint: setup
	$(BIN)/ruff check
	$(BIN)/ruff format --check

docs: setup  ## the API reference, from the docstrings, into site/
	$(BIN)/pip install --quiet --disable-pip-version-check 'pdoc>=15'
	$(BIN)/python tools/api_reference.py site

clean:
	rm -rf .venv results site
