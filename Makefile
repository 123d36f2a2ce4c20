# vnp: every target sets up what it needs, in .venv, from requirements.lock.
# PYTHON may name another interpreter (3.11 or 3.12).

PYTHON ?= python3.11
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready

.PHONY: help demo test lint bench install clean

help:  ## this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/'

$(READY): requirements.lock pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "make: $(PYTHON) not found; use make PYTHON=python3"; exit 78; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

install: $(READY)  ## the environment only

demo: $(READY)  ## calls real genomes with the bundled models; again: says that it is done
	$(BIN)/vnp run demo/genomes/*.fa --out demo-out

lint: $(READY)  ## ruff and mypy --strict
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint  ## lint, and every test against a real Redis
	$(BIN)/pytest

bench: $(READY)  ## all benchmarks, some minutes; see docs/log.md
	$(BIN)/python -m tests.bench

clean:  ## removes what the targets made
	rm -rf $(VENV) demo-out build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
