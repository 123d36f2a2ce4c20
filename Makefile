# vnp: every target sets up what it needs, in .venv, from requirements.lock.
# PYTHON may name another interpreter (3.11 or 3.12).

PYTHON ?= python3.11
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready

.PHONY: help env demo test lint bench crash endurance load servers install uninstall clean

N     ?= 200
SEED  ?= 1
REDIS ?= 6.2
TESTERS ?= 2
LOAD  ?= --small 200 --large 10 --records 20000
PREFIX ?= /opt/vnp
DESTDIR ?=

help:  ## this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/'

$(READY): requirements.lock pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "make: $(PYTHON) not found; use make PYTHON=python3"; exit 78; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

env: $(READY)  ## the environment only

demo: $(READY)  ## calls real genomes with the bundled models; again: says that it is done
	$(BIN)/vnp run demo/genomes/*.fa --out demo-out

lint: $(READY)  ## ruff and mypy --strict
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint  ## lint, and every test against a real Redis; TESTERS=2 files at a time
	$(BIN)/pytest -n $(TESTERS) --dist loadfile

bench: $(READY)  ## all benchmarks, some minutes; see docs/log.md
	$(BIN)/python -m tests.bench

crash: $(READY)  ## N faults (200) land on a real service; SEED, REDIS=6.2|7.0|8.2
	$(BIN)/python -m tests.crash.campaign --faults $(N) --seed $(SEED) --redis $(REDIS)

endurance: $(READY)  ## a million frames, and a thousand jobs beside a large one; some minutes
	$(BIN)/python -m tests.crash.endurance

load: $(READY)  ## LOAD: many small jobs beside large ones on three nodes; docs/scaling.md
	$(BIN)/python -m tests.cluster.load $(LOAD)

servers: $(READY)  ## Redis 7.0 and 8.2 for `make crash`, into .servers
	$(BIN)/python -m tests.crash.servers

install:  ## units, commands and an environment of their own: PREFIX=/opt/vnp, DESTDIR=; as root
	PYTHON=$(PYTHON) systemd/install.sh "$(DESTDIR)" "$(PREFIX)"

uninstall:  ## removes what install made; jobs, results and /etc/vnp stay
	systemd/uninstall.sh "$(DESTDIR)" "$(PREFIX)"

clean:  ## removes what the targets made
	rm -rf $(VENV) demo-out build .servers *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
